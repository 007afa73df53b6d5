"""Firehose's transformation: each record of the log becomes a sealed line of the archive.

Firehose reads the stream by itself, beside update, and puts the lines into the bucket. It delivers a record
at least once and in no order: a line has its place in the log, by which readers order and know it again.
An erasure that comes by ends its user's key, should the request that asked for it have died on its way there.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from functions.aws.keys import Entry, KeyTable, keys_client
from functions.aws.log import Position
from functions.aws.memory import settled
from functions.aws.settings import Settings
from functions.aws.telemetry import emit, logger
from functions.core.archived import Archived, DataKey, Forgotten, archived
from functions.core.errors import InvalidEvent, InvalidSettings, Unavailable
from functions.core.sealed import NONCE_BYTES, seal

DROPPED, OK = "Dropped", "Ok"
TRIES = 5  # of a user's first key, when another batch or an erasure comes between


@dataclass(frozen=True)
class Archiver:
    """What a warm environment keeps."""

    keys: KeyTable
    random: Callable[[int], bytes] = os.urandom
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, settings: Settings) -> Archiver:
        """With clients of the account that the environment names; raises InvalidSettings."""
        if not settings.keys:
            raise InvalidSettings("VITRINE_KEYS is not set; expected the name of a table")
        return cls(KeyTable(keys_client(), settings.keys, os.urandom))

    def lines(self, records: Sequence[Archived | Forgotten | None]) -> list[bytes | None]:
        """A line for each record, None for one that an erasure came after and for what is none.

        Keys are ended before any is read. Raises Unavailable.
        """
        for record in records:
            if isinstance(record, Forgotten):
                place = Position(record.shard, str(record.sequence))
                self.keys.shred(record.user_key, place, record.receipt, int(self.clock()))
        entries = self.keys.get_many(r.user_key for r in records if isinstance(r, Archived))
        return [self._line(r, entries) if isinstance(r, Archived) else None for r in records]

    def _line(self, record: Archived, entries: dict[str, Entry]) -> bytes | None:
        for _ in range(TRIES):
            entry = entries.get(record.user_key, Entry())
            if entry.before_erasure(*record.order):
                return None
            key: DataKey | None = entry.key or self.keys.create(record.user_key, entry)
            if key is not None:
                entries[record.user_key] = replace(entry, key=key)
                return seal(record, key, self.random(NONCE_BYTES))
            entries.pop(record.user_key, None)
            entries.update(self.keys.get_many([record.user_key]))
        raise Unavailable(f"another writer of a key was faster {TRIES} times")


@cache
def archiver() -> Archiver:
    """The one Archiver of this environment."""
    return settled(Archiver.of(Settings.from_environment()))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one batch of Firehose's; what raises is tried again by it, and kept as it is when that fails.

    A record that is no event is dropped: update has put it into quarantine.
    """
    return handle(archiver(), event)


def handle(own: Archiver, event: dict[str, Any]) -> dict[str, Any]:
    """What `handler` does, in a given environment."""
    lines = own.lines([_read(record) for record in event["records"]])
    answered = [_answer(raw["recordId"], line) for raw, line in zip(event["records"], lines, strict=True)]
    kept = sum(record["result"] == OK for record in answered)
    emit({"RecordsArchived": kept, "RecordsNotArchived": len(answered) - kept})
    return {"records": answered}


def _read(record: Mapping[str, Any]) -> Archived | Forgotten | None:
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
