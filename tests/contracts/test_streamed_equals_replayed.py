"""Promise 1: the row after any batching and redelivery equals replaying the log once, bit for bit."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from functions.core.events import EVENT_TYPES, Event
from functions.core.fold import Encoder, fold
from functions.core.ring import Ring
from functions.core.user_row import UserRow, encode
from tests.core.toy_encoder import ToyStep, toy_encoder

USERS, EVENTS = 12, 60


def history(rng: random.Random, user: int) -> list[Event]:
    items = [f"i{n}" for n in range(50)] + ["nobody"]
    return [
        Event(f"{user}-{n}", rng.choice(EVENT_TYPES), rng.choice(items), rng.randrange(10**6), rng.random())
        for n in range(EVENTS)
    ]


def stream(histories: list[list[Event]], encoder: Encoder, rng: random.Random) -> list[UserRow]:
    """Random batches over random users; a third of them is delivered again, from up to ten events back."""
    rows = [encoder.empty() for _ in histories]
    sent = [0] * len(histories)
    while any(s < EVENTS for s in sent):
        users = rng.sample(range(len(histories)), rng.randint(1, len(histories)))
        batches: list[Sequence[Event]] = []
        for user in users:
            start = max(0, sent[user] - rng.choice([0, 0, rng.randint(1, 10)]))
            sent[user] = max(sent[user], min(EVENTS, start + rng.randint(0, 9)))
            batches.append(histories[user][start : sent[user]])
        folded, _ = fold([rows[u] for u in users], batches, encoder)
        for user, row in zip(users, folded, strict=True):
            rows[user] = row
    return rows


def disagreements(encoder: Encoder, seeds: range) -> int:
    """How many users of how many streams end on another state or vector than the replay does."""
    bad = 0
    for seed in seeds:
        rng = random.Random(seed)
        histories = [history(rng, user) for user in range(USERS)]
        replayed, _ = fold([encoder.empty()] * USERS, histories, encoder)
        for one, other in zip(stream(histories, encoder, rng), replayed, strict=True):
            wrong = {k for k, v in encode(one).items() if k != "seen" and v != encode(other)[k]}
            bad += bool(wrong)
    return bad


def test_streamed_equals_replayed_bit_for_bit() -> None:
    assert disagreements(toy_encoder(), range(40)) == 0


def no_ring(ring: Ring) -> list[bytes]:
    return []


def ring_of_two(ring: Ring) -> list[bytes]:
    return [entry.event for entry in ring[-2:]]


@pytest.mark.parametrize("bug", [no_ring, ring_of_two])
def test_planted_bug_in_the_ring_is_found(
    bug: Callable[[Ring], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ring, "hashes", bug)
    monkeypatch.setattr(Ring, "has", lambda ring, event: event in bug(ring))
    assert disagreements(toy_encoder(), range(5)) > 0


class RoundsOncePerBatch(ToyStep):
    """The planted bug: the rounding depends on how many users share the call."""

    def __call__(self, state, item, kind, gap, value):  # type: ignore[no-untyped-def]
        new, vector = super().__call__(state, item, kind, gap, value)
        return (new if len(state) > 1 else np.nextafter(new, np.float16(0))), vector


def test_planted_bug_in_the_rounding_is_found() -> None:
    good = toy_encoder()
    encoder = Encoder(good.space, good.state_width, good.dim, RoundsOncePerBatch(0), good.items)
    assert disagreements(encoder, range(5)) > 0
