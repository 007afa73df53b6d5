"""Levels of precision side by side: what each loses, what it weighs, and what a query takes on this CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.score import IR_VERSION, quantize, quantize_nibbles, write_score_graph
from functions.core.models import OPSET
from functions.core.runtime import OnnxScan, session_options
from functions.core.scorer import Scorer, Top, WholeScan, blocks
from functions.core.selection import Rows, best_rows, buffer
from functions.core.user_row import Float16

BLOCK_ROWS = 8192  # of a float16 table, widened at a time
FP32, FLOAT16, INT8, INT4, SERVED = "fp32", "float16", "int8", "int4 + rescoring", "served"
LEVELS = (FP32, FLOAT16, INT8, INT4, SERVED)


class FloatTable:
    """Exact float32 products with all M rows, by ONNX Runtime; table [M, d]."""

    def __init__(self, table: NDArray[np.float32]) -> None:
        self._table, self._session = table, _float_session(table)

    def top(self, vector: NDArray[np.floating], k: int) -> Top:
        """As `Scorer.top`."""
        inputs = {
            "vector": vector[None].astype(np.float32),
            "count": np.array([min(k, len(self._table))], np.int64),
        }
        scores, rows = self._session.run(["top", "rows"], inputs)
        return rows[0], scores[0]

    def scores(self, vector: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
        """As `Scorer.scores`."""
        exact: NDArray[np.float32] = self._table[rows] @ vector.astype(np.float32)
        return exact


class HalfTable(FloatTable):
    """The same from a float16 table, widened in blocks: no CPU kernel of ours multiplies float16."""

    def __init__(self, table: Float16) -> None:
        self._half, self._scores = table, buffer(len(table))

    def top(self, vector: NDArray[np.floating], k: int) -> Top:
        query, rows = vector.astype(np.float32), len(self._half)
        for at in range(0, rows, BLOCK_ROWS):
            block = self._half[at : at + BLOCK_ROWS].astype(np.float32)
            np.matmul(block, query, out=self._scores[at : at + len(block)])
        return _sorted(self._scores, rows, k)

    def scores(self, vector: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
        exact: NDArray[np.float32] = self._half[rows].astype(np.float32) @ vector.astype(np.float32)
        return exact


class Codes:
    """Scores by int8 codes as they are: what serving would be if nothing were looked at exactly."""

    def __init__(self, scan: OnnxScan) -> None:
        self._scan = scan
        self._scores: NDArray[np.float32] = buffer(scan.rows)

    def top(self, vector: NDArray[np.floating], k: int) -> Top:
        """As `Scorer.top`."""
        self._scan(vector.astype(np.float32), self._scores[: self._scan.rows])
        return _sorted(self._scores, self._scan.rows, k)

    def scores(self, vector: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
        """As `Scorer.scores`, by the codes too."""
        self._scan(vector.astype(np.float32), self._scores[: self._scan.rows])
        return self._scores[rows]


Level = FloatTable | Codes | Scorer


@dataclass(frozen=True)
class Measured:
    """One row of the table; `ndcg` and `recall` are of the held-out users, `microseconds` of a query.

    found: share of what the users went on to that is among their ten. items: that a query ranks. state_bytes
    of a visitor, and microseconds of one event: what pruning the width is about.
    """

    ndcg: float
    found: float
    recall: float
    items: int
    bytes_per_item: float
    microseconds: float
    state_bytes: int
    step_microseconds: float


def build(
    scratch: Path, original: NDArray[np.float32], embeddings: Float16, served: Scorer
) -> dict[str, Level]:
    """All levels of one table: original [M, d] before any rounding, embeddings [M, d] as in the bundle."""
    rows, dim = embeddings.shape
    count, _ = blocks(dim)

    def scan(bits: int) -> OnnxScan:
        codes, scales = quantize(embeddings) if bits == 8 else quantize_nibbles(embeddings)
        path = scratch / f"int{bits}.onnx"
        write_score_graph(path, rows, dim, bits)
        return OnnxScan(path, codes, scales.reshape(rows * count))

    return {
        FP32: FloatTable(original),
        FLOAT16: HalfTable(embeddings),
        INT8: Codes(scan(8)),
        INT4: Scorer(WholeScan(scan(4)), embeddings, rows),
        SERVED: served,
    }


def bytes_per_item(dim: int, served: Mapping[str, object]) -> dict[str, float]:
    """Bytes that a query may read of an item at each level; rescoring reads the float16 row of a few only.

    served: the scorer as the manifest names it.
    """
    count, block = blocks(dim)
    int8, int4 = count * (block + 4.0), count * (block / 2 + 4)
    as_served = float(dim) if served.get("kind") == "integer" else int8
    return {FP32: 4.0 * dim, FLOAT16: 2.0 * dim, INT8: int8, INT4: int4, SERVED: as_served}


def table(measured: Mapping[str, Measured]) -> str:
    """Markdown."""
    base = measured[FP32].ndcg
    lines = [
        "| level | NDCG@10 | of fp32 | of what came, in the ten | recall@10 | items | bytes an item | MB "
        "| µs a query | state, bytes | µs an event |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in measured.items():
        share = f"{row.ndcg / base:.4f}" if base else "-"
        lines.append(
            f"| {name} | {row.ndcg:.5f} | {share} | {row.found:.5f} | {row.recall:.4f} | {row.items:,} "
            f"| {row.bytes_per_item:.0f} | {row.items * row.bytes_per_item / 1e6:.1f} "
            f"| {row.microseconds:,.0f} | {row.state_bytes} | {row.step_microseconds:.0f} |"
        )
    return "\n".join(lines)


def _sorted(scores: NDArray[np.float32], rows: int, k: int) -> Top:
    best = best_rows(scores, rows, min(k, rows))
    order = np.lexsort((best, -scores[best]))
    return best[order], scores[best][order]


def _float_session(table: NDArray[np.float32]) -> ort.InferenceSession:
    dim = table.shape[1]
    raw = np.ascontiguousarray(table.T, np.float32).tobytes()
    weights = helper.make_tensor("table", TensorProto.FLOAT, [dim, len(table)], raw, raw=True)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["vector", "table"], ["scores"]),
            helper.make_node("TopK", ["scores", "count"], ["top", "rows"], axis=1),
        ],
        "float_scan",
        [
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, dim]),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("top", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("rows", TensorProto.INT64, None),
        ],
        initializer=[weights],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    return ort.InferenceSession(model.SerializeToString(), session_options(), ["CPUExecutionProvider"])
