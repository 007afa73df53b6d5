"""A batch of stream records: what each says, whose it is, and which of them a row still lacks.

Order is log order. A sequence number has up to 129 digits and is compared within one shard only.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from functions.core.errors import InvalidEvent
from functions.core.events import Event
from functions.core.records import MAX_RECORD_BYTES, Erasure, decode_record
from functions.core.user_row import MAX_SEQUENCE, UserRow

MAX_BASE64 = 4 * -(-MAX_RECORD_BYTES // 3)


class StreamRecord(NamedTuple):
    """One record as Lambda hands it over: an event, or an erasure, or the `reason` why it is neither."""

    shard: str
    sequence: int
    raw: Mapping[str, Any]
    user_key: str = ""
    event: Event | None = None
    erasure: Erasure | None = None
    arrived_s: int = 0
    reason: str = ""


def read_records(records: Iterable[Mapping[str, Any]]) -> list[StreamRecord]:
    """The records of a Kinesis batch, in order; a poison record keeps its place, with the reason."""
    return [_read(record) for record in records]


def by_user(records: Iterable[StreamRecord]) -> dict[str, list[StreamRecord]]:
    """The records that can be folded, by user key, each user's in log order."""
    users: dict[str, list[StreamRecord]] = {}
    for record in records:
        if not record.reason:
            users.setdefault(record.user_key, []).append(record)
    return users


def unread(row: UserRow, records: Sequence[StreamRecord]) -> list[StreamRecord]:
    """Those records that are above the row's mark of their shard."""
    marks = {shard: row.mark(shard) for shard in {r.shard for r in records}}
    return [r for r in records if r.sequence > marks[r.shard]]


def marked(row: UserRow, records: Iterable[StreamRecord]) -> UserRow:
    """The row with its marks raised to these records."""
    highest: dict[str, int] = {}
    for record in records:
        if record.sequence > highest.get(record.shard, -1):
            highest[record.shard] = record.sequence
    for shard, sequence in highest.items():
        row = row.with_mark(shard, sequence)
    return row


def _read(record: Mapping[str, Any]) -> StreamRecord:
    kinesis = record["kinesis"]
    shard, sequence = str(record["eventID"]).partition(":")[0], int(kinesis["sequenceNumber"])
    try:
        arrived_s = int(kinesis["approximateArrivalTimestamp"])
        key, said = _decode(kinesis, sequence, arrived_s)
    except InvalidEvent as error:
        return StreamRecord(shard, sequence, record, reason=str(error))
    except Exception as error:  # whatever it is, the same bytes would do it again, for ever
        return StreamRecord(shard, sequence, record, reason=f"{type(error).__name__}: {error}")
    if isinstance(said, Erasure):
        return StreamRecord(shard, sequence, record, key, erasure=said, arrived_s=arrived_s)
    return StreamRecord(shard, sequence, record, key, event=said, arrived_s=arrived_s)


def _decode(kinesis: Mapping[str, Any], sequence: int, arrived_s: int) -> tuple[str, Event | Erasure]:
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise InvalidEvent("sequence number", sequence, "0 to 129 digits")
    text = kinesis.get("data") or ""
    if len(text) > MAX_BASE64:
        raise InvalidEvent("record", f"{len(text)} characters of base64", f"at most {MAX_BASE64}")
    data = binascii.a2b_base64(text, strict_mode=True)
    key, said = decode_record(data, arrived_s)
    if kinesis["partitionKey"] != key:
        # of another shard, or of another batch under way at once: its place in the user's order is not known
        raise InvalidEvent("partition key", "another", "the record's user key")
    return key, said
