"""The stream's reader: folds each user's new events into the user's row, exactly once in effect.

A batch is grouped by user; each user is read, folded and written with one conditional put. What goes wrong
with one user stops that user alone. The lowest failed sequence number is returned, and Lambda delivers again
from there on: what was written already is known by the rows' marks, and skipped.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

from functions.aws.bundles import REFRESH_S, Bundles, bundle_client
from functions.aws.memory import settled
from functions.aws.quarantine import Quarantine
from functions.aws.rows import WRITERS, Rows, patient_client
from functions.aws.settings import Settings
from functions.aws.telemetry import emit, logger
from functions.core.batches import StreamRecord, by_user, marked, read_records, unread
from functions.core.erasure import surviving
from functions.core.errors import CorruptRow, Unavailable, VersionConflict
from functions.core.fold import Encoder, Folded, fold
from functions.core.pointer import CHALLENGER
from functions.core.user_row import WID_BYTES, UserRow

Work = TypeVar("Work")
Users = dict[str, list[StreamRecord]]  # by user key

TRIES = 5  # of one user's put, when other writers come between
SPARE_S = 15.0  # of the function's time: no call is begun then, for one of the table may take as long
# What a pure function raises once for the same row and events, it raises every time.
FOR_EVER = (ArithmeticError, CorruptRow, LookupError, TypeError, ValueError)


class Pending(NamedTuple):
    """One user's part of a batch: the row as stored, and the records that are not in it yet."""

    key: str
    stored: UserRow
    records: Sequence[StreamRecord]

    @property
    def place(self) -> dict[str, str]:
        """Where in the log it begins: what a line of the functions' own logs may say of a user."""
        return {"shard": self.records[0].shard, "sequence": str(self.records[0].sequence)}


@dataclass(frozen=True)
class Machine:
    """What a function gets from where it runs: two clocks in seconds, and random bytes."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom


class Updater:
    """What a warm environment keeps."""

    def __init__(
        self,
        rows: Rows,
        bundles: Bundles,
        quarantine: Quarantine,
        pool: Executor,
        machine: Machine = Machine(),
    ) -> None:
        self.rows, self.bundles, self.quarantine = rows, bundles, quarantine
        self.pool, self.machine = pool, machine
        self._due_s = -float("inf")

    @classmethod
    def of(cls, settings: Settings) -> Updater:
        """With clients of the account that the environment names."""
        s3 = bundle_client()
        return cls(
            Rows(patient_client(), settings.table),
            Bundles(s3, settings.bucket),
            Quarantine(s3, settings.bucket),
            ThreadPoolExecutor(WRITERS),
        )

    def encoder(self) -> Encoder | None:
        """The champion's encoder; the pointer is looked at once in REFRESH_S, or whenever there is none."""
        if self.bundles.current is None or self.machine.monotonic() >= self._due_s:
            self.bundles.refresh()
            self._due_s = self.machine.monotonic() + REFRESH_S
        return self.bundles.current.encoder if self.bundles.current else None

    def by_encoder(self, users: Users, champion: Encoder) -> list[tuple[Encoder, Users]]:
        """The users by the encoder that their rows are folded with: the champion's or the challenger's."""
        groups: dict[str, tuple[Encoder, Users]] = {}
        for key, records in users.items():
            bundle, arm = self.bundles.of(key)
            encoder = bundle.encoder if bundle and arm == CHALLENGER else champion
            groups.setdefault(arm, (encoder, {}))[1][key] = records
        return list(groups.values())


@cache
def updater() -> Updater:
    """The one Updater of this environment."""
    return settled(Updater.of(Settings.from_environment()))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Fold one Kinesis batch; returns what failed, always: None would acknowledge everything."""
    return handle(updater(), event, context)


def handle(own: Updater, event: dict[str, Any], context: Any) -> dict[str, Any]:
    """What `handler` does, in a given environment."""
    started_s = own.machine.monotonic()
    ends_s = started_s + context.get_remaining_time_in_millis() / 1000 - SPARE_S
    records = read_records(event["Records"])
    batch = Batch(own, records, ends_s)
    failed = batch.run()
    duration_ms = 1000 * (own.machine.monotonic() - started_s)
    emit(
        {"Records": len(records), "RecordsFailed": len(failed)},
        {"BatchDuration": duration_ms, **batch.spent_ms},
        about={"shard": records[-1].shard, "last": str(records[-1].sequence)} if records else None,
    )
    if not failed:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": str(min(record.sequence for record in failed))}]}


class Batch:
    """One batch on its way into the table."""

    def __init__(self, own: Updater, records: list[StreamRecord], ends_s: float) -> None:
        self._own, self._records, self._ends_s = own, records, ends_s
        self._now_s = int(own.machine.wall())
        self._wids: Iterator[bytes] = iter(())
        self.spent_ms: dict[str, float] = {}  # of the batch's time, what each part took

    def run(self) -> list[StreamRecord]:
        """Fold all records; returns those that failed and must be delivered again."""
        encoder = self._own.encoder()
        if encoder is None:
            logger.error("no bundle: the batch waits", extra={"records": len(self._records)})
            return self._records
        failed = self._put_aside([(r, r.reason) for r in self._records if r.reason])
        for own, users in self._own.by_encoder(by_user(self._records), encoder):
            failed += self._update(users, own)
        return failed

    def _update(self, users: Users, encoder: Encoder) -> list[StreamRecord]:
        """Read, fold and write these users; returns the records that failed."""
        with self._timed("ReadDuration"):
            pending, failed = self._read(users, encoder)
        with self._timed("FoldDuration"):
            folded, unfolded = self._fold(pending, encoder)
        failed += unfolded
        with self._timed("WriteDuration"):
            # Drawn at once: each draw lets go of the interpreter's lock, and the writers would queue for it.
            drawn = self._own.machine.random(WID_BYTES * len(folded))
            self._wids = iter([drawn[at : at + WID_BYTES] for at in range(0, len(drawn), WID_BYTES)])
            outcomes = self._in_parallel(lambda pair: self._write(pair[0], pair[1], encoder), folded)
        for (user, _), written in zip(folded, outcomes, strict=True):
            failed += [] if written else user.records
        return failed

    def _read(self, users: Users, encoder: Encoder) -> tuple[list[Pending], list[StreamRecord]]:
        """What each user's row lacks, and the records of users whose row was not read.

        Nobody can fold onto a row that is not sound, and the shard must not wait for it: the records of
        such a user go to quarantine, and the row stays as it is.
        """
        fetched = self._own.rows.get_many(users, self._in_time)
        for key, row in fetched.rows.items():
            if row.space == encoder.space and not fits(row, encoder):
                fetched.corrupt[key] = f"state {row.state.size}, vector {row.vector.size}"
        failed = [record for key in fetched.unread for record in users[key]]
        failed += self._put_aside(
            [(r, f"row: {reason}") for key, reason in fetched.corrupt.items() for r in users[key]]
        )
        pending = []
        for key, records in users.items():
            if key in fetched.unread or key in fetched.corrupt:
                continue
            row = fetched.rows.get(key) or encoder.empty()
            if lacking := unread(row, records):
                pending.append(Pending(key, row, lacking))
        return pending, failed

    def _fold(
        self, users: list[Pending], encoder: Encoder
    ) -> tuple[list[tuple[Pending, UserRow]], list[StreamRecord]]:
        """All users in one vectorised fold; if it fails one by one, so that it stops only who is at fault."""
        try:
            return list(zip(users, self._folded(users, encoder), strict=True)), []
        except Exception:
            logger.exception("a fold failed")
        folded: list[tuple[Pending, UserRow]] = []
        failed: list[StreamRecord] = []
        for user in users:
            try:
                row, at_fault = self._fold_apart(user, encoder)
            except Exception as error:
                logger.error("a user waits", extra=user.place | {"error": f"{error!r}"})
                failed += user.records
                continue
            waiting = self._put_aside(at_fault)
            if waiting:  # the mark must not pass what must come again, or it would be skipped then
                failed += user.records
            elif row is not user.stored:
                folded.append((user, row))
        return folded, failed

    def _fold_apart(self, user: Pending, encoder: Encoder) -> tuple[UserRow, list[tuple[StreamRecord, str]]]:
        """One user's records one by one: the row without those that cannot be folded, and those."""
        row, at_fault = user.stored, []
        for record in user.records:
            try:
                row = self._folded([user._replace(stored=row, records=[record])], encoder)[0]
            except FOR_EVER as error:
                at_fault.append((record, f"cannot be folded: {error!r}"))
        return row, at_fault

    def _folded(self, users: list[Pending], encoder: Encoder) -> list[UserRow]:
        living = [surviving(user.stored, user.records) for user in users]
        rows, counts = fold([row for row, _ in living], [events for _, events in living], encoder)
        _count(counts)
        return [marked(row, user.records) for row, user in zip(rows, users, strict=True)]

    def _write(self, user: Pending, row: UserRow, encoder: Encoder) -> bool:
        """Write one user's row; whether the records are in the table now. Any error stops this user only."""
        try:
            for _ in range(TRIES):
                written, current = self._put(user.key, user.stored.version, row)
                if written:
                    return True
                stored = current or encoder.empty()
                user = user._replace(stored=stored, records=unread(stored, user.records))
                if not user.records:
                    return True
                row = self._folded([user], encoder)[0]
            raise Unavailable(f"another writer was faster {TRIES} times")
        except Exception as error:
            logger.error("a user waits", extra=user.place | {"error": f"{error!r}"})
            return False

    def _put(self, key: str, version: int, row: UserRow) -> tuple[bool, UserRow | None]:
        """Put the next version; on a conflict look whether that was us: an answer can be lost on its way."""
        wid = next(self._wids, None) or self._own.machine.random(WID_BYTES)
        new = row.but(version=version + 1, wid=wid)
        self._require_time()
        try:
            self._own.rows.put(key, new, version, self._now_s)
            return True, None
        except VersionConflict:
            self._require_time()
            current = self._own.rows.get(key)
            return current is not None and current.wid == wid, current

    def _put_aside(self, poisoned: Iterable[tuple[StreamRecord, str]]) -> list[StreamRecord]:
        """Quarantine records; returns those for which that failed: they are not acknowledged."""
        poisoned = list(poisoned)
        kept = self._in_parallel(self._keep, poisoned)
        if poisoned:
            emit({"RecordsQuarantined": sum(kept)})
        return [record for (record, _), done in zip(poisoned, kept, strict=True) if not done]

    def _keep(self, poisoned: tuple[StreamRecord, str]) -> bool:
        record, reason = poisoned
        extra = {"shard": record.shard, "sequence": str(record.sequence)}  # the reason may quote the record
        try:
            self._require_time()
            self._own.quarantine.put(record.shard, record.sequence, record.raw, reason)
        except Exception as error:
            logger.error("quarantine refused a record", extra={**extra, "error": f"{error!r}"})
            return False
        logger.warning("record in quarantine", extra=extra)
        return True

    def _in_parallel(self, act: Callable[[Work], bool], work: Sequence[Work]) -> list[bool]:
        """What `act` says of each piece of work; threads share it, for a future for each would cost more."""
        if len(work) == 1:
            return [act(work[0])]
        left, done = deque(enumerate(work)), [False] * len(work)

        def take() -> None:
            while left:
                try:
                    nth, piece = left.popleft()
                except IndexError:  # another thread was faster
                    return
                done[nth] = act(piece)

        for worker in [self._own.pool.submit(take) for _ in range(min(WRITERS, len(work)))]:
            worker.result()
        return done

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started_s = self._own.machine.monotonic()
        yield
        spent_ms = 1000 * (self._own.machine.monotonic() - started_s)
        self.spent_ms[part] = self.spent_ms.get(part, 0.0) + spent_ms

    def _in_time(self) -> bool:
        return self._own.machine.monotonic() < self._ends_s

    def _require_time(self) -> None:
        if not self._in_time():
            raise Unavailable("the function's time is over")


def fits(row: UserRow, encoder: Encoder) -> bool:
    """Whether state and vector have the encoder's widths."""
    return (row.state.size, row.vector.size) == (encoder.state_width, encoder.dim)


def _count(counts: Folded) -> None:
    emit(
        {
            "EventsFolded": counts.folded,
            "EventsKnown": counts.duplicates,
            "ItemsUnknown": counts.unknown_items,
        }
    )
