"""Events trained per second, on windows of 200: our towers, SASRec of equal width, and `implicit`'s ALS.

One log, one harness (`train.trainer.Trainer`: the same item tower, loss, optimiser and clipping), steps taken
in turns in one run. About half of a whole step is the softmax over all items, which both share; so the user
towers are timed alone too, forward and backward. The share is that of the rate at which this device
multiplies large matrices in the same number type, measured in the same run; operations are counted by
formula. The recurrence is timed by itself beside the loop over events that it stands for.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from implicit.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from bench.device import describe, flops_per_second, interleaved, linear_flops, product
from bench.sasrec import SASRec
from functions.core.features import Vocabulary, item_features
from train.baselines.ranking import user_items
from train.dataset import Batch, histories
from train.log import Interactions
from train.options import Options
from train.rules import facts, shape_for
from train.scan import scan, scan_loop
from train.towers import Shape
from train.trainer import Trainer, _groups, _half_pays

USERS, ITEMS, MEAN_LENGTH = 6_040, 3_416, 165.5  # ML-1M: 999,611 events
SPREAD, SHORTEST = 0.95, 18  # of the logarithm of a history's length; events
POPULARITY = 0.8  # exponent of Zipf's law
SWEEPS = 3
BACKWARD = 3  # forward's products, and twice as many for the gradients
OURS, PEER = "towers", "SASRec"
STEP, ALONE = "whole step", "user tower alone"
Name = tuple[str, str, bool]  # model, what, compiled
PEAK: Name = ("product", "", False)


@dataclass(frozen=True)
class Speed:
    """Events trained per second by one model, and what share of the device's products that is."""

    model: str
    what: str
    compiled: bool
    precision: str
    step_ms: float
    events_per_s: float
    flops_per_event: int | None
    share: float | None


def main(arguments: list[str]) -> int:
    """Measure, print a table, write `--json`; returns the exit status."""
    options = _arguments(arguments)
    torch.set_num_threads(options.threads)
    report = measure(synthetic_log(USERS, ITEMS, MEAN_LENGTH), options)
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def synthetic_log(users: int, items: int, mean_length: float, seed: int = 0) -> Interactions:
    """A seeded log with ML-1M's sizes: long-tailed histories and items, an hour between events."""
    rng = np.random.default_rng(seed)
    raw = rng.lognormal(0.0, SPREAD, users)
    lengths = np.maximum(SHORTEST, np.round(raw * mean_length / raw.mean())).astype(np.int64)
    user = np.repeat(np.arange(users), lengths)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    weight = 1.0 / np.arange(1, items + 1) ** POPULARITY
    item = rng.choice(items, len(user), p=weight / weight.sum())
    columns = (user.astype(np.int32), item.astype(np.int32), np.ones(len(user), np.int8), 3600 * nth)
    none = np.full(len(user), np.nan, np.float32)
    return Interactions(*columns, none, [f"u{n}" for n in range(users)], [f"i{n}" for n in range(items)])


def measure(log: Interactions, options: argparse.Namespace) -> dict[str, Any]:
    """The whole report: towers and SASRec in turns, then the sweeps of ALS."""
    chosen, shape = Options(batch=options.batch, window=options.window), shape_for(facts(log))
    made = {(model, False): trainer_of(model, log, shape, chosen) for model in (OURS, PEER)}
    if options.compile:
        made |= {(model, True): trainer_of(model, log, shape, chosen) for model in (OURS, PEER)}
    device = made[OURS, False].device
    precision = torch.bfloat16 if _half_pays(device) else torch.float32
    batch = full_batch(log, chosen).to(device)
    calls = {name: (call, options.steps) for name, call in _cases(made, batch).items()}
    spent = interleaved(calls | {PEAK: (product(device, precision), options.steps)}, device, options.steps)
    limit = flops_per_second(spent.pop(PEAK))
    flops = {(m, w): flops_per_event(made[m, False], w, batch.item.shape) for m, w, _ in spent}
    size = batch.item.numel()
    speeds = [
        _speed(name, str(precision)[6:], of, size, flops[name[:2]], limit) for name, of in spent.items()
    ]
    return {
        **describe(device),
        "log": asdict(facts(log)),
        "shape": asdict(shape),
        "events_per_step": size,
        "gigaflops_per_second": round(limit / 1e9, 1),
        "speeds": [asdict(speed) for speed in [*speeds, als(log, shape.dim, options.threads)]],
        "towers_to_sasrec": ratios(spent),
        "scan_to_loop": scan_to_loop(batch.item.shape, shape.width, device, options.steps),
    }


def trainer_of(model: str, log: Interactions, shape: Shape, options: Options) -> Trainer:
    """The repository's trainer, for PEER with SASRec in the place of the user tower."""
    features = item_features([{}] * len(log.item_ids), Vocabulary())
    trainer = Trainer(log, features, shape, options, steps=10_000)
    if model == PEER:
        trainer.objective.towers.user = SASRec(shape, options.window).to(trainer.device)  # type: ignore[assignment]
        trainer.averaged = copy.deepcopy(trainer.objective).eval().requires_grad_(False)
        trainer.optimiser = torch.optim.AdamW(_groups(trainer.objective, options), fused=True)
    return trainer


def full_batch(log: Interactions, options: Options) -> Batch:
    """A batch of windows of full length; raises ValueError where the log has too few."""
    cut = histories(log).cut(options.window)
    full = torch.nonzero(cut.length == options.window).flatten()
    if len(full) < options.batch:
        raise ValueError(f"{len(full)} windows of {options.window} events; expected {options.batch} or more")
    return cut.batch(full[: options.batch])


def _cases(made: dict[tuple[str, bool], Trainer], batch: Batch) -> dict[Name, Callable[[], object]]:
    cases: dict[Name, Callable[[], object]] = {}
    for (model, compiled), trainer in made.items():
        if compiled:
            trainer.objective.towers.user.compile()
        cases[model, STEP, compiled] = partial(trainer.step, batch, "bench")
        items = trainer.objective.embed(batch.item.flatten()).view(*batch.item.shape, -1).detach()
        cases[model, ALONE, compiled] = partial(_alone, trainer, items.requires_grad_(), batch)
    return cases


def _alone(trainer: Trainer, items: Tensor, batch: Batch) -> None:
    """The user tower forward and backward, from its inputs' gradients to its weights'."""
    trainer.objective.train()
    items.grad = None
    trainer.optimiser.zero_grad(set_to_none=True)
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=_half_pays(trainer.device)):
        vectors = trainer.objective.vectors(items, batch)
    vectors.backward(vectors.detach())  # type: ignore[no-untyped-call]


def flops_per_event(trainer: Trainer, what: str, windows: torch.Size) -> int:
    """Operations in matrix products, forward and backward, of one of the events of `windows` = (R, T).

    Attention is counted in full, as torch counts it, although half of it is masked.
    """
    towers = trainer.objective.towers
    user: nn.Module = towers.user
    forward = linear_flops(user)
    if isinstance(user, SASRec):
        forward += len(user.blocks) * 4 * windows[1] * towers.shape.dim
    if what != STEP:
        return BACKWARD * forward
    forward += 2 * towers.shape.items * towers.shape.dim
    content = linear_flops(towers.item) * towers.shape.items // windows.numel()
    trained = towers.item.hidden.weight.requires_grad  # there is no content in this log: forward alone
    return BACKWARD * forward + content * (BACKWARD if trained else 1)


def als(log: Interactions, factors: int, threads: int) -> Speed:
    """Alternating least squares (Hu et al. 2008) of `implicit`, on the CPU; an event counts once a sweep."""
    ends: list[float] = []
    model = AlternatingLeastSquares(
        factors, iterations=SWEEPS, num_threads=threads, use_gpu=False, random_state=0
    )
    with threadpool_limits(threads):
        model.fit(
            user_items(log), show_progress=False, callback=lambda _, elapsed, *rest: ends.append(elapsed)
        )
    sweep = statistics.median(ends)
    return Speed("implicit ALS", "sweep", False, "float32", sweep * 1e3, len(log.user) / sweep, None, None)


def scan_to_loop(windows: torch.Size, width: int, device: torch.device, rounds: int) -> float:
    """How many times as fast the chunked scan is as the loop over events, forward and backward: a median."""
    decay, drive = (torch.rand(*windows, width, device=device).requires_grad_() for _ in range(2))

    def call(walk: Callable[[Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(walk(decay, drive).sum(), (decay, drive))

    cases = {walk.__name__: (partial(call, walk), rounds) for walk in (scan, scan_loop)}
    spent = interleaved(cases, device, rounds)
    pairs = zip(spent[scan_loop.__name__], spent[scan.__name__], strict=True)
    return statistics.median(loop / own for loop, own in pairs)


def ratios(spent: dict[Name, list[float]]) -> dict[str, float]:
    """Events per second of our towers over SASRec's, medians over the rounds' pairs."""
    return {
        f"{what}{', compiled' if compiled else ''}": statistics.median(
            peer / own for own, peer in zip(of, spent[PEER, what, compiled], strict=True)
        )
        for (model, what, compiled), of in spent.items()
        if model == OURS
    }


def _speed(name: Name, precision: str, spent: list[float], events: int, flops: int, limit: float) -> Speed:
    model, what, compiled = name
    median = statistics.median(spent)
    rate = events / median
    return Speed(model, what, compiled, precision, median * 1e3, rate, flops, rate * flops / limit)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench training", description=__doc__)
    parser.add_argument("--batch", type=int, default=48, help="windows in a step")
    parser.add_argument("--window", type=int, default=200, help="events in a window")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="user towers through torch.compile too",
    )
    parser.add_argument("--json", type=Path, help="where to write the report")
    return parser.parse_args(arguments)


def as_table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        f"{report['device']}, {report['threads']} thread(s), load {report['load']}; "
        f"{report['events_per_step']} events a step, "
        f"{report['gigaflops_per_second']} GFLOP/s in large products",
        "",
        "| | | compiled | precision | ms | events/s | share of the products' rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in report["speeds"]:
        share = "" if s["share"] is None else f"{s['share']:.0%}"
        figures = f"{s['step_ms']:,.1f} | {s['events_per_s']:,.0f} | {share}"
        compiled = "yes" if s["compiled"] else ""
        lines.append(f"| {s['model']} | {s['what']} | {compiled} | {s['precision']} | {figures} |")
    ratios = [f"{what}: {OURS} / {PEER} {x:.2f}" for what, x in report["towers_to_sasrec"].items()]
    ratios += [f"recurrence alone: chunked scan / sequential loop {report['scan_to_loop']:.2f}"]
    return "\n".join([*lines, "", "; ".join(ratios) + "."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
