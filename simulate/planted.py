"""Bugs that people make in such a system, each put into the real code for a while. All must be found.

A simulator that finds none of them would prove nothing by finding nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from functions import archive, collect, me, update
from functions.aws import rows
from functions.aws.clients import unavailable
from functions.aws.errors import Failure
from functions.aws.keys import Entry, KeyTable, place
from functions.aws.quarantine import Quarantine
from functions.aws.rows import Fetched, Rows, to_item
from functions.core import batches, erasure, fold, sealed, user_row
from functions.core.archived import Archived, DataKey, Forgotten
from functions.core.batches import StreamRecord
from functions.core.errors import Unavailable, VersionConflict
from functions.core.fold import Encoder
from functions.core.histories import Histories
from functions.core.pointer import Pointer
from functions.core.records import Erasure, decode_record
from functions.core.ring import Ring
from functions.core.sealed import NONCE_BYTES, seal
from functions.core.user_row import UserRow
from local.event_source import ShardConsumer
from simulate import archive as simulated_archive
from simulate import mapping
from simulate.encoder import STEPS, Step
from simulate.history import run
from simulate.world import START_S

Bug = tuple[object, str, object]  # what is patched, under which name, with what
_Batch = update.Batch
_real_run, _real_read, _real_encode = _Batch.run, batches._read, user_row.encode
_real_fold, _real_settings, _real_handle = fold.fold_histories, mapping.template_settings, update.handle


def _highest_of_any_shard(row: UserRow, shard: str) -> int:
    return max((sequence for _, sequence in row.marks), default=-1)


def _unread_by_text(row: UserRow, records: Sequence[StreamRecord]) -> list[StreamRecord]:
    return [r for r in records if str(r.sequence) > str(row.mark(r.shard))]


def _conflict_is_done(self: Any, key: str, version: int, row: UserRow) -> tuple[bool, UserRow | None]:
    new = replace(row, version=version + 1, wid=self._own.machine.random(8))
    with suppress(VersionConflict):
        self._own.rows.put(key, new, version, self._now_s)
    return True, None


def _stale_row_at_the_new_version(
    self: Any, key: str, version: int, row: UserRow
) -> tuple[bool, UserRow | None]:
    """After a conflict, what was folded onto the old row is written over the new one."""
    for _ in range(update.TRIES):
        new = replace(row, version=version + 1, wid=self._own.machine.random(8))
        try:
            self._own.rows.put(key, new, version, self._now_s)
            return True, None
        except VersionConflict:
            current = self._own.rows.get(key)
            version = current.version if current else 0
    return False, None


def _put_without_condition(self: Any, key: str, row: UserRow, expected: int | None, now_s: int) -> None:
    try:
        self._dynamodb.put_item(TableName=self._table, Item=to_item(key, row, now_s))
    except Failure as error:
        raise unavailable(error, "row") from error


def _drop_unprocessed(self: Any, keys: list[str], fetched: Fetched, in_time: Callable[[], bool]) -> None:
    request = {self._table: {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": True}}
    try:
        answer = self._dynamodb.batch_get_item(RequestItems=request)
    except Failure:
        fetched.unread |= set(keys)
        return
    rows._sort(answer["Responses"].get(self._table, []), fetched)


def _all_is_written(self: Any, user: Any, row: UserRow, encoder: Encoder) -> bool:
    with suppress(Exception):
        self._put(user.key, user.stored.version, row)
    return True


def _record_by_record(self: Any) -> list[StreamRecord]:
    """Each record written by itself, and on past one that failed, as a batch processor does."""
    failed = []
    for record in self._records:
        failed += _real_run(_Batch(self._own, [record], self._ends_s))
    return failed


def _highest_failed(own: update.Updater, event: dict[str, Any], context: Any) -> dict[str, Any]:
    answer = _real_handle(own, event, context)
    if answer["batchItemFailures"]:
        last = event["Records"][-1]["kinesis"]["sequenceNumber"]
        answer["batchItemFailures"][0]["itemIdentifier"] = last
    return answer


def _acknowledged_anyway(self: Any, poisoned: Any) -> list[StreamRecord]:
    for pair in poisoned:
        self._keep(pair)
    return []


def _stop_at_poison(records: Sequence[Mapping[str, Any]]) -> list[StreamRecord]:
    read = [_real_read(record) for record in records]
    if any(record.reason for record in read):
        raise ValueError("a record cannot be read")
    return read


def _any_partition_key(record: Mapping[str, Any]) -> StreamRecord:
    read = _real_read(record)
    if "partition key" not in read.reason:
        return read
    key, said = decode_record(base64.b64decode(record["kinesis"]["data"]), int(START_S))
    assert not isinstance(said, Erasure)
    return read._replace(user_key=key, event=said, reason="")


def _newest_first(row: UserRow, records: Sequence[StreamRecord]) -> list[StreamRecord]:
    return [r for r in records if r.sequence > row.mark(r.shard)][::-1]


def _as_it_is(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
    return [replace(row, space=encoder.space) for row in rows]


def _round_once_a_batch(
    rows: Sequence[UserRow], steps: Any, encoder: Encoder
) -> tuple[Sequence[Any], Sequence[Any], int]:
    """The state is kept in float32 through a batch, and rounded when it is stored."""
    table, known = fold._embeddings(steps.items, encoder)
    step: Step = STEPS[encoder.space]
    states, vectors, folded = [], [], 0
    for row, (first, end) in zip(rows, steps.spans, strict=True):
        state, vector = row.state[None].astype(np.float32), row.vector
        at = [n for n in range(first, end) if known[steps.codes[0, n]]]
        for n in at:
            item, *codes = steps.codes[:, n : n + 1]
            state = step.unrounded(state, table[item], *codes)
        rounded = state.astype(np.float16)
        fold._require_finite(rounded, rounded)
        states.append(rounded[0])
        vectors.append(step.read(rounded)[0] if at else vector)
        folded += len(at)
    return states, vectors, folded


def _impressions_move_the_state(
    rows: Sequence[UserRow], events: Histories, encoder: Encoder
) -> tuple[list[UserRow], fold.Folded]:
    return _real_fold(rows, replace(events, kind=[1 if kind == 7 else kind for kind in events.kind]), encoder)


def _without(*names: str) -> Callable[[UserRow], dict[str, object]]:
    def encode(row: UserRow) -> dict[str, object]:
        return {k: b"" if k in names else v for k, v in _real_encode(row).items()}

    return encode


def _without_last(row: UserRow) -> dict[str, object]:
    return _real_encode(replace(row, last_s=0))


def _quarantine_by_sequence(
    self: Any, shard: str, sequence: int, record: Mapping[str, Any], reason: str
) -> None:
    _real_quarantine(self, "any", sequence % 50, record, reason)


_real_quarantine = Quarantine.put


def _untold(self: Any, batch: Any, count: int, condition: str, now: float) -> None:
    self._acknowledge(batch, count)


def _all_too_old(self: Any, batch: Any, now: float) -> int:
    return len(batch.records) if _real_too_old(self, batch, now) else 0


_real_too_old = ShardConsumer._too_old


def _one_retry() -> tuple[Any, int]:
    settings, timeout_s = _real_settings()
    return replace(settings, max_retries=1), timeout_s


def _last_two(ring: Ring) -> list[bytes]:
    return [entry.event for entry in ring[-2:]]


def _lower_marks(row: UserRow, records: Sequence[StreamRecord]) -> UserRow:
    """Only the batch's first record is marked."""
    for record in records[:1]:
        row = row.with_mark(record.shard, record.sequence)
    return row


def _any_number_stored(row: UserRow) -> dict[str, object]:
    finite = replace(row, state=np.zeros_like(row.state), vector=np.zeros_like(row.vector))
    return _real_encode(finite) | {
        "state": row.state.astype("<f2").tobytes(),
        "vector": row.vector.astype("<f2").tobytes(),
    }


def _corrupt_is_new(self: Any, keys: Any, in_time: Any = lambda: True) -> Fetched:
    fetched = _real_get_many(self, keys, in_time)
    fetched.corrupt.clear()
    return fetched


_real_get_many = Rows.get_many


def _erasure_of_the_row_alone(self: Any, key: str, keys: Any, now_s: int) -> None:
    """The row is emptied, and the log is told nothing: what is in flight brings the user back."""
    row = self.rows.get(key)
    if row is not None:
        empty = replace(erasure.forgotten(row), version=row.version + 1, erased=bytes(8))
        self.rows.put(key, empty, row.version, now_s)


def _the_first_arms_encoder(self: Any, users: Any, champion: Encoder) -> Any:
    groups = _real_by_encoder(self, users, champion)
    return [(groups[0][0], group) for _, group in groups]


def _unsalted(self: Pointer, user_key: str) -> str:
    return _real_arm(replace(self, salt=""), user_key)


_real_by_encoder, _real_arm = update.Updater.by_encoder, Pointer.arm


def _shred_without_condition(self: Any, user: str, erased: Any, receipt: bytes, now_s: int) -> None:
    item = {"erased_to": {"S": place(erased.shard, int(erased.sequence))}, "receipts": {"B": receipt}}
    _put_key(self, {"pk": {"S": user}, **item})


def _create_without_condition(self: Any, user: str, before: Entry) -> DataKey | None:
    key = DataKey(self._random(8), self._random(32))
    item = {"pk": {"S": user}, "key_name": {"B": key.name}, "data_key": {"B": key.secret}}
    if before.erased:
        item |= {"erased_to": {"S": before.erased}, "receipts": {"B": before.receipts}}
    _put_key(self, item)
    return key


def _always_the_key(self: Entry, erased: str, receipt: bytes) -> Entry:
    return Entry(None, erased, self.receipts + receipt)


def _put_key(self: Any, item: Mapping[str, Any]) -> None:
    try:
        self._dynamodb.put_item(TableName=self._table, Item=item)
    except Failure as error:
        raise unavailable(error, "key") from error


def _erasures_unread(self: Any, records: Sequence[Any]) -> list[bytes | None]:
    return _real_lines(self, [None if isinstance(r, Forgotten) else r for r in records])


def _keys_read_first(self: Any, records: Sequence[Any]) -> list[bytes | None]:
    """Keys are read before those are ended whose erasure is in the same batch."""
    entries = self.keys.get_many(r.user_key for r in records if isinstance(r, Archived))
    _real_lines(self, [r for r in records if isinstance(r, Forgotten)])
    return [self._line(r, entries) if isinstance(r, Archived) else None for r in records]


def _once(self: archive.Archiver, record: Archived, entries: dict[str, Entry]) -> bytes | None:
    entry = entries.get(record.user_key, Entry())
    key = entry.key or (
        None if entry.before_erasure(*record.order) else self.keys.create(record.user_key, entry)
    )
    return seal(record, key, self.random(NONCE_BYTES)) if key else None


def _each_line(lines: Any, secrets: Mapping[str, bytes], seen: Any) -> Iterator[Archived]:
    for line in lines:
        yield from _real_read_lines([line], secrets, seen)


_real_lines, _real_read_lines = archive.Archiver.lines, sealed.read_lines


def _over_version_zero(self: Any, key: str, receipt: bytes, position: Any, now_s: int, older: bytes) -> bytes:
    """The tombstone is put as if there never were a row."""
    for _ in range(me.TRIES):
        row = self.rows.get(key)
        if row and (row.erased == receipt or row.mark(position.shard) >= int(position.sequence)):
            return b""
        new = replace(erasure.tombstone(row, receipt, now_s), wid=receipt, version=1)
        with suppress(VersionConflict):
            self.rows.put(key, new, 0, now_s)
            return b""
    raise Unavailable("another writer was faster")


def _bury_in_any_case(self: Any, key: str, receipt: bytes, position: Any, *more: Any) -> bytes:
    """Whether the log has brought the erasure to the row already is not looked at."""
    return _real_bury(self, key, receipt, position._replace(sequence=str(10**130)), *more)


def _over_a_newer_tombstone(
    self: Any, key: str, receipt: bytes, position: Any, now_s: int, older: bytes
) -> bytes:
    """Whose tombstone stands there is not looked at: an older request's may end before a newer's record."""
    standing = _real_bury(self, key, receipt, position, now_s, older)
    return _real_bury(self, key, receipt, position, now_s, standing) if standing else b""


def _past_a_failure(log: Any, key: str, events: list[Any]) -> list[dict[str, Any]]:
    """What comes after an event that the log did not take is put all the same, and overtakes it."""
    results, sequence = [], None
    for event in events:
        try:
            sequence = log.put(key, event.record, sequence).sequence
            results.append({"event_id": event.event_id, "status": collect.ACCEPTED})
        except Unavailable:
            results.append({"event_id": event.event_id, "status": collect.FAILED})
    return results


_real_bury = me.Eraser._bury
_real_forgotten = erasure.forgotten

BUGS: dict[str, Callable[[], list[Bug]]] = {
    "single high-water mark": lambda: [(UserRow, "mark", _highest_of_any_shard)],
    "marks compared as text": lambda: [(update, "unread", _unread_by_text)],
    "no high-water mark": lambda: [(UserRow, "mark", lambda row, shard: -1)],
    "mark of the first record": lambda: [(update, "marked", _lower_marks)],
    "no id ring": lambda: [(Ring, "has", lambda ring, event: False), (Ring, "hashes", lambda ring: [])],
    "ring of two": lambda: [
        (Ring, "has", lambda ring, event: event in _last_two(ring)),
        (Ring, "hashes", lambda ring: _last_two(ring)),
    ],
    "failed condition taken for a duplicate": lambda: [(_Batch, "_put", _conflict_is_done)],
    "stale row written at the new version": lambda: [(_Batch, "_put", _stale_row_at_the_new_version)],
    "no condition": lambda: [(Rows, "put", _put_without_condition)],
    "swallowed error": lambda: [(_Batch, "_write", _all_is_written)],
    "run-on after a failed record": lambda: [(_Batch, "run", _record_by_record)],
    "highest failed number returned": lambda: [(update, "handle", _highest_failed)],
    "acknowledged before quarantine": lambda: [(_Batch, "_put_aside", _acknowledged_anyway)],
    "poison stops the shard": lambda: [(update, "read_records", _stop_at_poison)],
    "quarantine keys collide": lambda: [(Quarantine, "put", _quarantine_by_sequence)],
    "any partition key": lambda: [(batches, "_read", _any_partition_key)],
    "rounding once a batch": lambda: [(fold, "_advance", _round_once_a_batch)],
    "state read across spaces": lambda: [(fold, "in_space", _as_it_is)],
    "a value that is not finite is stored": lambda: [
        (fold, "_require_finite", lambda state, vector: None),
        (rows, "encode", _any_number_stored),
    ],
    "events newest first": lambda: [(update, "unread", _newest_first)],
    "impressions move the state": lambda: [(fold, "fold_histories", _impressions_move_the_state)],
    "an event that overtakes one that failed": lambda: [(collect, "append", _past_a_failure)],
    "a call for more keys than one takes": lambda: [(rows, "BATCH", rows.BATCH + 1)],
    "unprocessed keys taken for new users": lambda: [(Rows, "_get_batch", _drop_unprocessed)],
    "a corrupt row taken for a new user": lambda: [(Rows, "get_many", _corrupt_is_new)],
    "time over and going on": lambda: [(_Batch, "_in_time", lambda batch: True)],
    "favourites not stored": lambda: [(rows, "encode", _without("fav"))],
    "impressions not stored": lambda: [(rows, "encode", _without("seen"))],
    "last time not stored": lambda: [(rows, "encode", _without_last)],
    "rows that die in a day": lambda: [(rows, "LIFETIME_S", 86_400)],
    "erasure without a tombstone": lambda: [(me.Eraser, "_bury", lambda *_: b"")],
    "erasure of the row alone": lambda: [(me.Eraser, "erase", _erasure_of_the_row_alone)],
    "everybody is the champion's": lambda: [
        (update.Updater, "by_encoder", lambda own, users, champion: [(champion, users)])
    ],
    "one encoder for both arms": lambda: [(update.Updater, "by_encoder", _the_first_arms_encoder)],
    "the arm drawn without its salt": lambda: [(Pointer, "arm", _unsalted)],
    "an erasure that keeps the archive's key": lambda: [(KeyTable, "shred", lambda *_: None)],
    "an erasure that the archive passes over": lambda: [(archive.Archiver, "lines", _erasures_unread)],
    "keys read before a batch's erasures end some": lambda: [(archive.Archiver, "lines", _keys_read_first)],
    "an erasure that ends a key each time": lambda: [(KeyTable, "shred", _shred_without_condition)],
    "an erasure known again if it was the last alone": lambda: [
        (Entry, "knows", lambda entry, receipt: entry.receipts.endswith(receipt))
    ],
    "an erasure that comes late forgets a later one's place": lambda: [(Entry, "after", _always_the_key)],
    "an old record sealed with a new key": lambda: [(Entry, "before_erasure", lambda *_: False)],
    "a first key over another's": lambda: [(KeyTable, "create", _create_without_condition)],
    "a record without a line where its key was contested": lambda: [(archive.Archiver, "_line", _once)],
    "an archived line read twice": lambda: [(simulated_archive, "read_lines", _each_line)],
    "a tombstone over an erasure that is done": lambda: [(me.Eraser, "_bury", _bury_in_any_case)],
    "a tombstone over a newer request's": lambda: [(me.Eraser, "_bury", _over_a_newer_tombstone)],
    "an erasure where there is no row alone": lambda: [(me.Eraser, "_bury", _over_version_zero)],
    "an erasure that the stream does not do": lambda: [(erasure, "_known", lambda row, erased: True)],
    "an erasure that counts each time": lambda: [(erasure, "_known", lambda row, erased: False)],
    "a tombstone that forgets its place in the log": lambda: [
        (erasure, "forgotten", lambda row: replace(_real_forgotten(row), marks=()))
    ],
    "records too old that nobody is told of": lambda: [(ShardConsumer, "_discard", _untold)],
    "a batch too old by its first record": lambda: [(ShardConsumer, "_too_old", _all_too_old)],
    "retry limit that drops events": lambda: [(mapping, "template_settings", _one_retry)],
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """With the bug of this name in the real code."""
    patches = BUGS[name]()
    real = [(target, attribute, target.__dict__[attribute]) for target, attribute, _ in patches]
    try:
        for target, attribute, bug in patches:
            setattr(target, attribute, bug)
        yield
    finally:
        for target, attribute, value in real:
            setattr(target, attribute, value)


def killed_by(name: str, seeds: int) -> int | None:
    """The first seed under `seeds` that goes wrong with this bug; None if none does."""
    with planted(name):
        return next((seed for seed in range(seeds) if run(seed).world.violations), None)
