"""The fold: user row + events → user row. Live updates, replay and offline evaluation all run this.

A batch is folded as columns, in rounds of one event per user, one call of the encoder's step per round. The
step rounds its state to float16 inside, so no batching, redelivery or replay can change a bit of the result.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from functions.core.events import IMPRESSION, Event
from functions.core.features import Int64, gap_bucket, value_bucket
from functions.core.histories import Histories, Spans, histories, spans_of, spans_within
from functions.core.ring import RING, RING_BYTES, Ring, codes_of, item_of, pack_entry
from functions.core.user_row import Float16, UserRow, all_finite, new_row, places_for


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


class Folded(NamedTuple):
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
    rows = in_space(rows, encoder)
    acts = events.take([kind != IMPRESSION for kind in events.kind])
    if acts is not events:
        rows = _with_impressions(rows, events)
    new = acts.take(_unknown_to_ring(rows, acts))
    steps = _steps(rows, new)
    states, vectors, folded = _advance(rows, steps, encoder)
    result = _moved(rows, new, steps, states, vectors)
    return result, Folded(folded, len(acts.kind) - len(new.kind), len(new.kind) - folded)


def in_space(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
    """The rows, those of another state space rebuilt from their ring: a state is never read across spaces."""
    result = list(rows)
    foreign = [i for i, row in enumerate(rows) if row.space != encoder.space]
    if not foreign:
        return result
    blank = encoder.empty()
    bare = [rows[i].but(state=blank.state, vector=blank.vector, space=encoder.space) for i in foreign]
    states, vectors, _ = _advance(bare, _ring_steps(bare), encoder)
    for i, row, state, vector in zip(foreign, bare, states, vectors, strict=True):
        result[i] = row.but(state=state, vector=vector)
    return result


def _with_impressions(rows: Sequence[UserRow], events: Histories) -> list[UserRow]:
    result = list(rows)
    for user, (first, end) in enumerate(events.spans):
        for at in range(first, end):
            if events.kind[at] == IMPRESSION:
                seen = (events.items[events.item[at]], events.time_s[at])
                if seen not in result[user].seen:
                    result[user] = result[user].with_impression(*seen)
    return result


def _unknown_to_ring(rows: Sequence[UserRow], acts: Histories) -> list[bool]:
    """Which events the ring, as it is at each event's turn, does not remember."""
    unknown = [True] * len(acts.event)
    for row, (first, end) in zip(rows, acts.spans, strict=True):
        hashes = acts.event[first:end]
        if any(map(row.ring.has, hashes)) or len(set(hashes)) < len(hashes):
            unknown[first:end] = _unknown_in_turn(row.ring, hashes)
    return unknown


def _unknown_in_turn(before: Ring, hashes: Sequence[bytes]) -> list[bool]:
    ring = deque(before.hashes())
    known, unknown = set(ring), []
    for hashed in hashes:
        unknown.append(hashed not in known)
        if unknown[-1]:
            known.add(hashed)
            ring.append(hashed)
            if len(ring) > RING:
                known.discard(ring.popleft())
    return unknown


class _Steps(NamedTuple):
    """What the encoder is fed, n steps, one user's after the other's."""

    spans: Spans  # [U]
    items: Sequence[bytes]  # [M] keys
    codes: Int64  # [4, n]: which of the items, kind, bucket of the gap, bucket of the value


def _steps(rows: Sequence[UserRow], new: Histories) -> _Steps:
    """The steps of new events: a user's first has no gap, and where a client's clock went backwards the gap
    is 0."""
    gap_s: list[int] = []
    for row, (first, end) in zip(rows, new.spans, strict=True):
        if end > first:
            times = new.time_s[first:end]
            gap_s.append(max(times[0] - row.last_s, 0) if row.ring else -1)
            gap_s += [max(late - early, 0) for early, late in pairwise(times)]
    codes = (new.item, new.kind, gap_bucket(gap_s), value_bucket(new.value))
    return _Steps(new.spans, new.items, np.array(codes, np.int64))


def _ring_steps(rows: Sequence[UserRow]) -> _Steps:
    """The steps that the rings remember."""
    packed = b"".join(row.ring.packed for row in rows)
    spans = spans_of(len(row.ring) for row in rows)
    places: dict[bytes, int] = {}
    item = [places.setdefault(item_of(packed, nth), len(places)) for nth in range(spans[-1][1])]
    return _Steps(spans, list(places), np.array((item, *codes_of(packed)), np.int64))


def _moved(
    rows: Sequence[UserRow],
    new: Histories,
    steps: _Steps,
    states: Sequence[Float16],
    vectors: Sequence[Float16],
) -> list[UserRow]:
    """The rows with their new events: in state, vector and ring, and in what those push out of the ring."""
    packed = [
        pack_entry(event, new.items[item], kind, value, gap)
        for event, item, kind, gap, value in zip(new.event, *steps.codes.tolist(), strict=True)
    ]
    moved = list(rows)
    for user, (first, end) in enumerate(new.spans):
        if end == first:
            continue
        row, entries = rows[user], b"".join(packed[first:end])
        places = places_for(len(states[user]), len(vectors[user]))
        moved[user] = row.but(
            state=states[user],
            vector=vectors[user],
            ring=Ring((row.ring.packed + entries)[-RING_BYTES:]),
            last_s=new.time_s[end - 1],
            favourites=row.favourites.after(row.ring.packed, entries, places),
        )
    return moved


def _advance(
    rows: Sequence[UserRow], steps: _Steps, encoder: Encoder
) -> tuple[Sequence[Float16], Sequence[Float16], int]:
    """Step every row through its events, in rounds; returns states, vectors and how many events were folded.

    Users with many events come first, so that those of a round are a range.
    """
    states, vectors = [row.state for row in rows], [row.vector for row in rows]
    table, known = _embeddings(steps.items, encoder)
    codes, spans = steps.codes, steps.spans
    if not all(known):
        wanted = [known[item] for item in codes[0].tolist()]
        codes, spans = codes[:, wanted], spans_within(spans, wanted)
    order = sorted(
        (u for u, (first, end) in enumerate(spans) if end > first), key=lambda u: spans[u][0] - spans[u][1]
    )
    if not order:
        return states, vectors, 0
    starts, lengths = [spans[u][0] for u in order], [spans[u][1] - spans[u][0] for u in order]
    state, vector = np.array([states[u] for u in order]), np.array([vectors[u] for u in order])
    first, users = np.array(starts), len(order)
    for turn in range(lengths[0]):
        while lengths[users - 1] <= turn:
            users -= 1
        at = starts[0] + turn
        now = codes[:, at : at + 1] if users == 1 else codes[:, first[:users] + turn]
        state[:users], vector[:users] = _stepped(encoder, state[:users], table, now)
    for rank, user in enumerate(order):
        states[user], vectors[user] = state[rank], vector[rank]
    return states, vectors, codes.shape[1]


def _stepped(encoder: Encoder, state: Float16, table: Float16, codes: Int64) -> tuple[Float16, Float16]:
    """One step of B users: state [B, S], table of embeddings [M, d], codes [4, B]."""
    item, kind, gap, value = codes
    after, vector = encoder.step(state, table[item], kind, gap, value)
    _require_finite(after, vector)
    return after, vector


def _embeddings(keys: Sequence[bytes], encoder: Encoder) -> tuple[Float16, list[bool]]:
    """Embeddings [M, d] float16, and which of the items are known [M]."""
    found = [encoder.items.embedding(key) for key in keys]
    known = [e is not None for e in found]
    if not all(known):
        nothing = np.zeros(encoder.dim, np.float16)
        found = [nothing if e is None else e for e in found]
    return np.array(found, np.float16), known


def _require_finite(state: NDArray[np.float16], vector: NDArray[np.float16]) -> None:
    if not (all_finite(state) and all_finite(vector)):
        raise FloatingPointError("the encoder's step gave a value that is not finite")
