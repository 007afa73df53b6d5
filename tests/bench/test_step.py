"""The report on a step's cost: what is timed is the right thing, and the verdicts follow from the figures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import device
from bench.__main__ import main
from bench.device import PEAK_SIZE, interleaved, linear_flops
from bench.step import CPU, SIZES, _timing, events, fullest_row, runtime_product, sizes, stored_bytes
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS
from functions.core.ring import RING
from functions.core.user_row import MARKS, SEEN, decode, encode
from train.checkpoint import Meta, save
from train.towers import Shape, Towers

SMALL = Shape(items=9, categories=0, brands=0, dim=8, width=16, blocks=3)


def test_the_report_has_every_form_and_size(tmp_path: Path) -> None:
    save(tmp_path / "model", Towers(SMALL), Meta(tuple("abcdefghi")))
    out = tmp_path / "step.json"
    threads = torch.get_num_threads()
    try:
        assert (
            main(["step", "--checkpoint", str(tmp_path / "model"), "--calls", "1", "--json", str(out)]) == 0
        )
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert (report["shape"]["width"], report["threads"]) == (16, 1)
    found = {(t["form"], t["events"]): t for t in report["timings"]}
    assert {size for form, size in found if form == "ONNX Runtime, step"} == set(SIZES)
    assert {size for form, size in found if form == "torch, step"} == set(SIZES)
    assert len(found) == 2 * len(SIZES) + 2
    for timing in report["timings"]:
        assert 0 < timing["median_us"] <= timing["p99_us"]
        assert timing["event_us"] == pytest.approx(timing["median_us"] / timing["events"])
    judged = {name for name, timing in found.items() if timing["met"] is not None}
    assert judged == {("ONNX Runtime, step", 1), ("ONNX Runtime, step", 1000)}
    assert report["sizes"][0] == {"of": "state, float16", "bytes": 2 * 3 * 16, "target": 1024, "met": True}


def test_a_target_is_met_up_to_its_bound() -> None:
    assert _timing("ONNX Runtime, step", 1000, [1.5e-3] * 3, 1.0).met
    assert _timing("ONNX Runtime, step", 1000, [1e-3, 1.51e-3, 2e-3], 1.0).met is False
    assert _timing("ONNX Runtime, step", 10, [1.0], 1.0).met is None
    assert _timing("torch, step", 1, [1.0], 1.0).met is None


def test_the_limit_is_that_of_a_whole_product_in_float32(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).normal(size=(2, PEAK_SIZE, PEAK_SIZE))
    (made,) = runtime_product(tmp_path / "product.onnx")()
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, left @ right, atol=1e-3)


@pytest.mark.parametrize("shape", [SMALL, Shape(items=9, categories=0, brands=0)])
def test_operations_of_a_step_are_those_that_torch_counts(shape: Shape) -> None:
    towers = Towers(shape).eval()
    state, item, *codes = (torch.from_numpy(column) for column in events(shape, 5))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        towers.user.unrounded_step(state.float(), item.float(), *codes)
    assert counter.get_total_flops() == 5 * linear_flops(towers.user)


def test_events_are_such_as_the_fold_makes() -> None:
    state, item, kind, gap, value = events(SMALL, 500)
    assert (state.shape, item.shape, state.dtype, item.dtype) == ((500, 48), (500, 8), np.float16, np.float16)
    assert (kind.max(), gap.max(), value.max()) == (7, GAP_BUCKETS - 1, VALUE_BUCKETS - 1)


def test_the_fullest_row_is_full_and_reads_back() -> None:
    row = fullest_row(256, 128)
    assert (len(row.ring), len(row.seen), len(row.marks)) == (RING, SEEN, MARKS)
    assert decode(encode(row)).marks == row.marks
    assert [size.met for size in sizes(Shape(items=9, categories=0, brands=0))] == [True, True]
    assert [size.met for size in sizes(Shape(items=9, categories=0, brands=0, width=257))] == [False, False]


def test_bytes_are_counted_as_dynamodb_does() -> None:
    assert stored_bytes({"v": 7, "ring": b"123", "ß": "ü"}) == (1 + 21) + (4 + 3) + (2 + 2)


def test_every_case_is_called_in_every_round() -> None:
    called: list[str] = []
    cases = {name: (lambda name=name: called.append(name), 4) for name in "ab"}
    spent = interleaved(cases, CPU, rounds=2)
    assert "".join(called) == "aabb" + "aaabbb" * 2  # first what tells a case's clock
    assert [len(seconds) for seconds in spent.values()] == [4, 4]


def test_a_long_call_has_its_threads_time_and_a_short_one_the_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    read: list[str] = []
    for name in ("thread_time", "perf_counter"):
        clock = getattr(time, name)
        monkeypatch.setattr(device.time, name, lambda name=name, clock=clock: (read.append(name), clock())[1])
    for least, expected in ((-1.0, "thread_time"), (1e9, "perf_counter")):
        monkeypatch.setattr(device, "SHORT_S", least)
        read.clear()
        clock = device.clock_for(lambda: None, CPU)
        assert len(device.seconds(lambda: None, CPU, 3, clock)) == 3
        assert read == ["perf_counter"] * 2 + [expected] * 6
