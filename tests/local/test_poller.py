"""The poller's loop over a stream that splits, expires its iterators and is at times not there.

moto never ends a split shard and moves its records, so Kinesis answers from here as AWS documents it.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from local.event_source import MappingSettings
from local.poller import Checkpoints, KinesisStream, Poller

START = "0"


class Expired(Exception):
    """What botocore raises for an iterator older than five minutes."""


@dataclass
class Kinesis:
    """Shards of records in memory, behind the four calls of a boto3 client that the poller makes."""

    parents: dict[str, list[str]]
    records: dict[str, list[str]]
    closed: set[str] = field(default_factory=set)
    troubles: list[Exception] = field(default_factory=list)
    iterators: list[tuple[str, str | None]] = field(default_factory=list)

    class exceptions:
        ExpiredIteratorException = Expired

    def describe_stream_summary(self, **_: Any) -> dict[str, Any]:
        return {"StreamDescriptionSummary": {"StreamARN": "arn:aws:kinesis:eu-central-1:1:stream/events"}}

    def list_shards(self, **asked: Any) -> dict[str, Any]:
        """Two to a page, as a stream of many shards would come."""
        names = list(self.parents)
        start = int(asked.get("NextToken", START))
        assert ("StreamName" in asked) == (start == 0)  # Kinesis refuses both together
        keys = ("ParentShardId", "AdjacentParentShardId")
        shards = [
            {"ShardId": name, **dict(zip(keys, self.parents[name], strict=False))}
            for name in names[start : start + 2]
        ]
        return {"Shards": shards, **({"NextToken": str(start + 2)} if start + 2 < len(names) else {})}

    def get_shard_iterator(self, **asked: Any) -> dict[str, Any]:
        after = asked.get("StartingSequenceNumber")
        self.iterators.append((asked["ShardId"], after))
        return {"ShardIterator": f"{asked['ShardId']}/{after or 0}"}

    def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:
        if self.troubles:
            raise self.troubles.pop()
        shard, _, after = ShardIterator.partition("/")
        rest = list(enumerate(self.records[shard], 1))[int(after) :]
        page = rest[:Limit]
        arrival = datetime(2026, 1, 1, tzinfo=UTC)
        answer: dict[str, Any] = {
            "Records": [
                {
                    "SequenceNumber": str(n),
                    "PartitionKey": "u",
                    "Data": data.encode(),
                    "ApproximateArrivalTimestamp": arrival,
                }
                for n, data in page
            ]
        }
        if shard not in self.closed or len(page) < len(rest):
            answer["NextShardIterator"] = f"{shard}/{int(after) + len(page)}"
        return answer


class Told:
    """A handler that remembers what it was told and says when there is enough."""

    def __init__(self, enough: int) -> None:
        self.seen: list[str] = []
        self.enough, self._count = threading.Event(), enough

    def __call__(self, event: dict[str, Any]) -> None:
        self.seen += [base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]]
        if len(self.seen) >= self._count:
            self.enough.set()


def play(kinesis: Kinesis, told: Told, checkpoints: Checkpoints, drained: int = 0) -> None:
    """Run the poller until the handler has enough and as many shards are drained."""
    poller = Poller(KinesisStream(kinesis, "events"), told, MappingSettings(), print, checkpoints)
    thread = threading.Thread(target=poller.run, daemon=True)
    thread.start()
    assert told.enough.wait(10)
    for _ in range(1000):
        if len(checkpoints.drained) >= drained:
            break
        threading.Event().wait(0.01)
    poller.end()
    thread.join(10)
    assert not thread.is_alive() and len(checkpoints.drained) == drained


def test_children_are_read_after_their_parents_through_split_and_merge(tmp_path: Path) -> None:
    kinesis = Kinesis(
        parents={"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []},
        records={"a": ["a1", "a2", "a3"], "b": ["b1"], "c": ["c1", "c2"], "d": ["d1"]},
        closed={"a", "b", "c"},
    )
    told = Told(7)
    play(kinesis, told, Checkpoints(tmp_path / "c.json"), drained=3)
    assert told.seen[:3] == ["a1", "a2", "a3"]
    assert sorted(told.seen[3:6]) == ["b1", "c1", "c2"]
    assert told.seen[6] == "d1"


def test_a_poller_started_again_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    kinesis = Kinesis({"a": [], "b": ["a"]}, {"a": ["a1", "a2"], "b": ["b1"]}, closed={"a"})
    play(kinesis, Told(3), Checkpoints(tmp_path / "c.json"), drained=1)
    kinesis.records["b"] += ["b2", "b3"]
    told = Told(2)
    play(kinesis, told, Checkpoints(tmp_path / "c.json"), drained=1)
    assert told.seen == ["b2", "b3"]


def test_without_its_checkpoints_it_reads_from_the_oldest_record_on(tmp_path: Path) -> None:
    kinesis = Kinesis({"a": []}, {"a": ["a1", "a2"]})
    for name in ("first", "second"):
        told = Told(2)
        play(kinesis, told, Checkpoints(tmp_path / name))
        assert told.seen == ["a1", "a2"]


def test_an_expired_iterator_is_taken_anew_and_nothing_comes_twice(tmp_path: Path) -> None:
    kinesis = Kinesis({"a": []}, {"a": ["a1", "a2"]})
    stream = KinesisStream(kinesis, "events")
    assert [record.sequence for record in stream.read("a", None, 1).records] == ["1"]
    kinesis.troubles = [Expired()]
    assert [record.data for record in stream.read("a", "1", 5).records] == [b"a2"]
    assert kinesis.iterators == [("a", None), ("a", "1")]
    assert stream.read("a", "2", 5).records == () and len(kinesis.iterators) == 2  # the kept one
    assert len(stream.read("a", None, 5).records) == 2  # read anew: not from the kept one


def test_a_stream_that_is_not_there_for_a_while_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.poller.TROUBLE_S", 0.01)
    kinesis = Kinesis({"a": []}, {"a": ["a1"]}, troubles=[ConnectionError("away"), ConnectionError("away")])
    told = Told(1)
    play(kinesis, told, Checkpoints(tmp_path / "c.json"))
    assert told.seen == ["a1"]
    assert capsys.readouterr().err.count("ConnectionError: away") == 2
