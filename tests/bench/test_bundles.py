"""The measurements of opening and of swapping bundles, on small ones."""

import json
from pathlib import Path

from bench import open as opening
from bench import swap
from functions.core.bundle import SCHEMA


def test_opening_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    report = tmp_path / "open.json"
    arguments = [
        "--items",
        "300",
        "--dim",
        "16",
        "--runs",
        "1",
        "--folder",
        str(tmp_path),
        "--json",
        str(report),
    ]
    assert opening.main(arguments) == 0
    found = json.loads(report.read_text())
    assert 0 < found["verify_s"] <= found["open_s"] + 1 and found["resident_mb"] > found["imports_mb"] > 0
    assert found["bytes"]["embeddings.f16"] == 300 * 16 * 2
    manifest = tmp_path / f"open-{SCHEMA}-300-16" / "manifest.json"
    kept = manifest.stat().st_mtime_ns
    assert opening.main(arguments) == 0
    assert manifest.stat().st_mtime_ns == kept


def test_requests_are_timed_alone_and_during_swaps() -> None:
    report = swap.measure(200, 3)
    for part in ("requests_alone", "requests_during_a_swap"):
        assert report[part]["count"] > 0
        assert 0 < report[part]["p50_ms"] <= report[part]["p99_ms"] <= report[part]["worst_ms"]
    assert report["refresh_s"] > 0


def test_quantiles_are_in_milliseconds() -> None:
    assert swap.quantiles([0.001] * 99 + [1.0]) == {
        "count": 100,
        "p50_ms": 1.0,
        "p99_ms": 10.99,
        "worst_ms": 1000.0,
    }
