"""One record of the log as the archive has it, and the key of the user whose it is.

How a line of the archive is sealed with it is `sealed.py`: only who writes or reads lines needs a cipher.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.core.errors import InvalidEvent
from functions.core.records import Erasure, decode_record

KEY_BYTES, NAME_BYTES = 32, 8


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key and the name that lines know it by; the name says nothing of the user."""

    name: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Archived:
    """One record of the log, as a reader of the archive has it again."""

    shard: str
    sequence: int
    arrived_s: float
    user_key: str
    event: Mapping[str, Any]

    @property
    def order(self) -> tuple[str, int]:
        """Log order of one user: shards are numbered as they come to be, so parents sort before children."""
        return self.shard, self.sequence


def archived(data: bytes, metadata: Mapping[str, Any]) -> Archived | None:
    """A record of the log with what Firehose says of its place; None for an erasure; raises InvalidEvent."""
    arrived_s = int(metadata["approximateArrivalTimestamp"]) / 1000
    key, said = decode_record(data, int(arrived_s))
    if metadata["partitionKey"] != key:
        raise InvalidEvent("partition key", "another", "the record's user key")
    if isinstance(said, Erasure):
        return None
    event = json.loads(data)["event"]
    return Archived(str(metadata["shardId"]), int(metadata["sequenceNumber"]), arrived_s, key, event)
