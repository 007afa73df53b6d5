"""The leave-one-out protocol's command: what it reports, and that a second run goes on from the first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import leave_one_out
from train.checkpoint import WEIGHTS


def test_what_is_trained_is_not_trained_again_and_ranks_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source, out = tmp_path / "sequences.txt", tmp_path / "out"
    source.write_text("".join(f"{u} {i}\n" for u in range(30) for i in rng.permutation(20)[:8]))
    arguments = ["--events", str(source), "--epochs", "2", "--out", str(out), "--seeds"]
    assert leave_one_out.main([*arguments, "0"]) == 0
    first = json.loads((out / "leave_one_out.json").read_text())
    trained_at = (out / "seed-0" / WEIGHTS).stat().st_mtime_ns

    assert leave_one_out.main([*arguments, "0", "1"]) == 0
    assert (out / "seed-0" / WEIGHTS).stat().st_mtime_ns == trained_at
    both = json.loads((out / "leave_one_out.json").read_text())
    assert [run["seed"] for run in both["runs"]] == [0, 1]
    again, other = both["runs"]
    assert again["best_epoch"] == first["runs"][0]["best_epoch"]
    assert first["runs"][0]["seconds"] > 0
    assert again["seconds"] is None  # it was not trained in this run
    assert again["float32"] == first["runs"][0]["float32"]
    assert len(other["validation"]) == 2
    served = "as served (float16 state, int8 items)"
    ways = {"float32", "float32, nothing masked", served, "rebuilt from the ring"}
    assert set(both["mean"]) == ways | {f"last {k} events" for k in (1, 3, 5, 10)}


def test_a_folder_of_other_settings_is_refused_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "sequences.txt", tmp_path / "out"
    source.write_text("".join(f"{u} {(u + i) % 9}\n" for u in range(9) for i in range(6)))
    arguments = ["--events", str(source), "--out", str(out), "--seeds", "0", "0", "--epochs"]
    assert leave_one_out.main([*arguments, "1"]) == 0
    assert len(json.loads((out / "leave_one_out.json").read_text())["runs"]) == 1
    assert leave_one_out.main([*arguments, "2"]) == 1
    said = capsys.readouterr().err
    assert "seed-0" in said and "give another --out" in said
