"""Stream records: how an event or an erasure is written into the log, and how every reader reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from functions.core.errors import InvalidEvent
from functions.core.events import Event, parse_event

MAX_RECORD_BYTES = 32 * 2**10
USER_KEY = re.compile(r"[A-Za-z0-9_-]{22}")
RECEIPT = re.compile(r"[0-9a-f]{16}")
FIELDS = ({"user_key", "event"}, {"user_key", "erase"})
# Never unpacked: one record is one event, and how large a packed one is shows only when it is unpacked.
PACKED = {
    b"\xf3\x89\x9a\xc2": "aggregated by the Kinesis Producer Library",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
}
MAGIC = tuple(PACKED)


@dataclass(frozen=True, slots=True)
class Erasure:
    """The user is forgotten from here on: whatever the log has of the user before this is in no row."""

    receipt: bytes  # 8, made at random for each request


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


JSON = json.JSONDecoder(parse_constant=_refuse)
WRITER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def encode_record(user_key: str, event: Mapping[str, Any]) -> bytes:
    """The record for one event, as received; raises InvalidEvent for one that no reader would take."""
    try:
        data = WRITER.encode({"user_key": user_key, "event": event})
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("event", type(error).__name__, "JSON with finite numbers, not too deep") from error
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidEvent("event", f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES} bytes")
    return data.encode()


def encode_erasure(user_key: str, receipt: bytes) -> bytes:
    """The record that erases a user."""
    return WRITER.encode({"user_key": user_key, "erase": receipt.hex()}).encode()


def decode_record(data: bytes, now_s: int) -> tuple[str, Event | Erasure]:
    """User key and event, or erasure, of a record that arrived at `now_s`; raises InvalidEvent."""
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidEvent("record", f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES} bytes")
    if data.startswith(MAGIC):
        packing = next(packing for magic, packing in PACKED.items() if data.startswith(magic))
        raise InvalidEvent("record", packing, "one event in plain JSON, by PutRecord")
    try:
        record = _parsed(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("record", data[:100], f"JSON in UTF-8 ({error})") from error
    if not isinstance(record, dict) or record.keys() not in FIELDS:
        raise InvalidEvent("record", str(record)[:100], "an object with user_key and event")
    key = record["user_key"]
    if not isinstance(key, str) or not USER_KEY.fullmatch(key):
        raise InvalidEvent("user_key", key, "22 characters of base64url")
    if "erase" in record:
        return key, _erasure(record["erase"])
    return key, parse_event(record["event"], now_s)


def _parsed(text: str) -> object:
    """`JSON.decode` at half its time: what it does about white space is a third of an event's parsing."""
    text = text.strip(" \t\n\r")
    value, end = JSON.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _erasure(receipt: object) -> Erasure:
    if not isinstance(receipt, str) or not RECEIPT.fullmatch(receipt):
        raise InvalidEvent("erase", receipt, "16 hex digits")
    return Erasure(bytes.fromhex(receipt))
