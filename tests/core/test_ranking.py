from collections import Counter
from itertools import permutations
from math import prod

import numpy as np
import pytest

from functions.core.errors import VitrineError
from functions.core.ranking import BLOCK_ROWS, impressions_in_last_day, rank, top_k_numpy
from functions.core.slots import Slot

GREEDY = Slot("home", cap=3)
EPSILON = Slot("home", policy="epsilon", epsilon=0.4)
SOFTMAX = Slot("home", policy="softmax", temperature=0.7)
ROWS = np.array([40, 10, 30, 20])
SCORES = np.array([0.1, 0.9, 0.5, 0.5], dtype=np.float32)
BEST_FIRST = [10, 20, 30, 40]  # the tie goes to the lower row


def _rank(slot, k, rows=ROWS, scores=SCORES, seed=0, **rules):
    return rank(np.asarray(rows), np.asarray(scores), slot, k, np.random.default_rng(seed), **rules)


def _step_chances(slot, left):
    """By definition: each remaining row's chance of being next."""
    score = dict(zip(ROWS.tolist(), SCORES.tolist(), strict=True))
    if slot.policy == "softmax":
        weights = {row: np.exp(score[row] / slot.temperature) for row in left}
        return {row: weight / sum(weights.values()) for row, weight in weights.items()}
    best = min(left, key=BEST_FIRST.index)
    return {row: slot.epsilon / len(left) + (1 - slot.epsilon) * (row == best) for row in left}


def _list_chance(slot, rows):
    left, chance = list(BEST_FIRST), 1.0
    for row in rows:
        chance *= _step_chances(slot, left)[row]
        left.remove(row)
    return chance


def test_greedy_never_increases_and_is_certain():
    rng = np.random.default_rng(1)
    for size in (1, 2, 17, 300):
        scores = rng.integers(0, 9, size).astype(float)
        choices = _rank(GREEDY, size, np.arange(size), scores)
        keys = [(-choice.score, choice.row) for choice in choices]
        assert keys == sorted(keys)
        assert [choice.position for choice in choices] == list(range(size))
        assert {choice.propensity for choice in choices} == {1.0}


def test_the_order_of_the_candidates_does_not_matter():
    for slot in (GREEDY, EPSILON, SOFTMAX):
        assert _rank(slot, 3) == _rank(slot, 3, ROWS[::-1], SCORES[::-1])


@pytest.mark.parametrize("slot", [GREEDY, EPSILON, SOFTMAX])
def test_one_of_batch_equals_single(slot):
    assert [_rank(slot, 2, seed=seed) for seed in (5, 6)] == [_rank(slot, 2, seed=5), _rank(slot, 2, seed=6)]


@pytest.mark.parametrize("slot", [EPSILON, SOFTMAX])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_propensities_are_the_true_chances(slot, k):
    """Every list is drawn, with its enumerated chance as the product of its propensities, which sum to 1."""
    stated, drawn, draws = {}, Counter(), 4_000
    rng = np.random.default_rng(7)
    for _ in range(draws):
        choices = rank(ROWS, SCORES, slot, k, rng)
        rows = tuple(choice.row for choice in choices)
        stated[rows] = prod(choice.propensity for choice in choices)
        drawn[rows] += 1
    every = {rows: _list_chance(slot, rows) for rows in permutations(BEST_FIRST, k)}
    assert stated == pytest.approx(every)
    assert sum(stated.values()) == pytest.approx(1)
    for rows, chance in every.items():
        assert abs(drawn[rows] - draws * chance) < 5 * np.sqrt(draws * chance)


@pytest.mark.parametrize("slot", [EPSILON, SOFTMAX])
def test_each_step_has_its_conditional_chance(slot):
    for seed in range(50):
        left = list(BEST_FIRST)
        for choice in _rank(slot, 4, seed=seed):
            assert choice.propensity == pytest.approx(_step_chances(slot, left)[choice.row])
            left.remove(choice.row)


def test_softmax_of_far_scores_is_stable():
    choices = _rank(SOFTMAX, 3, [0, 1, 2], [1e6, 0.0, -1e6])
    assert [choice.row for choice in choices] == [0, 1, 2]
    assert [choice.propensity for choice in choices] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("slot", [GREEDY, EPSILON, SOFTMAX])
def test_edges(slot):
    assert _rank(slot, 3, np.array([], dtype=int), np.array([])) == []
    assert _rank(slot, 0) == []
    assert [choice.row for choice in _rank(slot, 3, [5], [0.5])] == [5]
    assert _rank(slot, 3, [5], [0.5])[0].propensity == pytest.approx(1)
    assert sorted(choice.row for choice in _rank(slot, 5)) == BEST_FIRST
    assert _rank(slot, 3, dismissed=set(BEST_FIRST)) == []
    assert _rank(slot, 3, ROWS, np.full(4, -np.inf)) == []


@pytest.mark.parametrize("slot", [GREEDY, EPSILON, SOFTMAX])
@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused(slot, score):
    with pytest.raises(VitrineError, match=r"expected a number.*row 2"):
        _rank(slot, 1, [1, 2], [0.0, score])


def test_shapes_and_k_are_checked():
    with pytest.raises(VitrineError, match="expected the same"):
        _rank(GREEDY, 1, [1, 2], [0.0])
    with pytest.raises(VitrineError, match="k -1"):
        _rank(GREEDY, -1)


def test_dismissed_and_capped_are_left_out():
    chosen = _rank(GREEDY, 4, dismissed=[10], seen={20: 3, 30: 2, 99: 9})
    assert [choice.row for choice in chosen] == [30, 40]
    uncapped = _rank(Slot("home"), 4, seen={20: 1_000})
    assert [choice.row for choice in uncapped] == BEST_FIRST


def test_propensities_are_among_the_eligible_only():
    chances = [_rank(EPSILON, 1, dismissed=[10], seed=seed)[0] for seed in range(40)]
    stated = {choice.row: choice.propensity for choice in chances}
    assert stated == pytest.approx({20: 0.6 + 0.4 / 3, 30: 0.4 / 3, 40: 0.4 / 3})


def test_impressions_fall_out_after_a_day():
    seen = [(1, 100), (1, 101), (2, 100), (1, 86_500)]
    assert impressions_in_last_day(seen, 86_499) == {1: 3, 2: 1}
    assert impressions_in_last_day(seen, 86_500) == {1: 2}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_top_k_equals_a_full_sort(dtype):
    rng = np.random.default_rng(3)
    table = rng.integers(-3, 4, (500, 8)).astype(dtype)
    vector = rng.integers(-2, 3, 8).astype(np.float32)
    exact = table.astype(int) @ vector.astype(int)
    expected = sorted(range(500), key=lambda row: (-exact[row], row))
    for k in (0, 1, 10, 499, 500, 501):
        rows, scores = top_k_numpy(vector, table, k)
        assert rows.tolist() == expected[:k]
        assert scores.tolist() == exact[rows].tolist()


def test_equal_rows_tie_to_the_lower_across_blocks():
    row = np.random.default_rng(4).normal(size=64).astype(np.float16)
    table = np.tile(row, (BLOCK_ROWS + 5, 1))
    rows, scores = top_k_numpy(row, table, 3)
    assert rows.tolist() == [0, 1, 2] and len(set(scores)) == 1
    table[BLOCK_ROWS + 4] *= 2
    assert top_k_numpy(row, table, 3)[0].tolist() == [BLOCK_ROWS + 4, 0, 1]


def test_top_k_sums_in_double_precision():
    table = np.array([[1e8, 0.5, -1e8], [1e8, 1.0, -1e8]], dtype=np.float32)
    rows, scores = top_k_numpy(np.ones(3, dtype=np.float32), table, 2)
    assert rows.tolist() == [1, 0] and scores.tolist() == [1.0, 0.5]


def test_top_k_checks_its_input():
    assert top_k_numpy(np.ones(3), np.empty((0, 3)), 4)[0].size == 0
    with pytest.raises(VitrineError, match=r"\(4,\)"):
        top_k_numpy(np.ones(4), np.ones((2, 3)), 1)
    with pytest.raises(VitrineError, match="row 1"):
        top_k_numpy(np.ones(1), np.array([[0.0], [np.nan]]), 1)
