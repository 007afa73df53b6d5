"""Records that nobody can read: none holds the shard up, each is in quarantine once, memory stays bounded."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from local.event_source import Record
from simulate.shoppers import key_of, poison
from tests.simulate.calm import SHARD, CalmStream, record

MUTATED, CORPUS, BATCH = 10_000, 200, 100
GOOD = {"type": "view", "item_id": "sku-1", "time": "2026-11-24T12:00:00Z", "value": 3.5}
BYTES = (
    b"\x00",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b"9",
    b"-",
    b"e9",
    b"NaN",
    b"\xf3\x89\x9a\xc2",
    b"null",
)


def flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(BYTES) * rng.choice((1, 1, 1, 500))


def delete(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 20)]


def swap(rng: random.Random, data: bytearray) -> None:
    at, other = sorted(rng.sample(range(len(data)), 2))
    data[at:other] = data[at:other][::-1]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (flip, insert, delete, swap)


def mutated(rng: random.Random, nth: int) -> bytes:
    data = bytearray(json.dumps({"user_key": key_of(0), "event": {"event_id": f"m{nth}", **GOOD}}).encode())
    for _ in range(rng.randint(1, 3)):
        if len(data) > 1:
            rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def good(sequence: int, user: int) -> Record:
    return record(sequence, key_of(user), {"event_id": f"g{sequence}", **GOOD})


def deliver(stream: CalmStream, records: list[Record]) -> None:
    """In batches, every third of them twice."""
    for at in range(0, len(records), BATCH):
        for _ in range(2 if at % 3 == 0 else 1):
            assert stream.deliver(records[at : at + BATCH]) == []


def quarantined(stream: CalmStream) -> list[int]:
    keys = list(stream.bucket.objects)
    assert all(key.startswith(f"quarantine/{SHARD}/") for key in keys)
    return sorted(int(key.split("/")[2].removesuffix(".json")) for key in keys)


def events_known(stream: CalmStream, user: int) -> int:
    return len(stream.table.items[key_of(user)]["ring"]["B"]) // 12


def test_mutated_records_are_folded_or_quarantined_and_none_is_stuck() -> None:
    rng, stream = random.Random(3), CalmStream()
    records = [Record(str(n + 1), key_of(0), mutated(rng, n), stream.world.now_s) for n in range(MUTATED)]
    deliver(stream, [*records, good(MUTATED + 1, 1)])
    aside = quarantined(stream)
    assert MUTATED / 2 < len(aside) < MUTATED  # some mutations leave an event that can be read
    assert len(set(aside)) == len(aside)
    assert events_known(stream, 1) == 1  # who came after all of them
    assert stream.world.violations == []


def test_a_corpus_of_poison_is_in_quarantine_once_each_and_stops_nobody() -> None:
    rng, stream = random.Random(4), CalmStream()
    corpus: dict[tuple[str, bytes], None] = {}
    for user in range(12):
        for _ in range(400):
            corpus[poison(rng, key_of(user))] = None
    assert len(corpus) >= CORPUS
    records = []
    for nth, (partition_key, data) in enumerate(corpus):
        records.append(Record(str(2 * nth + 1), partition_key, data, stream.world.now_s))
        records.append(good(2 * nth + 2, 99))
    deliver(stream, records)
    assert quarantined(stream) == [2 * nth + 1 for nth in range(len(corpus))]
    assert events_known(stream, 99) == 64
    kept = [entry["record"] for entry in stream.bucket.objects.values()]
    assert all(set(entry) >= {"kinesis", "eventID"} for entry in kept)


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"\xf3\x89\x9a\xc2", b"[[[[", b'{"user_key": "'])
def test_a_huge_record_takes_no_more_memory_than_a_few_copies_of_itself(start: bytes) -> None:
    stream, size = CalmStream(), 4 * 2**20
    huge = Record("1", key_of(0), start + bytes(size), stream.world.now_s)
    event: Any = [huge, good(2, 1)]
    tracemalloc.start()
    assert stream.deliver(event) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * size
    assert quarantined(stream) == [1] and events_known(stream, 1) == 1


def test_what_cannot_be_folded_goes_alone_and_what_is_around_it_is_folded() -> None:
    stream = CalmStream()
    broken = {**GOOD, "event_id": "b", "item_id": "broken"}  # its embedding is not finite
    records = [good(1, 0), record(2, key_of(0), broken), good(3, 0), good(4, 1)]
    assert stream.deliver(records) == []
    assert quarantined(stream) == [2]
    assert (events_known(stream, 0), events_known(stream, 1)) == (2, 1)
    assert "cannot be folded" in next(iter(stream.bucket.objects.values()))["reason"]
