"""The largest scores by block maxima, against a sort of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core import selection
from functions.core.errors import VitrineError
from functions.core.selection import EXTREMES, ScoreType, best_rows, buffer, ceiling, lower


def by_sorting(scores: np.ndarray, count: int) -> list[int]:
    order = np.lexsort((np.arange(len(scores)), -scores.astype(np.float64)))[:count]
    return sorted(order[scores[order] > EXTREMES[scores.dtype].never].tolist())


def padded(scores: np.ndarray) -> np.ndarray:
    made = buffer(len(scores), scores.dtype.type)
    made[: len(scores)] = scores
    return made


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([0, 1, 15, 16, 17, 511, 4_096, 10_001]),
    count=st.sampled_from([0, 1, 2, 10, 40, 400, 20_000]),
    levels=st.sampled_from([1, 3, 50, 10**6]),
    shown=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    dtype=st.sampled_from([np.float32, np.int32]),
)
def test_the_best_are_those_of_a_sort(
    seed: int, rows: int, count: int, levels: int, shown: float, dtype: ScoreType
) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels, rows) / 7).astype(dtype)
    lower(scores, ceiling(rng.random(rows) < shown, dtype))
    assert sorted(best_rows(padded(scores), rows, count).tolist()) == by_sorting(scores, count)


@pytest.mark.parametrize("dtype", EXTREMES)
def test_a_mask_leaves_any_score_of_what_is_eligible(dtype: np.dtype) -> None:
    never, least, most = EXTREMES[dtype]
    scores = np.array([least, -1, 0, 1, most], dtype)
    masked = scores.copy()
    lower(masked, ceiling(np.array([True, False, True, True, True]), dtype.type))
    assert masked.tolist() == [*scores[:1], never, *scores[2:]] and never < least


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (ceiling(np.ones(3, bool), np.int32), "int32; expected .* float32"),
        (np.zeros(3), "float64; expected .* float32"),
        (ceiling(np.ones(1, bool)), r"\(1,\) float32; expected \(3,\)"),
        (ceiling(np.ones(4, bool)), r"\(4,\) float32; expected \(3,\)"),
    ],
)
def test_a_mask_of_another_scorer_is_refused(mask: np.ndarray, said: str) -> None:
    with pytest.raises(VitrineError, match=said):
        lower(np.zeros(3, np.float32), mask)


def test_an_edge_that_is_too_high_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).permutation(10_000).astype(np.float32)
    assert sorted(best_rows(padded(scores), 10_000, 100).tolist()) == by_sorting(scores, 100)
    sound = selection._in_best_blocks
    monkeypatch.setattr(selection, "_in_best_blocks", lambda table, count: sound(table, count // 2))
    assert sorted(best_rows(padded(scores), 10_000, 100).tolist()) != by_sorting(scores, 100)
