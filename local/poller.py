"""The stream's poller, in a process of its own: one thread per shard, each running a ShardConsumer."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.account import DISCARDED, STREAM, client
from local.event_source import Handler, MappingSettings, Page, Record, Shard, ShardConsumer, Stream, startable
from local.function import Function
from local.template import Template

POLL_S = 0.1
LIST_SHARDS_S = 5.0  # how soon a split or merge is noticed
TROUBLE_S = 1.0


class KinesisStream:
    """A stream over boto3. One iterator per shard is kept, and taken anew when it has expired."""

    def __init__(self, kinesis: Any, name: str) -> None:
        self._kinesis, self._name = kinesis, name
        self._iterators: dict[str, tuple[str | None, str]] = {}  # shard → what was read, the next iterator
        self._arn = str(
            kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamARN"]
        )

    @property
    def arn(self) -> str:
        """The stream's ARN."""
        return self._arn

    def shards(self) -> list[Shard]:
        """All shards of the stream, closed ones too."""
        found: list[Shard] = []
        pages: dict[str, Any] = {"StreamName": self._name}
        while True:
            answer = self._kinesis.list_shards(**pages)
            found += [_shard(description) for description in answer["Shards"]]
            if not answer.get("NextToken"):
                return found
            pages = {"NextToken": answer["NextToken"]}

    def read(self, shard: str, after: str | None, limit: int) -> Page:
        """At most `limit` records after the sequence number (None: from the oldest on)."""
        read_to, iterator = self._iterators.pop(shard, (None, ""))
        if not iterator or read_to != after:
            iterator = self._iterator(shard, after)
        try:
            answer = self._kinesis.get_records(ShardIterator=iterator, Limit=limit)
        except self._kinesis.exceptions.ExpiredIteratorException:
            answer = self._kinesis.get_records(ShardIterator=self._iterator(shard, after), Limit=limit)
        records = tuple(_record(raw) for raw in answer["Records"])
        following = answer.get("NextShardIterator")
        if following:
            self._iterators[shard] = (records[-1].sequence if records else after, following)
        return Page(records, end=not following)

    def _iterator(self, shard: str, after: str | None) -> str:
        start = (
            {"ShardIteratorType": "TRIM_HORIZON"}
            if after is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        )
        answer = self._kinesis.get_shard_iterator(StreamName=self._name, ShardId=shard, **start)
        return str(answer["ShardIterator"])


def _shard(description: dict[str, Any]) -> Shard:
    parents = [description.get(name) for name in ("ParentShardId", "AdjacentParentShardId")]
    return Shard(description["ShardId"], tuple(parent for parent in parents if parent))


def _record(raw: dict[str, Any]) -> Record:
    arrival_s = raw["ApproximateArrivalTimestamp"].timestamp()
    return Record(raw["SequenceNumber"], raw["PartitionKey"], raw["Data"], arrival_s)


class Checkpoints:
    """How far each shard is, in a small file, so that a poller that is started again goes on from there."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        stored = json.loads(path.read_text()) if path.exists() else {}
        self._after: dict[str, str] = stored.get("after", {})
        self._drained: set[str] = set(stored.get("drained", []))

    def after(self, shard: str) -> str | None:
        """The last settled sequence number of a shard."""
        return self._after.get(shard)

    @property
    def drained(self) -> frozenset[str]:
        """The shards that are closed and settled to their end."""
        return frozenset(self._drained)

    def save(self, shard: str, sequence: str) -> None:
        """All records of the shard up to this one are settled."""
        with self._lock:
            self._after[shard] = sequence
            self._write()

    def drain(self, shard: str) -> None:
        """The shard is closed and settled to its end."""
        with self._lock:
            self._drained.add(shard)
            self._write()

    def _write(self) -> None:
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(json.dumps({"after": self._after, "drained": sorted(self._drained)}))
        partial.replace(self._path)


class Poller:
    """Reads all shards of a stream, children after their parents, until it is ended."""

    def __init__(
        self,
        stream: Stream,
        handler: Handler,
        settings: MappingSettings,
        on_failure: Callable[[dict[str, Any]], None],
        checkpoints: Checkpoints,
        poll_s: float = POLL_S,
    ) -> None:
        self._stream, self._handler, self._settings, self._poll_s = stream, handler, settings, poll_s
        self._on_failure, self._checkpoints = on_failure, checkpoints
        self._threads: dict[str, threading.Thread] = {}  # by shard
        self._ended = threading.Event()
        self._look_again = threading.Event()  # a shard was drained, or the end has come

    def run(self) -> None:
        """Read until `end` is called; what is being done then is done first."""
        while not self._ended.is_set():
            self._look_again.clear()
            _unbroken(self.start_shards)
            self._look_again.wait(LIST_SHARDS_S)
        for thread in self._threads.values():
            thread.join()

    def end(self) -> None:
        """Let `run` return."""
        self._ended.set()
        self._look_again.set()

    def start_shards(self) -> None:
        """Begin to read the shards whose turn has come."""
        for shard in startable(self._stream.shards(), self._threads, self._checkpoints.drained):
            thread = threading.Thread(target=self._consume, args=(shard.id,), name=shard.id, daemon=True)
            self._threads[shard.id] = thread
            thread.start()

    def _consume(self, shard: str) -> None:
        consumer = ShardConsumer(
            shard,
            self._stream,
            self._handler,
            self._settings,
            on_failure=self._on_failure,
            checkpoint=self._checkpoints,
            clock=time.time,
            after=self._checkpoints.after(shard),
            poll_s=self._poll_s,
        )
        while not self._ended.is_set() and not consumer.drained:
            pause_s = _unbroken(consumer.step) or 0.0
            if not consumer.drained:  # its children wait for it
                self._ended.wait(min(pause_s, LIST_SHARDS_S))
        if consumer.drained:
            self._checkpoints.drain(shard)
            self._look_again.set()


def _unbroken(act: Callable[[], float | None]) -> float | None:
    """What `act` returns; TROUBLE_S, and a trace in the log, when it raises: the poller goes on."""
    try:
        return act()
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return TROUBLE_S


def poll(ready: Callable[[None], None], template: Path, checkpoints: Path) -> None:
    """Run the template's event-source mapping in the emulated account until the process ends."""
    entry, settings = Template(template).mapping()
    run(ready, Function(entry).invoke, settings, checkpoints)


def run(
    ready: Callable[[None], None],
    handler: Handler,
    settings: MappingSettings,
    checkpoints: Path,
    poll_s: float = POLL_S,
) -> None:
    """Hand the emulated account's stream to a handler until the process ends."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    queue = client("sqs", endpoint)
    address = queue.get_queue_url(QueueName=DISCARDED)["QueueUrl"]

    def tell(metadata: dict[str, Any]) -> None:
        print(f"discarded: {json.dumps(metadata)}", flush=True)
        queue.send_message(QueueUrl=address, MessageBody=json.dumps(metadata))

    stream = KinesisStream(client("kinesis", endpoint), STREAM)
    poller = Poller(stream, handler, settings, tell, Checkpoints(checkpoints), poll_s)
    poller.start_shards()
    ready(None)
    poller.run()
