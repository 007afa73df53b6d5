"""The archive on this machine: Firehose's part, files in a folder, and their keys beside them.

A folder is read by `python -m train --events`: `*.jsonl` with sealed lines, and `keys.jsonl`, one
`{"key", "secret"}` in hex a line, which holds what the key table holds. An erasure takes its line out.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from functions.aws.keys import entry_of
from functions.core.archived import DataKey
from local.account import KEYS, client
from local.event_source import MappingSettings
from local.function import Function
from local.poller import run
from local.template import Template
from train.archive import KEY_FILE

LINES = "events.jsonl"
BATCH = 500
KEYS_EVERY_S = 0.5
POLL_S = 1.0  # nobody waits for a line, and the emulator is one thread that rows are read and written by


class Delivery:
    """What Firehose does with a batch of the stream: it has it transformed, and appends what comes back."""

    def __init__(self, transform: Callable[[dict[str, Any]], Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._transform, self._path = transform, folder / LINES
        self._lock = threading.Lock()
        _end_last_line(self._path)

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """Deliver a batch of the event-source mapping's form; whatever raises, the batch comes again."""
        answer = self._transform({"records": [_to_firehose(record) for record in event["Records"]]})
        lines = [base64.b64decode(r["data"]) for r in answer["records"] if r["result"] == "Ok"]
        with self._lock, self._path.open("ab") as out:
            out.write(b"".join(lines))
            out.flush()
            os.fsync(out.fileno())
        return {"batchItemFailures": []}


def _to_firehose(record: dict[str, Any]) -> dict[str, Any]:
    kinesis = record["kinesis"]
    return {
        "recordId": record["eventID"],
        "data": kinesis["data"],
        "kinesisRecordMetadata": {
            "shardId": record["eventID"].partition(":")[0],
            "sequenceNumber": kinesis["sequenceNumber"],
            "partitionKey": kinesis["partitionKey"],
            "approximateArrivalTimestamp": int(1000 * kinesis["approximateArrivalTimestamp"]),
        },
    }


def _end_last_line(path: Path) -> None:
    """A process that was killed may have left half a line; the next one begins a line of its own."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as out:
            out.write(b"\n")


def stored_keys(dynamodb: Any, table: str) -> Iterator[tuple[str, DataKey]]:
    """All users that have a key, and their keys."""
    for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            key = entry_of(item).key
            if key is not None:
                yield item["pk"]["S"], key


def write_keys(dynamodb: Any, table: str, path: Path) -> None:
    """Write the keys as the readers of an archive take them; nobody but the owner reads the file."""
    keys = sorted((key.name.hex(), key.secret.hex()) for _, key in stored_keys(dynamodb, table))
    text = "".join(json.dumps({"key": name, "secret": secret}) + "\n" for name, secret in keys)
    if not path.exists() or path.read_text() != text:
        write_private(path, text)


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all; nobody but its owner reads it."""
    partial = path.with_name(f"{path.name}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    partial.replace(path)


def deliver(ready: Callable[[None], None], template: Path, checkpoints: Path, folder: Path) -> None:
    """Deliver the emulated account's stream into a folder until the process ends."""
    entry = Template(template).archiver()
    assert entry is not None
    delivery = Delivery(Function(entry).invoke, folder)
    threading.Thread(target=_keep_keys, args=(folder / KEY_FILE,), daemon=True).start()
    run(ready, delivery, MappingSettings(batch_size=BATCH, reports_failures=True), checkpoints, POLL_S)


def _keep_keys(path: Path) -> None:
    dynamodb = client("dynamodb", os.environ["AWS_ENDPOINT_URL"])
    pause = threading.Event()
    while True:
        try:
            write_keys(dynamodb, KEYS, path)
        except Exception:
            traceback.print_exc(file=sys.stderr)
        pause.wait(KEYS_EVERY_S)
