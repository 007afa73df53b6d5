"""What the demo makes of its stages: reused when nothing changed, refused when the model is no better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import VitrineError
from local.demo import (
    DATA_STAGE,
    EXPORT_STAGE,
    TRAIN_STAGE,
    NotBetter,
    bundle_report,
    comparison,
    model_report,
    require_better,
)
from local.stages import Stage, StageFailed, run_stage

SCORES = {"recall@10": 0.2, "ndcg@10": 0.3, "recall@20": 0.4}


def metrics(**baselines: float) -> dict[str, Any]:
    rows = {"popularity": 0.1, "item_knn": 0.2, "svd": 0.15, **baselines}
    return {
        "test": SCORES,
        "baselines": {name: {"recall@10": 0.1, "ndcg@10": value} for name, value in rows.items()},
        "data": {"users": 3, "items": 4, "events": 5},
        "dropped": {"duplicate": 6},
        "seconds": 1.5,
    }


def write(path: str, text: str) -> int:
    """A stage's work: counts its runs in the file beside."""
    if text == "fail":
        return 3
    if text == "raise":
        raise VitrineError("no flour")
    if text != "nothing":
        Path(path).write_text(text)
    runs = Path(path).with_suffix(".runs")
    runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
    return 0


def stage(folder: Path, text: str = "bread", after: tuple[Stage, ...] = ()) -> Stage:
    out = folder / "out.txt"
    return Stage("bake", "Bake", 1, write, [str(out), text], ["local/stages.py"], [out], after)


def runs(folder: Path) -> int:
    return int((folder / "out.runs").read_text())


def test_a_stage_runs_once_and_again_when_an_input_or_its_output_changed(tmp_path: Path) -> None:
    assert run_stage(stage(tmp_path), tmp_path / "stamps")
    assert not run_stage(stage(tmp_path), tmp_path / "stamps")
    assert runs(tmp_path) == 1
    assert run_stage(stage(tmp_path, "cake"), tmp_path / "stamps")
    (tmp_path / "out.txt").unlink()
    assert run_stage(stage(tmp_path, "cake"), tmp_path / "stamps")
    assert runs(tmp_path) == 3


def test_a_stages_key_follows_its_sources_and_the_stages_before(tmp_path: Path) -> None:
    plain = stage(tmp_path)
    keys = {
        plain.key(),
        replace(plain, sources=["local/visit.py"]).key(),
        replace(plain, sources=["local"]).key(),
        replace(plain, after=[plain]).key(),
        replace(plain, after=[stage(tmp_path, "cake")]).key(),
    }
    assert len(keys) == 5 and plain.key() == stage(tmp_path).key()
    assert TRAIN_STAGE.after == [DATA_STAGE] and EXPORT_STAGE.after == [TRAIN_STAGE]


@pytest.mark.parametrize("text, named", [("fail", "status 3"), ("raise", "status 1"), ("nothing", "out.txt")])
def test_a_stage_that_fails_is_named_and_runs_again(tmp_path: Path, text: str, named: str) -> None:
    for _ in range(2):
        with pytest.raises(StageFailed, match=named):
            run_stage(stage(tmp_path, text), tmp_path / "stamps")
    assert not (tmp_path / "stamps" / "bake.stamp").exists()


def test_a_stage_shows_its_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageFailed):
        run_stage(stage(tmp_path, "raise"), tmp_path)
    assert "error: no flour" in capfd.readouterr().err


def test_a_model_that_beats_every_baseline_passes() -> None:
    require_better(metrics(svd=0.2999))


@pytest.mark.parametrize("name", ["popularity", "item_knn", "svd"])
@pytest.mark.parametrize("value", [0.3, 0.31, float("nan")])
def test_a_model_that_does_not_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(NotBetter, match=f"{name}.*not better"):
        require_better(metrics(**{name: value}))


def test_the_comparison_puts_the_best_last() -> None:
    lines = comparison(metrics(svd=0.35)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["popularity", "item_knn", "both", "svd"]


def test_the_report_is_made_of_metrics_and_manifest(tmp_path: Path) -> None:
    assert model_report(metrics()) == {
        "data": {"users": 3, "items": 4, "events": 5, "dropped": {"duplicate": 6}},
        "model": {
            "recall@10": 0.2,
            "ndcg@10": 0.3,
            "baselines": {
                "popularity": {"recall@10": 0.1, "ndcg@10": 0.1},
                "item_knn": {"recall@10": 0.1, "ndcg@10": 0.2},
                "svd": {"recall@10": 0.1, "ndcg@10": 0.15},
            },
        },
    }
    (tmp_path / "b1").mkdir()
    manifest = {
        "state_space": "ab",
        "files": {"x": {"bytes": 3}, "y": {"bytes": 4}},
        "quantization": {"int8_ndcg_ratio": 0.999},
    }
    (tmp_path / "b1" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "pointer.json").write_text('{"champion": "b1"}')
    assert bundle_report(tmp_path) == {
        "id": "b1",
        "state_space": "ab",
        "bytes": 7,
        "int8_ndcg_ratio": 0.999,
    }
