"""A shop in which whoever came to one product of a style comes to the next of it: new ones, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.quality import new_scores
from bench.quality_data import Task
from functions.core.features import ItemFeatures, Vocabulary, item_features
from functions.core.repeats import Repeats
from train.alike import who_inherits
from train.baselines import ContentKNN, Random
from train.checkpoint import Meta, load, save
from train.demand import Demand, demand
from train.inheritance import CUT, LEAST_USERS, _best, choose_inheritance, hold_out
from train.log import Interactions
from train.refit import refit, without_id
from train.served import Served
from train.split import Split, split
from train.towers import Shape, Towers
from train.validation import choose

STYLES, EACH, USERS, LENGTH = 24, 8, 240, 24
ITEMS = STYLES * EACH
STYLE = np.arange(ITEMS) % STYLES
NEW = np.arange(ITEMS) >= ITEMS - STYLES  # the last product of each style comes on sale when the test begins


def content(says: bool = True) -> ItemFeatures:
    return item_features([{"title": f"style{style}" if says else None} for style in STYLE], Vocabulary())


def shop(follows: float = 1.0) -> Interactions:
    """Everybody goes from style to style, eight events in each; in the test new products are among them.

    follows: share of the events that keep to the style.
    """
    rng = np.random.default_rng(0)
    turn, user = np.divmod(np.arange(USERS * LENGTH), USERS)
    style = (user + 7 * (turn // 8)) % STYLES
    style = np.where(rng.random(len(user)) < follows, style, rng.integers(0, STYLES, len(user)))
    late = turn >= 22  # the test begins in turn 21
    nth = np.where(late & (rng.random(len(user)) < 0.5), EACH - 1, rng.integers(0, EACH - 1, len(user)))
    return Interactions(
        user.astype(np.int32),
        (nth * STYLES + style).astype(np.int32),
        np.full(len(user), 4, np.int8),
        turn * 3600 + user,
        np.full(len(user), np.nan, np.float32),
        [f"u{u}" for u in range(USERS)],
        [f"i{i}" for i in range(ITEMS)],
    )


def trained(folder: Path, log: Interactions, features: ItemFeatures) -> tuple[Split, Served]:
    """Towers that know nothing, content fitted, inheritance chosen; the test, and what it answers by."""
    torch.manual_seed(0)
    parts = split(log, "time")
    inner = split(parts.train, "time")
    towers = Towers(Shape(items=ITEMS, categories=0, brands=0, dim=16, width=16)).eval()
    refit(towers.item, inner.train, features)
    save(folder, towers, Meta(tuple(log.item_ids)))
    return parts, choose(folder, features, inner, parts.train, 0, seed=0)[1]


def expected(features: ItemFeatures, parts: Split) -> Demand:
    """Of the log that the towers learnt from."""
    return demand(split(parts.train, "time").train, features)


def ndcg_of_new(folder: Path, parts: Split, features: ItemFeatures, roll: int = 0) -> dict[str, float]:
    """NDCG@10 of the new products among themselves: ours, content-KNN, chance.

    roll: the inheritance is that of another product, so many rows away.
    """
    towers, meta = load(folder)
    served = Served.of(towers, features, meta.repeats, expected(features, parts))
    heirs = served.alike.heirs
    rolled = np.where(NEW[heirs], ITEMS - STYLES + (heirs + roll) % STYLES, heirs)
    served = replace(served, alike=replace(served.alike, heirs=rolled.astype(np.int32)))
    test = Task.of(parts, masked=False)
    proposed = dict(zip(test.users, served.proposed(test.train, test.users), strict=True))
    new = test.on_new()
    assert new is not None
    found = {"ours": new.objective(new_scores(served, proposed))}
    for name, baseline in {"content": ContentKNN(features), "random": Random()}.items():
        found[name] = new.objective(baseline.fit(test.train))
    return found


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Split, Served]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, *trained(folder, shop(), content())


@pytest.fixture
def checkpoint(chosen: tuple[Path, Split, Served]) -> tuple[Path, Split]:
    return chosen[:2]


def test_new_products_are_ranked_for_the_right_visitors(checkpoint: tuple[Path, Split]) -> None:
    """Whose last style it is: content-KNN alone does not know which of a visitor's styles is the last one."""
    folder, parts = checkpoint
    assert without_id(load(folder)[0].item).tolist() == NEW.tolist()
    found = ndcg_of_new(folder, parts, content())
    assert found["ours"] > 0.8 > found["content"] > found["random"]


def test_what_another_product_would_inherit_ranks_no_better_than_chance(
    checkpoint: tuple[Path, Split],
) -> None:
    folder, parts = checkpoint
    assert ndcg_of_new(folder, parts, content(), roll=5)["ours"] < 0.5


def test_inheriting_costs_the_whole_list_next_to_nothing(checkpoint: tuple[Path, Split]) -> None:
    folder, parts = checkpoint
    towers, meta = load(folder)
    assert meta.repeats.inherited > 0 >= meta.repeats.newcomer
    inner = split(split(shop(), "time").train, "time")
    users = sorted(inner.targets)
    served = Served.of(towers, content(), replace(meta.repeats, inherited=0.0), expected(content(), parts))
    proposed = served.proposed(inner.train, users)
    targets = [inner.targets[user] for user in users]
    now = meta.repeats, served.table
    trial = hold_out(towers, inner.train, content(), users, targets, proposed, now)
    assert trial is not None
    added = trial.inherited(meta.repeats)
    without = trial.whole(np.full(trial.scores.shape, -np.inf))
    assert trial.whole(added + meta.repeats.newcomer) >= 0.995 * without
    assert trial.among_themselves(added) > trial.among_themselves(0 * added)
    for row, known in zip(trial.scores, trial.known, strict=True):
        assert not np.isin(trial.rows[row > -np.inf], known).any()


def test_what_is_measured_is_what_the_checkpoint_has(chosen: tuple[Path, Split, Served]) -> None:
    folder, parts, served = chosen
    towers, meta = load(folder)
    read = Served.of(towers, content(), meta.repeats, expected(content(), parts))
    assert served.repeats == meta.repeats
    assert served.alike.to_bytes() == read.alike.to_bytes() and len(read.alike.heirs)
    np.testing.assert_array_equal(served.table, read.table)


def test_without_content_nothing_is_inherited(tmp_path: Path) -> None:
    parts, _ = trained(tmp_path, shop(), content(says=False))
    towers, meta = load(tmp_path)
    assert meta.repeats.inherited == 0
    assert not len(who_inherits(towers, content(False), meta.repeats, expected(content(False), parts)).heirs)


def test_where_content_says_nothing_of_what_follows_what_is_inherited_is_chance(tmp_path: Path) -> None:
    """The trial's few users may still like a weight: noise."""
    parts, _ = trained(tmp_path, shop(follows=0.0), content())
    found = ndcg_of_new(tmp_path, parts, content())
    assert found["ours"] == pytest.approx(found["random"], abs=0.05)


def test_few_users_choose_nothing(checkpoint: tuple[Path, Split]) -> None:
    folder, parts = checkpoint
    towers, _ = load(folder)
    served = Served.of(towers, content(), Repeats(), expected(content(), parts))
    users = sorted(parts.targets)[: LEAST_USERS - 1]
    targets = [parts.targets[user] for user in users]
    proposed = served.proposed(parts.train, users)
    trial = hold_out(towers, parts.train, content(), users, targets, proposed, (Repeats(), served.table))
    assert choose_inheritance(Repeats(), trial) == choose_inheritance(Repeats(), None) == Repeats()


@pytest.mark.parametrize("places", [3, 10, 11, 400])
def test_the_best_are_those_of_a_stable_sort(places: int) -> None:
    """Products of equal content have equal scores, and what was met has none."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, places)).astype(float)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[0] = -np.inf
    np.testing.assert_array_equal(_best(scores), np.argsort(-scores, axis=1, kind="stable")[:, :CUT])
