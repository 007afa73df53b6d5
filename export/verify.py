"""The proof that goes into a bundle: torch, ONNX, int8 and what is served, on the same held-out users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import Source
from export.handover import HeldOut
from export.levels import (
    CUT,
    FLOAT16,
    FP32,
    LEVELS,
    SERVED,
    FloatTable,
    Level,
    Measured,
    build,
    bytes_per_item,
    recall,
)
from export.scorers import CHOSEN_FROM, microseconds
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS
from functions.core.fold import Step, in_space
from functions.core.served import CANDIDATES, ServedBundle
from functions.core.user_row import Float16, UserRow
from train.evaluate import TowerItems, embed_items, ndcg, torch_encoder, user_rows

LEAST_RECALL = 0.999  # of the exact ten best among the ten served
STEP_USERS = 64
# of its largest number's float16 units, what a row may differ by between torch and ONNX Runtime: where their
# float32 sums straddle a rounding boundary, one layer rounds apart and the layers behind it see that
ULP = 2.0
DIFFERENT = 0.02  # of all numbers, at most so many
TIMED_QUERIES = 100
OTHER_SPACE = "f" * 16

Top = NDArray[np.int64]


@dataclass
class Proof:
    """What was measured, what of it belongs into the manifest, and everything that failed."""

    max_loss: float
    quantization: dict[str, object] = field(default_factory=dict)
    microseconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Remember the failure unless it holds."""
        if not holds:
            self.failures.append(failure)


def prove(source: Source, served: ServedBundle, embeddings: Float16, held: HeldOut, max_loss: float) -> Proof:
    """Run every comparison; failures are collected, so that one run says all that is wrong."""
    proof = Proof(max_loss)
    torch_items = embed_items(source.towers, source.products.features)
    _towers_agree(proof, source, served, embeddings, torch_items)
    users = list(range(len(held.targets)))
    encoder = torch_encoder(source.towers, TowerItems(list(source.meta.item_ids), torch_items))
    by_torch = user_rows(held.log, users, encoder)
    by_onnx = user_rows(held.log, users, served.encoder)
    _vectors_agree(proof, by_torch, by_onnx)
    showable = served.manifest.showable
    shown = embeddings[:showable]
    with TemporaryDirectory() as scratch:
        levels = build(Path(scratch), torch_items[:showable].astype(np.float32), shown, served.scorer)
        # the same products as those of the float16 table, which widens its rows again for each query
        exact = {**levels, FLOAT16: FloatTable(shown.astype(np.float32))}
        _quality(proof, served, exact, by_torch, by_onnx, held.targets)
        _recall(proof, exact, shown, by_onnx)
        _speed(proof, levels, showable, by_onnx)
    return proof


def _towers_agree(
    proof: Proof, source: Source, served: ServedBundle, embeddings: Float16, torch_items: Float16
) -> None:
    off = units_apart(torch_items, embeddings)
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
    share = float((off > 0).mean())
    proof.require(
        share <= DIFFERENT,
        f"{what}: {share:.2%} of the numbers differ from torch; expected {DIFFERENT:.0%} at most",
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


def _quality(
    proof: Proof,
    served: ServedBundle,
    levels: Mapping[str, Level],
    by_torch: list[UserRow],
    by_onnx: list[UserRow],
    targets: list[NDArray[np.int64]],
) -> None:
    """NDCG@10 of each level, repeat term included in all of them; losses beyond `max_loss` are failures."""
    rebuilt = in_space([replace(row, space=OTHER_SPACE) for row in by_onnx], served.encoder)
    tops = {
        name: [_ranked(served, level, row) for row in (by_torch if name == FP32 else by_onnx)]
        for name, level in levels.items()
    }
    tops["ring_rebuild"] = [_ranked(served, served.scorer, row) for row in rebuilt]
    scores = {name: ndcg(np.stack(top), targets, CUT) if top else 0.0 for name, top in tops.items()}
    base, max_loss = scores[FP32], proof.max_loss
    ratios = {name: score / base if base else 1.0 for name, score in scores.items()}
    proof.quantization |= {
        "users": len(targets),
        "ndcg@10": {name: round(score, 6) for name, score in scores.items()},
        "int8_ndcg_ratio": round(ratios[SERVED], 6),
        "ring_rebuild_ndcg_ratio": round(ratios["ring_rebuild"], 6),
        "max_ndcg_loss": max_loss,
    }
    for name in (FLOAT16, SERVED):
        proof.require(
            ratios[name] >= 1 - max_loss,
            f"{name}: NDCG@10 {scores[name]:.5f} is {ratios[name]:.4f} of fp32; expected {1 - max_loss}",
        )


def _ranked(served: ServedBundle, level: Level, row: UserRow) -> Top:
    """The ten that would be served at a level of precision."""
    best = level.top(row.vector, CANDIDATES)
    ranked, _ = served.ranked(best, row, lambda rows: level.scores(row.vector, rows))
    return _padded(ranked)


def _padded(rows: Top) -> Top:
    return np.pad(rows[:CUT], (0, max(0, CUT - len(rows))), constant_values=-1)


def _recall(proof: Proof, levels: Mapping[str, Level], embeddings: Float16, rows: list[UserRow]) -> None:
    """Of the exact ten best by dot product, how many each level finds."""
    vectors = [row.vector for row in rows[:TIMED_QUERIES]]
    found = {name: recall(level, vectors, embeddings) for name, level in levels.items()}
    proof.quantization["recall@10"] = round(found[SERVED], 6)
    proof.quantization["levels_recall@10"] = {name: round(share, 6) for name, share in found.items()}
    proof.require(
        found[SERVED] >= LEAST_RECALL,
        f"served: recall@10 {found[SERVED]:.4f} of the exact best; expected {LEAST_RECALL}",
    )


def _speed(proof: Proof, levels: Mapping[str, Level], showable: int, rows: list[UserRow]) -> None:
    """Median CPU time of one query at each level, in turns; judged where a scan is more than its call."""
    vectors = [row.vector for row in rows[:TIMED_QUERIES]]
    if not vectors:
        return
    us = proof.microseconds = microseconds(levels, vectors)
    proof.require(
        showable < CHOSEN_FROM or us[SERVED] <= us[FP32],
        f"int8: {us[SERVED]:.0f} µs a query, fp32 {us[FP32]:.0f}; expected int8 to be no slower",
    )


def measured(proof: Proof, dim: int) -> dict[str, Measured]:
    """The proof's table, a row for each level."""
    scores, shares = proof.quantization["ndcg@10"], proof.quantization["levels_recall@10"]
    assert isinstance(scores, dict) and isinstance(shares, dict)
    size = bytes_per_item(dim)
    return {
        name: Measured(scores[name], shares[name], size[name], proof.microseconds.get(name, float("nan")))
        for name in LEVELS
    }
