"""The measurement of a cold start runs the built artifact, and what it counts is a personal answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench.init import CODE, EMPTY, OURS, as_table, boto3_folder, described, fetched, measure, stand_in
from tests.functions.test_artifact import artifact, python312

__all__ = ["artifact"]  # the fixture


def test_a_start_is_the_whole_handler(artifact: Path, tmp_path: Path) -> None:
    python = python312()
    if python is None:
        pytest.skip("no Python 3.12 on this machine: Lambda's wheels cannot be imported by another version")
    bundles = fetched(tmp_path / "bundles", 2_000)
    assert fetched(bundles, 0) is bundles  # it is kept
    champion = json.loads((bundles / "pointer.json").read_text())["champion"]
    there = {path.name for path in (bundles / champion).iterdir()}
    assert "report" not in there and "alike.bin" in there
    about = described(bundles)  # what is damaged below is thrown away
    with stand_in(bundles) as environment:
        path = [artifact, boto3_folder(tmp_path / "boto3", python)]
        spent = measure(python, path, environment, 1)
        (bundles / champion / "scales.f32").write_bytes(b"")  # planted: no bundle
        with pytest.raises(subprocess.CalledProcessError):
            measure(python, path, environment, 1)
    assert set(spent) == set(CODE) and spent[OURS][0][0] > spent[EMPTY][0][0] > 0
    medians = {name: dict(zip(("cpu", "wall"), times[0], strict=True)) for name, times in spent.items()}
    report = {
        "items": 2_000,
        **about,
        "rounds": 1,
        "load": 1.0,
        "artifact_mb": 1.0,
        "target": 0.01,
        "milliseconds": medians,
    }
    assert "**not met**" in as_table(report)
    assert f"d = {report['dim']}; " in as_table(report) and "embeddings.f16 " in as_table(report)
    assert "**not met**" not in as_table(report | {"target": 1000.0})
