"""How many come to a product by its content: shops in which that is known."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

import train.demand as module
from functions.core.features import ItemFeatures, Vocabulary, item_features
from train.demand import demand
from train.log import Interactions

EVERY = 20  # products of each kind
Counts = list[tuple[int, int]]  # of each product the users before the latest tenth, and in it


def content(categories: list[str | None]) -> ItemFeatures:
    names = tuple(sorted({name for name in categories if name}))
    return item_features([{"category": name} for name in categories], Vocabulary(categories=names))


def shop(counts: Counts, kind: int = 4) -> Interactions:
    """Events of so many users each; before them as many of the first product as make those a tenth."""
    late = np.repeat(np.arange(len(counts)), [users for _, users in counts])
    early = np.repeat(np.arange(len(counts)), [users for users, _ in counts])
    filled = np.zeros(max(0, 9 * len(late) - len(early)), np.int64)
    item = np.concatenate([filled, early, late])
    user = np.concatenate([filled, *(np.arange(n) for n, _ in counts), *(np.arange(n) for _, n in counts)])
    return Interactions(
        user.astype(np.int32),
        item.astype(np.int32),
        np.full(len(item), kind, np.int8),
        np.where(np.arange(len(item)) < len(item) - len(late), 0, 1000),
        np.full(len(item), np.nan, np.float32),
        [f"u{n}" for n in range(100)],
        [f"i{n}" for n in range(len(counts))],
    )


def of_kinds(log: Interactions, kinds: list[str | None], without: np.ndarray | None = None) -> list[float]:
    """Demand of the first product of each kind, in the order in which kinds appear; all of a kind have it."""
    found = demand(log, content(kinds), without)
    assert found.dtype == np.float32 and np.isfinite(found).all() and (found > 0).all()
    first = dict(reversed([(kind, value) for kind, value in zip(kinds, found.tolist(), strict=True)]))
    assert found.tolist() == pytest.approx([first[kind] for kind in kinds], rel=1e-5)
    return [first[kind] for kind in dict.fromkeys(kinds)]


@pytest.fixture(autouse=True)
def no_warnings():  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_as_many_are_expected_as_came_to_others_of_the_kind() -> None:
    """Nobody is new: what counts is the latest tenth alone."""
    kinds = [None, *["much"] * EVERY, *["little"] * EVERY]
    _, much, little = of_kinds(shop([(9, 1), *[(1, 12)] * EVERY, *[(30, 2)] * EVERY]), kinds)
    assert much == pytest.approx(12, rel=0.1) and little == pytest.approx(2, rel=0.1)


def test_what_is_new_is_expected_to_sell_as_what_came_lately() -> None:
    kinds = [None, *["staple"] * EVERY, *["staple"] * EVERY, *["fashion"] * EVERY, *["fashion"] * EVERY]
    old, new = [(1, 9)] * EVERY, [(0, 1)] * EVERY
    counts = [(9, 1), *old, *new, *[(1, 1)] * EVERY, *[(0, 6)] * EVERY]
    _, staple, fashion = of_kinds(shop(counts), kinds)
    assert staple == pytest.approx(1, rel=0.2) and fashion == pytest.approx(6, rel=0.2)


def test_of_a_kind_of_which_nothing_came_lately_what_sells_at_all_is_asked() -> None:
    kinds: list[str | None] = [None]
    counts: Counts = [(9, 1)]
    for number in range(40):
        often = number % 2
        kinds += [f"kind{number}"] * 15
        counts += [(1, 10 if often else 1)] * 10
        counts += [(0, 5 if often else 1)] * 5 if number < 36 else [(0, 0)] * 5
    found = of_kinds(shop(counts), kinds)[1:]
    assert min(found[37], found[39]) > 1.5 * max(found[36], found[38])


def test_nothing_is_learnt_of_what_is_left_out() -> None:
    kinds = [None, *["a"] * EVERY, *["a"] * EVERY, *["b"] * EVERY]
    without = np.arange(len(kinds)) > len(kinds) - EVERY - 1
    without[1 : EVERY + 1] = True
    log = shop([(9, 1), *[(0, 20)] * EVERY, *[(0, 2)] * EVERY, *[(0, 8)] * EVERY])
    assert of_kinds(log, kinds)[1] == pytest.approx(11, rel=0.2)
    assert of_kinds(log, kinds, without)[1] == pytest.approx(2, rel=0.2)


def test_a_user_who_comes_twice_is_one_user() -> None:
    log = shop([(9, 1), *[(1, 8)] * EVERY])
    once = of_kinds(log, [None, *["a"] * EVERY])[1]
    same = replace(log, user=np.zeros_like(log.user))
    assert once == pytest.approx(8, rel=0.1)
    assert of_kinds(same, [None, *["a"] * EVERY])[1] == pytest.approx(1, rel=0.1)


def test_impressions_bring_nobody() -> None:
    shown = shop([(9, 1), *[(3, 8)] * EVERY], kind=7)
    assert set(demand(shown, content([None, *["a"] * EVERY])).tolist()) == {1.0}


def test_without_content_all_products_are_expected_to_sell_alike() -> None:
    log = shop([(9, 1), *[(0, 8)] * EVERY])
    assert of_kinds(log, [None] * (EVERY + 1)) == pytest.approx([8.0])


@pytest.mark.parametrize("unsold", [0, EVERY])
def test_where_nothing_new_was_sold_the_old_are_asked(unsold: int) -> None:
    kinds = [None, *["a"] * EVERY, *["b"] * EVERY, *["b"] * unsold]
    counts = [(9, 1), *[(1, 2)] * EVERY, *[(1, 9)] * EVERY, *[(0, 0)] * unsold]
    _, few, many = of_kinds(shop(counts), kinds)
    assert many > 2 * few


def test_all_events_in_one_second_are_the_latest() -> None:
    log = shop([(0, 0), *[(0, 12)] * EVERY, *[(0, 2)] * EVERY])
    log = replace(log, time_s=np.zeros_like(log.time_s))
    _, much, little = of_kinds(log, [None, *["much"] * EVERY, *["little"] * EVERY])
    assert much == pytest.approx(12, rel=0.2) and little == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(
    "counts", [[(1, 0)], [(0, 1)], [(9, 1)], [(0, 0)], [(0, 0), (0, 1)], [(1, 1), (0, 3)]]
)
@pytest.mark.parametrize("kinds", [[None, None], ["a", "a"], ["a", "b"], [None, "b"]])
def test_tiny_logs(counts: Counts, kinds: list[str | None]) -> None:
    found = demand(shop(counts), content(kinds[: len(counts)]))
    assert len(found) == len(counts) and np.isfinite(found).all() and (found > 0).all()


def test_a_fit_that_is_ended_early_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    _, much, little = of_kinds(
        shop([(9, 1), *[(1, 12)] * EVERY, *[(30, 2)] * EVERY]), [None, *["a"] * EVERY, *["b"] * EVERY]
    )
    assert much > little


def test_the_least_and_the_most_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_expected", lambda *given: np.array([-500.0, 500.0]))
    found = demand(shop([(9, 1), (1, 1)]), content([None, "a"]))
    assert 0 < found[0] < found[1] < np.inf
