"""Handlers as small as can be, for tests of what surrounds handlers; they leave traces in files."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any


def echo(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answers with its event, unless the body asks for trouble."""
    if event.get("body") == "raise":
        raise ValueError("asked for")
    return {
        "statusCode": 201,
        "headers": {"Content-Type": "application/json", "X-Number": 7},
        "cookies": ["a=1; Path=/", "b=2"],
        "body": json.dumps({"event": event, "remaining_ms": context.get_remaining_time_in_millis()}),
    }


def bare(event: dict[str, Any], context: Any) -> Any:
    """Answers without a status code."""
    return {"function": context.function_name, "table": os.environ.get("VITRINE_TABLE")}


def keep(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Appends every record to a file; reports one named `fail` as failed the first time it comes."""
    folder = Path(os.environ["KEEP_IN"])
    for record in event["Records"]:
        data = base64.b64decode(record["kinesis"]["data"]).decode()
        once = folder / "failed-once"
        if data == "fail" and not once.exists():
            once.touch()
            return {"batchItemFailures": [{"itemIdentifier": record["kinesis"]["sequenceNumber"]}]}
        with (folder / "kept.jsonl").open("a") as out:
            entry = {"id": record["eventID"], "data": data, "time": time.time()}
            out.write(json.dumps(entry) + "\n")
    return {"batchItemFailures": []}
