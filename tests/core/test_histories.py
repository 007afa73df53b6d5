"""Folding columns is folding one event after the other, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from functions.core import fold as fold_module
from functions.core.events import EVENT_TYPES, IMPRESSION, Event
from functions.core.features import gap_bucket, value_bucket
from functions.core.fold import Encoder, Folded, fold, fold_histories
from functions.core.histories import histories
from functions.core.ring import RING, Ring, RingEntry
from functions.core.user_row import UserRow, event_hash, item_key
from tests.core.toy_encoder import toy_encoder


def one_by_one(row: UserRow, events: list[Event], encoder: Encoder) -> tuple[UserRow, Folded]:
    """What the contract says of one event, done to one event at a time."""
    folded = duplicates = unknown = 0
    for event in events:
        item, value = item_key(event.item_id), np.nan if event.value is None else event.value
        if event.kind == IMPRESSION:
            row = row if (item, event.time_s) in row.seen else row.with_impression(item, event.time_s)
        elif row.remembers(event.event_id):
            duplicates += 1
        else:
            gap = int(gap_bucket(max(event.time_s - row.last_s, 0) if row.ring else -1))
            entry = RingEntry(event_hash(event.event_id), item, event.kind, int(value_bucket(value)), gap)
            kept = row.favourites.after(row.ring.packed, Ring.of([entry]).packed)
            row = replace(row, ring=(*row.ring, entry)[-RING:], last_s=event.time_s, favourites=kept)
            embedding = encoder.items.embedding(item)
            if embedding is None:
                unknown += 1
                continue
            folded += 1
            codes = (np.array([code]) for code in (entry.kind, entry.gap, entry.value))
            state, vector = encoder.step(row.state[None], embedding[None], *codes)
            row = replace(row, state=state[0], vector=vector[0])
    return row, Folded(folded, duplicates, unknown)


def random_events(rng: np.random.Generator, most: int) -> list[Event]:
    """Up to `most` events: ids that come again near and far, clocks that go back, items nobody knows."""
    return [
        Event(
            event_id=f"e{n - int(rng.integers(0, 80)) if rng.random() < 0.2 else n}",
            type=EVENT_TYPES[rng.integers(0, len(EVENT_TYPES))],
            item_id=f"i{rng.integers(0, 60)}",  # the toy encoder knows 50
            time_s=int(1_700_000_000 + 60 * n + rng.integers(-200, 10**6) * rng.integers(0, 2)),
            value=None if rng.random() < 0.5 else float(rng.exponential(20)),
        )
        for n in range(int(rng.integers(0, most + 1)))
    ]


def same(a: UserRow, b: UserRow) -> bool:
    bare = [replace(row, state=np.zeros(0), vector=np.zeros(0)) for row in (a, b)]
    return (
        a.state.tobytes() == b.state.tobytes()
        and a.vector.tobytes() == b.vector.tobytes()
        and all(
            getattr(bare[0], f) == getattr(bare[1], f)
            for f in ("ring", "last_s", "favourites", "seen", "space")
        )
    )


def a_run(seed: int) -> tuple[list[bool], list[bool]]:
    """Three batches of 20 users, columns beside one by one: which rows are the same, which counts are."""
    rng, encoder = np.random.default_rng(seed), toy_encoder()
    rows, counts = [encoder.empty()] * 20, []
    singly = list(rows)
    for most in (0, 100, 200):
        events = [random_events(rng, most) for _ in rows]
        rows, folded = fold(rows, events, encoder)
        done = [one_by_one(row, some, encoder) for row, some in zip(singly, events, strict=True)]
        singly = [row for row, _ in done]
        parts = [(c.folded, c.duplicates, c.unknown_items) for _, c in done]
        counts.append(folded == Folded(*map(sum, zip(*parts, strict=True))))
        assert not most or (folded.duplicates and folded.unknown_items)
    return [same(a, b) for a, b in zip(rows, singly, strict=True)], counts


@pytest.mark.parametrize("seed", [0, 1])
def test_columns_are_folded_as_one_event_after_the_other(seed: int) -> None:
    rows, counts = a_run(seed)
    assert all(rows) and all(counts)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("gap_bucket", lambda gap: gap_bucket(np.abs(gap))),
        ("value_bucket", lambda value: value_bucket(np.nan_to_num(value))),
        ("RING", RING - 1),
        ("IMPRESSION", 0),
    ],
)
def test_the_comparison_sees_a_planted_bug(
    monkeypatch: pytest.MonkeyPatch, name: str, planted: object
) -> None:
    monkeypatch.setattr(fold_module, name, planted)
    rows, counts = a_run(0)
    assert not (all(rows) and all(counts))


def test_users_without_events_stay_as_they_are() -> None:
    encoder = toy_encoder()
    (row,), _ = fold([encoder.empty()], [[Event("e", "view", "i1", 1000)]], encoder)
    rows, done = fold_histories([row, encoder.empty()], histories([[], []]), encoder)
    assert same(rows[0], row) and same(rows[1], encoder.empty())
    assert done == Folded(0, 0, 0)


def test_no_user_is_no_row() -> None:
    assert fold_histories([], histories([]), toy_encoder())[0] == []
