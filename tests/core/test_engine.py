"""Where ONNX Runtime cannot be imported, numpy serves the same bundle to the same end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from functions.core import numpy_tower
from functions.core.engine import cpu
from functions.core.errors import CorruptBundle
from functions.core.numpy_tower import NumpyStep
from functions.core.runtime import OnnxStep

DATA = Path(__file__).parents[1] / "data" / "tiny_bundle"
BUNDLE = DATA / json.loads((DATA / "pointer.json").read_text())["champion"]
SERVE = """
import json, sys
from pathlib import Path
if sys.argv[2] == "hidden":
    sys.modules["onnxruntime"] = None  # an import of it raises ImportError
from functions.core import engine
from functions.core.events import Event
from functions.core.fold import fold
from functions.core.served import open_bundle
bundle = open_bundle(Path(sys.argv[1]))
users = []
for user in range(20):
    seen = [bundle.catalogue.products([(7 * user + 3 * n) % 60])[0].item_id for n in range(6)]
    events = [Event(f"{user}-{n}", "view", item, 1_760_000_000 + 60 * n) for n, item in enumerate(seen)]
    (row,), _ = fold([bundle.encoder.empty()], [events], bundle.encoder)
    rows, scores = bundle.candidates(row)
    users.append([row.vector.tolist(), rows.tolist(), scores.tolist()])
print(json.dumps({"engine": engine.ENGINE, "loaded": "onnxruntime" in sys.modules, "users": users}))
"""


def serve(hidden: str) -> dict:
    run = [sys.executable, "-c", SERVE, str(BUNDLE), hidden]
    return json.loads(subprocess.run(run, capture_output=True, check=True, text=True).stdout)


def test_without_onnx_runtime_the_same_items_are_served() -> None:
    plain, hidden = serve("plain"), serve("hidden")
    assert (plain["engine"], hidden["engine"]) == ("onnxruntime", "numpy")
    for (vector, rows, scores), (other, others, their) in zip(plain["users"], hidden["users"], strict=True):
        np.testing.assert_allclose(vector, other, atol=2e-3)
        assert rows == others
        np.testing.assert_allclose(scores, their, atol=2e-2)


def inputs(step: NumpyStep, users: int) -> list[np.ndarray]:
    rng = np.random.default_rng(users)
    widths = (rng.normal(size=(users, n)).astype(np.float16) for n in (step.state_width, step.dim))
    return [*widths, *(rng.integers(0, top, users) for top in (7, 16, 16))]


def test_the_numpy_step_is_onnx_runtimes_within_a_rounding() -> None:
    step, reference = (kind(BUNDLE / "user_tower.onnx") for kind in (NumpyStep, OnnxStep))
    given = inputs(step, 500)
    for ours, theirs in zip(step(*given), reference(*given), strict=True):
        assert (ours != theirs).mean() < 0.01
        assert np.abs(ours.astype(np.float32) - theirs.astype(np.float32)).max() < 4e-3


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_numpy_step_is_the_same_in_any_batch(size: int) -> None:
    step = NumpyStep(BUNDLE / "user_tower.onnx")
    given = inputs(step, 70)
    whole = step(*given)
    for start in range(0, 70, size):
        part = step(*(column[start : start + size] for column in given))
        assert all(np.array_equal(a, b[start : start + size]) for a, b in zip(part, whole, strict=True))


def test_a_wrong_operator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    step, reference = (kind(BUNDLE / "user_tower.onnx") for kind in (NumpyStep, OnnxStep))
    given = inputs(step, 50)
    monkeypatch.setitem(numpy_tower.OPERATORS, "Sigmoid", np.tanh)
    assert np.abs(step(*given)[1].astype(float) - reference(*given)[1].astype(float)).max() > 4e-3


@pytest.mark.parametrize("cut", [0, 1, 100, 5_000])
def test_what_is_no_user_tower_is_refused(cut: int, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes((BUNDLE / "user_tower.onnx").read_bytes()[:cut])
    with pytest.raises(CorruptBundle, match=r"t\.onnx"):
        NumpyStep(tmp_path / "t.onnx")


def test_an_operator_that_numpy_does_not_serve_is_named(tmp_path: Path) -> None:
    data = (BUNDLE / "user_tower.onnx").read_bytes().replace(b"Sigmoid", b"Sigmoib")
    (tmp_path / "t.onnx").write_bytes(data)
    with pytest.raises(CorruptBundle, match="Sigmoib"):
        NumpyStep(tmp_path / "t.onnx")


def test_the_cpu_is_named_with_its_flags() -> None:
    assert set(cpu()) == {"cpu", "flags", "engine"}
