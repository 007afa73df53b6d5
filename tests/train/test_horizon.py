"""Targets from within the horizon: whose they are, when they are, and how many."""

import dataclasses

import numpy as np
import pytest
import torch

from functions.core.events import DISMISS
from train.dataset import AHEAD, Batch, histories
from train.log import Interactions
from train.options import LONGEST_HORIZON_S, Options
from train.rules import Facts, facts, options_for

USERS, LENGTH, EVERY_S = 12, 30, 60


def visitors() -> Interactions:
    """Every event of every user has an item of its own, and they come a minute apart, user by user apart."""
    nth = np.arange(USERS * LENGTH)
    time_s, user = np.divmod(nth, USERS)
    kind, value = np.ones(len(nth), np.int8), np.full(len(nth), np.nan, np.float32)
    item = (user * LENGTH + time_s).astype(np.int32)
    ids = [f"sku-{i}" for i in range(len(nth))]
    return Interactions(user.astype(np.int32), item, kind, time_s * EVERY_S, value, list(map(str, nth)), ids)


def batch(horizon_s: int, seed: int | None = 0, log: Interactions | None = None) -> Batch:
    shuffle = None if seed is None else torch.Generator().manual_seed(seed)
    made = histories(visitors() if log is None else log, horizon_s).cut(LENGTH, shuffle)
    return made.batch(torch.arange(len(made.length)))


def ahead(made: Batch) -> torch.Tensor:
    """How many events after the position each target comes, [P]."""
    known = made.target >= 0
    assert torch.equal(made.target[known] // LENGTH, made.item[known] // LENGTH)  # the same user's
    return made.target[known] - made.item[known]


@pytest.mark.parametrize("minutes", [2, 3, 7, LENGTH])
def test_a_target_is_the_users_own_and_within_the_horizon(minutes: int) -> None:
    steps = torch.cat([ahead(batch(minutes * EVERY_S, seed)) for seed in range(20)])
    assert steps.min() == 1
    assert steps.max() == min(minutes + 1, LENGTH - 1)  # a request with the next event reaches one further


def test_every_event_in_the_horizon_is_drawn_alike() -> None:
    steps = torch.cat([ahead(batch(4 * EVERY_S, seed)) for seed in range(60)]).bincount()[1:] / USERS / 60
    share = steps / steps.sum()
    far = AHEAD / 3 / 5  # of the third that asks with the next event, and so has five to draw from
    near = AHEAD * 2 / 3 / 4 + far
    assert share[1:].numpy() == pytest.approx([near, near, near, far], abs=0.02)  # the last few have fewer
    assert share[0] == pytest.approx(1 - AHEAD + near, abs=0.03)


def test_the_horizon_begins_with_the_request_and_not_with_the_event_before_it() -> None:
    """Visits of six events, a month apart, and a horizon of a day: whoever asks between them asks for all of
    the next one, if it comes within the day."""
    log = visitors()
    day_s = 86_400
    time_s = log.time_s // EVERY_S // 6 * 30 * day_s + log.time_s % (6 * EVERY_S)
    drawn = [batch(day_s, seed, dataclasses.replace(log, time_s=time_s)) for seed in range(60)]
    place = torch.cat([each.item[each.target >= 0] % 6 for each in drawn])
    steps = torch.cat([ahead(each) for each in drawn])
    last = steps[place == 5].bincount(minlength=8)[1:] / (place == 5).sum()
    asked = 1 / 3 + 1 / 3 / 30  # with the next event, or on the day before it
    assert last[:6].numpy() == pytest.approx([1 - asked * AHEAD * 5 / 6] + [asked * AHEAD / 6] * 5, abs=0.02)
    assert not last[6:].any()
    assert steps[place == 0].max() == 5  # in a visit the next one is a month away


@pytest.mark.parametrize(("horizon_s", "seed"), [(0, 0), (EVERY_S - 1, 0), (LENGTH * EVERY_S, None)])
def test_the_next_event_is_the_target_without_a_horizon_and_in_validation(
    horizon_s: int, seed: int | None
) -> None:
    assert ahead(batch(horizon_s, seed)).unique().tolist() == [1]


def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    made = histories(visitors(), 10 * EVERY_S)
    drawn = [made.cut(LENGTH, torch.Generator().manual_seed(seed)).columns for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0][:4], made.columns[:4])


def test_a_target_keeps_its_own_context() -> None:
    log = visitors()
    device = (log.item % 5).astype(np.int16)
    log = dataclasses.replace(log, device=device, devices=list("abcde"))
    plain, drawn = batch(0, 3, log), batch(10 * EVERY_S, 3, log)
    (rows, codes), pairs = (
        (made.target[made.target >= 0].tolist(), made.context[made.target >= 0].tolist())
        for made in (plain, drawn)
    )
    context_of = dict(zip(rows, codes, strict=True))
    assert len(set(context_of.values())) > 1
    assert all(context_of[row] == code for row, code in zip(*pairs, strict=True))


def test_what_is_dismissed_is_no_target() -> None:
    log = visitors()
    log.kind[log.item % 3 == 0] = DISMISS
    drawn = [batch(5 * EVERY_S, seed, log).target for seed in range(5)]
    assert all((some[some >= 0] % 3 != 0).all() for some in drawn)
    assert any((some[:, :-1] >= 0).any() for some in drawn)


def test_the_horizon_is_as_long_as_the_validation_of_a_split_by_time() -> None:
    assert options_for(Facts(10, 10, 1_000), Options()).horizon_s == 0
    assert options_for(Facts(10, 10, 1_000, horizon_s=86_400), Options()).horizon_s == 86_400
    assert facts(visitors(), 120).horizon_s == 120


def test_a_horizon_longer_than_any_log_is_named() -> None:
    assert Options(horizon_s=LONGEST_HORIZON_S).horizon_s == LONGEST_HORIZON_S
    with pytest.raises(ValueError, match=rf"horizon_s is {10**20}; expected {LONGEST_HORIZON_S} at most"):
        Options(horizon_s=10**20)
