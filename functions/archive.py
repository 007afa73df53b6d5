"""Firehose's transformation: each record of the log becomes a sealed line of the archive.

Firehose reads the stream by itself, beside update, and puts the lines into the bucket. It delivers a record
at least once and in no order: a line has its place in the log, by which readers order and know it again.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from functions.aws.keys import Entry, KeyTable, keys_client
from functions.aws.settings import Settings
from functions.aws.telemetry import emit, logger
from functions.core.archived import Archived, DataKey, archived
from functions.core.errors import InvalidEvent, InvalidSettings, Unavailable
from functions.core.sealed import NONCE_BYTES, seal

DROPPED, OK = "Dropped", "Ok"
TRIES = 5  # of a user's first key, when another batch or an erasure comes between


@dataclass(frozen=True)
class Archiver:
    """What a warm environment keeps."""

    keys: KeyTable

    @classmethod
    def of(cls, settings: Settings) -> Archiver:
        """With clients of the account that boto3's environment names; raises InvalidSettings."""
        if not settings.keys:
            raise InvalidSettings("VITRINE_KEYS is not set; expected the name of a table")
        return cls(KeyTable(keys_client(), settings.keys, os.urandom))

    def lines(self, records: Sequence[Archived]) -> list[bytes | None]:
        """A line for each record, None for one that an erasure came after; raises Unavailable."""
        entries = self.keys.get_many(record.user_key for record in records)
        return [self._line(record, entries) for record in records]

    def _line(self, record: Archived, entries: dict[str, Entry]) -> bytes | None:
        for _ in range(TRIES):
            entry = entries.get(record.user_key, Entry())
            if entry.before_erasure(*record.order):
                return None
            key: DataKey | None = entry.key or self.keys.create(record.user_key, entry)
            if key is not None:
                entries[record.user_key] = Entry(key, entry.erased)
                return seal(record, key, os.urandom(NONCE_BYTES))
            entries.pop(record.user_key, None)
            entries.update(self.keys.get_many([record.user_key]))
        raise Unavailable(f"another writer of a key was faster {TRIES} times")


@cache
def archiver() -> Archiver:
    """The one Archiver of this environment."""
    return Archiver.of(Settings.from_environment())


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one batch of Firehose's; what raises is tried again by it, and kept as it is when that fails.

    A record that is no event is dropped: update has put it into quarantine.
    """
    read = [_read(record) for record in event["records"]]
    lines = iter(archiver().lines([record for record in read if record is not None]))
    answered = [
        _answer(raw["recordId"], next(lines) if record is not None else None)
        for raw, record in zip(event["records"], read, strict=True)
    ]
    kept = sum(record["result"] == OK for record in answered)
    emit({"RecordsArchived": kept, "RecordsNotArchived": len(answered) - kept})
    return {"records": answered}


def _read(record: Mapping[str, Any]) -> Archived | None:
    metadata = record["kinesisRecordMetadata"]
    try:
        return archived(base64.b64decode(record["data"], validate=True), metadata)
    except (InvalidEvent, ValueError):
        place = {"shard": metadata["shardId"], "sequence": metadata["sequenceNumber"]}
        logger.warning("not archived: no event", extra=place)
        return None


def _answer(record_id: str, line: bytes | None) -> dict[str, str]:
    if line is None:
        return {"recordId": record_id, "result": DROPPED, "data": ""}
    return {"recordId": record_id, "result": OK, "data": base64.b64encode(line).decode()}
