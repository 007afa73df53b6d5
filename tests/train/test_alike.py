"""Who is like whom: every cosine, by hand."""

from __future__ import annotations

import numpy as np
import pytest

import train.alike as module
from functions.core.features import ItemFeatures, Vocabulary, item_features
from train.alike import find_alike
from train.baselines.neighbours import content_matrix

WORDS = ("red", "blue", "oak", "tin", "mug", "bowl", "lamp", "tray")


def catalogue(items: int = 60, seed: int = 0, vectors: int = 0) -> ItemFeatures:
    """Products of three words each; every tenth has no content at all."""
    rng = np.random.default_rng(seed)
    products: list[dict[str, object]] = [
        {}
        if row % 10 == 9
        else {"title": " ".join(rng.choice(WORDS, 3)), "price": float(rng.integers(1, 99))}
        for row in range(items)
    ]
    columns = {"image": rng.normal(size=(items, vectors)).astype(np.float32)} if vectors else {}
    return item_features(products, Vocabulary(vectors=tuple((n, vectors) for n in columns)), columns)  # type: ignore[arg-type]


def pairs(
    features: ItemFeatures,
    new: np.ndarray,
    showable: int | None = None,
    demand: np.ndarray | None = None,
) -> dict[tuple[int, int], float]:
    """(heir, giver) → likeness."""
    alike = find_alike(features, new, showable, demand)
    giver = np.repeat(np.arange(len(new)), np.diff(alike.bounds))
    return dict(
        zip(zip(alike.heirs.tolist(), giver.tolist(), strict=True), alike.likeness.tolist(), strict=True)
    )


@pytest.mark.parametrize("vectors", [0, 4])
def test_every_new_product_inherits_from_its_nearest(monkeypatch: pytest.MonkeyPatch, vectors: int) -> None:
    monkeypatch.setattr(module, "NEAREST", 3)
    features, new = catalogue(vectors=vectors), np.arange(60) % 4 == 0
    content = content_matrix(features).toarray()
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), (content != 0).any(1), atol=1e-6)
    cosines = content @ content.T
    np.fill_diagonal(cosines, 0)
    found = pairs(features, new)
    for heir in np.flatnonzero(new):
        for among in (~new, new):
            of = {giver: found[heir, giver] for giver in np.flatnonzero(among) if (heir, giver) in found}
            best = np.sort(cosines[heir, among])[::-1]
            expected = best[: len(of)]
            np.testing.assert_allclose(sorted(of.values(), reverse=True), expected, atol=1e-3)
            assert len(of) >= min(3, int((best > 0).sum()))
            assert all(abs(cosines[heir, giver] - value) < 1e-3 for giver, value in of.items())


def test_nothing_is_like_itself_nor_what_has_no_content_like_anything() -> None:
    new = np.arange(60) % 3 == 0
    found = pairs(catalogue(), new)
    assert found and all(heir != giver for heir, giver in found)
    assert all(row % 10 != 9 for pair in found for row in pair)
    assert {heir for heir, _ in found} <= set(np.flatnonzero(new).tolist())


def test_what_is_not_on_sale_gives_and_does_not_inherit() -> None:
    found = pairs(catalogue(), np.arange(60) % 3 == 0, showable=30)
    assert max(heir for heir, _ in found) < 30 <= max(giver for _, giver in found)


def test_one_product_gives_to_those_that_are_most_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    features, new = catalogue(), np.arange(60) % 2 == 0
    every = pairs(features, new)
    monkeypatch.setattr(module, "MOST_HEIRS", 2)
    few = pairs(features, new)
    for giver in {giver for _, giver in every}:
        of = sorted((value for (_, by), value in every.items() if by == giver), reverse=True)
        assert sorted((v for (_, by), v in few.items() if by == giver), reverse=True) == of[:2]


@pytest.mark.parametrize("new", [np.zeros(60, bool), np.ones(60, bool)])
def test_nothing_new_or_nothing_else(new: np.ndarray) -> None:
    assert len(pairs(catalogue(), new)) == 0 or new.all()
    nothing = item_features([{}] * 60, Vocabulary())
    assert pairs(nothing, new) == {}


def test_what_takes_too_long_to_compare_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features, new = catalogue(), np.arange(60) >= 15  # 45 new, 15 known
    whole = pairs(features, new)
    assert {giver < 15 for _, giver in whole} == {True, False}
    monkeypatch.setattr(module, "MOST_PAIRS", 45 * 15)
    of_known = {pair: value for pair, value in whole.items() if pair[1] < 15}
    assert pairs(features, new) == of_known
    monkeypatch.setattr(module, "MOST_PAIRS", 45 * 15 - 1)
    assert pairs(features, new) == {}


def demanded(items: int = 60) -> np.ndarray:
    return np.random.default_rng(1).lognormal(0, 2, items).astype(np.float32)


def test_what_hardly_anybody_comes_to_inherits_less() -> None:
    """By the root of demand, up to the heirs' largest, to one in a hundred."""
    features, new, demand = catalogue(), np.arange(60) % 3 == 0, demanded()
    cosine, found = pairs(features, new), pairs(features, new, demand=demand)
    heirs = sorted({heir for heir, _ in cosine})
    demand[[row for row in range(60) if row not in heirs]] = 1e6  # who does not inherit does not matter
    assert found == pairs(features, new, demand=demand)
    most = np.exp(np.quantile(np.log(demand[heirs]), 0.99))
    assert found.keys() == cosine.keys()
    scale = {row: min(1.0, float(np.sqrt(demand[row] / most))) for row in heirs}
    assert [found[pair] for pair in cosine] == pytest.approx(
        [scale[pair[0]] * value for pair, value in cosine.items()], rel=2e-3
    )
    assert max(scale.values()) == 1.0 > np.median(list(scale.values()))


def test_what_is_most_in_demand_is_kept_where_a_product_has_too_many_heirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, new, demand = catalogue(), np.arange(60) % 2 == 0, demanded()
    every = pairs(features, new, demand=demand)
    monkeypatch.setattr(module, "MOST_HEIRS", 2)
    few = pairs(features, new, demand=demand)
    for giver in {giver for _, giver in every}:
        of = sorted((value for (_, by), value in every.items() if by == giver), reverse=True)
        assert sorted((v for (_, by), v in few.items() if by == giver), reverse=True) == of[:2]


def test_the_least_demand_leaves_something() -> None:
    features, new = catalogue(), np.arange(60) % 3 == 0
    demand = np.where(np.arange(60) == 0, 1e12, 1e-12).astype(np.float32)
    assert all(value > 0 for value in pairs(features, new, demand=demand).values())
    assert pairs(features, new, demand=demand).keys() == pairs(features, new).keys()


def test_unknown_demand_is_that_of_the_nearest() -> None:
    features, new, demand = catalogue(), np.arange(60) % 3 == 0, demanded()
    unknown = new & (np.arange(60) % 2 == 0)
    whole, cosine = demand.copy(), pairs(features, new)
    for heir in {heir for heir, _ in cosine if unknown[heir]}:
        near = [(giver, v) for (row, giver), v in cosine.items() if row == heir and not unknown[giver]]
        logs = np.log(demand[[giver for giver, _ in near]])
        whole[heir] = np.exp(np.average(logs, weights=[value for _, value in near]))
    demand[unknown] = np.nan
    found, expected = (pairs(features, new, demand=each) for each in (demand, whole))
    assert list(found.values()) == pytest.approx([expected[pair] for pair in found], rel=2e-3)


def test_whose_nearest_are_unknown_too_has_the_mean_of_all_heirs() -> None:
    titles = ["red mug", "red mug", "red bowl", "oak tray", "oak tray"]
    features = item_features([{"title": title} for title in titles], Vocabulary())
    new = np.array([False, True, True, True, False])
    demand = np.array([1, 4, 1, np.nan, np.nan], np.float32)
    mean = float(np.sqrt(2 / np.exp(np.quantile(np.log([1, 2, 4]), 0.99))))
    assert pairs(features, new, demand=demand)[3, 4] == pytest.approx(mean, rel=2e-3)


def test_demand_that_is_known_of_nothing_changes_nothing() -> None:
    features, new = catalogue(), np.arange(60) % 3 == 0
    assert pairs(features, new, demand=np.full(60, np.nan, np.float32)) == pairs(features, new)
