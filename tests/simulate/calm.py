"""The update function over the simulator's table and bucket; nothing goes wrong but what a test does."""

from __future__ import annotations

import json
from typing import Any

from functions.core.pointer import Pointer
from local.event_source import Record, kinesis_event
from simulate.bucket import Bucket
from simulate.encoder import SPACES
from simulate.function import Function
from simulate.stream import ARN
from simulate.table import Table
from simulate.world import START_S, World

SHARD = "shardId-000000000000"


class CalmStream:
    """One shard, one champion; what the simulator finds wrong with a row is in `world.violations`."""

    def __init__(self, seed: int = 0) -> None:
        self.world = World(seed, calm=True)
        self.table, self.bucket = Table(self.world), Bucket(self.world)
        self.champion = SPACES[0]
        self.function = Function(
            self.world, self.table, self.bucket, lambda: Pointer(2 * self.champion), 60.0
        )

    def deliver(self, records: list[Record], shard: str = SHARD) -> list[str]:
        """Hand the function a batch; the sequence numbers that it wants again."""
        self.world.now_s += 31.0  # so that the pointer is looked at again
        answer: Any = self.function.invoke(kinesis_event(records, shard, ARN))
        return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def record(sequence: int, user: str, event: object) -> Record:
    """A stream record; `event` that is bytes is the record's whole data."""
    data = event if isinstance(event, bytes) else json.dumps({"user_key": user, "event": event}).encode()
    return Record(str(sequence), user, data, START_S)
