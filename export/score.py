"""The int8 tables and the stubs of graphs that scan them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from functions.core.models import OPSET
from functions.core.scorer import ZERO_POINT, blocks

IR_VERSION = 10
# int8 products; unlike MatMulInteger of full bytes it keeps its recall without VNNI (docs/decisions.md)
ACCURACY_LEVEL = 4
SEVEN_BITS = 63


class NotFinite(ValueError):
    """An embedding that cannot be quantized."""


def quantize(embeddings: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """[M, d] → codes [M, blocks, block] uint8 (int8 + 128), scales [M, blocks]: symmetric, one scale a block.

    They stand for the rows less their mean, so for scores less what all items have in common. Raises
    NotFinite naming the row. A block of zeros gets the scale 1.
    """
    require_finite(embeddings)
    codes, scales = _blockwise(embeddings, 127)
    return (codes + ZERO_POINT).astype(np.uint8), scales


def quantize_nibbles(embeddings: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The same in 4 bits: codes [M, blocks, block / 2], two to a byte, the first one in its lower half."""
    codes, scales = _blockwise(embeddings, 7)
    halves = (codes + 8).astype(np.uint8)
    packed: NDArray[np.uint8] = halves[..., ::2] | halves[..., 1::2] * np.uint8(16)
    return packed, scales


def require_finite(embeddings: NDArray[np.float16], what: str = "item row") -> None:
    """Raises NotFinite naming the first row of [N, d] with a number that is none."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if bad.size:
        raise NotFinite(f"{what} {bad[0]}: {embeddings[bad[0]]}; expected finite numbers")


def _blockwise(embeddings: NDArray[np.float16], top: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers -top..top [M, blocks, block] and the scale of each block [M, blocks]."""
    count, block = blocks(embeddings.shape[1])
    wide = np.zeros((len(embeddings), count * block), np.float32)
    wide[:, : embeddings.shape[1]] = _centred(embeddings)
    parts = wide.reshape(-1, count, block)
    largest = np.abs(parts).max(-1)
    scales = np.where(largest > 0, largest / top, 1).astype(np.float32)
    codes: NDArray[np.float32] = np.rint(parts / scales[..., None])
    return codes, scales


def _centred(embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
    """[M, d] less their mean: it adds the same to each item's score, and would take the codes' range."""
    mean = embeddings.mean(0, dtype=np.float64) if len(embeddings) else 0.0
    centred: NDArray[np.float32] = np.subtract(embeddings, mean, dtype=np.float64).astype(np.float32)
    return centred


def quantize_columns(embeddings: NDArray[np.float16]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[M, d] → codes [d, M] int8, and the scale [1] of them all, for MatMulInteger.

    With one scale the products rank as they are, which saves two of three passes over the scores. Codes are
    -63..63: products of two full bytes, added in pairs, saturate where a CPU has no VNNI. Raises NotFinite.
    """
    require_finite(embeddings)
    centred = _centred(embeddings)
    largest = np.abs(centred).max(initial=0)
    scales = np.array([largest / SEVEN_BITS if largest else 1], np.float32)
    codes = np.rint(centred.T / scales).astype(np.int8)
    return np.ascontiguousarray(codes), scales


def write_score_graph(path: Path, showable: int, dim: int, bits: int = 8) -> None:
    """`vector` float32 [1, d] → `scores` float32 [1, showable], by MatMulNBits.

    Codes and scales are external initializers, which the runtime is handed when it opens the graph: the graph
    stays a kilobyte, and the arrays stay files that can be mapped.
    """
    count, block = blocks(dim)
    scan = scan_node(showable, dim, bits)
    codes = _handed_over("codes", TensorProto.UINT8, [showable, count, block * bits // 8])
    scales = _handed_over("scales", TensorProto.FLOAT, [showable * count])
    _write_graph(path, [scan], [codes, scales], TensorProto.FLOAT, (dim, showable))


def scan_node(rows: int, dim: int, bits: int = 8) -> onnx.NodeProto:
    """MatMulNBits of `vector`, `codes` and `scales` to `scores`, in the blocks of `quantize`."""
    return helper.make_node(
        "MatMulNBits",
        ["vector", "codes", "scales"],
        ["scores"],
        domain="com.microsoft",
        K=dim,
        N=rows,
        bits=bits,
        block_size=blocks(dim)[1],
        accuracy_level=ACCURACY_LEVEL,
    )


def write_column_graph(path: Path, showable: int, dim: int) -> None:
    """The same by MatMulInteger to int32 scores, which lack both scales: one factor for all of them."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["vector"], ["query", "query_scale", "query_zero"]),
        helper.make_node("MatMulInteger", ["query", "codes", "query_zero"], ["scores"]),
    ]
    codes = _handed_over("codes", TensorProto.INT8, [dim, showable])
    _write_graph(path, nodes, [codes], TensorProto.INT32, (dim, showable))


def _write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    handed_over: list[onnx.TensorProto],
    kind: int,
    shape: tuple[int, int],
) -> None:
    dim, showable = shape
    graph = helper.make_graph(
        nodes,
        "score",
        [_tensor("vector", TensorProto.FLOAT, [1, dim])],
        [_tensor("scores", kind, [1, showable])],
        initializer=handed_over,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString())


def _tensor(name: str, kind: int, shape: list[int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _handed_over(name: str, kind: int, shape: list[int]) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    location = tensor.external_data.add()
    location.key, location.value = "location", name
    return tensor
