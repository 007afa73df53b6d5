"""The event-source mapping: a reader for every lane of every shard, parents first, by Lambda's own rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from local.event_source import MappingSettings, ShardConsumer, startable
from local.template import Template
from simulate.stream import Lane, SimulatedLog
from simulate.world import World

Handler = Callable[[dict[str, Any]], object]


@cache
def template_settings() -> tuple[MappingSettings, int]:
    """The mapping that the template states, and the function's time in seconds."""
    function, settings = Template().mapping()
    return settings, function.timeout_s


@dataclass
class Reader:
    """One lane of one shard."""

    shard: str
    lane: int
    consumer: ShardConsumer
    poller: int
    due_s: float = 0.0
    busy: bool = False


@dataclass
class Mapping:
    """All readers of the log; a checkpoint goes with each."""

    world: World
    log: SimulatedLog
    handler: Handler
    settings: MappingSettings
    lanes: int
    on_checkpoint: Callable[[str, int, str], None]
    on_discard: Callable[[dict[str, Any]], None]
    readers: dict[tuple[str, int], Reader] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], str] = field(default_factory=dict)
    drained: set[str] = field(default_factory=set)
    _delivered: set[tuple[str, str]] = field(default_factory=set)
    _pollers: int = 0
    _drains: int = 0  # how often `drained` has changed
    _looked: tuple[int, int, int] = (0, 0, 0)  # shards, readers and drains when `start` last looked
    _died_of: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # records of the batch that failed last

    def start(self) -> None:
        """Begin with the shards whose turn has come."""
        now = (len(self.log.by_id), len(self.readers), self._drains)
        if now == self._looked:
            return
        self._looked = now
        started = {shard for shard, _ in self.readers}
        for shard in startable(self.log.shards(), started, self.drained):
            for lane in range(self.lanes):
                self._open(shard.id, lane, None)

    def step(self, reader: Reader) -> None:
        """One read, invocation or discard of a reader."""
        if reader.busy:
            return
        reader.busy = True
        wait_s = reader.consumer.step()
        reader.busy = False
        reader.due_s = self.world.now_s + (60.0 if math.isinf(wait_s) else wait_s)
        if reader.consumer.drained and self.readers.get((reader.shard, reader.lane)) is reader:
            self._drain(reader.shard)

    def ready(self) -> list[Reader]:
        """Readers that have something to do now."""
        now_s = self.world.now_s
        return [
            r
            for r in self.readers.values()
            if r.due_s <= now_s and r.shard not in self.drained and self._free(r)
        ]

    def waiting(self) -> list[Reader]:
        """Readers that are not through, those with something to do now among them."""
        return [
            r
            for r in self.readers.values()
            if r.shard not in self.drained and self._free(r) and not self._through(r)
        ]

    def take_over(self, reader: Reader) -> None:
        """Another poller takes the lane over, from its checkpoint, whatever the first is doing just now."""
        self.world.happened("poller takeover")
        self._open(reader.shard, reader.lane, self.checkpoints.get((reader.shard, reader.lane)))
        self.step(self.readers[reader.shard, reader.lane])
        self.step(self.readers[reader.shard, reader.lane])

    def rewind(self, reader: Reader, to: str | None) -> None:
        """Another poller takes the lane over, from a checkpoint that is not the last."""
        self.world.happened("checkpoint rewind")
        self.drained.discard(reader.shard)
        self._drains += 1
        key = (reader.shard, reader.lane)
        self.checkpoints.pop(key, None)
        if to is not None:
            self.checkpoints[key] = to
        self._open(reader.shard, reader.lane, to)

    def settled(self) -> bool:
        """Whether every record of the log is acknowledged or discarded."""
        return all(self._through(reader) for reader in self.readers.values()) and not startable(
            self.log.shards(), {shard for shard, _ in self.readers}, self.drained
        )

    def _through(self, reader: Reader) -> bool:
        shard = self.log.by_id[reader.shard]
        records = shard.records[reader.lane]
        last = records[-1].sequence if records else None
        read = self.checkpoints.get((reader.shard, reader.lane)) == last
        return read and (shard.open or reader.consumer.drained)

    def _free(self, reader: Reader) -> bool:
        """Whether all that the shard comes from is read to its end, and this one is not at work."""
        return not reader.busy and self.log.by_id[reader.shard].ancestors <= self.drained

    def _open(self, shard: str, lane: int, after: str | None) -> None:
        self._pollers += 1
        consumer = ShardConsumer(
            shard,
            Lane(self.log, lane),
            partial(self._deliver, (shard, lane)),
            self.settings,
            on_failure=self.on_discard,
            checkpoint=_Checkpoint(self, lane, self._pollers),
            clock=lambda: self.world.now_s,
            after=after,
        )
        self.readers[shard, lane] = Reader(shard, lane, consumer, self._pollers, self.world.now_s)

    def _deliver(self, lane: tuple[str, int], event: dict[str, Any]) -> object:
        sequences = [record["kinesis"]["sequenceNumber"] for record in event["Records"]]
        names = {(lane[0], sequence) for sequence in sequences}
        if names & self._delivered:
            self.world.happened("redelivery")
        self._delivered |= names
        if len(sequences) < self._died_of.pop(lane, 0):
            self.world.happened("bisect")
        self.world.note("deliver", *lane, sequences[0], len(sequences))
        try:
            return self.handler(event)
        except Exception:
            self._died_of[lane] = len(sequences)
            raise

    def _drain(self, shard: str) -> None:
        lanes = [self.readers[shard, lane] for lane in range(self.lanes)]
        if all(reader.consumer.drained for reader in lanes):
            self.drained.add(shard)
            self._drains += 1


@dataclass(frozen=True)
class _Checkpoint:
    """Where one lane's progress is kept; a poller that has lost the lane moves it no more."""

    mapping: Mapping
    lane: int
    poller: int

    def save(self, shard: str, sequence: str) -> None:
        """Nothing up to here is delivered again."""
        if self.mapping.readers[shard, self.lane].poller != self.poller:
            return
        self.mapping.checkpoints[shard, self.lane] = sequence
        self.mapping.on_checkpoint(shard, self.lane, sequence)


def history_settings(world: World, crowd: bool) -> MappingSettings:
    """The template's mapping with small batches: what fits into one decides what can go wrong in it.

    A crowd comes in one batch.
    """
    settings, _ = template_settings()
    rng = world.rng
    if crowd:
        return replace(settings, window_s=2.0)
    size = min(settings.batch_size, rng.choice((1, 3, 6, 10, 20, 100)))
    return replace(settings, batch_size=size, window_s=rng.choice((0.0, 0.0, 0.3, 2.0)))
