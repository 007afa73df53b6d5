"""The proof that goes into a bundle: torch, ONNX, int8 and what is served, on the same held-out users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.bundle import Source
from export.handover import HeldOut
from export.score import IR_VERSION
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS
from functions.core.fold import Step, in_space
from functions.core.models import OPSET
from functions.core.ranking import top_k_numpy
from functions.core.runtime import session_options
from functions.core.served import CANDIDATES, ServedBundle
from functions.core.user_row import Float16, UserRow
from train.evaluate import TowerItems, embed_items, ndcg, torch_encoder, user_rows

CUT = 10
LEAST_RECALL = 0.999  # of the exact ten best among the ten served
STEP_USERS = 64
# of its largest number's float16 units, what a row may differ by between torch and ONNX Runtime: where their
# float32 sums straddle a rounding boundary, one layer rounds apart and the layers behind it see that
ULP = 2.0
DIFFERENT = 0.02  # of all numbers, at most so many
TIMED_FROM = 20_000  # items; below, a scan takes as long as calling it
TIMED_QUERIES = 100
OTHER_SPACE = "f" * 16

Top = NDArray[np.int64]


@dataclass
class Proof:
    """What was measured, what of it belongs into the manifest, and everything that failed."""

    quantization: dict[str, object] = field(default_factory=dict)
    microseconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Remember the failure unless it holds."""
        if not holds:
            self.failures.append(failure)


def prove(source: Source, served: ServedBundle, embeddings: Float16, held: HeldOut, max_loss: float) -> Proof:
    """Run every comparison; failures are collected, so that one run says all that is wrong."""
    proof = Proof()
    torch_items = embed_items(source.towers, source.products.features)
    _towers_agree(proof, source, served, embeddings, torch_items)
    users = list(range(len(held.targets)))
    encoder = torch_encoder(source.towers, TowerItems(list(source.meta.item_ids), torch_items))
    by_torch = user_rows(held.log, users, encoder)
    by_onnx = user_rows(held.log, users, served.encoder)
    _vectors_agree(proof, by_torch, by_onnx)
    _quality(proof, served, torch_items, embeddings, by_torch, by_onnx, held.targets, max_loss)
    _recall(proof, served, embeddings, by_onnx)
    _speed(proof, served, embeddings, by_onnx)
    return proof


def _towers_agree(
    proof: Proof, source: Source, served: ServedBundle, embeddings: Float16, torch_items: Float16
) -> None:
    off = _units_apart(torch_items, embeddings)
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
        _require_close(proof, f"user tower: {name}", _units_apart(one, other))
    for size in (1, 3, 17):
        part = step(*(column[:size] for column in inputs))  # type: ignore[arg-type]
        same = all(np.array_equal(a, b[:size]) for a, b in zip(part, whole, strict=True))
        proof.require(
            same, f"user tower: a batch of {size} and one of {STEP_USERS} differ; expected equal bits"
        )


def _units_apart(one: Float16, other: Float16) -> NDArray[np.floating]:
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
    off = max(
        float(np.abs(a.vector.astype(np.float32) - b.vector.astype(np.float32)).max()) for a, b in pairs
    )
    proof.quantization["torch_onnx_vector_difference"] = round(off, 6)
    largest = max(float(np.abs(row.vector).max()) for row in by_torch)
    proof.require(
        off <= 0.02 * max(largest, 1.0),
        f"user vectors: torch and ONNX differ by {off:.3g} after whole histories; expected 2 %",
    )


def _quality(
    proof: Proof,
    served: ServedBundle,
    torch_items: Float16,
    embeddings: Float16,
    by_torch: list[UserRow],
    by_onnx: list[UserRow],
    targets: list[NDArray[np.int64]],
    max_loss: float,
) -> None:
    """NDCG@10 of each path, repeat term included in all of them; losses beyond `max_loss` are failures."""
    rebuilt = in_space([replace(row, space=OTHER_SPACE) for row in by_onnx], served.encoder)
    float32, rounded = _wide(served, torch_items), _wide(served, embeddings)
    tops = {
        "fp32": [_exact_top(served, float32, row) for row in by_torch],
        "onnx": [_exact_top(served, rounded, row) for row in by_onnx],
        "served": [_padded(served.candidates(row)[0]) for row in by_onnx],
        "ring_rebuild": [_padded(served.candidates(row)[0]) for row in rebuilt],
    }
    scores = {name: ndcg(np.stack(top), targets, CUT) for name, top in tops.items()}
    ratios = {name: score / scores["fp32"] if scores["fp32"] else 1.0 for name, score in scores.items()}
    proof.quantization |= {
        "users": len(targets),
        "ndcg@10": {name: round(score, 6) for name, score in scores.items()},
        "int8_ndcg_ratio": round(ratios["served"], 6),
        "ring_rebuild_ndcg_ratio": round(ratios["ring_rebuild"], 6),
        "max_ndcg_loss": max_loss,
    }
    for name in ("onnx", "served"):
        proof.require(
            ratios[name] >= 1 - max_loss,
            f"{name}: NDCG@10 {scores[name]:.5f} is {ratios[name]:.4f} of fp32; expected {1 - max_loss}",
        )


def _wide(served: ServedBundle, table: NDArray[np.floating]) -> NDArray[np.float32]:
    return table[: served.manifest.showable].astype(np.float32)


def _exact_top(served: ServedBundle, table: NDArray[np.float32], row: UserRow) -> Top:
    """The ten that would be served if nothing were quantized; table [M, d]."""
    vector = row.vector.astype(np.float32)
    scores = table @ vector
    best = np.argpartition(-scores, min(CANDIDATES, len(scores)) - 1)[:CANDIDATES]
    ranked, _ = served.repeats.candidates((best, scores[best]), served.own(row), scores.take)
    return _padded(ranked)


def _padded(rows: Top) -> Top:
    return np.pad(rows[:CUT], (0, max(0, CUT - len(rows))), constant_values=-1)


def _recall(proof: Proof, served: ServedBundle, embeddings: Float16, rows: list[UserRow]) -> None:
    """Of the exact ten best by dot product, how many the int8 scan and its rescoring find."""
    showable = embeddings[: served.manifest.showable]
    found, wanted = 0, 0
    for row in rows[:TIMED_QUERIES]:
        exact, scores = top_k_numpy(row.vector, showable, CUT)
        top, _ = served.scorer.top(row.vector, CUT)
        edge = scores[-1] if len(scores) else 0.0  # an item that ties with the last is as right as the last
        got = served.scorer.scores(row.vector, top)
        found += int((got >= edge - 1e-3 * abs(edge)).sum())
        wanted += len(exact)
    recall = found / wanted if wanted else 1.0
    proof.quantization["recall@10"] = round(recall, 6)
    proof.require(
        recall >= LEAST_RECALL, f"served: recall@10 {recall:.4f} of the exact best; expected {LEAST_RECALL}"
    )


def _speed(proof: Proof, served: ServedBundle, embeddings: Float16, rows: list[UserRow]) -> None:
    """Median time of one query on one thread; judged only where a scan is more than its call."""
    showable = served.manifest.showable
    float_scan = _float_scan(embeddings[:showable])
    vectors = [row.vector for row in rows[:TIMED_QUERIES]]
    proof.microseconds = {
        "fp32": _median_us(lambda v: float_scan(v), vectors),
        "int8": _median_us(lambda v: served.scorer.top(v, CUT), vectors),
    }
    us = proof.microseconds
    proof.require(
        showable < TIMED_FROM or us["int8"] <= us["fp32"],
        f"int8: {us['int8']:.0f} µs a query, fp32 {us['fp32']:.0f}; expected int8 to be no slower",
    )


def _float_scan(table: Float16) -> Callable[[Float16], NDArray[np.int64]]:
    """The same top-k in float32, by ONNX Runtime too."""
    dim = table.shape[1]
    weights = helper.make_tensor("table", TensorProto.FLOAT, [dim, len(table)], _bytes(table.T), raw=True)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["vector", "table"], ["scores"]),
            helper.make_node("TopK", ["scores", "count"], ["top", "rows"], axis=1),
        ],
        "float_scan",
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, dim])],
        [helper.make_tensor_value_info("rows", TensorProto.INT64, None)],
        initializer=[weights, helper.make_tensor("count", TensorProto.INT64, [1], [min(CUT, len(table))])],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), session_options(), ["CPUExecutionProvider"])

    def scan(vector: Float16) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = session.run(["rows"], {"vector": vector[None].astype(np.float32)})[0]
        return rows

    return scan


def _bytes(table: Float16) -> bytes:
    return np.ascontiguousarray(table, np.float32).tobytes()


def _median_us(query: Callable[[Float16], object], vectors: list[Float16]) -> float:
    taken = []
    for vector in vectors:
        started = perf_counter()
        query(vector)
        taken.append(perf_counter() - started)
    return round(float(np.median(taken)) * 1e6, 1)


def table(proof: Proof) -> str:
    """The measurements for a person."""
    scores = proof.quantization.get("ndcg@10", {})
    assert isinstance(scores, Mapping)
    lines = [f"  {'NDCG@10 ' + name:<24} {score:.5f}" for name, score in scores.items()]
    lines += [
        f"  {name:<24} {value}" for name, value in proof.quantization.items() if isinstance(value, float)
    ]
    lines += [f"  {name + ' query':<24} {value:.0f} µs" for name, value in proof.microseconds.items()]
    return "\n".join(lines)
