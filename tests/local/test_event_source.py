"""Lambda's rules for a Kinesis shard, with a clock that the test moves."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.errors import VitrineError
from local.event_source import (
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    MAX_PAYLOAD_BYTES,
    MappingSettings,
    Page,
    Record,
    Shard,
    ShardConsumer,
    acknowledged,
    backoff_s,
    startable,
)

ARN = "arn:aws:kinesis:eu-central-1:123456789012:stream/events"
Answer = Callable[[list[str]], object]


def records(count: int, arrival_s: float = 1000.0, first: int = 1) -> list[Record]:
    return [Record(str(n), f"user{n % 3}", b"%d" % n, arrival_s) for n in range(first, first + count)]


@dataclass
class World:
    """One shard, a function that answers as told, and a clock that steps exactly as far as it is asked to."""

    log: list[Record]
    answer: Answer
    settings: MappingSettings = field(default_factory=MappingSettings)
    closed: bool = False
    now: float = 1000.0
    poll_s: float = 0.1
    batches: list[list[str]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    reads: list[tuple[str | None, int]] = field(default_factory=list)
    arn: str = ARN

    def shards(self) -> list[Shard]:
        return [Shard("shard-0")]

    def read(self, shard: str, after: str | None, limit: int) -> Page:
        self.reads.append((after, limit))
        rest = [record for record in self.log if after is None or int(record.sequence) > int(after)]
        return Page(tuple(rest[:limit]), end=self.closed and len(rest) <= limit)

    def save(self, shard: str, sequence: str) -> None:
        assert shard == "shard-0"
        self.saved.append(sequence)

    def handle(self, event: dict[str, Any]) -> object:
        sequences = [record["kinesis"]["sequenceNumber"] for record in event["Records"]]
        self.events.append(event)
        self.batches.append(sequences)
        self.starts.append(self.now)
        return self.answer(sequences)

    def consumer(self, after: str | None = None) -> ShardConsumer:
        return ShardConsumer(
            "shard-0",
            self,
            self.handle,
            self.settings,
            on_failure=self.told.append,
            checkpoint=self,
            clock=lambda: self.now,
            after=after,
            poll_s=self.poll_s,
        )

    def run(self, steps: int = 200, after: str | None = None) -> ShardConsumer:
        """Step until nothing is left to do now, as many times at most."""
        consumer = self.consumer(after)
        for _ in range(steps):
            wait = consumer.step()
            if wait == math.inf or (wait == self.poll_s and self.saved[-1:] == [self.log[-1].sequence]):
                return consumer
            self.now += wait
        return consumer

    def discarded_ranges(self) -> list[tuple[str, str, str]]:
        infos = [(t["requestContext"]["condition"], t["KinesisBatchInfo"]) for t in self.told]
        return [(why, i["startSequenceNumber"], i["endSequenceNumber"]) for why, i in infos]


def fails(*sequences: str) -> Answer:
    """A function that reports these records, where they are in the batch, and does the others."""
    return lambda batch: {"batchItemFailures": [{"itemIdentifier": s} for s in sequences if s in batch]}


def raises_on(*sequences: str) -> Answer:
    """A function that dies of any batch with one of these records."""

    def answer(batch: list[str]) -> object:
        if set(sequences) & set(batch):
            raise ValueError("poison")
        return None

    return answer


def once(first: object, then: object = None) -> Answer:
    answers = [first]
    return lambda batch: answers.pop() if answers else then


def s(*numbers: int) -> list[str]:
    return [str(n) for n in numbers]


REPORTING = MappingSettings(reports_failures=True)


def test_the_event_is_what_a_function_gets_from_kinesis() -> None:
    world = World([Record("4954", "user", b"\x00\xff{}", 1732425331.25)], fails())
    world.run()
    assert world.events == [
        {
            "Records": [
                {
                    "kinesis": {
                        "kinesisSchemaVersion": "1.0",
                        "partitionKey": "user",
                        "sequenceNumber": "4954",
                        "data": base64.b64encode(b"\x00\xff{}").decode(),
                        "approximateArrivalTimestamp": 1732425331.25,
                    },
                    "eventSource": "aws:kinesis",
                    "eventVersion": "1.0",
                    "eventID": "shard-0:4954",
                    "eventName": "aws:kinesis:record",
                    "invokeIdentityArn": "arn:aws:iam::123456789012:role/local",
                    "awsRegion": "eu-central-1",
                    "eventSourceARN": ARN,
                }
            ]
        }
    ]


@pytest.mark.parametrize("count, sizes", [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_a_batch_holds_batch_size_records_at_most(count: int, sizes: list[int]) -> None:
    world = World(records(count), fails(), MappingSettings(batch_size=3))
    world.run()
    assert [len(batch) for batch in world.batches] == sizes
    assert [name for batch in world.batches for name in batch] == s(*range(1, count + 1))
    assert world.saved[-1] == str(count)


def test_a_batch_is_cut_before_it_is_too_large_to_invoke() -> None:
    third = MAX_PAYLOAD_BYTES // 4  # as base64, a third of an invocation: two fit with what is around them
    world = World([Record(str(n), "u", bytes(third), 1000.0) for n in range(1, 6)], fails())
    world.run()
    assert world.batches == [s(1, 2), s(3, 4), s(5)]


def test_a_record_larger_than_an_invocation_goes_alone() -> None:
    sizes = [10, MAX_PAYLOAD_BYTES, 10]
    world = World([Record(str(n), "u", bytes(size), 1000.0) for n, size in enumerate(sizes, 1)], fails())
    world.run()
    assert world.batches == [s(1), s(2), s(3)]


def test_the_window_is_waited_out_for_a_batch_that_is_not_full() -> None:
    world = World(records(2), fails(), MappingSettings(batch_size=10, window_s=5))
    world.run()
    assert world.batches == [s(1, 2)]
    assert world.starts == [pytest.approx(1005.0)]


def test_a_full_batch_does_not_wait_for_its_window() -> None:
    world = World(records(3), fails(), MappingSettings(batch_size=3, window_s=5))
    world.run()
    assert (world.batches, world.starts) == ([s(1, 2, 3)], [1000.0])


def test_a_record_that_comes_within_the_window_joins_the_batch() -> None:
    world = World(records(1), fails(), MappingSettings(window_s=1))
    consumer = world.consumer()
    assert consumer.step() == world.poll_s
    world.log += records(1, first=2)
    world.now += 0.999
    assert world.batches == [] and consumer.step() == pytest.approx(0.001)
    world.now += 0.002
    consumer.step(), consumer.step()
    assert world.batches == [s(1, 2)]


def test_what_comes_within_the_window_does_not_overfill_the_batch() -> None:
    world = World(records(2), fails(), MappingSettings(batch_size=3, window_s=5))
    consumer = world.consumer()
    consumer.step()
    world.log += records(4, first=3)
    while len(world.batches) < 2:
        world.now += consumer.step()
    assert world.batches == [s(1, 2, 3), s(4, 5, 6)]


def test_reading_goes_on_after_the_checkpoint() -> None:
    world = World(records(5), fails())
    world.run(after="3")
    assert world.batches == [s(4, 5)]
    assert world.reads[0] == ("3", 100)


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_nothing_reported_acknowledges_the_whole_batch(answer: object) -> None:
    assert acknowledged(answer, s(1, 2, 3)) == 3


@pytest.mark.parametrize(
    "failures",
    [
        [{"itemIdentifier": ""}],
        [{"itemIdentifier": None}],
        [{"itemIdentifier": "4"}],  # not of this batch
        [{"itemIdentifier": 2}],
        [{"item_identifier": "2"}],
        ["2"],
        [None],
        "2",
        {"itemIdentifier": "2"},
        [{"itemIdentifier": "3"}, {"itemIdentifier": "nonsense"}],
    ],
)
def test_an_invalid_identifier_fails_the_whole_batch(failures: object) -> None:
    assert acknowledged({"batchItemFailures": failures}, s(1, 2, 3)) == 0


@pytest.mark.parametrize("answer", [[], "done", True, 0])
def test_an_answer_that_is_no_object_fails_the_whole_batch(answer: object) -> None:
    assert acknowledged(answer, s(1, 2, 3)) == 0


def test_the_lowest_failed_record_is_the_checkpoint_in_any_order_of_reporting() -> None:
    long = [str(10**40 + n) for n in (8, 9, 10, 11)]  # as text, …9 sorts after …10
    report = {"batchItemFailures": [{"itemIdentifier": long[2]}, {"itemIdentifier": long[1]}]}
    assert acknowledged(report, long) == 1


def test_a_retry_begins_at_the_lowest_failed_record() -> None:
    world = World(records(5), once({"batchItemFailures": [{"itemIdentifier": "3"}]}), REPORTING)
    world.run()
    assert world.batches == [s(1, 2, 3, 4, 5), s(3, 4, 5)]
    assert world.saved == ["2", "5"]


def test_without_report_batch_item_failures_the_answer_is_not_read() -> None:
    world = World(records(3), fails("1"), MappingSettings(reports_failures=False))
    world.run()
    assert world.batches == [s(1, 2, 3)]


def test_an_exception_fails_the_whole_batch_and_it_is_retried_without_end() -> None:
    world = World(records(2), raises_on("2"), REPORTING)
    world.run(steps=60)
    assert len(world.batches) == 59 and all(batch == s(1, 2) for batch in world.batches)
    assert world.saved == [] and world.told == []


def test_waiting_doubles_up_to_its_bound_and_starts_anew_after_a_success() -> None:
    world = World(records(1), raises_on("1"))
    world.run(steps=30)
    waits = [after - before for before, after in zip(world.starts, world.starts[1:], strict=False)]
    assert waits[:4] == pytest.approx([FIRST_BACKOFF_S * 2**n for n in range(4)])
    assert max(waits) == pytest.approx(LONGEST_BACKOFF_S)
    assert backoff_s(10_000) == LONGEST_BACKOFF_S
    done = World(records(6), fails(), MappingSettings(batch_size=2))
    attempts = iter([RuntimeError(), None, RuntimeError(), None, None])

    def shaky(batch: list[str]) -> object:
        error = next(attempts)
        if error:
            raise error
        return None

    done.answer = shaky
    done.run()
    assert (
        done.starts[1] - done.starts[0] == done.starts[3] - done.starts[2] == pytest.approx(FIRST_BACKOFF_S)
    )


def test_a_batch_that_gets_on_is_retried_soon() -> None:
    world = World(records(6), lambda batch: fails(*batch[1:2])(batch), REPORTING)  # one more each time
    world.run()
    waits = [after - before for before, after in zip(world.starts, world.starts[1:], strict=False)]
    assert [batch[0] for batch in world.batches] == s(1, 2, 3, 4, 5, 6)
    assert waits == pytest.approx([FIRST_BACKOFF_S] * 5)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_after_the_retries_the_batch_goes_to_the_destination_and_the_shard_goes_on(max_retries: int) -> None:
    world = World(records(4), raises_on("1"), MappingSettings(batch_size=2, max_retries=max_retries))
    world.run()
    assert world.batches == [s(1, 2)] * (1 + max_retries) + [s(3, 4)]
    assert world.saved == ["2", "4"]
    [told] = world.told
    assert UUID(told["requestContext"].pop("requestId"))
    assert told["requestContext"] == {
        "functionArn": "arn:aws:lambda:" + ":".join(ARN.split(":")[3:5]) + ":function:local",
        "condition": "RetryAttemptsExhausted",
        "approximateInvokeCount": 1 + max_retries,
    }
    assert told["responseContext"]["functionError"] == "Unhandled"
    assert told["KinesisBatchInfo"] == {
        "shardId": "shard-0",
        "startSequenceNumber": "1",
        "endSequenceNumber": "2",
        "approximateArrivalOfFirstRecord": "1970-01-01T00:16:40.000Z",
        "approximateArrivalOfLastRecord": "1970-01-01T00:16:40.000Z",
        "batchSize": 2,
        "streamArn": ARN,
    }


def test_partial_failures_use_up_retries_and_only_what_is_left_is_discarded() -> None:
    world = World(records(4), fails("3"), MappingSettings(max_retries=2, reports_failures=True))
    world.run()
    assert world.batches == [s(1, 2, 3, 4), s(3, 4), s(3, 4)]
    assert world.discarded_ranges() == [("RetryAttemptsExhausted", "3", "4")]
    assert "functionError" not in world.told[0]["responseContext"]


def test_a_bisect_halves_the_batch_and_is_no_retry() -> None:
    world = World(records(8), raises_on("6"), MappingSettings(bisect=True, max_retries=1))
    world.run()
    assert world.batches == [
        s(1, 2, 3, 4, 5, 6, 7, 8),
        s(1, 2, 3, 4),
        s(5, 6, 7, 8),
        s(5, 6),
        s(5),
        s(6),
        s(6),  # the one retry that it has
        s(7, 8),
    ]
    assert world.discarded_ranges() == [("RetryAttemptsExhausted", "6", "6")]
    assert world.saved == ["4", "5", "6", "8"]


def test_with_bisect_a_reported_record_splits_the_batch_where_it_is() -> None:
    chosen = MappingSettings(bisect=True, max_retries=0, reports_failures=True)
    world = World(records(5), fails("4"), chosen)
    world.run()
    assert world.batches == [s(1, 2, 3, 4, 5), s(4, 5), s(4), s(5)]
    assert world.discarded_ranges() == [("RetryAttemptsExhausted", "4", "4")]


def test_records_past_their_age_are_told_and_never_invoked() -> None:
    log = [*records(2, arrival_s=900.0), *records(2, arrival_s=940.0, first=3)]
    world = World(log, fails(), MappingSettings(max_age_s=60))
    world.run()  # at 1000: 100 s and exactly 60 s old
    assert world.batches == [s(3, 4)]
    assert world.discarded_ranges() == [("RecordAgeExpired", "1", "2")]
    assert world.told[0]["requestContext"]["approximateInvokeCount"] == 0


def test_age_ends_the_retries_of_a_batch_that_never_succeeds() -> None:
    world = World(records(2), raises_on("1"), MappingSettings(max_age_s=60))
    world.run()
    assert len(world.batches) > 3 and max(world.starts) <= 1060
    assert world.discarded_ranges() == [("RecordAgeExpired", "1", "2")]


def test_a_destination_that_is_down_is_asked_again_and_the_function_is_not() -> None:
    world = World(records(2), raises_on("1"), MappingSettings(max_retries=0))
    told: list[dict[str, Any]] = []
    down = [True]

    def destination(metadata: dict[str, Any]) -> None:
        if down:
            down.pop()
            raise ConnectionError("queue")
        told.append(metadata)

    consumer = world.consumer()
    consumer._on_failure = destination
    consumer.step()
    world.now += consumer.step()
    with pytest.raises(ConnectionError):
        consumer.step()
    assert world.saved == []
    consumer.step()
    assert len(told) == 1 and world.saved == ["2"] and world.batches == [s(1, 2)]


def test_a_closed_shard_is_drained_only_when_all_of_it_is_settled() -> None:
    world = World(records(3), once({"batchItemFailures": [{"itemIdentifier": "2"}]}), REPORTING, closed=True)
    consumer = world.consumer()
    drained = []
    while (wait := consumer.step()) < math.inf:
        drained.append((len(world.batches), consumer.drained))
        world.now += wait
    assert consumer.drained and world.saved == ["1", "3"]
    assert all(not gone for batches, gone in drained if batches < 2)


def test_children_wait_for_every_parent_that_still_exists() -> None:
    split = [
        Shard("a"),
        Shard("b", ("a",)),
        Shard("c", ("a",)),
        Shard("d", ("b", "c")),
        Shard("e", ("gone",)),
    ]

    def names(started: Sequence[str], drained: Sequence[str]) -> list[str]:
        return [shard.id for shard in startable(split, started, drained)]

    assert names([], []) == ["a", "e"]  # the parent of e fell out of the stream's retention
    assert names(["a", "e"], []) == []
    assert names(["a", "e"], ["a"]) == ["b", "c"]
    assert names(["a", "b", "c", "e"], ["a", "b"]) == []
    assert names(["a", "b", "c", "e"], ["a", "b", "c"]) == ["d"]
    assert names([], ["a", "b", "c"]) == ["d", "e"]  # after a restart, drained shards stay drained


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 10_001},
        {"window_s": -0.1},
        {"window_s": 301},
        {"max_retries": -2},
        {"max_retries": 10_001},
        {"max_age_s": 59},
        {"max_age_s": 604_801},
    ],
)
def test_settings_that_lambda_would_refuse_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(VitrineError, match=next(iter(wrong))):
        MappingSettings(**wrong)


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 25),
    batch_size=st.integers(1, 9),
    bisect=st.booleans(),
    reports=st.booleans(),
    max_retries=st.sampled_from([0, 1, 3]),
    max_age_s=st.sampled_from([-1, 60]),
    outcomes=st.lists(st.one_of(st.just("ok"), st.just("raise"), st.integers(0, 12)), max_size=60),
)
def test_every_record_is_done_in_order_or_told_and_none_is_lost(
    count: int,
    batch_size: int,
    bisect: bool,
    reports: bool,
    max_retries: int,
    max_age_s: int,
    outcomes: list[str | int],
) -> None:
    done: list[str] = []
    coming = iter(outcomes)

    def answer(batch: list[str]) -> object:
        outcome = next(coming, "ok")
        if outcome == "raise":
            raise RuntimeError("any")
        through = len(batch) if outcome == "ok" or not reports else min(int(outcome), len(batch))
        done.extend(batch[:through])
        return {"batchItemFailures": [{"itemIdentifier": name} for name in batch[through:]]}

    chosen = MappingSettings(
        batch_size, bisect=bisect, max_retries=max_retries, max_age_s=max_age_s, reports_failures=reports
    )
    world = World(records(count), answer, chosen, closed=True)
    consumer = world.run(steps=2000)
    told = [str(n) for _, low, high in world.discarded_ranges() for n in range(int(low), int(high) + 1)]
    assert consumer.drained
    assert done == sorted(done, key=int) and told == sorted(told, key=int)
    assert sorted([*done, *told], key=int) == s(*range(1, count + 1))  # each once, in one of the two
    assert [int(name) for name in world.saved] == sorted({int(name) for name in world.saved})
    assert world.saved[-1] == str(count)
