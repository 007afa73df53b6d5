"""The training benchmark: the peer is what it is called, and operations are counted right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import training
from bench.sasrec import SASRec
from bench.training import ALONE, OURS, PEER, STEP, flops_per_event, full_batch, synthetic_log, trainer_of
from train.log import Interactions
from train.options import Options
from train.towers import Shape

ITEMS, WINDOW = 50, 12
SHAPE = Shape(items=ITEMS, categories=0, brands=0, dim=16, width=16, dropout=0.0, id_dropout=0.0)
OPTIONS = Options(batch=3, window=WINDOW)


@pytest.fixture(scope="module")
def log() -> Interactions:
    return synthetic_log(40, ITEMS, 30.0)


def test_sasrec_sees_the_past_and_its_order_and_never_the_future() -> None:
    torch.manual_seed(0)
    tower = SASRec(SHAPE, WINDOW).eval()
    item, codes = torch.randn(2, WINDOW, 16), torch.zeros(2, WINDOW, dtype=torch.int64)
    before = tower(item, codes, codes, codes)
    later = item.clone()
    later[:, 7] += 1.0
    changed = (tower(later, codes, codes, codes) - before).abs().amax((0, 2))
    assert not changed[:7].any()
    assert (changed[7:] > 0).all()
    swapped = item[:, [1, 0, *range(2, WINDOW)]]
    assert (tower(swapped, codes, codes, codes) - before)[:, 2:].abs().max() > 1e-4


def test_sasrec_learns_in_the_same_trainer(log: Interactions) -> None:
    """Its own weights are what the optimiser moves and the average follows."""
    trainer, batch = trainer_of(PEER, log, SHAPE, OPTIONS), full_batch(log, OPTIONS)
    before = {n: p.clone() for n, p in trainer.objective.named_parameters() if ".user." in n}
    losses = [trainer.step(batch, "test") for _ in range(300)]
    assert losses[-1] < 0.8 * losses[0]
    assert any("attention" in name for name in before)
    now = dict(trainer.objective.named_parameters())
    assert all(not torch.equal(now[name], was) for name, was in before.items())
    averaged = dict(trainer.averaged.named_parameters())
    assert all(not torch.equal(averaged[name], was) for name, was in before.items())


@pytest.mark.parametrize("model", [OURS, PEER])
@pytest.mark.parametrize("what", [STEP, ALONE])
def test_operations_are_those_that_torch_counts(log: Interactions, model: str, what: str) -> None:
    trainer, batch = trainer_of(model, log, SHAPE, OPTIONS), full_batch(log, OPTIONS)
    items = torch.randn(*batch.item.shape, 16, requires_grad=True)
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **kwargs: 2 * math.prod(left) * right[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)  # torch leaves these out
    with counter, sdpa_kernel(SDPBackend.MATH):
        if what == STEP:
            trainer.loss(batch).backward()
        else:
            trainer.objective.vectors(items, batch).sum().backward()
    counted = counter.get_total_flops() / batch.item.numel()
    assert flops_per_event(trainer, what, batch.item.shape) == pytest.approx(counted, rel=1e-3)


def test_the_log_has_the_sizes_it_is_asked_for() -> None:
    log = synthetic_log(2000, 100, 60.0)
    lengths = np.bincount(log.user)
    assert (len(lengths), len(log.item_ids), log.item.max()) == (2000, 100, 99)
    assert lengths.min() == training.SHORTEST
    assert lengths.mean() == pytest.approx(60.0, rel=0.05)
    again = synthetic_log(2000, 100, 60.0)
    assert np.array_equal(log.item, again.item)
    assert (np.diff(log.time_s)[np.diff(log.user) == 0] == 3600).all()


def test_a_log_without_full_windows_is_named(log: Interactions) -> None:
    with pytest.raises(ValueError, match="windows of 5000 events; expected 3 or more"):
        full_batch(log, Options(batch=3, window=5000))


def test_the_report_has_every_model(
    log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "synthetic_log", lambda *sizes: log)
    out = tmp_path / "training.json"
    threads = torch.get_num_threads()
    try:
        sized = ["--batch", "2", "--window", "10", "--steps", "2", "--no-compile", "--json", str(out)]
        assert training.main(sized) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert report["events_per_step"] == 20
    by = {(s["model"], s["what"]): s for s in report["speeds"]}
    assert set(by) == {(m, w) for m in (OURS, PEER) for w in (STEP, ALONE)} | {("implicit ALS", "sweep")}
    for speed in report["speeds"]:
        events = 20 if speed["flops_per_event"] else len(log.user)
        assert speed["events_per_s"] == pytest.approx(events / speed["step_ms"] * 1e3)
    for (_, what), speed in by.items():
        if what != "sweep":
            rate = report["gigaflops_per_second"] * 1e9
            share = speed["events_per_s"] * speed["flops_per_event"] / rate
            assert speed["share"] == pytest.approx(share, rel=0.2)  # the rate in the report is rounded
    assert set(report["towers_to_sasrec"]) == {STEP, ALONE}
    assert report["scan_to_loop"] > 0


def test_the_ratio_is_of_events_per_second() -> None:
    spent = {(OURS, STEP, False): [1.0, 2.0, 1.0], (PEER, STEP, False): [3.0, 6.0, 6.0]}
    assert training.ratios(spent) == {STEP: 3.0}
    assert math.isclose(training.ratios({k: v[::-1] for k, v in spent.items()})[STEP], 3.0)
