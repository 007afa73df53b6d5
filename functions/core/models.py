"""What an ONNX file may hold before the runtime is let near it: a walk over its protobuf, without onnx.

A manifest proves that a file is what its producer wrote, not that the producer meant well. An ONNX file can
name other files to be read in place of weights, operators of any domain, and functions of its own; the
runtime follows all of that. So every field is one that we know (numbers as in onnx.proto, IR version 10), and
what is not expected is refused by name.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from functions.core.errors import CorruptBundle
from functions.core.protobuf import BYTES, FIXED32, VARINT, Part, Refused

OPSET = 21
DEFAULT_DOMAINS = ("", "ai.onnx")  # two names of one
MOST_NESTED = 4  # graphs within graphs; ours have one, the branches of an If

# field number → name and wire type, of what our exporter writes
MODEL = {
    1: ("ir_version", VARINT),
    2: ("producer_name", BYTES),
    3: ("producer_version", BYTES),
    4: ("domain", BYTES),
    5: ("model_version", VARINT),
    6: ("doc_string", BYTES),
    7: ("graph", BYTES),
    8: ("opset_import", BYTES),
    14: ("metadata_props", BYTES),
}
OPSET_ID = {1: ("domain", BYTES), 2: ("version", VARINT)}
GRAPH = {
    1: ("node", BYTES),
    2: ("name", BYTES),
    5: ("initializer", BYTES),
    10: ("doc_string", BYTES),
    11: ("input", BYTES),
    12: ("output", BYTES),
    13: ("value_info", BYTES),
    16: ("metadata_props", BYTES),
}
NODE = {
    1: ("input", BYTES),
    2: ("output", BYTES),
    3: ("name", BYTES),
    4: ("op_type", BYTES),
    5: ("attribute", BYTES),
    6: ("doc_string", BYTES),
    7: ("domain", BYTES),
    8: ("overload", BYTES),
    9: ("metadata_props", BYTES),
}
ATTRIBUTE = {
    1: ("name", BYTES),
    2: ("f", FIXED32),
    3: ("i", VARINT),
    4: ("s", BYTES),
    5: ("t", BYTES),
    6: ("g", BYTES),
    7: ("floats", BYTES),
    8: ("ints", BYTES),
    9: ("strings", BYTES),
    10: ("tensors", BYTES),
    11: ("graphs", BYTES),
    13: ("doc_string", BYTES),
    20: ("type", VARINT),
}
TENSOR = {
    1: ("dims", BYTES),
    2: ("data_type", VARINT),
    4: ("float_data", BYTES),
    5: ("int32_data", BYTES),
    6: ("string_data", BYTES),
    7: ("int64_data", BYTES),
    8: ("name", BYTES),
    9: ("raw_data", BYTES),
    10: ("double_data", BYTES),
    11: ("uint64_data", BYTES),
    12: ("doc_string", BYTES),
    13: ("external_data", BYTES),
    14: ("data_location", VARINT),
    16: ("metadata_props", BYTES),
}
ENTRY = {1: ("key", BYTES), 2: ("value", BYTES)}


class Allowed(NamedTuple):
    """What one file may be: bytes at most, operator sets by domain, initializers that are handed over."""

    most_bytes: int
    opsets: Mapping[str, int]
    handed_over: frozenset[str] = frozenset()


USER_TOWER = Allowed(64 * 2**20, {"": OPSET})
ITEM_TOWER = Allowed(2**31 - 1, {"": OPSET})  # grows with the items; what protobuf can hold
SCORE_GRAPH = Allowed(2**20, {"": OPSET, "com.microsoft": 1}, frozenset({"codes", "scales"}))


def check_model(path: Path, allowed: Allowed) -> None:
    """Raises CorruptBundle naming the file and what in it is not allowed."""
    try:
        size = path.stat().st_size
        if not 0 < size <= allowed.most_bytes:
            raise CorruptBundle(f"{path}: {size} bytes; expected 1..{allowed.most_bytes}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _check(mapped, path, allowed)
    except OSError as error:
        raise CorruptBundle(f"{path}: {error.strerror}; expected a model") from error


def _check(data: mmap.mmap, path: Path, allowed: Allowed) -> None:
    try:
        _model(Part(data, 0, len(data)), allowed)
    except Refused as refused:
        raise CorruptBundle(f"{path}: {refused}") from refused


def _model(part: Part, allowed: Allowed) -> None:
    opsets: dict[str, int] = {}
    graphs = []
    for name, value in part.fields("model", MODEL):
        if name == "opset_import":
            assert isinstance(value, Part)
            domain, version = _opset(value)
            if allowed.opsets.get(domain) != version or domain in opsets:
                raise Refused(f"opset {domain or 'ai.onnx'!r} {version}; expected {_names(allowed.opsets)}")
            opsets[domain] = version
        elif name == "graph":
            graphs.append(value)
    if "" not in opsets or len(graphs) != 1:
        raise Refused(f"{len(graphs)} graphs, opsets {_names(opsets)}; expected one graph of ai.onnx {OPSET}")
    assert isinstance(graphs[0], Part)
    _graph(graphs[0], allowed, depth=0)


def _opset(part: Part) -> tuple[str, int]:
    found = dict(part.fields("opset_import", OPSET_ID))
    domain, version = found.get("domain", ""), found.get("version", 0)
    name = domain.text() if isinstance(domain, Part) else ""
    return "" if name in DEFAULT_DOMAINS else name, version if isinstance(version, int) else 0


def _names(opsets: Mapping[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items()) or "none"


def _graph(part: Part, allowed: Allowed, depth: int) -> None:
    if depth > MOST_NESTED:
        raise Refused(f"graphs nested {depth} deep; expected {MOST_NESTED} at most")
    handed_over = allowed.handed_over if depth == 0 else frozenset()
    for name, value in part.fields("graph", GRAPH):
        assert isinstance(value, Part)
        if name == "node":
            _node(value, allowed, depth)
        elif name == "initializer":
            _tensor(value, handed_over)


def _node(part: Part, allowed: Allowed, depth: int) -> None:
    operator, domains = "", []
    for name, value in part.fields("node", NODE):
        assert isinstance(value, Part)
        if name == "attribute":
            _attribute(value, allowed, depth)
        elif name == "op_type":
            operator = value.text()
        elif name == "domain":
            domains.append(value.text())
    for domain in domains:
        if domain not in DEFAULT_DOMAINS and domain not in allowed.opsets:
            raise Refused(f"operator {operator!r} of domain {domain!r}; expected {_names(allowed.opsets)}")


def _attribute(part: Part, allowed: Allowed, depth: int) -> None:
    for name, value in part.fields("attribute", ATTRIBUTE):
        if not isinstance(value, Part):
            continue
        if name in ("t", "tensors"):
            _tensor(value, frozenset())
        elif name in ("g", "graphs"):
            _graph(value, allowed, depth + 1)


def _tensor(part: Part, handed_over: frozenset[str]) -> None:
    name, located, entries = "", 0, []
    for field, value in part.fields("tensor", TENSOR):
        if field == "data_location":
            located = max(located, int(value)) if isinstance(value, int) else located
        elif field == "name" and isinstance(value, Part):
            name = value.text()
        elif field == "external_data" and isinstance(value, Part):
            entry = dict(value.fields("external_data", ENTRY))
            entries.append({key: v.text() for key, v in entry.items() if isinstance(v, Part)})
    if not entries and located == 0:
        return
    if name not in handed_over or located != 1 or entries != [{"key": "location", "value": name}]:
        said = ", ".join(f"{e.get('key')}={e.get('value')}" for e in entries) or "no location"
        expected = f"only {sorted(handed_over)}, by name" if handed_over else "every weight inside"
        raise Refused(f"{name!r} is external data ({said}); expected {expected}")
