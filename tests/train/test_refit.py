"""New items by their content, in worlds where content says everything, something or nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

import train.refit
from functions.core.events import IMPRESSION
from functions.core.features import ItemFeatures
from train.dataset import histories
from train.log import Interactions
from train.options import Options
from train.refit import placed_by_content, refit
from train.towers import ItemTower, Shape
from train.trainer import Objective

ITEMS, CATEGORIES, DIM, VECTOR = 60, 6, 16, 4
NEW = np.arange(ITEMS) >= 48  # nobody has met
SHAPE = Shape(items=ITEMS, categories=CATEGORIES, brands=3, dim=DIM, width=16, vectors=VECTOR)


def content(says: bool = True) -> ItemFeatures:
    """Category and words go together; some products have a vector, one of the new has nothing at all."""
    random = np.random.default_rng(1)
    category = 1 + np.arange(ITEMS) % CATEGORIES
    text = np.zeros((ITEMS, 32), np.int64)
    text[:, :3] = 10 * category[:, None] + np.arange(3)
    text[:, 3] = 1000 + np.arange(ITEMS)  # a word of its own
    vectors = random.normal(size=(ITEMS, VECTOR)).astype(np.float32)
    vectors[::3] = 0
    price, brand = random.integers(0, 5, ITEMS), random.integers(0, 4, ITEMS)
    for column in (category, text, vectors, price, brand):
        column[-1] = 0
        column *= says
    return ItemFeatures(category, brand, price, text, vectors)


def log() -> Interactions:
    """200 users with five events each of what is not new, the first items far more often than the last."""
    random = np.random.default_rng(2)
    item = (48 * random.random(1000) ** 2).astype(np.int32)
    user = np.repeat(np.arange(200, dtype=np.int32), 5)
    time_s = np.arange(1000, dtype=np.int64)
    names = [f"u{u}" for u in range(200)], [f"i{i}" for i in range(ITEMS)]
    return Interactions(user, item, np.ones(1000, np.int8), time_s, np.full(1000, np.nan, np.float32), *names)


def tower() -> ItemTower:
    """Trained, as it were: items are their categories' directions and a little more; content says noise."""
    torch.manual_seed(0)
    made = ItemTower(SHAPE).eval()
    directions = torch.randn(CATEGORIES + 1, DIM)
    with torch.no_grad():
        made.ids.weight[1:] = directions[torch.from_numpy(content().category)] + 0.1 * torch.randn(ITEMS, DIM)
    return made


def embeddings(of: ItemTower, features: ItemFeatures, ids: Tensor | None = None) -> Tensor:
    rows = torch.arange(1, ITEMS + 1) if ids is None else ids
    with torch.no_grad():
        return of(rows, *map(torch.from_numpy, features.columns().values()))


def own_category_is_nearest(found: Tensor) -> float:
    """Share of the new products nearer to what was met of their category than to any other's."""
    category = content().category
    means = torch.stack([found[(category == c) & ~NEW].mean(0) for c in range(1, CATEGORIES + 1)])
    placed = NEW & (category > 0)
    nearest = torch.cdist(found[placed], means).argmin(1) + 1
    return float((nearest.numpy() == category[placed]).mean())


def shown(times: int = 3000) -> Interactions:
    """The log, and impressions of new products between its events."""
    one = log()
    random = np.random.default_rng(3)
    item = random.choice(np.flatnonzero(NEW), times).astype(np.int32)
    user = random.integers(0, 200, times).astype(np.int32)
    kind, none = np.full(times, IMPRESSION, np.int8), np.full(times, np.nan, np.float32)
    rest = {"user": user, "item": item, "kind": kind, "time_s": np.full(times, 500), "value": none}
    return dataclasses.replace(
        one, **{name: np.concatenate([getattr(one, name), more]) for name, more in rest.items()}
    )


def test_what_was_only_shown_is_as_new_as_what_was_not() -> None:
    assert (placed_by_content(shown(), content()) == placed_by_content(log(), content())).all()
    first, second = tower(), tower()
    refit(first, log(), content())
    refit(second, shown(), content())
    torch.testing.assert_close(embeddings(first, content()), embeddings(second, content()))


def test_the_correction_knows_how_often_an_item_is_a_target() -> None:
    """Impressions are none: whoever counted them would correct what is often shown down to nothing."""
    popularity = Objective(shown(), content(), SHAPE, Options()).popularity.numpy()
    wanted = np.bincount(log().item, minlength=ITEMS) / 1000
    np.testing.assert_allclose(popularity, wanted, rtol=1e-6)


@pytest.mark.parametrize("solved_at_once", [train.refit.SOLVED_AT_ONCE, 0])
def test_new_products_come_to_lie_where_their_like_are(
    monkeypatch: pytest.MonkeyPatch, solved_at_once: int
) -> None:
    monkeypatch.setattr(train.refit, "SOLVED_AT_ONCE", solved_at_once)
    towers, features = tower(), content()
    none = torch.zeros(ITEMS, dtype=torch.int64)
    assert own_category_is_nearest(embeddings(towers, features, none)) < 0.8  # of six
    refit(towers, log(), features)
    assert own_category_is_nearest(embeddings(towers, features)) == 1.0


def test_nothing_that_was_met_moves() -> None:
    towers, features = tower(), content()
    before = embeddings(towers, features)
    refit(towers, log(), features)
    after = embeddings(towers, features)
    assert torch.allclose(after[~NEW], before[~NEW], atol=1e-5)
    assert not torch.allclose(after[NEW], before[NEW], atol=0.1)


def test_a_product_that_comes_later_is_placed_like_one_that_nobody_met() -> None:
    towers, features = tower(), content()
    refit(towers, log(), features)
    later = embeddings(towers, features, torch.zeros(ITEMS, dtype=torch.int64))
    placed = placed_by_content(log(), features)
    assert placed.sum() == 11  # the twelfth has no content
    assert torch.equal(later[placed], embeddings(towers, features)[placed])


def test_without_content_nothing_changes() -> None:
    towers, nothing = tower(), content(says=False)
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    refit(towers, log(), nothing)
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert not placed_by_content(log(), nothing).any()


@pytest.mark.parametrize("most", [100_000, 0])
def test_what_nobody_can_have_met_is_no_negative(most: int) -> None:
    """Else content that only new products have would learn that nobody wants it."""
    torch.manual_seed(0)
    options = Options(full_softmax_items=most, negatives=1000)
    objective = Objective(log(), content(), dataclasses.replace(SHAPE, id_dropout=0.0), options)
    batch = histories(log()).cut(5).batch(torch.arange(20))
    objective(batch).backward()
    item = objective.towers.item
    assert item.ids.weight.grad is not None and item.texts.weight.grad is not None
    placed = np.flatnonzero(placed_by_content(log(), content()))
    assert not item.ids.weight.grad[placed + 1].any()
    assert not item.texts.weight.grad[1000 + placed].any()
    assert item.texts.weight.grad[1000 + log().item[0]].any()
    if most:
        assert item.ids.weight.grad[ITEMS].any()  # without content it stays what nobody came to
