"""How soon an event is in its row: times that are known, and the local stack itself for a second."""

from __future__ import annotations

import json
from typing import Any

from bench.freshness import PARTS, Done, Sent, arrivals, batches, measure, page_of
from bench.stream import BUNDLES

DONE = {
    "a": [
        Done(5, 102.0, {"BatchDuration": 100.0, "FoldDuration": 3.0}),
        Done(9, 103.0, {"BatchDuration": 400.0, "WriteDuration": 250.0}),
    ]
}


def test_an_event_is_of_the_first_batch_that_reaches_it() -> None:
    sent = [Sent("x", 100.0, 101.0), Sent("y", 101.0, 101.5), Sent("z", 102.0, 102.8)]
    found = arrivals(sent, {"x": ("a", 5), "y": ("a", 6), "z": ("a", 9)}, DONE)
    assert found is not None and set(found) == set(PARTS)
    assert [round(ms) for ms in found["total"]] == [2000, 2000, 1000]
    assert [round(ms) for ms in found["wait"]] == [900, 1100, 0]  # the last began before its answer came
    assert [round(ms) for ms in found["post"]] == [1000, 500, 800]
    assert found["FoldDuration"] == [3.0, 0.0, 0.0] and found["WriteDuration"] == [0.0, 250.0, 250.0]


def test_an_event_that_no_batch_has_reached_is_waited_for() -> None:
    assert arrivals([Sent("x", 1.0, 2.0)], {"x": ("a", 10)}, DONE) is None
    assert arrivals([Sent("x", 1.0, 2.0)], {"x": ("b", 1)}, DONE) is None


def test_batches_are_read_from_the_functions_own_lines_those_that_failed_left_out() -> None:
    def line(last: int, failed: int) -> str:
        told: dict[str, Any] = {"shard": "a", "last": str(last), "RecordsFailed": [failed]}
        return json.dumps({**told, "BatchDuration": [7.5], "_aws": {"Timestamp": 1000 * last}})

    done = batches(["a trace", line(1, 0), line(2, 1), '{"Banners": 3}', line(3, 0)])
    assert done == {"a": [Done(1, 1.0, {"BatchDuration": 7.5}), Done(3, 3.0, {"BatchDuration": 7.5})]}


def test_the_local_stack_is_measured_and_its_rows_have_the_events() -> None:
    report = measure(BUNDLES, [20.0], 1.0)
    (rate,) = report["rates"]
    assert rate["events"] == 20
    parts = rate["parts_ms"]
    assert parts["total"]["p99"] >= parts["total"]["p50"] >= parts["post"]["p50"] > 0
    assert all(parts[part]["p50"] > 0 for part in ("ReadDuration", "FoldDuration", "WriteDuration"))
    assert page_of(report).count("|---") == 3
