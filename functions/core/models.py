"""What an ONNX file may hold before the runtime is let near it: a walk over its protobuf, without onnx.

A manifest proves that a file is what its producer wrote, not that the producer meant well. An ONNX file can
name other files to be read in place of weights, operators of any domain, and functions of its own; the
runtime follows all of that. So every field is one that we know (numbers as in onnx.proto, IR version 10), and
what is not expected is refused by name.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from functions.core.errors import CorruptBundle

OPSET = 21
DEFAULT_DOMAINS = ("", "ai.onnx")  # two names of one
MOST_NESTED = 4  # graphs within graphs; ours have none
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

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
# numbers of a repeated field may be packed into one, or come one by one
UNPACKED = {"dims": VARINT, "ints": VARINT, "int32_data": VARINT, "int64_data": VARINT, "uint64_data": VARINT}
UNPACKED |= {"floats": FIXED32, "float_data": FIXED32, "double_data": FIXED64}
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}

Schema = Mapping[int, tuple[str, int]]


@dataclass(frozen=True)
class Allowed:
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
        _model(_Part(data, 0, len(data)), allowed)
    except _Refused as refused:
        raise CorruptBundle(f"{path}: {refused}") from refused


class _Refused(Exception):
    """What is not allowed, for the message."""


@dataclass(frozen=True)
class _Part:
    """Bytes start..end of a mapped file, whose weights are not looked at."""

    data: mmap.mmap
    start: int
    end: int

    def text(self) -> str:
        return self.data[self.start : min(self.end, self.start + 1000)].decode("utf-8", "backslashreplace")

    def fields(self, message: str, schema: Schema) -> Iterator[tuple[str, int | _Part]]:
        """Name and value of each field, in order; raises _Refused for an unknown or malformed one."""
        at = self.start
        while at < self.end:
            tag, at = self._varint(at, message)
            number, wire = tag >> 3, tag & 7
            name, expected = schema.get(number, ("", -1))
            if wire != expected and UNPACKED.get(name, -1) != wire:
                raise _Refused(f"field {number} of wire type {wire} in a {message}; expected none such")
            value: int | _Part
            if wire == VARINT:
                value, at = self._varint(at, message)
            else:
                length, at = (FIXED_BYTES[wire], at) if wire != BYTES else self._varint(at, message)
                if length > self.end - at:
                    raise _Refused(f"a {message}'s {name} of {length} bytes; {self.end - at} are left")
                value, at = _Part(self.data, at, at + length), at + length
            yield name, value

    def _varint(self, at: int, message: str) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise _Refused(f"a {message} that is cut off")


def _model(part: _Part, allowed: Allowed) -> None:
    opsets: dict[str, int] = {}
    graphs = []
    for name, value in part.fields("model", MODEL):
        if name == "opset_import":
            assert isinstance(value, _Part)
            domain, version = _opset(value)
            if allowed.opsets.get(domain) != version or domain in opsets:
                raise _Refused(f"opset {domain or 'ai.onnx'!r} {version}; expected {_names(allowed.opsets)}")
            opsets[domain] = version
        elif name == "graph":
            graphs.append(value)
    if "" not in opsets or len(graphs) != 1:
        raise _Refused(
            f"{len(graphs)} graphs, opsets {_names(opsets)}; expected one graph of ai.onnx {OPSET}"
        )
    assert isinstance(graphs[0], _Part)
    _graph(graphs[0], allowed, depth=0)


def _opset(part: _Part) -> tuple[str, int]:
    found = dict(part.fields("opset_import", OPSET_ID))
    domain, version = found.get("domain", ""), found.get("version", 0)
    name = domain.text() if isinstance(domain, _Part) else ""
    return "" if name in DEFAULT_DOMAINS else name, version if isinstance(version, int) else 0


def _names(opsets: Mapping[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items()) or "none"


def _graph(part: _Part, allowed: Allowed, depth: int) -> None:
    if depth > MOST_NESTED:
        raise _Refused(f"graphs nested {depth} deep; expected {MOST_NESTED} at most")
    handed_over = allowed.handed_over if depth == 0 else frozenset()
    for name, value in part.fields("graph", GRAPH):
        assert isinstance(value, _Part)
        if name == "node":
            _node(value, allowed, depth)
        elif name == "initializer":
            _tensor(value, handed_over)


def _node(part: _Part, allowed: Allowed, depth: int) -> None:
    operator, domains = "", []
    for name, value in part.fields("node", NODE):
        assert isinstance(value, _Part)
        if name == "attribute":
            _attribute(value, allowed, depth)
        elif name == "op_type":
            operator = value.text()
        elif name == "domain":
            domains.append(value.text())
    for domain in domains:
        if domain not in DEFAULT_DOMAINS and domain not in allowed.opsets:
            raise _Refused(f"operator {operator!r} of domain {domain!r}; expected {_names(allowed.opsets)}")


def _attribute(part: _Part, allowed: Allowed, depth: int) -> None:
    for name, value in part.fields("attribute", ATTRIBUTE):
        if not isinstance(value, _Part):
            continue
        if name in ("t", "tensors"):
            _tensor(value, frozenset())
        elif name in ("g", "graphs"):
            _graph(value, allowed, depth + 1)


def _tensor(part: _Part, handed_over: frozenset[str]) -> None:
    name, located, entries = "", 0, []
    for field, value in part.fields("tensor", TENSOR):
        if field == "data_location":
            located = max(located, int(value)) if isinstance(value, int) else located
        elif field == "name" and isinstance(value, _Part):
            name = value.text()
        elif field == "external_data" and isinstance(value, _Part):
            entry = dict(value.fields("external_data", ENTRY))
            entries.append({key: v.text() for key, v in entry.items() if isinstance(v, _Part)})
    if not entries and located == 0:
        return
    if name not in handed_over or located != 1 or entries != [{"key": "location", "value": name}]:
        said = ", ".join(f"{e.get('key')}={e.get('value')}" for e in entries) or "no location"
        expected = f"only {sorted(handed_over)}, by name" if handed_over else "every weight inside"
        raise _Refused(f"{name!r} is external data ({said}); expected {expected}")
