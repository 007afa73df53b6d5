"""The log: shards that split and merge, sequence numbers of any length, and what each record really is."""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from local.event_source import Page, Record, Shard
from simulate.reference import event_hash
from simulate.table import refused, unanswered
from simulate.world import LOG_FAULTS, World

STREAM = "events"
ARN = f"arn:aws:kinesis:eu-central-1:123456789012:stream/{STREAM}"
SLOTS = 64  # of the hash of a partition key
MAX_SHARDS = 4


@lru_cache(256)
def slot_of(partition_key: str) -> int:
    """Where a partition key lies."""
    return zlib.crc32(partition_key.encode()) % SLOTS


@dataclass
class OpenShard:
    """A shard, open or closed, with its records of each lane (a lane: what one reader is given at a time)."""

    id: str
    low: int
    high: int  # slots low..high - 1
    parents: tuple[str, ...]
    next_sequence: int
    lanes: int
    ancestors: frozenset[str] = frozenset()  # all shards that it comes from
    open: bool = True
    records: list[list[Record]] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = [[] for _ in range(self.lanes)]
        self.sequences = [[] for _ in range(self.lanes)]

    @property
    def empty(self) -> bool:
        """Whether it never held a record."""
        return not any(self.records)


class Logged(NamedTuple):
    """A record and what it is: a user's event or erasure, or poison if nobody can read it."""

    shard: str
    record: Record
    user: str | None
    event: dict[str, Any] | None
    receipt: bytes | None  # of an erasure
    poison: bool


class SimulatedLog:
    """The client that `functions.aws.log` is handed, and the `Stream` that the mapping reads."""

    arn = ARN

    def __init__(self, world: World, shards: int, lanes: int) -> None:
        self._world, self._lanes = world, lanes
        self.by_id: dict[str, OpenShard] = {}
        self.all: list[Logged] = []  # in log order
        self.taken: Counter[tuple[str, str]] = Counter()  # user, event id
        self.forgotten: dict[str, set[bytes]] = {}  # by user, hashes of events that an erasure has erased
        # of the request under way: what each answered record named, and its own number
        self.orderings: list[tuple[str, str]] = []
        self.overtaken = self._failed = False  # whether one was put after one that failed
        step = SLOTS // shards
        for nth in range(shards):
            self._begin(nth * step, SLOTS if nth == shards - 1 else (nth + 1) * step, ())

    def put_record(
        self, *, StreamName: str, PartitionKey: str, Data: bytes, SequenceNumberForOrdering: str = ""
    ) -> dict[str, Any]:
        """What `collect` calls."""
        if StreamName != STREAM:
            raise refused("ResourceNotFoundException", "PutRecord")
        self.overtaken |= self._failed
        self._failed = True
        self._world.pause()
        fault = self._world.fault(LOG_FAULTS)
        if fault == "log throttle":
            raise refused("ProvisionedThroughputExceededException", "PutRecord")
        if fault == "log lost request":
            raise unanswered(self._world)
        if fault == "log late record":  # the SDK gave it up and tries again, and it arrives all the same
            self._world.later(lambda: self._append_late(PartitionKey, Data))
        logged = self.append(PartitionKey, Data, poison=False)
        if fault == "log lost answer":
            raise unanswered(self._world)
        self._failed = False
        self.orderings.append((SequenceNumberForOrdering, logged.record.sequence))
        return {"ShardId": logged.shard, "SequenceNumber": logged.record.sequence}

    def begin_request(self) -> None:
        """What is put from here on is another request's."""
        self.orderings.clear()
        self.overtaken = self._failed = False

    def _append_late(self, partition_key: str, data: bytes) -> None:
        self.append(partition_key, data, poison=False)

    def append(self, partition_key: str, data: bytes, poison: bool) -> Logged:
        """One record more, in the open shard of its key."""
        shard = self.shard_of(partition_key)
        sequence = shard.next_sequence
        shard.next_sequence += self._world.rng.randint(1, 60)
        record = Record(str(sequence), partition_key, data, self._world.now_s)
        lane = slot_of(partition_key) % self._lanes
        shard.records[lane].append(record)
        shard.sequences[lane].append(sequence)
        logged = Logged(shard.id, record, *_meaning(data, poison))
        if logged.user and logged.event:
            self.taken[logged.user, logged.event["event_id"]] += 1
            self.forgotten.get(logged.user, set()).discard(event_hash(logged.event["event_id"]))
        self.all.append(logged)
        self._world.note("log", shard.id, sequence, partition_key)
        return logged

    def shard_of(self, partition_key: str) -> OpenShard:
        """The open shard that takes a key."""
        slot = slot_of(partition_key)
        for shard in self.by_id.values():
            if shard.open and shard.low <= slot < shard.high:
                return shard
        raise LookupError(f"slot {slot}; expected one of an open shard")

    def split(self, shard: OpenShard) -> list[OpenShard]:
        """Close a shard and open its two children."""
        middle = (shard.low + shard.high) // 2
        self._close(shard)
        return [
            self._begin(shard.low, middle, (shard,)),
            self._begin(middle, shard.high, (shard,)),
        ]

    def merge(self, left: OpenShard, right: OpenShard) -> OpenShard:
        """Close two neighbours and open their child."""
        self._close(left)
        self._close(right)
        return self._begin(left.low, right.high, (left, right))

    def opened(self) -> list[OpenShard]:
        """The open shards, by their slots."""
        return sorted((s for s in self.by_id.values() if s.open), key=lambda s: s.low)

    def shards(self) -> list[Shard]:
        """All shards, as the mapping lists them."""
        return [Shard(shard.id, shard.parents) for shard in self.by_id.values()]

    def read_lane(self, shard: str, lane: int, after: str | None, limit: int) -> Page:
        """At most `limit` records of one lane after a sequence number."""
        of = self.by_id[shard]
        if not self._world.calm and self._world.rng.random() < 0.3:
            limit = self._world.rng.randint(1, limit)  # GetRecords may return less than there is
        start = bisect_right(of.sequences[lane], int(after)) if after is not None else 0
        records = of.records[lane][start : start + limit]
        return Page(tuple(records), end=not of.open and start + limit >= len(of.records[lane]))

    def _begin(self, low: int, high: int, parents: tuple[OpenShard, ...]) -> OpenShard:
        """A child's numbers may be lower than its parent's, and longer, or about to become longer."""
        rng = self._world.rng
        digits = rng.choice((1, 2, 3, 20, 56, 128))
        first = max(0, 10**digits - rng.randint(1, 200)) if rng.random() < 0.8 else 10**digits
        name = f"shardId-{len(self.by_id):012d}"
        ids = tuple(parent.id for parent in parents)
        ancestors = frozenset(ids).union(*(parent.ancestors for parent in parents))
        shard = OpenShard(name, low, high, ids, first, self._lanes, ancestors)
        self.by_id[name] = shard
        return shard

    def _close(self, shard: OpenShard) -> None:
        shard.open = False
        if shard.empty:
            self._world.happened("empty shard")


@dataclass(frozen=True)
class Lane:
    """One lane of the log as a `Stream`: what a mapping's parallelization factor makes of a shard."""

    log: SimulatedLog
    lane: int
    arn: str = ARN

    def shards(self) -> list[Shard]:
        """All shards."""
        return self.log.shards()

    def read(self, shard: str, after: str | None, limit: int) -> Page:
        """At most `limit` records of this lane."""
        return self.log.read_lane(shard, self.lane, after, limit)


def _meaning(data: bytes, poison: bool) -> tuple[str | None, dict[str, Any] | None, bytes | None, bool]:
    if poison:
        return None, None, None, True
    read = json.loads(data)
    receipt = bytes.fromhex(read["erase"]) if "erase" in read else None
    return read["user_key"], read.get("event"), receipt, False
