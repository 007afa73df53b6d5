"""The page on performance says what was measured, what missed its target, and what was not measured."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.cost import cost
from bench.init import EMPTY, OURS
from bench.step import _timing, sizes
from bench.training import OURS as OUR_TOWERS
from bench.training import Speed
from tests.bench.test_cost import HANDLER
from train.towers import Shape

SHAPE = Shape(items=9, categories=0, brands=0, width=48)
ON = {"device": "a core", "threads": 1, "load": 0.1, "gigaflops_per_second": 100.0}
STEP = {
    **ON,
    "nodes": 54,
    "flops_per_event": 131072,
    "timings": [asdict(_timing("ONNX Runtime, step", 1000, [1.75e-3] * 3, 1.0))],
    "sizes": [asdict(size) | {"met": size.met} for size in sizes(SHAPE)],
}
TRAINING = {
    **ON,
    "events_per_step": 9600,
    "speeds": [asdict(Speed(OUR_TOWERS, "alone", False, "bf16", 9.0, 5e4, 9, 0.5))],
    "towers_to_sasrec": {"whole step": 1.27},
    "scan_to_loop": 9.8,
}


def test_the_page_has_every_section_and_says_what_missed(tmp_path: Path) -> None:
    row = {"n": 100_000, "d": 64, "k": 10, "batch": 1, "threads": 1, "p50_us": 9.0, "p99_us": 9.5}
    reports = {
        "scoring": {
            "device": "a machine",
            "versions": {"numpy": "2"},
            "read_gigabytes_per_second": 30.0,
            "chosen": [
                {"table": "made", "n": 100_000, "d": 64, "kind": "nbits", "microseconds": {"nbits": 9.0}}
            ],
            "rows": [row | {"method": "vitrine", "recall": 0.9, "bytes": 7_000_000}],
            "targets": [
                {"n": 100_000, "d": 64, "what": "recall", "value": 0.9, "bound": 0.999, "met": False}
            ],
        },
        "handler": {"items": 9, "targets_ms": {"banners": {"p50": 1.0, "p99": 9.0}}}
        | {"milliseconds": {name: took | {"p99": 50.0} for name, took in HANDLER["milliseconds"].items()}},
        "swap": {"items": 9, "swaps": 2, "refresh_s": 0.5, "load": 1.0}
        | {
            f"requests_{when}": {"count": 7, "p50_ms": 1.5, "p99_ms": 2.5, "worst_ms": worst}
            for when, worst in (("alone", 6.0), ("during_a_swap", 24.0))
        },
        "open": {"items": 9, "dim": 64, "targets": {"open_s": 1.5}, "met": {"open_s": False}, "load": 1.0}
        | {"open_s": 1.75, "open_cpu_s": 0.6, "verify_s": 0.3, "first_answer_s": 0.01},
        "init": {"items": 9, "rounds": 3, "artifact_mb": 99.5, "target": 2.0}
        | {"dim": 64, "files_mb": {"embeddings.f16": 12.8}}
        | {"milliseconds": {EMPTY: {"cpu": 100.0, "wall": 110.0}, OURS: {"cpu": 230.0, "wall": 250.0}}},
        "emulator": {"score": {"init_ms": 546.0, "first_with_init_ms": 753.0, "warm_ms": 6.2, "load": 0.5}},
        "cost": cost(HANDLER),
        "step": STEP,
        "training": TRAINING,
    }
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report, default=str))
        os.utime(tmp_path / f"{name}.json", (86_400 * 20_000,) * 2)
    assert main(["performance", "--reports", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "performance.md").read_text()
    assert "| 100,000 x 64 | recall | 0.999 | 0.9 | **no** |" in page
    assert "| banners | 1.40 | 50.00 | 1, 9 | **no** |" in page
    assert "| during a swap | 7 | 1.5 | 2.5 | 24 |" in page
    assert "| open_s | 1.5 | 1.75 | **no** |" in page
    assert "2.30 times the empty handler (wall: 2.27); at most 2 was the aim: **not met**" in page
    assert "| score | 546 | 753 | 6.2 | 0.5 |" in page
    assert "| ONNX Runtime, step | 1,000 | 1,750.00 | 1,750.00 | 1.75 | 1.00 | 1.5 | **no** |" in page
    assert "| state, float16 | 192 | 1024 | yes |" in page
    assert "| towers | alone |  | bf16 | 9.0 | 50,000 | 50% |" in page
    assert "whole step: towers / SASRec 1.27; recurrence alone: chunked scan / sequential loop 9.80." in page
    assert page.count("Measured 2024-10-04.") == len(reports) and "Not measured" not in page
    (tmp_path / "emulator.json").unlink()
    assert main(["performance", "--reports", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "performance.md").read_text()
    assert page.count("Not measured in this run.") == 1
    for picture in ("scoring.svg", "cost.svg"):
        assert f"({picture})" in page and (tmp_path / "page" / picture).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("written", "said"),
    [('{"rows": [', "line 1 column 11"), ("[]", "a JSON list"), ('{"a": "\udcff"}', "decode byte")],
)
def test_a_report_that_is_none_is_named(
    written: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "step.json"
    broken.write_bytes(written.encode("utf-8", "surrogateescape"))
    for asked in (
        ["performance", "--reports", str(tmp_path), "--out", str(tmp_path / "page")],
        ["cost", "--handler", str(broken)],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(asked)
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and f"{broken}: " in told and said in told and "--json" in told
    assert not (tmp_path / "page").exists()


def test_a_report_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cost", "--handler", str(tmp_path / "none.json")])
    assert "none.json" in capsys.readouterr().err
