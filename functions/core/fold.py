"""The fold: user row + events → user row. Live updates, replay and offline evaluation all run this.

A batch is folded in rounds of one event per user, one call of the encoder's step per round. The step rounds
its state to float16 inside, so no batching, redelivery or replay can change a bit of the result.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from functions.core.events import IMPRESSION, Event
from functions.core.features import Int64, gap_bucket, value_bucket
from functions.core.user_row import RING, Float16, RingEntry, UserRow, event_hash, item_key, new_row


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
    remembered: list[UserRow] = []
    fresh: list[list[RingEntry]] = []
    duplicates = 0
    for row, batch in zip(in_space(rows, encoder), events, strict=True):
        row, entries, skipped = _remember(row, batch)
        remembered.append(row)
        fresh.append(entries)
        duplicates += skipped
    states, vectors, folded = _advance(remembered, fresh, encoder)
    unknown = sum(map(len, fresh)) - folded
    result = [replace(r, state=s, vector=v) for r, s, v in zip(remembered, states, vectors, strict=True)]
    return result, Folded(folded, duplicates, unknown)


def in_space(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
    """The rows, those of another state space rebuilt from their ring: a state is never read across spaces."""
    foreign = [i for i, row in enumerate(rows) if row.space != encoder.space]
    result = list(rows)
    blank = encoder.empty()
    bare = [replace(rows[i], state=blank.state, vector=blank.vector, space=encoder.space) for i in foreign]
    states, vectors, _ = _advance(bare, [r.ring for r in bare], encoder)
    for i, row, state, vector in zip(foreign, bare, states, vectors, strict=True):
        result[i] = replace(row, state=state, vector=vector)
    return result


def _remember(row: UserRow, events: Sequence[Event]) -> tuple[UserRow, list[RingEntry], int]:
    """The row with the new events in its ring, those events, and how many it knew already."""
    hashes, known = deque(e.event for e in row.ring), set(row.hashes)
    new: list[tuple[bytes, Event]] = []
    skipped = 0
    for event in events:
        if event.kind == IMPRESSION:
            seen = (item_key(event.item_id), event.time_s)
            row = row if seen in row.seen else row.with_impression(*seen)
            continue
        hashed = event_hash(event.event_id)
        if hashed in known:
            skipped += 1
            continue
        new.append((hashed, event))
        known.add(hashed)
        hashes.append(hashed)
        if len(hashes) > RING:
            known.discard(hashes.popleft())
    entries = _entries(row, new)
    last_s = new[-1][1].time_s if new else row.last_s
    return replace(row, ring=(*row.ring, *entries)[-RING:], last_s=last_s), entries, skipped


def _entries(row: UserRow, new: Sequence[tuple[bytes, Event]]) -> list[RingEntry]:
    """The ring's entries of new events, in order: a user's first has no gap, and where a client's clock
    went backwards the gap is 0."""
    times = [event.time_s for _, event in new]
    gaps_s = np.maximum(np.diff(times, prepend=row.last_s), 0)
    if not row.ring:
        gaps_s[:1] = -1
    values = value_bucket([np.nan if event.value is None else event.value for _, event in new]).tolist()
    return [
        RingEntry(hashed, item_key(event.item_id), event.kind, value, gap)
        for (hashed, event), value, gap in zip(new, values, gap_bucket(gaps_s).tolist(), strict=True)
    ]


def _advance(
    rows: Sequence[UserRow],
    entries: Sequence[Sequence[RingEntry]],
    encoder: Encoder,
) -> tuple[list[Float16], list[Float16], int]:
    """Step every row through its entries; returns states, vectors and how many events were folded."""
    states = [row.state for row in rows]
    vectors = [row.vector for row in rows]
    queues = [_steps(some, encoder.items) for some in entries]
    for turn in range(max(map(len, queues), default=0)):
        users = [u for u, queue in enumerate(queues) if turn < len(queue)]
        items, kinds, gaps, values = zip(*(queues[u][turn] for u in users), strict=True)
        state, vector = encoder.step(
            np.stack([states[u] for u in users]),
            np.stack(items),
            np.array(kinds, np.int64),
            np.array(gaps, np.int64),
            np.array(values, np.int64),
        )
        _require_finite(state, vector)
        for at, u in enumerate(users):
            states[u], vectors[u] = state[at], vector[at]
    return states, vectors, sum(map(len, queues))


def _steps(entries: Sequence[RingEntry], items: Items) -> list[tuple[Float16, int, int, int]]:
    """(embedding, kind, gap bucket, value bucket) of the entries whose item is known."""
    found = ((items.embedding(entry.item), entry) for entry in entries)
    return [(e, entry.kind, entry.gap, entry.value) for e, entry in found if e is not None]


def _require_finite(state: NDArray[np.float16], vector: NDArray[np.float16]) -> None:
    if not (np.isfinite(state).all() and np.isfinite(vector).all()):
        raise FloatingPointError("the encoder's step gave a value that is not finite")
