"""The user tower in numpy: the exported ONNX graph, read and run node by node, where ONNX Runtime is missing.

One file defines a state, so this reads that file. Sums run over one row at a time in one order (einsum, and
reductions over a contiguous axis), so no batch size changes a bit. ONNX Runtime's float32 sums run in
another order: a float16 number of a state differs by one unit now and then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import Int64
from functions.core.user_row import Float16

Array = NDArray[Any]
Field = tuple[int, Any]
# of onnx.TensorProto
KINDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
}
FLOAT, INT, TENSOR = 1, 2, 4  # of onnx.AttributeProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One operator of a graph."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


def _sum(x: Array, axes: Array, mean: bool = False) -> Array:
    if axes.tolist() not in ([-1], [x.ndim - 1]):
        raise CorruptBundle(f"a sum over axes {axes.tolist()}; expected the last one")
    rows = np.ascontiguousarray(x)
    result: Array = rows.mean(-1, keepdims=True) if mean else rows.sum(-1, keepdims=True)
    return result


def _gemm(x: Array, weight: Array, bias: Array, **attributes: Any) -> Array:
    if attributes.get("transA") or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        raise CorruptBundle(f"Gemm with {attributes}; expected x · weight + bias")
    product: Array = np.einsum("bi,oi->bo" if attributes.get("transB") else "bi,io->bo", x, weight)
    return product + bias


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp gives inf, and 1 / inf is the 0 that is meant
        result: Array = np.reciprocal(1 + np.exp(-x))
    return result


def _split(x: Array, *, axis: int, num_outputs: int) -> list[Array]:
    return np.split(x, num_outputs, axis)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Cast": lambda x, *, to, saturate=1: x.astype(KINDS[to]),
    "Clip": lambda x, low, high=np.inf: np.clip(x, low, high),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Div": np.divide,
    "Equal": np.equal,
    "Gather": lambda table, at, *, axis=0: table.take(at, axis),
    "Gemm": _gemm,
    "Mul": np.multiply,
    "Pow": np.power,
    "ReduceMean": lambda x, axes, *, keepdims, noop_with_empty_axes=0: _sum(x, axes, mean=True),
    "ReduceSum": lambda x, axes, *, keepdims, noop_with_empty_axes=0: _sum(x, axes),
    "Sigmoid": _sigmoid,
    "Split": _split,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
}


class NumpyStep:
    """The exported user tower as the fold's Step."""

    def __init__(self, model: Path) -> None:
        """Raises CorruptBundle for what is not a user tower or has operators that are not ours."""
        try:
            self._nodes, self._weights, widths = _read(model.read_bytes())
            self.state_width, self.dim = widths["state"], widths["item"]
        except (IndexError, KeyError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise CorruptBundle(f"{model}: {error!r}; expected a user tower") from error
        unknown = sorted({node.operator for node in self._nodes} - OPERATORS.keys())
        if unknown:
            raise CorruptBundle(f"{model}: operators {unknown}; numpy serves {sorted(OPERATORS)}")

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        """One event of each of B users: [B, S], [B, d], codes [B] → state [B, S], vector [B, d], float16."""
        given: dict[str, Array] = {"state": state, "item": item, "kind": kind, "gap": gap, "value": value}
        known: dict[str, Array] = self._weights | given
        for node in self._nodes:
            inputs = [known[name] for name in node.inputs]
            made = OPERATORS[node.operator](*inputs, **node.attributes)
            known.update(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))
        return known["state_out"], known["vector"]


def _fields(data: memoryview) -> Iterator[Field]:
    """Number and value of each field of a protobuf message; nested messages and strings are memoryviews."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: Any
        if tag & 7 == VARINT:
            value, at = _varint(data, at)
        elif tag & 7 == BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif tag & 7 in (FIXED32, FIXED64):
            width = 4 if tag & 7 == FIXED32 else 8
            value, at = data[at : at + width], at + width
        else:
            raise ValueError(f"wire type {tag & 7} at byte {at}")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value - 2**64 if value >= 2**63 else value, at


def _all(data: memoryview, number: int) -> list[Any]:
    return [value for field, value in _fields(data) if field == number]


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _numbers(fields: list[Any]) -> list[int]:
    """A repeated number, which comes one by one or packed."""
    found: list[int] = []
    for value in fields:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def _read(data: bytes) -> tuple[list[Node], dict[str, Array], dict[str, int]]:
    (graph,) = _all(memoryview(data), 7)
    weights = dict(_tensor(value) for value in _all(graph, 5))
    nodes = [_node(value) for value in _all(graph, 1)]
    return nodes, weights, dict(_input(value) for value in _all(graph, 11))


def _tensor(data: memoryview) -> tuple[str, Array]:
    (kind,), (raw,) = _all(data, 2), _all(data, 9)
    (name,) = _all(data, 8) or [memoryview(b"")]
    shape = _numbers(_all(data, 1))
    values: Array = np.frombuffer(raw, KINDS[kind])
    return _text(name), values.reshape(shape)


def _node(data: memoryview) -> Node:
    inputs, outputs = (tuple(_text(v) for v in _all(data, number)) for number in (1, 2))
    attributes = dict(_attribute(value) for value in _all(data, 5))
    return Node(_text(_all(data, 4)[0]), inputs, outputs, attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    (name,), (kind,) = _all(data, 1), _all(data, 20)
    if kind == INT:
        return _text(name), (_all(data, 3) or [0])[0]
    if kind == FLOAT:
        return _text(name), struct.unpack("<f", (_all(data, 2) or [b"\0" * 4])[0])[0]
    if kind == TENSOR:
        return _text(name), _tensor(_all(data, 5)[0])[1]
    raise ValueError(f"attribute {_text(name)} of type {kind}")


def _input(data: memoryview) -> tuple[str, int]:
    """Name and last dimension of an input; 0 where that is not fixed."""
    (name,), (kind,) = _all(data, 1), _all(data, 2)
    shape = _all(_all(kind, 1)[0], 2)[0]
    last = _all(shape, 1)[-1]
    return _text(name), (_all(last, 1) or [0])[0]
