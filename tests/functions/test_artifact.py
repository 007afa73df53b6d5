"""The zip that Lambda gets, built by the rule that `sam build` runs, and opened as Lambda would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "data" / "tiny_bundle"
BUDGET_MB = 150  # Lambda itself refuses 250
TRIMMED = {"protobuf", "flatbuffers"}  # what onnxruntime's model-making tools need, and inference does not
PROBE = """
import importlib, json, sys
artifact, bundle = sys.argv[1], sys.argv[2]
sys.path.insert(0, artifact)
handlers = [callable(importlib.import_module(f"functions.{name}").handler) for name in sys.argv[3].split(",")]
import functions, numpy, onnxruntime
from pathlib import Path
from functions.core.served import open_bundle
served = open_bundle(Path(bundle), Path(bundle).name)
row = served.encoder.empty()
threads = len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 1
loaded = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]
print(json.dumps({
    "handlers": handlers,
    "from": [module.__file__ for module in (functions, numpy, onnxruntime)],
    "elsewhere": [path for path in loaded if "site-packages" in path and not path.startswith(artifact)],
    "bundle": served.id,
    "popular": len(served.popular()[0]),
    "candidates": len(served.candidates(row)[0]),
    "drawn_in": sorted({"asyncio", "boto3", "botocore", "cryptography", "email"} & set(sys.modules)),
    "threads": threads,
    "bytecode": functions.__spec__.cached,
}))
"""


def python312() -> str | None:
    """A Python 3.12 that runs, if this machine has one; a shim of pyenv's may be there and not run."""
    installed = sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python3.12"))
    for found in [sys.executable, *map(str, installed), shutil.which("python3.12")]:
        if found and _is_312(found):
            return found
    return None


def _is_312(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
    return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked zip."""
    folder = tmp_path_factory.mktemp("artifact")
    build = ["make", "-s", "-C", str(ROOT / "functions"), "build-ScoreFunction"]
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    given = [f"ARTIFACTS_DIR={folder}", f"PYTHON={sys.executable}"]
    result = subprocess.run([*build, *given], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def opened(artifact: Path) -> dict[str, Any]:
    """What an isolated Python 3.12 with only the artifact on its path says of it."""
    python = python312()
    if python is None:
        pytest.skip("no Python 3.12 on this machine: Lambda's wheels cannot be imported by another version")
    bundle = STORED / json.loads((STORED / "pointer.json").read_text())["champion"]
    arguments = [str(artifact), str(bundle), "score,update,collect,me,archive"]
    result = subprocess.run(
        [python, "-I", "-S", "-c", PROBE, *arguments], capture_output=True, text=True, check=False, cwd="/"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_it_is_small(artifact: Path) -> None:
    size_mb = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()) / 1e6
    print(f"artifact: {size_mb:.1f} MB unzipped, budget {BUDGET_MB}")
    assert 50 < size_mb < BUDGET_MB


def test_it_holds_the_requirements_and_nothing_else(artifact: Path) -> None:
    text = (ROOT / "functions" / "requirements.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, re.MULTILINE))
    found = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions(path=[str(artifact)])}
    assert found == {name: pin for name, pin in pinned.items() if name not in TRIMMED}
    assert not {"torch", "pandas", "pyarrow", "onnx", "tests", "train"} & {p.name for p in artifact.iterdir()}


def test_the_requirements_name_what_they_need_in_turn(artifact: Path) -> None:
    text = (ROOT / "functions" / "requirements.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, re.MULTILINE))
    checked = 0
    for distribution in distributions(path=[str(artifact)]):
        for requirement in map(Requirement, distribution.requires or []):
            on_lambda = {"extra": "", "python_version": "3.12", "python_full_version": "3.12.0"}
            if requirement.marker is None or requirement.marker.evaluate(on_lambda):
                name = canonicalize_name(requirement.name)
                assert requirement.specifier.contains(pinned[name]), f"{distribution.name}: {requirement}"
                checked += 1
    assert checked >= 8


def test_the_code_is_the_repositorys(artifact: Path) -> None:
    source, copy = ROOT / "functions", artifact / "functions"
    wanted = {path.relative_to(source): path.read_bytes() for path in source.rglob("*.py")}
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.py")} == wanted
    left = {path.suffix for path in copy.rglob("*") if path.is_file()}
    assert left <= {".py", ".pyc"}


def test_what_inference_does_not_need_is_cut_away(artifact: Path) -> None:
    for name in ("transformers", "tools", "quantization", "datasets"):
        assert not (artifact / "onnxruntime" / name).exists()
    assert not list(artifact.rglob("libonnxruntime.so*"))
    assert not [path for path in artifact.rglob("tests") if path.is_dir()]


def test_libraries_are_lambdas(artifact: Path) -> None:
    """Compiled for CPython 3.12 on x86_64, whatever this machine is."""
    modules = [path.name for path in artifact.rglob("*.so")]
    versions = {found for name in modules for found in re.findall(r"cpython-(\d+)-(\w+)-linux", name)}
    assert versions == {("312", "x86_64")}
    machines = {path.read_bytes()[18:20] for path in artifact.rglob("*.so*") if path.is_file()}
    assert machines == {b"\x3e\x00"}  # ELF's e_machine of x86_64; an abi3 module's name does not say it


def test_an_isolated_interpreter_opens_it(opened: dict[str, Any], artifact: Path) -> None:
    assert opened["handlers"] == [True] * 5
    assert all(path.startswith(str(artifact)) for path in opened["from"])
    assert opened["elsewhere"] == []
    assert opened["bundle"] == json.loads((STORED / "pointer.json").read_text())["champion"]
    assert opened["popular"] > 0 and opened["candidates"] > 0
    assert opened["drawn_in"] == ["cryptography"]  # the archive's
    assert opened["threads"] <= 2  # ONNX Runtime has one; OpenBLAS would start one for each core but one


def test_bytecode_holds_whatever_the_files_times_are(opened: dict[str, Any], artifact: Path) -> None:
    """A zip rounds times: bytecode that is compared with them is thrown away at every cold start."""
    compiled = list((artifact / "functions").rglob("*.pyc"))
    assert len(compiled) == len(list((artifact / "functions").rglob("*.py")))
    assert str(compiled[0]).endswith(".cpython-312.pyc")
    for path in [*compiled, Path(opened["bytecode"])]:
        flags = int.from_bytes(path.read_bytes()[4:8], "little")
        assert flags == 1, f"{path}: flags {flags}; expected 1, a hash that is not checked (PEP 552)"
