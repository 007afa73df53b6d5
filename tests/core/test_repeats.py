"""The repeat term against sums worked out by hand."""

import json
from dataclasses import asdict
from math import log

import numpy as np
import pytest

from functions.core.repeats import Repeats


def test_a_recent_event_counts_more_than_an_old_one() -> None:
    bonus = Repeats(weight=2.0, half_life=1.0).bonus([7, 3, 7])
    assert bonus == {7: pytest.approx(2 * log(1 + 1 + 0.25)), 3: pytest.approx(2 * log(1 + 0.5))}


def test_an_unknown_item_takes_a_place_in_time_and_gets_nothing() -> None:
    assert Repeats(1.0, 1.0).bonus([5, None]) == {5: pytest.approx(log(1.5))}


def test_without_events_or_without_weight_nothing_is_added() -> None:
    assert Repeats(1.0).bonus([]) == {}
    assert Repeats().bonus([1, 2]) == {1: 0.0, 2: 0.0}


def test_a_negative_weight_pushes_what_was_done_already_away() -> None:
    assert Repeats(-8.0).bonus([4])[4] < -5


def test_candidates_are_the_best_and_the_rings_own_each_once_best_first() -> None:
    dot = np.array([0.5, 0.9, 0.1, 0.9, -1.0])
    rows, scores = Repeats(1.0, 1e9).candidates((np.array([1, 3]), dot[[1, 3]]), [4, 4, 3, None], dot.take)
    assert rows.tolist() == [3, 1, 4]
    assert scores.tolist() == pytest.approx([0.9 + log(2), 0.9, -1 + log(3)])


def test_without_a_weight_the_ring_adds_no_candidate() -> None:
    best = (np.array([2, 0]), np.array([3.0, 3.0]))
    rows, _ = Repeats().candidates(best, [1], lambda rows: np.zeros(len(rows)))
    assert rows.tolist() == [0, 2]


def test_only_event_types_that_the_numbers_were_chosen_on_count() -> None:
    assert Repeats(kinds=(4,)).counted([1, 4, 4], [7, 8, None]) == [None, 8, None]


def test_it_survives_json() -> None:
    repeats = Repeats(2.0, 8.0, (1, 4))
    assert Repeats(**json.loads(json.dumps(asdict(repeats)))) == repeats
