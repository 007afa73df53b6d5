"""The poller on an emulator that numbers, splits and merges as Kinesis does."""

from __future__ import annotations

import base64
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from local.account import client
from local.event_source import MappingSettings
from local.poller import Checkpoints, KinesisStream, Poller
from tests.local.kinesalite import NoKinesalite, kinesalite
from tests.local.test_cloud import until

STREAM, KEYS = "events", [f"user-{n}" for n in range(12)]
HALF = 2**127


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    try:
        with kinesalite() as address:
            yield address
    except NoKinesalite as error:
        pytest.skip(f"no faithful emulator of Kinesis: {error}")


class Log:
    """A stream, and what was put into it, by key."""

    def __init__(self, endpoint: str, shards: int) -> None:
        self.kinesis = client("kinesis", endpoint)
        self.name = f"{STREAM}-{uuid.uuid4()}"
        self.kinesis.create_stream(StreamName=self.name, ShardCount=shards)
        self.put: dict[str, list[str]] = defaultdict(list)
        self._active()

    def write(self, rounds: int) -> None:
        for _ in range(rounds):
            for key in KEYS:
                said = f"{key} {len(self.put[key])}"
                self.kinesis.put_record(StreamName=self.name, PartitionKey=key, Data=said.encode())
                self.put[key].append(said)

    def open(self) -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = self.kinesis.describe_stream(StreamName=self.name)[
            "StreamDescription"
        ]["Shards"]
        return [s for s in shards if "EndingSequenceNumber" not in s["SequenceNumberRange"]]

    def split(self, shard: dict[str, Any]) -> None:
        low, high = (int(shard["HashKeyRange"][f"{end}HashKey"]) for end in ("Starting", "Ending"))
        self.kinesis.split_shard(
            StreamName=self.name, ShardToSplit=shard["ShardId"], NewStartingHashKey=str((low + high) // 2)
        )
        self._active()

    def merge(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        self.kinesis.merge_shards(
            StreamName=self.name, ShardToMerge=one["ShardId"], AdjacentShardToMerge=other["ShardId"]
        )
        self._active()

    def _active(self) -> None:
        def status() -> bool:
            stream = self.kinesis.describe_stream(StreamName=self.name)["StreamDescription"]
            return bool(stream["StreamStatus"] == "ACTIVE")

        until(status, "the stream is active")


class Reader:
    """A poller that keeps what it is handed; the first delivery of a batch may fail from some record on."""

    def __init__(self, log: Log, checkpoints: Path, failing: bool = False) -> None:
        self.got: dict[str, list[str]] = defaultdict(list)
        self.sequences: dict[str, list[int]] = defaultdict(list)
        self.shards: list[str] = []
        self._failing, self._lock = failing, threading.Lock()
        settings = MappingSettings(batch_size=7, bisect=True, reports_failures=True)
        stream = KinesisStream(log.kinesis, log.name)
        self.poller = Poller(stream, self._handle, settings, print, Checkpoints(checkpoints))

    def _handle(self, event: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            records = event["Records"]
            keep = len(records) // 2 if self._failing and len(records) > 1 else len(records)
            for record in records[:keep]:
                kinesis = record["kinesis"]
                shard = record["eventID"].partition(":")[0]
                self.got[kinesis["partitionKey"]].append(base64.b64decode(kinesis["data"]).decode())
                self.sequences[shard].append(int(kinesis["sequenceNumber"]))
                self.shards += [shard] if shard not in self.shards else []
            failed = [{"itemIdentifier": r["kinesis"]["sequenceNumber"]} for r in records[keep : keep + 1]]
            return {"batchItemFailures": failed}

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.poller.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.poller.end()
            thread.join(30)

    def has(self, log: Log) -> None:
        until(lambda: sum(map(len, self.got.values())) >= sum(map(len, log.put.values())), "all is delivered")


def test_sequence_numbers_are_kinesis_own_and_rise_within_a_shard(endpoint: str, tmp_path: Path) -> None:
    log = Log(endpoint, 3)
    log.write(4)
    reader = Reader(log, tmp_path / "c.json")
    with reader.running():
        reader.has(log)
    assert reader.got == log.put
    for numbers in reader.sequences.values():
        assert numbers == sorted(set(numbers)) and all(len(str(n)) == 56 for n in numbers)


@pytest.mark.parametrize("failing", [False, True])
def test_splits_and_merges_keep_every_keys_order(endpoint: str, tmp_path: Path, failing: bool) -> None:
    """Two splits, one of them of a shard that stays empty, and a merge, while it is read."""
    log = Log(endpoint, 1)
    log.write(3)
    reader = Reader(log, tmp_path / "c.json", failing)
    log.split(log.open()[0])
    log.write(2)
    log.split(log.open()[0])  # at once again: its child holds nothing between the two
    first, second, *_ = log.open()
    log.split(first)
    log.write(2)
    one, other = sorted(log.open(), key=lambda s: int(s["HashKeyRange"]["StartingHashKey"]))[:2]
    log.merge(one, other)
    log.write(2)
    with reader.running():
        reader.has(log)
    assert reader.got == log.put
    parents = {s.id: s.parents for s in KinesisStream(log.kinesis, log.name).shards()}
    assert any(len(of) == 2 for of in parents.values())  # the merged one
    for at, shard in enumerate(reader.shards):
        assert not set(parents[shard]) & set(reader.shards[at:]), "a child before its parent"
    assert second["ShardId"] in parents


def test_doubling_the_shards_in_one_go(endpoint: str, tmp_path: Path) -> None:
    """What UpdateShardCount does from 2 to 4, and back: every shard split, then neighbours merged."""
    log = Log(endpoint, 2)
    log.write(2)
    for shard in log.open():
        log.split(shard)
    assert len(log.open()) == 4
    log.write(2)
    for _ in range(2):
        shards = sorted(log.open(), key=lambda s: int(s["HashKeyRange"]["StartingHashKey"]))
        pair = next(
            (a, b)
            for a, b in pairwise(shards)
            if int(a["HashKeyRange"]["StartingHashKey"]) in (0, HALF)
            and int(b["HashKeyRange"]["EndingHashKey"]) in (HALF - 1, 2 * HALF - 1)
        )
        log.merge(*pair)
    assert len(log.open()) == 2
    log.write(2)
    reader = Reader(log, tmp_path / "c.json")
    with reader.running():
        reader.has(log)
    assert reader.got == log.put


def test_a_reader_that_is_started_again_goes_on_from_its_checkpoints(endpoint: str, tmp_path: Path) -> None:
    log = Log(endpoint, 2)
    log.write(2)
    before = Reader(log, tmp_path / "c.json")
    with before.running():
        before.has(log)
    for shard in log.open():
        log.split(shard)
    log.write(3)
    after = Reader(log, tmp_path / "c.json")
    with after.running():
        until(lambda: sum(map(len, after.got.values())) >= 3 * len(KEYS), "the rest is delivered")
    assert {key: before.got[key] + after.got[key] for key in KEYS} == log.put
