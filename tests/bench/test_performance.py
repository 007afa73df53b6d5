"""The page on performance says what was measured, what missed its target, and what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

from bench.__main__ import main
from bench.cost import cost
from tests.bench.test_cost import HANDLER


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
        "cost": cost(HANDLER),
    }
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report, default=str))
    assert main(["performance", "--reports", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "performance.md").read_text()
    assert "| 100,000 x 64 | recall | 0.999 | 0.9 | **no** |" in page
    assert "| banners | 1.40 | 50.00 | 1, 9 | **no** |" in page
    assert page.count("Not measured in this run.") == 2  # cold start, emulator
    for picture in ("scoring.svg", "cost.svg"):
        assert f"({picture})" in page and (tmp_path / "page" / picture).read_text().startswith("<?xml")
