"""Promise 1 with a real model in ONNX Runtime: 1,000 users x 200 events in any batching, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from functions.core.fold import Encoder
from functions.core.served import open_bundle
from simulate.reference import Act, Reference, differing
from simulate.rollout import InMemory
from simulate.shoppers import key_of, time_of
from simulate.world import START_S
from tests.simulate.calm import SHARD, CalmStream, record

STORED = Path(__file__).parents[1] / "data" / "tiny_bundle"
USERS, EVENTS, BATCH = 1_000, 200, 5_000
KINDS = ("view", "click", "cart", "purchase", "rating", "dismiss", "impression")


def events(rng: random.Random) -> list[tuple[str, dict[str, object]]]:
    """All users' events in one log; each now and then sent twice by its client."""
    users = [user for user in range(USERS) for _ in range(EVENTS)]
    rng.shuffle(users)
    log: list[tuple[str, dict[str, object]]] = []
    for nth, user in enumerate(users):
        event: dict[str, object] = {
            "event_id": f"e{nth if rng.random() > 0.02 else max(0, nth - 40 * USERS)}",
            "type": rng.choice(KINDS),
            "item_id": f"sku-{rng.randrange(66):03d}",
            "time": f"2026-11-{rng.randint(1, 24):02d}T12:{rng.randrange(60):02d}:{nth % 60:02d}Z",
        }
        if rng.random() < 0.5:
            event["value"] = round(rng.uniform(0, 300), 2)
        log.append((key_of(user), event))
    return log


def test_the_stream_is_one_replay_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = json.loads((STORED / "pointer.json").read_text())
    bundle = open_bundle(STORED / pointer["champion"], pointer["champion"])
    encoder = bundle.encoder
    monkeypatch.setattr(InMemory, "encoder", lambda self, space: encoder)
    rng, stream = random.Random(7), CalmStream()
    log = events(rng)
    records = [record(10**55 + nth, key, event) for nth, (key, event) in enumerate(log)]
    sent = 0
    while sent < len(records):
        start = max(0, sent - rng.choice((0, 0, 0, 500)))
        sent = min(len(records), sent + rng.randint(1, BATCH))
        assert stream.deliver(records[start:sent]) == []
    assert stream.world.violations == []
    replayed = replay(encoder, log)
    assert len(replayed) == USERS
    wrong = {key: list(differing(stream.table.items[key], row.attributes())) for key, row in replayed.items()}
    assert {key: names for key, names in wrong.items() if names} == {}
    bundle.close()


def replay(encoder: Encoder, log: list[tuple[str, dict[str, object]]]) -> dict[str, Reference]:
    """Each user's events once, one at a time, by the reference."""

    def step(space: str, state: bytes, item: bytes, act: Act) -> tuple[bytes, bytes] | None:
        embedding = encoder.items.embedding(item)
        if embedding is None:
            return None
        codes = (np.array([code]) for code in (act.kind, act.gap, act.value))
        after, vector = encoder.step(np.frombuffer(state, np.float16)[None], embedding[None], *codes)
        return after.tobytes(), vector.tobytes()

    def blank(space: str) -> tuple[bytes, bytes]:
        return bytes(2 * encoder.state_width), bytes(2 * encoder.dim)

    rows: dict[str, Reference] = {}
    for nth, (key, event) in enumerate(log):
        row = rows.setdefault(key, Reference(step, blank, encoder.space))
        row.apply(event, time_of(event, START_S))
        row.mark(SHARD, 10**55 + nth)
    return rows
