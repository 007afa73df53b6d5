"""The report on scoring: rows of the agreed form, recall by float64, verdicts that follow from the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from bench import scoring
from bench.__main__ import main
from bench.peers import numpy_search
from bench.scoring import exact_scores, recall_of, targets

KEYS = ["n", "d", "k", "batch", "threads", "method", "p50_us", "p99_us", "recall", "bytes"]


def test_rows_have_the_agreed_form_and_ours_finds_the_exact_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []

    def watched(table: np.ndarray, k: int) -> scoring.Search:
        pools.extend(pool["num_threads"] for pool in threadpool_info())
        return numpy_search(table, k)

    monkeypatch.setattr(scoring, "peers", lambda rows, graphs: iter([("numpy fp32", watched)]))
    monkeypatch.setattr(scoring, "read_bandwidth", lambda: 1e10)
    threads, out = torch.get_num_threads(), tmp_path / "out.json"
    try:
        with threadpool_limits(2):
            assert main(["scoring", "--items", "600", "--dims", "20", "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert pools and set(pools) == {1}
    rows = json.loads(out.read_text())
    assert all(list(row) == KEYS for row in rows)
    by_method = {row["method"]: row for row in rows if row["batch"] == 1}
    assert {"vitrine", "vitrine nbits", "vitrine integer", "numpy fp32"} <= by_method.keys()
    for row in rows:
        assert (row["n"], row["d"], row["threads"]) == (600, 20, 1)
        assert 0 < row["p50_us"] <= row["p99_us"] and row["recall"] >= 0.99
    assert by_method["vitrine, 200 candidates"]["k"] == 200
    batched = {row["method"]: row for row in rows if row["batch"] == 32}
    assert batched.keys() == by_method.keys() and len(rows) == 2 * len(batched)
    assert batched["vitrine"]["p50_us"] > 3 * by_method["vitrine"]["p50_us"]  # one by one


def test_recall_is_the_share_of_the_exact_best() -> None:
    table = np.eye(4, dtype=np.float32)
    queries = np.array([[4, 3, 2, 1]], np.float32)
    scores = exact_scores(table, queries)
    found = {"all": [0, 1], "half": [0, 2], "none": [2, 3], "padded": [1, -1], "twice": [0, 0]}
    said = {
        name: recall_of(lambda query, rows=rows: np.array([rows]), queries, scores, 2)
        for name, rows in found.items()
    }
    assert said == {"all": 1.0, "half": 0.5, "none": 0.0, "padded": 0.5, "twice": 0.5}
    shown = np.array([False, True, True, True])
    assert recall_of(lambda query: np.array([[1, 2]]), queries, scores, 2, shown) == 1.0


def row(method: str, p50_us: float, n: int = 100_000, **more: Any) -> dict[str, Any]:
    times = {"p50_us": p50_us, "p99_us": p50_us}
    return {"n": n, "d": 64, "batch": 1, "method": method, "recall": 1.0} | times | more


def test_verdicts_follow_from_the_rows() -> None:
    masked = [row(f"vitrine, {share} % eligible", 115.0) for share in (10, 50, 90)]
    ours = row("vitrine", 100.0, bytes=83 * 100_000)
    batched = ours | {"batch": 32, "p50_us": 3200.0}  # which no target speaks of
    said = targets([ours, *masked, row("numpy fp32", 600.0), row("FAISS Flat", 229.0)], 1e10)
    met = {t["what"]: t["met"] for t in said}
    assert said == targets([ours, *masked, row("numpy fp32", 600.0), row("FAISS Flat", 229.0), batched], 1e10)
    assert met["times faster than numpy fp32, at least"] and not met["times faster than FAISS Flat, at least"]
    assert met["50 % eligible, times no mask"] and met["bytes an item and dimension"]
    worse = targets(
        [ours | {"recall": 0.9989, "bytes": 84 * 100_000}, *masked, row("numpy fp32", 599.0)], 1e10
    )
    assert [t["met"] for t in worse if t["what"].startswith(("recall", "times", "bytes"))] == [False] * 3
