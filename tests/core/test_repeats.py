"""The repeat term against sums worked out by hand."""

import json
from dataclasses import asdict, replace
from math import log

import numpy as np
import pytest

from functions.core.favourites import Favourites, item_and_kind, item_prefix
from functions.core.repeats import Own, Repeats
from functions.core.ring import RingEntry
from functions.core.user_row import event_hash, item_key, new_row


def test_a_recent_event_counts_more_than_an_old_one() -> None:
    bonus = Repeats(weight=2.0, half_life=1.0).bonus(Own([7, 3, 7]))
    assert bonus == {7: pytest.approx(2 * log(1 + 1 + 0.25)), 3: pytest.approx(2 * log(1 + 0.5))}


def test_an_unknown_item_takes_a_place_in_time_and_gets_nothing() -> None:
    assert Repeats(1.0, 1.0).bonus(Own([5, None])) == {5: pytest.approx(log(1.5))}


def test_without_events_or_without_weight_nothing_is_added() -> None:
    assert Repeats(1.0).bonus(Own()) == {}
    assert Repeats().bonus(Own([1, 2])) == {1: 0.0, 2: 0.0}


def test_a_negative_weight_pushes_what_was_done_already_away() -> None:
    assert Repeats(-8.0).bonus(Own([4]))[4] < -5


def test_candidates_are_the_best_and_the_rings_own_each_once_best_first() -> None:
    dot = np.array([0.5, 0.9, 0.1, 0.9, -1.0])
    best, own = (np.array([1, 3]), dot[[1, 3]]), Own([4, 4, 3, None])
    rows, scores = Repeats(1.0, 1e9).candidates(best, own, dot.take)
    assert rows.tolist() == [3, 1, 4]
    assert scores.tolist() == pytest.approx([0.9 + log(2), 0.9, -1 + log(3)])


def test_without_a_weight_the_ring_adds_no_candidate() -> None:
    best = (np.array([2, 0]), np.array([3.0, 3.0]))
    rows, _ = Repeats().candidates(best, Own([1]), lambda rows: np.zeros(len(rows)))
    assert rows.tolist() == [0, 2]


def test_what_the_ring_has_forgotten_counts_as_old_as_the_ring_is_long() -> None:
    bonus = Repeats(weight=2.0, half_life=2.0).bonus(Own([7, None], {7: 3.0, 5: 1.0}))
    assert bonus == {7: pytest.approx(2 * log(1 + 3 / 2 + 2**-0.5)), 5: pytest.approx(2 * log(1.5))}


def test_what_the_ring_has_forgotten_counts_as_much_as_it_is_said_to() -> None:
    whole, half = (Repeats(1.0, 2.0, before).bonus(Own([7, 7], {5: 2.0})) for before in (1.0, 0.5))
    assert (whole[5], half[5]) == (pytest.approx(log(2)), pytest.approx(log(1.5)))
    assert whole[7] == half[7]


def test_an_item_of_old_alone_is_a_candidate_too() -> None:
    dot = np.array([0.5, 0.9, 0.1])
    rows, _ = Repeats(4.0, 1e9).candidates((np.array([1]), dot[[1]]), Own([], {2: 1.0}), dot.take)
    assert rows.tolist() == [2, 1]


def test_only_event_types_that_the_numbers_were_chosen_on_count() -> None:
    rows = {item_key("a"): 7, item_key("b"): 8, item_prefix(item_key("a")): 7}
    ring = tuple(
        RingEntry(event_hash(str(n)), item_key(item), kind, 0, 0)
        for n, (item, kind) in enumerate([("a", 1), ("b", 4), ("nobody", 4)])
    )
    older = Favourites.of(((item_and_kind(item_key("a"), 4), 64), (item_and_kind(item_key("gone"), 4), 64)))
    row = replace(new_row("0" * 16, 4, 2), ring=ring, favourites=older)
    found = lambda keys: [rows.get(key) for key in keys]  # noqa: E731
    assert Repeats(kinds=(4,)).own(row, found) == Own([None, 8, None], {7: 1.0})
    assert Repeats(kinds=(1,)).own(row, found) == Own([7, None, None], {})


def test_it_survives_json() -> None:
    repeats = Repeats(2.0, 8.0, 0.5, (1, 4))
    assert Repeats(**json.loads(json.dumps(asdict(repeats)))) == repeats
