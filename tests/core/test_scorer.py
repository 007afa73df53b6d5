"""The int8 scan and its rescoring on tables of every width, against float64 brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.ranking import top_k_numpy
from functions.core.runtime import OnnxScan
from functions.core.scorer import Scorer, blocks

export_score = pytest.importorskip("export.score", reason="the exporter is not in this environment")


def scorer(table: np.ndarray, folder: Path) -> Scorer:
    codes, scales = export_score.quantize(table)
    export_score.write_score_graph(folder / "score.onnx", *table.shape)
    return Scorer(OnnxScan(folder / "score.onnx", codes, scales.ravel()), table, len(table))


@pytest.mark.parametrize(
    ("dim", "expected"),
    [(64, (1, 64)), (96, (3, 32)), (128, (1, 128)), (20, (2, 16)), (8, (1, 16)), (512, (2, 256))],
)
def test_blocks_cover_a_row(dim: int, expected: tuple[int, int]) -> None:
    assert blocks(dim) == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.sampled_from([1, 2, 39, 40, 41, 700]),
    dim=st.sampled_from([8, 16, 20, 64, 96, 256]),
    k=st.integers(1, 12),
)
def test_the_served_best_are_the_exact_best_of_clustered_items(
    seed: int, items: int, dim: int, k: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    table = (centres[rng.integers(0, 5, items)] + 0.3 * rng.normal(size=(items, dim))).astype(np.float16)
    vector = rng.normal(size=dim).astype(np.float16)
    rows, scores = scorer(table, tmp_path_factory.mktemp("score")).top(vector, k)
    _, exact = top_k_numpy(vector, table, k)
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4)
    assert len(set(rows.tolist())) == min(k, items)


def test_zero_rows_and_equal_rows_keep_their_order(tmp_path: Path) -> None:
    table = np.zeros((50, 16), np.float16)
    table[[3, 30]] = 1
    rows, scores = scorer(table, tmp_path).top(np.ones(16, np.float16), 4)
    assert rows[:2].tolist() == [3, 30]
    assert scores.tolist() == [16.0, 16.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    table = np.ones((4, 16), np.float16)
    table[2, 5] = bad
    with pytest.raises(export_score.NotFinite, match="item row 2"):
        export_score.quantize(table)
