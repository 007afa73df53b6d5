"""The proof that goes into a bundle: torch, ONNX, int8 and what is served, on the same held-out users."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import Source
from export.embed import embed_by_torch
from export.handover import HeldOut
from export.levels import (
    FLOAT16,
    FP32,
    SERVED,
    FloatTable,
    Level,
    Measured,
    build,
    bytes_per_item,
)
from export.scorers import (
    CHOSEN_FROM,
    CUT,
    LEAST_RECALL,
    QUERIES,
    ROUNDS,
    Demands,
    GroundTruth,
    microseconds,
    too_little_found,
)
from export.towers import with_rounded_tables
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS
from functions.core.fold import Step, in_space
from functions.core.repeats import Own
from functions.core.served import CANDIDATES, ServedBundle
from functions.core.user_row import Float16, UserRow
from train.evaluate import TowerItems, metrics, ndcg, torch_encoder, user_rows

STEP_USERS = 64
# of its largest number's float16 units, what a row may differ by between torch and ONNX Runtime: where their
# float32 sums straddle a rounding boundary, one layer rounds apart and the layers behind it see that
ULP = 2.0
DIFFERENT, ANYHOW = 0.02, 3  # of all numbers at most so many; and so few, of however few
TIMED_STEPS = 40  # in each round
OTHER_SPACE = "f" * 16

Top = NDArray[np.int64]


@dataclass
class Proof:
    """What was measured, what of it belongs into the manifest, and everything that failed."""

    max_loss: float
    quantization: dict[str, object] = field(default_factory=dict)
    microseconds: dict[str, float] = field(default_factory=dict)
    levels: dict[str, Measured] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Remember the failure unless it holds."""
        if not holds:
            self.failures.append(failure)


@dataclass(frozen=True)
class Stage:
    """A source, what is served of it, and the held-out users in its rows; `name` is its row in the table."""

    name: str
    source: Source
    served: ServedBundle
    held: HeldOut


@dataclass(frozen=True)
class _View:
    """How held-out users are answered at one level: of a bundle, by which scores, from which rows."""

    stage: Stage
    level: Level
    rows: list[UserRow]
    shown: Float16  # [M, d] of the stage's bundle

    @cached_property
    def own(self) -> list[Own]:
        """What each user has had to do with, [U]."""
        return [self.stage.served.own(row) for row in self.rows]

    @cached_property
    def queries(self) -> NDArray[np.float32]:
        """The users' vectors as they ask, [U, d]."""
        return self.stage.held.queries(self.stage.served, self.rows, self.own)

    def tops(self) -> list[Top]:
        """The ten that each user would be served."""
        pairs = zip(self.own, self.queries, strict=True)
        return [_ranked(self.stage.served, self.level, own, query) for own, query in pairs]


def prove(published: Stage, embeddings: Float16, max_loss: float, before: Sequence[Stage] = ()) -> Proof:
    """Run every comparison; failures are collected, so that one run says all that is wrong.

    before: what would be published had less been pruned, least first; fp32 is of the first of them.
    """
    proof = Proof(max_loss)
    source, served = published.source, published.served
    torch_items = embed_by_torch(source.towers.item, source.products.content, source.tower_ids)
    _towers_agree(proof, source, served, embeddings)
    by_torch, by_onnx = _torch_rows(published, torch_items), _onnx_rows(published)
    _vectors_agree(proof, by_torch, by_onnx)
    shown = embeddings[: served.manifest.showable]
    with TemporaryDirectory() as scratch:
        original = torch_items[: len(shown)].astype(np.float32)
        timed = build(Path(scratch), original, shown, served.scorer)
        # the same products as those of the float16 table, which widens its rows again for each query
        levels = {**timed, FLOAT16: FloatTable(shown.astype(np.float32))}
        views = {
            name: _View(published, level, by_torch if name == FP32 else by_onnx, shown)
            for name, level in levels.items()
        }
        views |= {stage.name: _as_served(stage) for stage in before}
        if before:
            views[FP32] = _as_trained(before[0])
            timed[FP32] = views[FP32].level
        _quality(proof, views, by_onnx)
        _recall(proof, views)
        rivals = {stage.name: stage.served.scorer for stage in before}
        _speed(proof, timed | rivals, len(shown), views[SERVED].queries)
        proof.levels = _measured(proof, views)
    return proof


def _torch_rows(stage: Stage, items: Float16) -> list[UserRow]:
    encoder = torch_encoder(stage.source.towers, TowerItems(list(stage.source.meta.item_ids), items))
    return user_rows(stage.held.log, list(range(len(stage.held.targets))), encoder)


def _onnx_rows(stage: Stage) -> list[UserRow]:
    return user_rows(stage.held.log, list(range(len(stage.held.targets))), stage.served.encoder)


def _as_served(stage: Stage) -> _View:
    shown = stage.served.items.table[: stage.served.manifest.showable]
    return _View(stage, stage.served.scorer, _onnx_rows(stage), shown)


def _as_trained(stage: Stage) -> _View:
    source, showable = stage.source, stage.served.manifest.showable
    items = embed_by_torch(source.towers.item, source.products.content, source.tower_ids)
    level = FloatTable(items[:showable].astype(np.float32))
    return _View(stage, level, _torch_rows(stage, items), stage.served.items.table[:showable])


def _towers_agree(proof: Proof, source: Source, served: ServedBundle, embeddings: Float16) -> None:
    exported = with_rounded_tables(source.towers.item)
    off = units_apart(embed_by_torch(exported, source.products.content, source.tower_ids), embeddings)
    worst = int(off.max(1).argmax())
    _require_close(proof, f"item tower: row {worst}", off)
    inputs = _step_inputs(source)

    def by_torch(*arrays: NDArray[np.generic]) -> tuple[Float16, Float16]:
        with torch.inference_mode():
            state, vector = source.towers.user.step(*map(torch.from_numpy, arrays))
        return state.numpy(), vector.numpy()

    _steps_agree(proof, by_torch, served.encoder.step, inputs)


def _step_inputs(source: Source) -> tuple[NDArray[np.generic], ...]:
    rng, shape = np.random.default_rng(1), source.towers.shape
    codes = [rng.integers(0, top, STEP_USERS) for top in (7, GAP_BUCKETS, VALUE_BUCKETS)]
    widths = (shape.state_width, shape.dim)
    return (*(rng.normal(scale=0.5, size=(STEP_USERS, w)).astype(np.float16) for w in widths), *codes)


def _steps_agree(
    proof: Proof,
    by_torch: Callable[..., tuple[Float16, Float16]],
    step: Step,
    inputs: tuple[NDArray[np.generic], ...],
) -> None:
    """One step from random states: against torch within rounding, and bit-equal at any batch size."""
    whole = step(*inputs)  # type: ignore[arg-type]
    for name, one, other in zip(("state", "vector"), by_torch(*inputs), whole, strict=True):
        _require_close(proof, f"user tower: {name}", units_apart(one, other))
    for size in (1, 3, 17):
        part = step(*(column[:size] for column in inputs))  # type: ignore[arg-type]
        same = all(np.array_equal(a, b[:size]) for a, b in zip(part, whole, strict=True))
        proof.require(
            same, f"user tower: a batch of {size} and one of {STEP_USERS} differ; expected equal bits"
        )


def units_apart(one: Float16, other: Float16) -> NDArray[np.floating]:
    """Differences in float16 units of each row's largest number, [B, W]."""
    largest = np.maximum(np.abs(one).max(1, keepdims=True), np.float16(2**-6))
    apart = one.astype(np.float32) - other.astype(np.float32)
    units: NDArray[np.floating] = np.abs(apart) / np.spacing(largest).astype(np.float32)
    return units


def _require_close(proof: Proof, what: str, off: NDArray[np.floating]) -> None:
    proof.require(
        bool((off <= ULP).all()),
        f"{what} differs from torch by {off.max():.3g} float16 units; expected {ULP} at most",
    )
    different = int((off > 0).sum())
    proof.require(
        different <= max(DIFFERENT * off.size, ANYHOW),
        f"{what}: {different} of {off.size} numbers differ from torch; expected {DIFFERENT:.0%} at most",
    )


def _vectors_agree(proof: Proof, by_torch: list[UserRow], by_onnx: list[UserRow]) -> None:
    """After whole histories; a rounding that falls the other way fades with the state's decay."""
    pairs = zip(by_torch, by_onnx, strict=True)
    apart = (np.abs(a.vector.astype(np.float32) - b.vector.astype(np.float32)).max() for a, b in pairs)
    off = float(max(apart, default=0.0))
    proof.quantization["torch_onnx_vector_difference"] = round(off, 6)
    largest = max((float(np.abs(row.vector).max()) for row in by_torch), default=0.0)
    proof.require(
        off <= 0.02 * max(largest, 1.0),
        f"user vectors: torch and ONNX differ by {off:.3g} after whole histories; expected 2 %",
    )


def _quality(proof: Proof, views: Mapping[str, _View], by_onnx: list[UserRow]) -> None:
    """NDCG@10 of each level, repeat term included in all of them; losses beyond `max_loss` are failures."""
    published = views[SERVED]
    encoder = published.stage.served.encoder
    rebuilt = in_space([replace(row, space=OTHER_SPACE) for row in by_onnx], encoder)
    every = {**views, "ring_rebuild": replace(published, rows=rebuilt)}
    tops = {name: view.tops() for name, view in every.items()}
    scores, found = {}, {}
    for name, view in every.items():
        top, targets = tops[name], view.stage.held.targets
        scores[name] = ndcg(np.stack(top), targets, CUT) if top else 0.0
        found[name] = metrics(np.stack(top), targets, 1)[f"recall@{CUT}"] if top else 0.0
    base, max_loss = scores[FP32], proof.max_loss
    ratios = {name: score / base if base else 1.0 for name, score in scores.items()}
    proof.quantization |= {
        "users": len(published.stage.held.targets),
        "ndcg@10": {name: round(score, 6) for name, score in scores.items()},
        "found@10": {name: round(share, 6) for name, share in found.items()},
        "int8_ndcg_ratio": round(ratios[SERVED], 6),
        "ring_rebuild_ndcg_ratio": round(ratios["ring_rebuild"], 6),
        "max_ndcg_loss": max_loss,
    }
    for name in (FLOAT16, SERVED):
        proof.require(
            ratios[name] >= 1 - max_loss,
            f"{name}: NDCG@10 {scores[name]:.5f} is {ratios[name]:.4f} of fp32; expected {1 - max_loss}",
        )


def _ranked(served: ServedBundle, level: Level, own: Own, query: NDArray[np.float32]) -> Top:
    """The ten that would be served at a level of precision."""
    best = level.top(query, CANDIDATES)
    ranked, _ = served.ranked(best, own, lambda rows: level.scores(query, rows))
    return _padded(ranked)


def _padded(rows: Top) -> Top:
    return np.pad(rows[:CUT], (0, max(0, CUT - len(rows))), constant_values=-1)


def _recall(proof: Proof, views: Mapping[str, _View]) -> None:
    """Of the exact ten best by dot product, how many each level finds."""
    found = {
        name: GroundTruth.of(view.queries, view.shown).recall(view.level) for name, view in views.items()
    }
    proof.quantization["levels_recall@10"] = {name: round(share, 6) for name, share in found.items()}
    published = views[SERVED]
    demands = Demands.of(published.queries, published.shown).measured(published.stage.served.scorer)
    proof.quantization |= demands
    for name, share in demands.items():
        proof.require(share >= LEAST_RECALL, too_little_found(name, share))


def _speed(proof: Proof, levels: Mapping[str, Level], showable: int, queries: NDArray[np.float32]) -> None:
    """Median CPU time of one query at each level, in turns; judged where a scan is more than its call."""
    vectors = [*queries[:QUERIES]]
    if not vectors:
        return
    us = proof.microseconds = microseconds(levels, vectors)
    proof.require(
        showable < CHOSEN_FROM or us[SERVED] <= us[FP32],
        f"int8: {us[SERVED]:.0f} µs a query, fp32 {us[FP32]:.0f}; expected int8 to be no slower",
    )


def _measured(proof: Proof, views: Mapping[str, _View]) -> dict[str, Measured]:
    """The proof's table, a row for each level; what is published is its last."""
    scores, found, shares = (proof.quantization[n] for n in ("ndcg@10", "found@10", "levels_recall@10"))
    assert isinstance(scores, dict) and isinstance(found, dict) and isinstance(shares, dict)
    steps = _step_microseconds({view.stage.name: view.stage for view in views.values()})
    served = views[SERVED]
    size = bytes_per_item(served.shown.shape[1], served.stage.served.manifest.scorer)
    return {
        name: Measured(
            ndcg=scores[name],
            found=found[name],
            recall=shares[name],
            items=len(views[name].shown),
            bytes_per_item=size.get(name, size[SERVED]),
            microseconds=proof.microseconds.get(name, float("nan")),
            state_bytes=2 * views[name].stage.source.towers.shape.state_width,
            step_microseconds=steps[views[name].stage.name],
        )
        for name in (*(name for name in views if name != SERVED), SERVED)
    }


def _step_microseconds(stages: Mapping[str, Stage]) -> dict[str, float]:
    """Median CPU time of one event of one user, the encoders in turns."""
    spent: dict[str, list[float]] = {name: [] for name in stages}
    inputs = {
        name: tuple(column[:1] for column in _step_inputs(stage.source)) for name, stage in stages.items()
    }
    for _ in range(ROUNDS):
        for name, stage in stages.items():
            for _ in range(TIMED_STEPS):
                started = time.thread_time()
                stage.served.encoder.step(*inputs[name])  # type: ignore[arg-type]
                spent[name].append(time.thread_time() - started)
    return {name: round(float(np.median(times)) * 1e6, 1) for name, times in spent.items()}
