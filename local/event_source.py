"""Lambda's event-source mapping for a Kinesis shard, without its I/O: batches, retries, bisects, discards.

The rules are those of AWS's developer guide for Lambda (docs.aws.amazon.com/lambda/latest/dg/…):
- with-kinesis: a batch is complete by size, window or 6 MB; a shard's records stay in order;
- services-kinesis-batchfailurereporting: what an answer acknowledges (`acknowledged`); with bisect on too,
  the batch is cut at the returned sequence number, and what is left is tried again;
- kinesis-on-failure-destination: retries end by age or by number, whichever comes first; a split uses up none
  of that number; what a destination is told (`discarded`), where Lambda may tell of several batches at once;
- services-kinesis-parameters: bounds and defaults (`MappingSettings`). The least age, 60 s, is that of the
  announcement of December 2019; the guide's table has -1 alone.
Where the guide is silent: a batch whose first record failed again is halved (with bisect on), and what a
batch has used up of its retries goes on to its halves. Nothing here sleeps: `step` says how long to wait.
"""

from __future__ import annotations

import binascii
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol
from uuid import NAMESPACE_URL, uuid5

from functions.core.errors import VitrineError

MAX_PAYLOAD_BYTES = 6 * 2**20  # what one synchronous invocation of a function may carry
RECORD_OVERHEAD_BYTES = 600  # the JSON around a record's data
MAX_BATCH = 10_000
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 30.0
REPORTS = "ReportBatchItemFailures"

Handler = Callable[[dict[str, Any]], object]


class Record(NamedTuple):
    """One record of a shard; `sequence` has up to 129 digits, `arrival_s` is seconds since 1970."""

    sequence: str
    partition_key: str
    data: bytes
    arrival_s: float


class Page(NamedTuple):
    """What one read returned; `end` when the shard is closed and holds nothing after these records."""

    records: tuple[Record, ...]
    end: bool = False


class Shard(NamedTuple):
    """A shard and those it was split or merged from."""

    id: str
    parents: tuple[str, ...] = ()


class Stream(Protocol):
    """The log as the mapping reads it."""

    @property
    def arn(self) -> str:
        """The stream's name in events and in what a failure destination is told."""
        ...

    def shards(self) -> list[Shard]:
        """All shards the stream still has, closed ones too."""
        ...

    def read(self, shard: str, after: str | None, limit: int) -> Page:
        """At most `limit` records after the sequence number, from the oldest on for None."""
        ...


@dataclass(frozen=True)
class MappingSettings:
    """An event-source mapping as the template states it; -1 means without end. Raises VitrineError."""

    batch_size: int = 100
    window_s: float = 0.0
    bisect: bool = False
    max_retries: int = -1
    max_age_s: int = -1
    reports_failures: bool = False

    def __post_init__(self) -> None:
        self._require(1 <= self.batch_size <= MAX_BATCH, "batch_size", f"1..{MAX_BATCH}")
        self._require(0 <= self.window_s <= 300, "window_s", "0..300")
        self._require(-1 <= self.max_retries <= 10_000, "max_retries", "-1..10000")
        self._require(
            self.max_age_s == -1 or 60 <= self.max_age_s <= 604_800, "max_age_s", "-1 or 60..604800"
        )

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise VitrineError(f"{name} {getattr(self, name)}; expected {expected} (event-source mapping)")


class Checkpoint(Protocol):
    """Where a shard's progress is kept: all records up to the sequence number need no further delivery."""

    def save(self, shard: str, sequence: str) -> None:
        """Remember it; called in the order of the shard."""
        ...


class Batch(NamedTuple):
    """Records that are invoked together; `failures` counts towards the retries, `invocations` says all."""

    records: tuple[Record, ...]
    failures: int = 0
    invocations: int = 0
    error: str | None = None


def startable(shards: Iterable[Shard], started: Collection[str], drained: Collection[str]) -> list[Shard]:
    """The shards to start reading now: a child waits until every parent that still exists is drained."""
    listed = list(shards)
    present = {shard.id for shard in listed}
    return [
        shard
        for shard in listed
        if shard.id not in started
        and shard.id not in drained
        and all(parent in drained for parent in shard.parents if parent in present)
    ]


class ShardConsumer:
    """Delivers one shard to the handler, in order; every record is acknowledged or told to `on_failure`.

    `step` does one thing (read, invoke or discard) and returns the seconds to wait before the next.
    What `stream`, `on_failure` or `checkpoint` raise goes through; calling `step` again loses nothing.
    """

    def __init__(
        self,
        shard: str,
        stream: Stream,
        handler: Handler,
        settings: MappingSettings,
        *,
        on_failure: Callable[[dict[str, Any]], None],
        checkpoint: Checkpoint,
        clock: Callable[[], float],
        after: str | None = None,
        poll_s: float = 0.1,
    ) -> None:
        self._shard, self._stream, self._handler, self._settings = shard, stream, handler, settings
        self._on_failure, self._checkpoint, self._clock = on_failure, checkpoint, clock
        self._read_to, self._poll_s = after, poll_s
        self._buffer: list[Record] = []
        self._window_ends = self._resume_at = -math.inf
        self._pending: deque[Batch] = deque()  # parts of one batch, in order
        self._failed_in_row = 0
        self._end = False

    @property
    def drained(self) -> bool:
        """Whether the shard is closed and every record of it is settled."""
        return self._end and not self._buffer and not self._pending

    def step(self) -> float:
        """One read, invocation or discard; returns the seconds until the next, infinity once drained."""
        now = self._clock()
        if self.drained:
            return math.inf
        if now < self._resume_at:
            return self._resume_at - now
        if self._pending:
            self._settle(now)
            return max(0.0, self._resume_at - self._clock())
        return self._collect(now)

    def _collect(self, now: float) -> float:
        room = self._settings.batch_size - len(self._buffer)
        if room > 0 and not self._end:
            self._fill(self._stream.read(self._shard, self._read_to, room), now)
        full = len(self._buffer) >= self._settings.batch_size or _fitting(self._buffer) < len(self._buffer)
        if self._buffer and (full or self._end or now >= self._window_ends):
            cut = _fitting(self._buffer)
            self._pending.append(Batch(tuple(self._buffer[:cut])))
            del self._buffer[:cut]
            return 0.0
        if self._buffer:
            return min(self._poll_s, self._window_ends - now)
        return math.inf if self._end else self._poll_s

    def _fill(self, page: Page, now: float) -> None:
        if page.records:
            if not self._buffer:
                self._window_ends = now + self._settings.window_s
            self._buffer.extend(page.records)
            self._read_to = page.records[-1].sequence
        self._end = page.end

    def _settle(self, now: float) -> None:
        batch = self._pending[0]
        too_old = self._too_old(batch, now)
        if too_old:
            self._discard(batch, too_old, "RecordAgeExpired", now)
        elif 0 <= self._settings.max_retries < batch.failures:
            self._discard(batch, len(batch.records), "RetryAttemptsExhausted", now)
        else:
            self._invoke(batch)

    def _too_old(self, batch: Batch, now: float) -> int:
        """How many records, from the first on, are past the mapping's greatest age."""
        limit = self._settings.max_age_s
        if limit < 0:
            return 0
        fresh = (n for n, record in enumerate(batch.records) if now - record.arrival_s <= limit)
        return next(fresh, len(batch.records))

    def _discard(self, batch: Batch, count: int, condition: str, now: float) -> None:
        gone = batch._replace(records=batch.records[:count])
        self._on_failure(discarded(gone, self._shard, self._stream.arn, condition, now))
        self._acknowledge(batch, count)

    def _invoke(self, batch: Batch) -> None:
        count, error = self._deliver(batch.records)
        after = batch._replace(invocations=batch.invocations + 1, error=error)
        self._acknowledge(after, count)
        if count == len(batch.records):
            self._failed_in_row = 0
            return
        # what got through shows that the function works: the wait starts anew
        self._failed_in_row = 1 if count else self._failed_in_row + 1
        self._resume_at = self._clock() + backoff_s(self._failed_in_row)
        self._retry(self._pending.popleft(), progressed=count > 0)

    def _retry(self, batch: Batch, *, progressed: bool) -> None:
        if self._settings.bisect and progressed:
            parts = [batch]  # bisected at the returned sequence number
        elif self._settings.bisect and len(batch.records) > 1:
            half = len(batch.records) // 2
            parts = [
                batch._replace(records=batch.records[:half]),
                batch._replace(records=batch.records[half:]),
            ]
        else:
            parts = [batch._replace(failures=batch.failures + 1)]
        self._pending.extendleft(reversed(parts))

    def _acknowledge(self, batch: Batch, count: int) -> None:
        """Take the first `count` records off the first pending batch, checkpoint first."""
        if count:
            self._checkpoint.save(self._shard, batch.records[count - 1].sequence)
        self._pending.popleft()
        if count < len(batch.records):
            self._pending.appendleft(batch._replace(records=batch.records[count:]))

    def _deliver(self, records: Sequence[Record]) -> tuple[int, str | None]:
        """Invoke once: how many records, from the first on, are done, and the function's error if any."""
        try:
            answer = self._handler(kinesis_event(records, self._shard, self._stream.arn))
        except Exception as error:
            return 0, f"{type(error).__name__}: {error}"
        if not self._settings.reports_failures:
            return len(records), None
        return acknowledged(answer, [record.sequence for record in records]), None


def acknowledged(answer: object, sequences: Sequence[str]) -> int:
    """How many records, from the first on, a partial batch response acknowledges.

    Nothing returned, `{}`, and an empty or null list of failures mean all. The lowest failed sequence number
    is the checkpoint. An item without an identifier, or one that is not of this batch, fails the whole batch.
    """
    if answer is not None and not isinstance(answer, Mapping):
        return 0
    failures = answer.get("batchItemFailures") if answer is not None else None
    if failures is None:
        return len(sequences)
    if not isinstance(failures, list):
        return 0
    position = {sequence: index for index, sequence in enumerate(sequences)}
    identifiers = [item.get("itemIdentifier") if isinstance(item, Mapping) else None for item in failures]
    known = [position.get(name, 0) if isinstance(name, str) else 0 for name in identifiers]
    return min(known, default=len(sequences))


def backoff_s(failed_in_row: int) -> float:
    """Seconds to wait after so many failed invocations in a row: doubling, up to LONGEST_BACKOFF_S."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failed_in_row - 1, 30))


def kinesis_event(records: Sequence[Record], shard: str, arn: str) -> dict[str, Any]:
    """The event a function gets for these records."""
    region, account = arn.split(":")[3:5]
    return {"Records": [_event_record(record, shard, arn, region, account) for record in records]}


def _event_record(record: Record, shard: str, arn: str, region: str, account: str) -> dict[str, Any]:
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": record.partition_key,
            "sequenceNumber": record.sequence,
            "data": binascii.b2a_base64(record.data, newline=False).decode(),
            "approximateArrivalTimestamp": record.arrival_s,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard}:{record.sequence}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": f"arn:aws:iam::{account}:role/local",
        "awsRegion": region,
        "eventSourceARN": arn,
    }


def discarded(batch: Batch, shard: str, arn: str, condition: str, now: float) -> dict[str, Any]:
    """What the failure destination is told of a discarded batch: where its records are, not the records."""
    response: dict[str, Any] = {"statusCode": 200, "executedVersion": "$LATEST"}
    if batch.error is not None:
        response["functionError"] = "Unhandled"
    first, last = batch.records[0], batch.records[-1]
    region, account = arn.split(":")[3:5]
    request = {
        "requestId": str(uuid5(NAMESPACE_URL, f"{arn}/{shard}/{first.sequence}/{batch.invocations}")),
        "functionArn": f"arn:aws:lambda:{region}:{account}:function:local",
        "condition": condition,
        "approximateInvokeCount": batch.invocations,
    }
    return {
        "requestContext": request,
        "responseContext": response,
        "version": "1.0",
        "timestamp": _instant(now),
        "KinesisBatchInfo": {
            "shardId": shard,
            "startSequenceNumber": first.sequence,
            "endSequenceNumber": last.sequence,
            "approximateArrivalOfFirstRecord": _instant(first.arrival_s),
            "approximateArrivalOfLastRecord": _instant(last.arrival_s),
            "batchSize": len(batch.records),
            "streamArn": arn,
        },
    }


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _fitting(records: Sequence[Record]) -> int:
    """How many records, from the first on, fit into one invocation; at least one."""
    size = 0
    for count, record in enumerate(records):
        size += 4 * ((len(record.data) + 2) // 3) + len(record.partition_key) + RECORD_OVERHEAD_BYTES
        if size > MAX_PAYLOAD_BYTES and count:
            return count
    return len(records)
