"""The fold: user row + events → user row. Live updates, replay and offline evaluation all run this.

A batch is folded as columns, in rounds of one event per user, one call of the encoder's step per round. The
step rounds its state to float16 inside, so no batching, redelivery or replay can change a bit of the result.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from functions.core.events import IMPRESSION, Event
from functions.core.favourites import Favourites
from functions.core.features import Int64, gap_bucket, value_bucket
from functions.core.histories import Histories, bounds_of, bounds_within, histories
from functions.core.user_row import ENTRY_BYTES, RING, Float16, Ring, UserRow, new_row, pack_entry

RING_BYTES = RING * ENTRY_BYTES


class Step(Protocol):
    """The user tower: one event of each of B users, rounding included.

    `state` [B, S] float16, `item` [B, d] float16, `kind`, `gap`, `value` [B] int64
    → state [B, S] float16, vector [B, d] float16.
    """

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]: ...


class Items(Protocol):
    """The item side of one encoder: embeddings by item key."""

    def embedding(self, key: bytes) -> Float16 | None:
        """[d] float16, or None where the catalogue does not have the item."""
        ...


@dataclass(frozen=True)
class Encoder:
    """What defines a state: the step kernel, the item embeddings it is fed, and the name of their space."""

    space: str
    state_width: int
    dim: int
    step: Step
    items: Items

    def empty(self) -> UserRow:
        """The row of a new user in this space."""
        return new_row(self.space, self.state_width, self.dim)


@dataclass(frozen=True)
class Folded:
    """What a fold did, in counts: events folded, known already, and of items that nobody knows."""

    folded: int
    duplicates: int
    unknown_items: int


def fold(
    rows: Sequence[UserRow], events: Sequence[Sequence[Event]], encoder: Encoder
) -> tuple[list[UserRow], Folded]:
    """Fold each user's events, in order, into the user's row; rows of another space are rebuilt first.

    An event that the ring remembers is skipped. An unknown item is kept in the ring, counted and not folded.
    An impression goes to the frequency caps alone.
    """
    if len(rows) != len(events):
        raise ValueError(f"{len(rows)} rows, {len(events)} lists of events; expected one list per row")
    return fold_histories(rows, histories(events), encoder)


def fold_histories(
    rows: Sequence[UserRow], events: Histories, encoder: Encoder
) -> tuple[list[UserRow], Folded]:
    """`fold` of events that are columns already; one history per row."""
    counted = events.kind != IMPRESSION
    remembered = _with_impressions(in_space(rows, encoder), events.take(~counted))
    acts = events.take(counted)
    new = acts.take(_unknown_to_ring(remembered, acts))
    steps = _steps(remembered, new)
    states, vectors, folded = _advance(remembered, steps, encoder)
    columns = _rings(remembered, new, steps), _last_s(remembered, new), _favourites(remembered, new)
    result = [
        replace(row, state=state, vector=vector, ring=ring, last_s=at, favourites=favourites)
        for row, state, vector, ring, at, favourites in zip(
            remembered, states, vectors, *columns, strict=True
        )
    ]
    return result, Folded(folded, len(acts.kind) - len(new.kind), len(new.kind) - folded)


def in_space(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
    """The rows, those of another state space rebuilt from their ring: a state is never read across spaces."""
    foreign = [i for i, row in enumerate(rows) if row.space != encoder.space]
    result = list(rows)
    blank = encoder.empty()
    bare = [replace(rows[i], state=blank.state, vector=blank.vector, space=encoder.space) for i in foreign]
    states, vectors, _ = _advance(bare, _ring_steps(bare), encoder)
    for i, row, state, vector in zip(foreign, bare, states, vectors, strict=True):
        result[i] = replace(row, state=state, vector=vector)
    return result


def _with_impressions(rows: Sequence[UserRow], impressions: Histories) -> list[UserRow]:
    result = list(rows)
    users = np.repeat(np.arange(len(rows)), impressions.lengths).tolist()
    for u, item, time_s in zip(users, impressions.item.tolist(), impressions.time_s.tolist(), strict=True):
        seen = (impressions.items[item], time_s)
        if seen not in result[u].seen:
            result[u] = result[u].with_impression(*seen)
    return result


def _unknown_to_ring(rows: Sequence[UserRow], acts: Histories) -> NDArray[np.bool_]:
    """Which events the ring, as it is at each event's turn, does not remember."""
    unknown = np.ones(len(acts.kind), bool)
    for row, first, last in zip(rows, acts.bounds[:-1].tolist(), acts.bounds[1:].tolist(), strict=True):
        hashes = acts.event[first:last]
        if len(row.hashes.union(hashes)) < len(row.hashes) + len(hashes):
            unknown[first:last] = _unknown_in_turn(row, hashes)
    return unknown


def _unknown_in_turn(row: UserRow, hashes: Sequence[bytes]) -> list[bool]:
    ring, known = deque(row.ring.hashes()), set(row.hashes)
    unknown = []
    for hashed in hashes:
        unknown.append(hashed not in known)
        if unknown[-1]:
            known.add(hashed)
            ring.append(hashed)
            if len(ring) > RING:
                known.discard(ring.popleft())
    return unknown


@dataclass(frozen=True)
class _Steps:
    """What the encoder is fed, [n], one user's after the other's; bounds [U + 1]; items are [M] keys."""

    bounds: Int64
    items: Sequence[bytes]
    item: Int64
    kind: Int64
    gap: Int64  # buckets
    value: Int64  # buckets


def _steps(rows: Sequence[UserRow], new: Histories) -> _Steps:
    """The steps of new events: a user's first has no gap, and where a client's clock went backwards the gap
    is 0."""
    gap_s = np.diff(new.time_s, prepend=new.time_s[:1])
    active = [row for row, some in zip(rows, new.lengths.tolist(), strict=True) if some]
    first = new.bounds[:-1][new.lengths > 0]
    gap_s[first] = new.time_s[first] - np.array([row.last_s for row in active], np.int64)
    gap_s = np.maximum(gap_s, 0)
    gap_s[first[np.array([not row.ring for row in active], np.bool_)]] = -1
    return _Steps(
        new.bounds, new.items, new.item, new.kind, gap=gap_bucket(gap_s), value=value_bucket(new.value)
    )


def _ring_steps(rows: Sequence[UserRow]) -> _Steps:
    """The steps that the rings remember."""
    entries = [entry for row in rows for entry in row.ring]
    places: dict[bytes, int] = {}
    item = [places.setdefault(entry.item, len(places)) for entry in entries]
    codes = np.array([(entry.kind, entry.gap, entry.value) for entry in entries], np.int64).reshape(-1, 3)
    bounds = bounds_of([len(row.ring) for row in rows])
    return _Steps(bounds, list(places), np.array(item, np.int64), *codes.T)


def _rings(rows: Sequence[UserRow], new: Histories, steps: _Steps) -> list[Ring]:
    """Each row's ring with its new events, of which only the last RING become entries."""
    nth = np.arange(len(new.kind)) - np.repeat(new.bounds[1:], new.lengths)  # -1: the user's newest
    newest = np.flatnonzero(nth >= -RING)
    codes = (steps.item, steps.kind, steps.value, steps.gap)
    packed = [
        pack_entry(new.event[at], new.items[item], kind, value, gap)
        for at, item, kind, value, gap in zip(
            newest.tolist(), *(code[newest].tolist() for code in codes), strict=True
        )
    ]
    bounds = bounds_within(new.bounds, nth >= -RING).tolist()
    return [
        Ring(b"".join((row.ring.packed, *packed[first:last]))[-RING_BYTES:]) if last > first else row.ring
        for row, first, last in zip(rows, bounds[:-1], bounds[1:], strict=True)
    ]


def _favourites(rows: Sequence[UserRow], new: Histories) -> list[Favourites]:
    """What each visitor comes back to, with the events that the new ones push out of the ring."""
    items, kinds = [new.items[item] for item in new.item.tolist()], new.kind.tolist()
    result = []
    for row, first, last in zip(rows, new.bounds[:-1].tolist(), new.bounds[1:].tolist(), strict=True):
        if last == first:
            result.append(row.favourites)
            continue
        item, kind = row.ring.items() + items[first:last], row.ring.kinds() + kinds[first:last]
        result.append(row.favourites.after(item, kind, len(row.ring), RING))
    return result


def _last_s(rows: Sequence[UserRow], new: Histories) -> list[int]:
    """The time of each user's newest event that is in the ring."""
    newest = new.time_s[np.maximum(new.bounds[1:] - 1, 0)].tolist() if len(new.time_s) else [0] * len(rows)
    return [
        at if some else row.last_s for row, at, some in zip(rows, newest, new.lengths.tolist(), strict=True)
    ]


def _advance(
    rows: Sequence[UserRow], steps: _Steps, encoder: Encoder
) -> tuple[Sequence[Float16], Sequence[Float16], int]:
    """Step every row through its events, in rounds; returns states, vectors and how many events were folded.

    Users with many events come first, so that those of a round are a range.
    """
    if not len(steps.kind):
        return [row.state for row in rows], [row.vector for row in rows], 0
    table, known = _embeddings(steps.items, encoder)
    at, bounds = np.flatnonzero(known[steps.item]), bounds_within(steps.bounds, known[steps.item])
    item, kind, gap, value = (column[at] for column in (steps.item, steps.kind, steps.gap, steps.value))
    order = np.argsort(-np.diff(bounds), kind="stable")
    fewer = -np.diff(bounds)[order]  # ascending
    states = np.stack([rows[u].state for u in order])
    vectors = np.stack([rows[u].vector for u in order])
    for turn in range(-fewer[0]):
        users = int(np.searchsorted(fewer, -turn))
        now = bounds[order[:users]] + turn
        state, vector = encoder.step(states[:users], table[item[now]], kind[now], gap[now], value[now])
        _require_finite(state, vector)
        states[:users], vectors[:users] = state, vector
    back = np.argsort(order)
    return list(states[back]), list(vectors[back]), len(at)


def _embeddings(keys: Sequence[bytes], encoder: Encoder) -> tuple[Float16, NDArray[np.bool_]]:
    """Embeddings [M, d] float16, and which of the items are known [M]."""
    found = [encoder.items.embedding(key) for key in keys]
    known = np.array([e is not None for e in found], bool)
    table = np.zeros((len(keys), encoder.dim), np.float16)
    if known.any():
        table[known] = [e for e in found if e is not None]
    return table, known


def _require_finite(state: NDArray[np.float16], vector: NDArray[np.float16]) -> None:
    if not (np.isfinite(state).all() and np.isfinite(vector).all()):
        raise FloatingPointError("the encoder's step gave a value that is not finite")
