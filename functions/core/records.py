"""Stream records: how `collect` writes an event into the log and how every reader of the log reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from functions.core.errors import InvalidEvent
from functions.core.events import Event, parse_event

MAX_RECORD_BYTES = 32 * 2**10
USER_KEY = re.compile(r"[A-Za-z0-9_-]{22}")
FIELDS = {"user_key", "event"}
# Never unpacked: one record is one event, and how large a packed one is shows only when it is unpacked.
PACKED = {
    b"\xf3\x89\x9a\xc2": "aggregated by the Kinesis Producer Library",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


JSON = json.JSONDecoder(parse_constant=_refuse)


def encode_record(user_key: str, event: Mapping[str, Any]) -> bytes:
    """The record for one event, as received; raises InvalidEvent for one that no reader would take."""
    try:
        data = json.dumps({"user_key": user_key, "event": event}, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("event", type(error).__name__, "JSON with finite numbers, not too deep") from error
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidEvent("event", f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES} bytes")
    return data.encode()


def decode_record(data: bytes, now_s: int) -> tuple[str, Event]:
    """User key and event of a record that arrived at `now_s`; raises InvalidEvent."""
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidEvent("record", f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES} bytes")
    for magic, packing in PACKED.items():
        if data.startswith(magic):
            raise InvalidEvent("record", packing, "one event in plain JSON, by PutRecord")
    try:
        record = JSON.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("record", data[:100], f"JSON in UTF-8 ({error})") from error
    if not isinstance(record, dict) or set(record) != FIELDS:
        raise InvalidEvent("record", str(record)[:100], f"an object with {sorted(FIELDS)}")
    key = record["user_key"]
    if not isinstance(key, str) or not USER_KEY.fullmatch(key):
        raise InvalidEvent("user_key", key, "22 characters of base64url")
    return key, parse_event(record["event"], now_s)
