"""What is published keeps its recall on a CPU without AVX-512 and VNNI: a Haswell, emulated by qemu."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from functions.core.engine import KINDS
from functions.core.ranking import top_k_numpy

scorers = pytest.importorskip("export.scorers", reason="the exporter is not in this environment")
lists = pytest.importorskip("export.lists", reason="the exporter is not in this environment")
LARGEST = 1.5
QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
ASK = """
import json, sys
from pathlib import Path
import numpy as np
from functions.core.engine import open_search
from functions.core.scorer import Scorer
folder, kinds = Path(sys.argv[1]), json.loads(sys.argv[2])
table, vectors = np.load(folder / "table.npy"), np.load(folder / "vectors.npy")
said = {}
for name, kind in kinds.items():
    search = open_search(folder / name, kind, *table.shape)
    said[name] = [search(v.astype(np.float32), 10, None).tolist() for v in vectors]
print(json.dumps(said))
"""
needs_qemu = pytest.mark.skipif(QEMU is None or sys.platform != "linux", reason="no qemu-user here")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Recall of the first ten before any rescoring, by kind, on this CPU and on a Haswell."""
    folder = tmp_path_factory.mktemp("scorers")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 64))
    drawn = [centres[rng.integers(0, 60, n)] + 0.4 * rng.normal(size=(n, 64)) for n in (6_000, 60)]
    # numbers of one sign, many as large as any: what saturates where pairs of products are added in 16 bits
    table, vectors = (np.minimum(np.abs(part), LARGEST).astype(np.float16) for part in drawn)
    np.save(folder / "table.npy", table)
    np.save(folder / "vectors.npy", vectors)
    kinds: dict[str, dict[str, object]] = {kind: {"kind": kind} for kind in KINDS}
    made = lists.build_lists(table)
    kinds["index"] |= {"lists": len(made.centroids), "probes": len(made.centroids)}
    for name, kind in kinds.items():
        (folder / name).mkdir()
        scorers.write_scorer(folder / name, table, kind, made if name == "index" else None)
    with pytest.MonkeyPatch.context() as planted:  # the planted bug: all eight bits
        planted.setattr("export.score.SEVEN_BITS", 127)
        (folder / "saturating").mkdir()
        scorers.write_scorer(folder / "saturating", table, {"kind": "integer"})
        kinds["saturating"] = {"kind": "integer"}
    exact = [set(top_k_numpy(v, table, 10)[0].tolist()) for v in vectors]
    run = [sys.executable, "-c", ASK, str(folder), json.dumps(kinds)]
    return {"here": recalls(run, exact), "haswell": recalls([str(QEMU), "-cpu", "Haswell", *run], exact)}


def recalls(run: list[str], exact: list[set[int]]) -> dict[str, float]:
    """Of the exact ten, the share that each kind finds."""
    root = Path(__file__).parents[2]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    said = json.loads(done.stdout)
    return {
        kind: float(np.mean([len(want & set(rows)) / 10 for want, rows in zip(exact, found, strict=True)]))
        for kind, found in said.items()
    }


@needs_qemu
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_finds_as_much_on_a_haswell(kind: str, found: dict[str, dict[str, float]]) -> None:
    assert found["haswell"][kind] >= found["here"][kind] - 0.005


@needs_qemu
def test_codes_of_eight_bits_would_saturate_there(found: dict[str, dict[str, float]]) -> None:
    assert found["haswell"]["saturating"] < found["haswell"]["integer"] - 0.05
