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


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An erasure in the log: no line of the archive, but the end of the key that the lines before it need."""

    shard: str
    sequence: int
    user_key: str
    receipt: bytes


def archived(data: bytes, metadata: Mapping[str, Any]) -> Archived | Forgotten:
    """A record of the log with what Firehose says of its place; raises InvalidEvent."""
    arrived_s = int(metadata["approximateArrivalTimestamp"]) / 1000
    key, said = decode_record(data, int(arrived_s))
    if metadata["partitionKey"] != key:
        raise InvalidEvent("partition key", "another", "the record's user key")
    shard, sequence = str(metadata["shardId"]), int(metadata["sequenceNumber"])
    if isinstance(said, Erasure):
        return Forgotten(shard, sequence, key, said.receipt)
    return Archived(shard, sequence, arrived_s, key, json.loads(data)["event"])
