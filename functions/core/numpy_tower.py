"""The user tower in numpy: the exported ONNX graph, read and run node by node, where ONNX Runtime is missing.

One file defines a state, so this reads that file. Sums run over one row at a time in one order (einsum, and
reductions over a contiguous axis), so no batch size changes a bit. ONNX Runtime's float32 sums run in
another order: a float16 number of a state differs by one unit now and then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import Int64
from functions.core.models import ATTRIBUTE, GRAPH, MODEL, NODE, TENSOR
from functions.core.protobuf import BYTES, VARINT, Part, Refused, Schema, signed
from functions.core.user_row import Float16

Array = NDArray[Any]
# of onnx.TensorProto
KINDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
}
FLOAT_VALUE, INT_VALUE, TENSOR_VALUE, GRAPH_VALUE, INTS_VALUE = 1, 2, 4, 5, 7  # of onnx.AttributeProto
# of an input or output, as in onnx.proto
VALUE_INFO = {1: ("name", BYTES), 2: ("type", BYTES), 3: ("doc_string", BYTES), 4: ("metadata_props", BYTES)}
TYPE = {1: ("tensor_type", BYTES), 6: ("denotation", BYTES)}
TENSOR_TYPE = {1: ("elem_type", VARINT), 2: ("shape", BYTES)}
SHAPE = {1: ("dim", BYTES)}
DIM = {1: ("dim_value", VARINT), 2: ("dim_param", BYTES), 3: ("denotation", BYTES)}


@dataclass(frozen=True)
class Node:
    """One operator of a graph."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """Operators in the order in which they run; a branch also reads what the graph around it knows."""

    nodes: list[Node]
    weights: dict[str, Array]
    inputs: dict[str, int]  # last dimension by name; 0 where that is not fixed
    outputs: list[str]

    def operators(self) -> set[str]:
        """Names of all, branches included."""
        values = (value for node in self.nodes for value in node.attributes.values())
        branches = (value.operators() for value in values if isinstance(value, Graph))
        return {node.operator for node in self.nodes}.union(*branches)

    def run(self, given: dict[str, Array]) -> list[Array]:
        """The outputs, from what is given by name."""
        known = given | self.weights
        for node in self.nodes:
            inputs = [known[name] for name in node.inputs]
            if node.operator == "If":
                taken = "then_branch" if inputs[0] else "else_branch"
                made = node.attributes[taken].run(known)
            else:
                made = OPERATORS[node.operator](*inputs, **node.attributes)
            known.update(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))
        return [known[name] for name in self.outputs]


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


def _scattered(x: Array, at: Array, rows: Array) -> Array:
    """A copy of x [B, d] with rows [n, d] at [n, 1]."""
    changed = x.copy()
    changed[at[:, 0]] = rows
    return changed


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Cast": lambda x, *, to, saturate=1: x.astype(KINDS[to]),
    "Clip": lambda x, low, high=np.inf: np.clip(x, low, high),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Div": np.divide,
    "Equal": np.equal,
    "Gather": lambda table, at, *, axis=0: table.take(at, axis),
    "Gemm": _gemm,
    "Less": np.less,
    "Mul": np.multiply,
    "NonZero": lambda x: np.stack(np.nonzero(x)),
    "Pow": np.power,
    "ReduceMean": lambda x, axes, *, keepdims, noop_with_empty_axes=0: _sum(x, axes, mean=True),
    "ReduceMin": lambda x, *, keepdims, noop_with_empty_axes=0: x.min(
        initial=np.inf, keepdims=bool(keepdims)
    ),
    "ReduceSum": lambda x, axes, *, keepdims, noop_with_empty_axes=0: _sum(x, axes),
    "Relu": lambda x: np.maximum(x, 0),
    "ScatterND": _scattered,
    "Sigmoid": _sigmoid,
    "Split": _split,
    "Sqrt": np.sqrt,
    "Squeeze": lambda x, axes: x.squeeze(tuple(axes.tolist())),
    "Sub": np.subtract,
    "Transpose": lambda x, *, perm: x.transpose(perm),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "Where": np.where,
}


class NumpyStep:
    """The exported user tower as the fold's Step."""

    def __init__(self, model: Path) -> None:
        """Raises CorruptBundle for what is not a user tower or has operators that are not ours."""
        try:
            self._graph = _read(model.read_bytes())
            self.state_width, self.dim = self._graph.inputs["state"], self._graph.inputs["item"]
        except (Refused, IndexError, KeyError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise CorruptBundle(f"{model}: {error!r}; expected a user tower") from error
        unknown = sorted(self._graph.operators() - OPERATORS.keys() - {"If"})
        if unknown:
            raise CorruptBundle(f"{model}: operators {unknown}; numpy serves {sorted(OPERATORS)} and If")

    def __call__(
        self, state: Float16, item: Float16, kind: Int64, gap: Int64, value: Int64
    ) -> tuple[Float16, Float16]:
        """One event of each of B users: [B, S], [B, d], codes [B] → state [B, S], vector [B, d], float16."""
        given: dict[str, Array] = {"state": state, "item": item, "kind": kind, "gap": gap, "value": value}
        after, vector = self._graph.run(given)
        return after, vector


class _Message:
    """The fields of one message, by name."""

    def __init__(self, part: Part | int, message: str, schema: Schema) -> None:
        if not isinstance(part, Part):
            raise ValueError(f"{part}; expected a {message}")
        self._message, self._fields = message, [*part.fields(message, schema)]

    def parts(self, name: str) -> list[Part]:
        """Values that are bytes, in order."""
        return [value for field, value in self._fields if field == name and isinstance(value, Part)]

    def part(self, name: str) -> Part:
        """The only one."""
        (found,) = self.parts(name)
        return found

    def numbers(self, name: str) -> list[int]:
        """Of a number that may come more than once, packed or not."""
        values = [value for field, value in self._fields if field == name]
        listed = [v.numbers(self._message) if isinstance(v, Part) else [v] for v in values]
        return [signed(number) for numbers in listed for number in numbers]

    def number(self, name: str) -> int:
        """The only one; 0 where it is not there."""
        return (self.numbers(name) or [0])[0]


def _text(part: Part) -> str:
    return part.raw().decode()


def _read(data: bytes) -> Graph:
    model = _Message(Part(data, 0, len(data)), "model", MODEL)
    return _graph(model.part("graph"))


def _graph(part: Part) -> Graph:
    graph = _Message(part, "graph", GRAPH)
    weights = dict(_tensor(each) for each in graph.parts("initializer"))
    nodes = [_node(each) for each in graph.parts("node")]
    inputs = dict(_input(each) for each in graph.parts("input"))
    outputs = [_text(_Message(each, "output", VALUE_INFO).part("name")) for each in graph.parts("output")]
    return Graph(nodes, weights, inputs, outputs)


def _tensor(part: Part) -> tuple[str, Array]:
    tensor = _Message(part, "tensor", TENSOR)
    name = "".join(_text(name) for name in tensor.parts("name"))
    values: Array = np.frombuffer(tensor.part("raw_data").raw(), KINDS[tensor.number("data_type")])
    return name, values.reshape(tensor.numbers("dims"))


def _node(part: Part) -> Node:
    node = _Message(part, "node", NODE)
    inputs, outputs = (tuple(map(_text, node.parts(name))) for name in ("input", "output"))
    attributes = dict(_attribute(each) for each in node.parts("attribute"))
    return Node(_text(node.part("op_type")), inputs, outputs, attributes)


def _attribute(part: Part) -> tuple[str, Any]:
    attribute = _Message(part, "attribute", ATTRIBUTE)
    name, kind = _text(attribute.part("name")), attribute.number("type")
    if kind == INT_VALUE:
        return name, attribute.number("i")
    if kind == INTS_VALUE:
        return name, attribute.numbers("ints")
    if kind == FLOAT_VALUE:
        raw = [each.raw() for each in attribute.parts("f")] or [b"\0" * 4]
        return name, struct.unpack("<f", raw[0])[0]
    if kind == TENSOR_VALUE:
        return name, _tensor(attribute.part("t"))[1]
    if kind == GRAPH_VALUE:
        return name, _graph(attribute.part("g"))
    raise ValueError(f"attribute {name} of type {kind}")


def _input(part: Part) -> tuple[str, int]:
    """Name and last dimension of an input; 0 where that is not fixed."""
    value = _Message(part, "input", VALUE_INFO)
    kind = _Message(value.part("type"), "type", TYPE)
    tensor = _Message(kind.part("tensor_type"), "tensor_type", TENSOR_TYPE)
    shape = _Message(tensor.part("shape"), "shape", SHAPE)
    return _text(value.part("name")), _Message(shape.parts("dim")[-1], "dim", DIM).number("dim_value")
