"""What metrics.json says beside the test as served: masked lists, few events; against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.ranks import ranks
from tests.train.test_evaluate import interactions
from train.evaluate import USERS_AT_ONCE
from train.report import newest
from train.served import Exam
from train.split import Split

NOTHING = -1


def task(seed: int, users: int = 40, items: int = 50) -> tuple[Exam, np.ndarray]:
    """Random histories, some of nearly the whole catalogue, one target each, random scores."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 2 * items, users)
    user = np.repeat(np.arange(users), lengths)
    log = interactions(user.tolist(), rng.integers(0, items, len(user)).tolist())
    log = replace(log, item_ids=[f"i{i}" for i in range(items)])
    targets = {u: rng.integers(0, items, 1) for u in range(0, users, 2)}
    return Exam.of(Split(log, targets)), rng.normal(size=(len(targets), items)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_masked_lists_have_each_target_where_it_ranks_among_what_is_not_in_the_history(seed: int) -> None:
    test, scores = task(seed)
    history = [test.train.item[test.train.user == user].astype(np.int64) for user in test.users]
    expected = ranks(scores, np.concatenate(test.targets), history)
    top = test.masked(iter(torch.split(torch.from_numpy(scores.copy()), USERS_AT_ONCE)))
    for row, (target,), place, had in zip(top, test.targets, expected, history, strict=True):
        assert (row.tolist().index(target) if target in row else len(row)) == min(place, len(row))
        shown = row[row != NOTHING]
        assert len(set(shown.tolist())) == len(shown)
        assert not set(shown.tolist()) & set(had.tolist()) - {target}


def test_where_all_is_masked_the_list_ends() -> None:
    log = interactions([0, 0, 0], [0, 1, 2])
    test = Exam.of(Split(log, {0: np.array([2])}))
    assert test.masked(iter([torch.zeros(1, 3)])).tolist() == [[2, NOTHING, NOTHING]]


def test_impressions_mask_nothing() -> None:
    log = replace(interactions([0, 0], [0, 1]), kind=np.array([1, 7], np.int8))
    test = Exam.of(Split(log, {0: np.array([1])}))
    assert test.masked(iter([torch.tensor([[3.0, 2.0]])])).tolist() == [[1, NOTHING]]
    test = Exam.of(Split(log, {0: np.array([0])}))
    assert sorted(test.masked(iter([torch.tensor([[3.0, 2.0]])]))[0].tolist()) == [0, 1]


def test_the_newest_events_of_each_user_are_left_in_their_order() -> None:
    log = interactions([0, 1, 0, 1, 0, 2], [0, 1, 2, 3, 4, 5])
    log = replace(log, kind=np.array([1, 1, 1, 1, 7, 1], np.int8))  # 4 was only shown
    assert newest(log, 1).item.tolist() == [2, 3, 5]
    assert newest(log, 2).item.tolist() == [0, 1, 2, 3, 5]
    assert newest(log, 9).item.tolist() == [0, 1, 2, 3, 5]
    assert newest(log, 1).user.tolist() == [0, 1, 2]


def test_some_of_the_users_are_drawn_by_seed() -> None:
    parts = Split(interactions([0], [0]), {user: np.array([0]) for user in range(50)})
    drawn = Exam.of(parts, 10, seed=1)
    assert len(drawn.users) == len(set(drawn.users)) == 10 and drawn.users == sorted(drawn.users)
    assert drawn.users == Exam.of(parts, 10, seed=1).users != Exam.of(parts, 10, seed=2).users
    assert Exam.of(parts).users == list(range(50))
