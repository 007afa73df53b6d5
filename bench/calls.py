"""What a warm call of AWS costs the caller: our client's CPU beside botocore's, in turns, over the loopback.

The table is a process of its own that says the same at once, so what is counted is the caller's alone: the
request made, signed and sent, the answer read. A row is of 2 KB.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import botocore.session
import numpy as np
from botocore.config import Config

from functions.aws.clients import client

ROUNDS, CALLS = 20, 100
KEY = {"pk": {"S": "u" * 32}}
ITEM = {
    **KEY,
    "state": {"B": bytes(512)},
    "ring": {"B": bytes(768)},
    "vector": {"B": bytes(256)},
    "v": {"N": "7"},
}
OURS, THEIRS = "ours", "botocore"
CALLS_OF: dict[str, dict[str, Any]] = {
    "get_item": {"TableName": "rows", "Key": KEY, "ConsistentRead": True},
    "put_item": {"TableName": "rows", "Item": ITEM, "ConditionExpression": "attribute_not_exists(pk)"},
}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {CALLS} calls of each kind")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    report = measure(options.rounds)
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(rounds: int) -> dict[str, Any]:
    """CPU microseconds of a call, the median round of each kind."""
    here, there = multiprocessing.Pipe()
    table = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    table.start()
    try:
        with patch.dict(os.environ, ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{here.recv()}"}):
            spent = _in_turns(rounds)
    finally:
        table.terminate()
        table.join()
    return {
        "rounds": rounds,
        "microseconds": {
            call: {who: round(float(np.median(times)), 1) for who, times in by.items()}
            for call, by in spent.items()
        },
    }


def _in_turns(rounds: int) -> dict[str, dict[str, list[float]]]:
    limits = Config(retries={"total_max_attempts": 3, "mode": "standard"}, tcp_keepalive=True)
    clients = {
        OURS: client("dynamodb", connect_s=1, read_s=2, attempts=3),
        THEIRS: botocore.session.Session().create_client("dynamodb", config=limits),
    }
    spent: dict[str, dict[str, list[float]]] = {call: {OURS: [], THEIRS: []} for call in CALLS_OF}
    for turn in range(rounds + 1):
        for call, given in CALLS_OF.items():
            for who, made in clients.items():
                took_us = _timed(getattr(made, call), given)
                if turn:
                    spent[call][who].append(took_us)
    return spent


def _timed(call: Callable[..., Any], given: dict[str, Any]) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        answer = call(**given)
    took_s = time.process_time() - started
    if "Item" in answer and answer["Item"] != ITEM:
        raise RuntimeError(f"{answer}; expected the item")
    return 1e6 * took_s / CALLS


def serve(ready: Connection) -> None:
    """A table that has one row, and takes every other."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Table)
    ready.send(server.server_port)
    server.serve_forever()


class _Table(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self) -> None:
        """DynamoDB's."""
        self.rfile.read(int(self.headers["Content-Length"]))
        said = {"Item": ITEM} if self.headers["X-Amz-Target"].endswith(".GetItem") else {}
        body = json.dumps(said, default=lambda data: base64.b64encode(data).decode()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amz-crc32", str(zlib.crc32(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def as_table(report: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    lines = ["| a warm call | ours, CPU us | botocore's | times |", "|---|---|---|---|"]
    for call, us in report["microseconds"].items():
        lines.append(f"| {call} | {us[OURS]:.0f} | {us[THEIRS]:.0f} | {us[THEIRS] / us[OURS]:.1f} |")
    return "\n".join([*lines, "", f"{report['rounds']} rounds of {CALLS} calls of each, the median round."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
