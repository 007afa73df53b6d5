"""An event sent again after others: it never counts twice inside the ring, and beyond the ring it does."""

from __future__ import annotations

from functions.core.events import Event
from functions.core.fold import fold
from functions.core.ring import RING
from simulate.encoder import ENCODERS, SPACES

CASES, FURTHEST = 5_000, 10 * RING


def test_a_duplicate_at_any_distance() -> None:
    """Distance d: the event comes again as the d-th after itself; the ring has those before it."""
    encoder = ENCODERS[SPACES[0]]
    distances = [1 + case % FURTHEST for case in range(CASES)]
    others = [Event(f"e{n}", "view", f"sku-{n % 12}", n) for n in range(FURTHEST)]
    twice = Event("twice", "purchase", "sku-1", 0)
    histories = [[twice, *others[: distance - 1], twice] for distance in distances]
    inside = sum(distance <= RING for distance in distances)
    rows, counts = fold([encoder.empty()] * CASES, histories, encoder)
    assert counts.duplicates == inside
    assert counts.folded == sum(map(len, histories)) - inside
    for distance, row in zip(distances, rows, strict=True):
        assert len(row.ring) == min(RING, distance + (distance > RING))
        assert row.remembers("twice")
