"""A sound manifest over a model that must not be loaded: crafted with onnx, refused when opened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from functions.core.bundle import MANIFEST, describe, parse_manifest, state_space, write_manifest
from functions.core.errors import CorruptBundle
from functions.core.models import OPSET, USER_TOWER, check_model
from functions.core.served import open_bundle

STORED = Path(__file__).parents[1] / "data" / "tiny_bundle"
ID = json.loads((STORED / "pointer.json").read_text())["champion"]
Craft = Callable[[onnx.ModelProto], None]


def outside(name: str, location: str) -> TensorProto:
    """Weights that lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(outside(model.graph.initializer[0].name, "../../etc/passwd"))


def constant(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["secret"], value=outside("secret", "/etc/passwd"))
    model.graph.node.append(node)


def branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["o"])],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])],
        initializer=[outside("w", "codes")],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=inner, else_branch=inner))


def memory(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(outside("codes", "*/_ORT_MEM_ADDR_/*"))


def domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.domain", 1))


def operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", [], ["out"], domain="evil.domain"))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "f", [], [], [], [helper.make_opsetid("", OPSET)]))


def older(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "step"


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(1)


CRAFTED: list[tuple[Craft, str]] = [
    (weights, r"external data \(location=\.\./\.\./etc/passwd\)"),
    (constant, r"'secret' is external data \(location=/etc/passwd\)"),
    (branch, r"'w' is external data"),
    (memory, r"'codes' is external data \(location=\*/_ORT_MEM_ADDR_/\*\)"),
    (domain, r"opset 'evil\.domain' 1; expected ai\.onnx 21"),
    (operator, r"operator 'Run' of domain 'evil\.domain'"),
    (function, "field 25"),
    (older, r"opset 'ai\.onnx' 20; expected ai\.onnx 21"),
    (training, "field 20"),
    (sparse, "field 15"),
]


def sealed(folder: Path) -> Path:
    """The folder under a manifest that is true of its files, as a producer would have made it."""
    towers = [(folder / name).read_bytes() for name in ("user_tower.onnx", "item_tower.onnx")]
    old = parse_manifest((folder / MANIFEST).read_bytes(), MANIFEST)
    write_manifest(folder, replace(old, files=describe(folder), state_space=state_space(*towers)))
    return folder


@pytest.mark.parametrize("name", ["user_tower.onnx", "item_tower.onnx", "score.onnx"])
@pytest.mark.parametrize(("craft", "message"), CRAFTED, ids=[craft.__name__ for craft, _ in CRAFTED])
def test_a_bundle_with_a_crafted_model_is_refused_and_says_why(
    tmp_path: Path, name: str, craft: Craft, message: str
) -> None:
    folder = Path(shutil.copytree(STORED / ID, tmp_path / ID))
    model = onnx.load(folder / name, load_external_data=False)
    craft(model)
    (folder / name).write_bytes(model.SerializeToString())
    told = r"\.onnx: opset " if (craft, name) == (older, "score.onnx") else message
    with pytest.raises(CorruptBundle, match=told) as caught:
        open_bundle(sealed(folder))
    assert name in str(caught.value)


def test_a_handed_over_array_is_named_by_its_own_name_alone(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(STORED / ID, tmp_path / ID))
    model = onnx.load(folder / "score.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../codes.u8"
    (folder / "score.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CorruptBundle, match=r"'codes' is external data \(location=\.\./codes\.u8\)"):
        open_bundle(sealed(folder))


def test_a_model_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "user_tower.onnx"
    with path.open("wb") as out:
        out.truncate(USER_TOWER.most_bytes + 1)  # sparse: takes no room
    with pytest.raises(CorruptBundle, match=f"{USER_TOWER.most_bytes + 1} bytes"):
        check_model(path, USER_TOWER)
