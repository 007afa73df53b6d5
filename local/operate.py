"""What an operator does by hand: replay the archive, erase a user, write the archive's keys."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from functions.core.errors import VitrineError
from functions.core.events import user_key
from functions.core.served import open_bundle
from local.account import enter_account, read_pointer
from local.archive import write_keys
from local.replay import Verdict, compare, live_rows
from train.archive import read_archive

LOGS = Path("build/local")
SHOWN = 10
AGAIN_S = 0.5


def replay(arguments: list[str]) -> int:
    """Rebuild all rows from the archive and compare them with the live table; 1 where they differ."""
    parser = _parser("replay", replay)
    parser.add_argument("--bundle", required=True, type=Path, help="folder of bundles, with its pointer.json")
    parser.add_argument("--archive", type=Path, help="the archive's folder (default: archive/ of --logs)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds in which the stream may catch up")
    options = parser.parse_args(arguments)
    return _told(lambda: _replay(options))


def erase(arguments: list[str]) -> int:
    """Erase a user, as DELETE /v1/me does; prints the receipt."""
    parser = _parser("erase", erase)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="the user id, as the shop's credentials name it")
    who.add_argument("--key", help="the user key")
    options = parser.parse_args(arguments)
    return _told(lambda: _erase(options))


def keys(arguments: list[str]) -> int:
    """Write the archive's keys into a file that its readers take; it is as secret as the events are."""
    parser = _parser("keys", keys)
    parser.add_argument("--out", required=True, type=Path, help="keys.jsonl in the archive's folder")
    options = parser.parse_args(arguments)
    return _told(lambda: _keys(options))


def _parser(name: str, command: Callable[..., int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m local {name}", description=command.__doc__)
    parser.add_argument("--logs", type=Path, default=LOGS, help=f"of the cloud that runs (default {LOGS})")
    parser.add_argument("--aws", action="store_true", help="the account of VITRINE_… and AWS_… instead")
    return parser


def _told(act: Callable[[], int]) -> int:
    try:
        return act()
    except (VitrineError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _enter(options: argparse.Namespace) -> None:
    if not options.aws:
        enter_account(options.logs / "account.json")


def _replay(options: argparse.Namespace) -> int:
    _enter(options)
    bundle = open_bundle(options.bundle / read_pointer(options.bundle)["champion"])
    dynamodb = boto3.client("dynamodb")
    ends_s = time.monotonic() + options.wait
    while True:
        records, reading = read_archive(options.archive or options.logs / "archive")
        verdict = compare(records, live_rows(_scan(dynamodb, os.environ["VITRINE_TABLE"])), bundle.encoder)
        if verdict.good or time.monotonic() >= ends_s:
            break
        time.sleep(AGAIN_S)
    print(f"{verdict.summary()} shredded={reading.shredded} broken={reading.broken}")
    _show(verdict)
    bundle.close()
    return 0 if verdict.good else 1


def _show(verdict: Verdict) -> None:
    for name in ("differing", "only_archived", "only_live"):
        for place in getattr(verdict, name)[:SHOWN]:
            print(f"  {name}: {place}")


def _scan(dynamodb: Any, table: str) -> list[dict[str, Any]]:
    pages = dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    return [item for page in pages for item in page["Items"]]


def _erase(options: argparse.Namespace) -> int:
    _enter(options)
    from functions.me import eraser  # reads the environment

    own = eraser()
    secret = own.secret.get()
    key = options.key or user_key(secret.pseudonym, options.user)
    print(json.dumps(own.erase(key, secret.keys, int(time.time())).body()))
    return 0


def _keys(options: argparse.Namespace) -> int:
    _enter(options)
    write_keys(boto3.client("dynamodb"), os.environ["VITRINE_KEYS"], options.out)
    return 0
