"""What an operator does by hand: replay the archive, erase a user or export one, write the archive's keys."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from functions.aws.keys import KeyTable, keys_client
from functions.aws.rows import Rows, patient_client
from functions.aws.secret import Secret, ShopSecret, secret_client
from functions.aws.settings import Settings
from functions.core.errors import InvalidSettings, VitrineError
from functions.core.events import user_key
from functions.core.served import ServedBundle, open_bundle
from local.account import enter_account, read_pointer
from local.archive import write_keys, write_private
from local.held import Sources, bucket_lines, bucket_quarantine, everything, folder_lines
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
    _add_user(parser)
    options = parser.parse_args(arguments)
    return _told(lambda: _erase(options))


def held(arguments: list[str]) -> int:
    """Write all that is held of a user: the row, every event in the archive, what lies in quarantine."""
    parser = _parser("held", held)
    _add_user(parser)
    parser.add_argument(
        "--archive", type=Path, help="the archive's folder (default: that of --logs, the bucket's with --aws)"
    )
    parser.add_argument("--bundle", type=Path, help="folder of bundles, for the names of the row's items")
    parser.add_argument("--out", type=Path, help="a file instead of the standard output")
    options = parser.parse_args(arguments)
    return _told(lambda: _held(options))


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


def _add_user(parser: argparse.ArgumentParser) -> None:
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="the user id, as the shop's credentials name it")
    who.add_argument("--key", help="the user key")


def _told(act: Callable[[], int]) -> int:
    try:
        return act()
    except (VitrineError, OSError, ValueError, BotoCoreError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _enter(options: argparse.Namespace) -> None:
    if options.aws:
        name_credentials()
    else:
        enter_account(options.logs / "account.json")


def name_credentials() -> None:
    """Say in the environment, where alone functions look, whom boto3 takes us for: a profile, a role, …

    What that says may end within the hour. A command's calls by the functions' code are made in its first
    seconds; what may go on for longer, a table's scan or an archive's objects, boto3's own clients read. They
    are of the session that found the credentials, which renews them, not of one that reads the environment.
    """
    boto3.setup_default_session()
    session = boto3.DEFAULT_SESSION
    assert session is not None
    if (found := session.get_credentials()) is not None:
        access_key, secret_key, token, *_ = found.get_frozen_credentials()
        os.environ |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        os.environ["AWS_SESSION_TOKEN"] = token or ""
    if session.region_name:
        os.environ |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), session.region_name)


def _replay(options: argparse.Namespace) -> int:
    _enter(options)
    bundles = _arms(options.bundle)
    encoders = [bundle.encoder for bundle in bundles]
    dynamodb = boto3.client("dynamodb")
    ends_s = time.monotonic() + options.wait
    while True:
        records, reading = read_archive(options.archive or options.logs / "archive")
        live = live_rows(_scan(dynamodb, os.environ["VITRINE_TABLE"]))
        verdict = compare(records, live, encoders)
        if verdict.good or time.monotonic() >= ends_s:
            break
        time.sleep(AGAIN_S)
    print(f"{verdict.summary()} shredded={reading.shredded} broken={reading.broken}")
    _show(verdict)
    for bundle in bundles:
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
    key = _key(options, secret)
    print(json.dumps(own.erase(key, secret.keys, int(time.time())).body()))
    return 0


def _key(options: argparse.Namespace, secret: ShopSecret) -> str:
    return str(options.key or user_key(secret.pseudonym, options.user))


def _held(options: argparse.Namespace) -> int:
    _enter(options)
    settings = Settings.from_environment()
    if not settings.keys:
        raise InvalidSettings("VITRINE_KEYS is not set; expected the name of a table")
    s3 = boto3.client("s3")
    lines: Iterable[bytes] = bucket_lines(s3, settings.bucket)
    if options.archive or not options.aws:
        lines = folder_lines(options.archive or options.logs / "archive")
    sources = Sources(
        Rows(patient_client(), settings.table),
        KeyTable(keys_client(), settings.keys, os.urandom),
        lines,
        bucket_quarantine(s3, settings.bucket),
    )
    key = _key(options, Secret(secret_client(), settings.secret).get())
    bundle = _champion(options.bundle) if options.bundle else None
    text = json.dumps(everything(key, sources, bundle, int(time.time())), ensure_ascii=False, indent=1)
    if options.out:
        write_private(options.out, text + "\n")
    else:
        print(text)
    return 0


def _arms(bundles: Path) -> list[ServedBundle]:
    """The champion, and the challenger where the pointer names one."""
    pointer = read_pointer(bundles)
    names = [pointer["champion"], *filter(None, [pointer.get("challenger")])]
    return [open_bundle(bundles / name) for name in names]


def _champion(bundles: Path) -> ServedBundle:
    return open_bundle(bundles / read_pointer(bundles)["champion"])


def _keys(options: argparse.Namespace) -> int:
    _enter(options)
    write_keys(boto3.client("dynamodb"), os.environ["VITRINE_KEYS"], options.out)
    return 0
