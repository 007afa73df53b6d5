"""The benchmark of whole handlers runs the real ones, and its requests are answered personally."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from functions import archive, collect, score, update


def test_every_handler_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in (archive.archiver, score.scorer, collect.collector, update.updater):
        kept.cache_clear()
    threads, out = torch.get_num_threads(), tmp_path / "out.json"
    try:
        assert main(["handler", "--items", "300", "--calls", "10", "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
        for kept in (archive.archiver, score.scorer, collect.collector, update.updater):
            kept.cache_clear()
    report = json.loads(out.read_text())
    took = report["milliseconds"]
    batches = ["update, a batch of 100", "archive, a batch of 100"]
    assert list(took) == ["scoring, ten of N", "banners", "events, one", *batches]
    assert all(0 < one["p50"] <= one["p99"] for one in took.values())
    assert took["banners"]["p50"] > took["scoring, ten of N"]["p50"]
