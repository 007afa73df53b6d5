"""The walk over a model's protobuf, on the models of the tiny bundle; crafted ones are in tests/export."""

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest

from functions.core.errors import CorruptBundle
from functions.core.models import ITEM_TOWER, SCORE_GRAPH, USER_TOWER, Allowed, check_model

STORED = Path(__file__).parents[1] / "data" / "tiny_bundle"
BUNDLE = STORED / json.loads((STORED / "pointer.json").read_text())["champion"]
TINY = Allowed(2**20, {"": 21})


def file(folder: Path, *data: bytes) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(b"".join(data))
    return path


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field below 128 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


OPSETS = field(8, field(2, 21))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("user_tower.onnx", USER_TOWER), ("item_tower.onnx", ITEM_TOWER), ("score.onnx", SCORE_GRAPH)],
)
def test_the_exporters_own_models_are_allowed(name: str, allowed: Allowed) -> None:
    check_model(BUNDLE / name, allowed)


def test_the_score_graph_is_refused_where_nothing_is_handed_over() -> None:
    with pytest.raises(CorruptBundle, match=r"score\.onnx: opset 'com\.microsoft' 1; expected ai\.onnx 21"):
        check_model(BUNDLE / "score.onnx", TINY)
    with pytest.raises(CorruptBundle, match=r"'codes' is external data \(location=codes\)"):
        check_model(BUNDLE / "score.onnx", Allowed(2**20, SCORE_GRAPH.opsets))


def test_a_byte_more_than_allowed_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, OPSETS, field(7, b""))
    size = path.stat().st_size
    check_model(path, Allowed(size, {"": 21}))
    with pytest.raises(CorruptBundle, match=rf"{size} bytes; expected 1\.\.{size - 1}"):
        check_model(path, Allowed(size - 1, {"": 21}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"not a graph", "field 13 of wire type 6 in a model"),
        (OPSETS, "0 graphs"),
        (OPSETS + field(7, b"") * 2, "2 graphs"),
        (field(7, b""), "opsets none; expected one graph of ai.onnx 21"),
        (field(8, field(2, 20)) + field(7, b""), "opset 'ai.onnx' 20; expected ai.onnx 21"),
        (OPSETS + OPSETS + field(7, b""), "opset 'ai.onnx' 21"),
        (OPSETS + field(7, b"\xff")[:-1], "graph of 1 bytes; 0 are left"),
        (OPSETS + field(7, b"\xff"), "a graph that is cut off"),
        (OPSETS + field(7, b"") + bytes([25 << 3 & 127 | 130, 1, 0]), "field 25"),  # functions
        (OPSETS + field(7, field(15, b"")), "field 15 of wire type 2 in a graph"),  # sparse
        (OPSETS + field(7, field(5, field(14, 2))), "'' is external data"),
        (OPSETS + field(7, field(5, field(13, b""))), "'' is external data"),
    ],
)
def test_what_is_not_a_model_of_ours_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CorruptBundle, match=message):
        check_model(file(tmp_path, data), TINY)


def test_graphs_in_graphs_end_somewhere(tmp_path: Path) -> None:
    def nested(depth: int) -> bytes:
        return field(1, field(5, field(6, nested(depth - 1)))) if depth else b""

    check_model(file(tmp_path, OPSETS, field(7, nested(4))), TINY)
    with pytest.raises(CorruptBundle, match="nested 5 deep"):
        check_model(file(tmp_path, OPSETS, field(7, nested(5))), TINY)


def test_no_bytes_make_the_walk_fail_otherwise(tmp_path: Path) -> None:
    whole = (BUNDLE / "score.onnx").read_bytes()
    rng = random.Random(3)
    allowed = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(CorruptBundle):
            check_model(file(tmp_path, bytes(data[: rng.randint(1, len(data))])), SCORE_GRAPH)
            allowed += 1
    assert allowed < 300  # nearly all were cut short, and refused by name


def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptBundle, match=r"m\.onnx: No such file"):
        check_model(tmp_path / "m.onnx", TINY)
