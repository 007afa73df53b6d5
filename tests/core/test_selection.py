"""The largest scores by block maxima, against a sort of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core import selection
from functions.core.selection import EXTREMES, ScoreType, best_rows, buffer, ceiling


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
    kind=st.sampled_from([np.float32, np.int32]),
)
def test_the_best_are_those_of_a_sort(
    seed: int, rows: int, count: int, levels: int, shown: float, kind: ScoreType
) -> None:
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(-levels, levels, rows) / 7).astype(kind)
    scores = np.minimum(drawn, ceiling(rng.random(rows) < shown, kind))
    assert scores.dtype == kind
    assert sorted(best_rows(padded(scores), rows, count).tolist()) == by_sorting(scores, count)


@pytest.mark.parametrize("kind", EXTREMES)
def test_a_ceiling_leaves_any_score_of_what_is_eligible(kind: np.dtype) -> None:
    extremes = EXTREMES[kind]
    scores = np.array([extremes.least, -1, 0, 1, np.nextafter(extremes.most, 0)]).astype(kind)
    eligible = np.array([True, False, True, True, True])
    assert np.minimum(scores, ceiling(eligible, kind.type))[eligible].tolist() == scores[eligible].tolist()
    assert np.minimum(scores, ceiling(eligible, kind.type))[1] == extremes.never < extremes.least


def test_an_edge_that_is_too_high_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).permutation(10_000).astype(np.float32)
    assert sorted(best_rows(padded(scores), 10_000, 100).tolist()) == by_sorting(scores, 100)
    sound = selection._in_best_blocks
    monkeypatch.setattr(selection, "_in_best_blocks", lambda table, count: sound(table, count // 2))
    assert sorted(best_rows(padded(scores), 10_000, 100).tolist()) != by_sorting(scores, 100)
