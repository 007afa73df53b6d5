"""The repeat term against sums worked out by hand."""

import json
from dataclasses import asdict, replace
from math import log

import numpy as np
import pytest

from functions.core.alike import Alike
from functions.core.events import DISMISS
from functions.core.favourites import Favourites, item_and_kind, item_prefix
from functions.core.repeats import SHARP, Own, Repeats
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


def test_the_mean_is_of_every_event_that_counts_and_of_the_forgotten_by_their_weight() -> None:
    table = np.array([[1, 0], [0, 4], [8, 8], [100, 100]], np.float16)
    met = Own([0, None, 1, 0], {2: 0.5, 0: 1.5}).mean(table)
    np.testing.assert_allclose(met, [(3.5 * 1 + 0.5 * 8) / 5, (4 + 0.5 * 8) / 5], rtol=1e-6)
    assert met.dtype == np.float32
    for nothing in (Own(), Own([None, None])):
        assert nothing.mean(table).tolist() == [0, 0]


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


def test_a_dismissal_takes_back_what_was_done_before() -> None:
    """Neither the dismissed nor what follows from it gains; what is done with it later counts again."""
    kinds, items = [1, 1, DISMISS, 4], ["a", "b", "a", "a"]
    ring = tuple(
        RingEntry(event_hash(str(n)), item_key(item), kind, 0, 0)
        for n, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )
    rows = {item_key("a"): 7, item_key("b"): 8}
    found = lambda keys: [rows.get(key) for key in keys]  # noqa: E731
    row = replace(new_row("0" * 16, 4, 2), ring=ring)
    assert Repeats().own(row, found).ring == [None, 8, None, 7]
    assert Repeats().own(replace(row, ring=ring[:3]), found).ring == [None, 8, None]


def test_it_survives_json() -> None:
    repeats = Repeats(2.0, 8.0, 0.5, (1, 4))
    assert Repeats(**json.loads(json.dumps(asdict(repeats)))) == repeats


# item 3 is new and like 0, wholly, and 1, by half
HEIR = Alike(np.array([0, 1, 2, 2, 2], np.int32), np.array([3, 3], np.int32), np.array([1, 0.5], np.float16))


def test_a_new_product_has_what_its_like_have_and_becomes_a_candidate() -> None:
    dot = np.array([0.0, 0.0, 0.5, -1.0])
    repeats = Repeats(inherited=4.0, inherited_half_life=1.0)
    rows, scores = repeats.candidates((np.array([2]), dot[[2]]), Own([1, 0]), dot.take, HEIR)
    assert rows.tolist() == [3, 2]
    assert scores.tolist() == pytest.approx([-1 + 4 * log(1 + 1 + 0.5 * 0.5), 0.5])


def test_what_a_visitor_has_met_is_no_newcomer_to_him() -> None:
    dot = np.zeros(4)
    repeats = Repeats(1.0, 1.0, inherited=4.0, newcomer=-5.0)
    best = np.arange(4), dot
    rows, scores = repeats.candidates(best, Own([2]), dot.take, HEIR)
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(
        {0: 0, 1: 0, 2: log(2), 3: -5}
    )
    rows, scores = repeats.candidates(best, Own([3]), dot.take, HEIR)
    assert (rows[0], scores[0]) == (3, pytest.approx(log(2)))


def test_what_is_not_on_sale_gives_and_is_not_shown() -> None:
    repeats = Repeats(1.0, 1.0, inherited=4.0)
    alike = replace(HEIR, bounds=np.array([0, 0, 0, 0, 1], np.int32), heirs=np.array([0], np.int32))
    alike = replace(alike, likeness=np.array([1], np.float16))
    rows, _ = repeats.candidates((np.array([1]), np.zeros(1)), Own([3]), np.zeros(4).take, alike, showable=3)
    assert rows.tolist() == [0, 1]


@pytest.mark.parametrize("repeats", [Repeats(2.0, 4.0), Repeats(2.0, 4.0, inherited=3.0, newcomer=-1.0)])
def test_where_nothing_is_new_all_is_as_without_the_term(repeats: Repeats) -> None:
    dot = np.random.default_rng(0).normal(size=20)
    best, own = (np.arange(5), dot[:5]), Own([3, 9, None, 3], {11: 2.0})
    plain = Repeats(2.0, 4.0).candidates(best, own, dot.take)
    for alike in (Alike(), Alike(np.zeros(21, np.int32))):
        for one, other in zip(repeats.candidates(best, own, dot.take, alike), plain, strict=True):
            assert np.array_equal(one, other)


def test_a_bundle_of_before_inherits_nothing() -> None:
    assert Repeats(**{"weight": 2.0, "half_life": 8.0, "before": 0.5, "kinds": [1]}).inherited == 0


# who meets 0 meets 1 and 2, too, and who meets 3 meets 1
TOGETHER = Alike(
    np.array([0, 2, 2, 2, 3], np.int32), np.array([1, 2, 1], np.int32), np.array([0.5, 0.25, 1], np.float16)
)


def test_companions_of_what_was_met_become_candidates() -> None:
    dot = np.array([0.0, -3.0, 0.5, 0.0])
    repeats = Repeats(companions=2.0, companions_half_life=1.0)
    rows, scores = repeats.candidates((np.array([2]), dot[[2]]), Own([0, 3]), dot.take, companions=TOGETHER)
    one = -3 + 2 * log(1 + SHARP * (0.5 * 0.5 + 1))
    found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    assert found == pytest.approx({2: 0.5 + 2 * log(1 + SHARP * 0.5 * 0.25), 1: one})
    assert repeats.company(Own([0, 1]), TOGETHER).keys() == {2}, "what was met is no companion of its own"
    assert not Repeats(2.0).company(Own([0]), TOGETHER) and not repeats.company(Own([0]), Alike())


def test_companions_and_those_who_inherit_come_beside_each_other() -> None:
    dot = np.zeros(4)
    repeats = Repeats(1.0, 1.0, inherited=4.0, newcomer=-0.5, companions=2.0, companions_half_life=1.0)
    rows, scores = repeats.candidates((np.array([0]), dot[[0]]), Own([0]), dot.take, HEIR, None, TOGETHER)
    found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    one, two = (2 * log(1 + SHARP * cosine) for cosine in (0.5, 0.25))
    assert found == pytest.approx({0: log(2), 1: one, 2: two, 3: 4 * log(2) - 0.5})
    rows, _ = repeats.candidates((np.array([0]), dot[[0]]), Own([0]), dot.take, HEIR, 2, TOGETHER)
    assert sorted(rows.tolist()) == [0, 1], "what is not on sale is not shown"
