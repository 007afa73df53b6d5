"""The measurement of the stream, in small: every way does the same, and the hot user's row stays small."""

from __future__ import annotations

import pytest

from bench import stream
from functions.core.user_row import MAX_BYTES
from simulate.encoder import ENCODERS, SPACES


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 40, "USERS": 8, "HOT_BATCH": 50}.items():
        monkeypatch.setattr(stream, name, value)
    monkeypatch.setattr(stream.update, "emit", lambda *_, **__: None)


def test_every_way_is_timed_and_counted(small: None) -> None:
    timings = {timing.way: timing for timing in stream.measure(ENCODERS[SPACES[0]], 2)}
    assert set(timings) == set(stream.WAYS)
    assert all(timing.events_per_s > 0 for timing in timings.values())
    assert timings["one write per event"].writes_per_event == 1
    assert timings["the update function"].writes_per_event <= 8 / 40


def test_a_hot_users_row_stays_small(small: None) -> None:
    hot = stream.hot_user(ENCODERS[SPACES[0]], 500)
    assert hot["events"] == 500 and hot["largest_row_bytes"] <= MAX_BYTES
