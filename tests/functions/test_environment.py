"""What is installed where the functions' tests run (`make test-functions`): what Lambda installs."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "functions" / "requirements.txt").read_text(), re.M)
own_environment = pytest.mark.skipif(
    Path(sys.prefix).name != ".venv-functions",
    reason="this environment holds the exporter too; `make test-functions` makes one like Lambda's",
)


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "functions" / "requirements.txt").read_text().splitlines()
    assert len(PINS) == sum(bool(line) and not line.startswith("#") for line in lines) >= 4


@own_environment
@pytest.mark.parametrize("module", ["torch", "pandas", "pyarrow", "onnx", "onnxscript", "duckdb", "sklearn"])
def test_what_trains_and_exports_is_not_there(module: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(module)


@own_environment
@pytest.mark.parametrize("name, pinned", PINS)
def test_what_is_pinned_is_installed(name: str, pinned: str) -> None:
    assert version(name) == pinned


@own_environment
def test_onnx_runtime_is_the_one_for_processors() -> None:
    """Another distribution has the same import name; the last installed wins without a word."""
    assert packages_distributions()["onnxruntime"] == ["onnxruntime"]
