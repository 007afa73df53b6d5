"""Context in training: which logs have one, codes against rows, and a world that only context explains."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from functions.core.context import NAMES_AT, Context, table_rows
from tests.train.test_fit import ITEMS, QUICK, SHAPE, circle, features
from train.context import ContextTable, event_codes, has_context, next_event, request_vectors
from train.dataset import histories
from train.evaluate import candidates, embed_items
from train.log import Interactions
from train.split import split
from train.trainer import Trainer

DEVICES, SLOTS = ("mobile", "desktop"), ("home", "cart", "product")


def shuffled_times(log: Interactions) -> Interactions:
    """The same events at times of all hours and weekdays."""
    gaps = np.random.default_rng(1).integers(1, 50_000, len(log.user))
    return dataclasses.replace(log, time_s=1_700_000_000 + np.cumsum(gaps))


def test_codes_stand_for_the_rows_that_serving_adds() -> None:
    log = shuffled_times(circle(users=40))
    rng = np.random.default_rng(0)
    device, slot = (rng.integers(0, n + 1, len(log.user)).astype(np.int16) for n in (2, 3))
    log = dataclasses.replace(log, device=device, slot=slot, devices=DEVICES, slots=SLOTS)
    table = ContextTable(2, 3, 8).eval()
    torch.nn.init.normal_(table.table.data[1:])
    rows = table.table.detach().numpy()
    names = [{name: at + n for n, name in enumerate(of)} for of, at in ((DEVICES, 32), (SLOTS, 34))]
    served = Context(rows, *names)
    found = table(torch.from_numpy(event_codes(log))).detach().numpy()
    for at in range(len(log.user)):
        asked = (("", *DEVICES)[device[at]], ("", *SLOTS)[slot[at]], int(log.time_s[at]))
        np.testing.assert_allclose(found[at], served.vector(*asked), atol=1e-5)
    assert NAMES_AT == 32 and len(rows) == table_rows(2, 3) == 37


def test_made_up_times_and_times_that_never_differ_are_no_context() -> None:
    log = circle()
    assert not has_context(log)  # a minute apart, all of them
    own_pace = dataclasses.replace(log, time_s=log.time_s * (1 + log.user))
    assert not has_context(own_pace)  # each user's as far apart as they were
    days = np.cumsum(np.random.default_rng(0).integers(0, 3, len(log.user))) * 7 * 86_400
    assert not has_context(dataclasses.replace(log, time_s=days))  # always Thursday, midnight
    assert has_context(shuffled_times(log))
    mobile = np.ones(len(log.user), np.int16)
    assert has_context(dataclasses.replace(log, device=mobile, devices=DEVICES))
    dates = dataclasses.replace(log, time_s=days // 7)
    assert set(np.unique(event_codes(dates)) % 25) == {0}  # weekdays alone


def test_a_target_has_its_own_context_and_not_the_event_befores() -> None:
    log = shuffled_times(circle(users=3, length=6))
    made = histories(log).cut(8).batch(torch.arange(3))
    codes = event_codes(log)
    for row in range(3):
        own = np.flatnonzero(log.user == row)
        length = int((made.target[row] >= 0).sum())
        assert made.context[row, :length].tolist() == codes[own][1 : length + 1].tolist()


def test_the_next_event_is_the_first_that_training_lacks() -> None:
    log = circle(users=3, length=6)
    log.kind[3 * 4 + 1] = 7  # an impression of user 1 is no event
    rows = next_event(log, split(log, "leave-one-out").train, [0, 1, 2])
    assert [(int(log.user[r]), int(log.time_s[r])) for r in rows] == [(0, 300), (1, 300), (2, 300)]


def test_without_a_context_nothing_is_learnt_or_added() -> None:
    trainer = Trainer(circle(), features(), SHAPE, QUICK, 10)
    batch = histories(circle()).cut(QUICK.window).batch(torch.arange(8)).to(trainer.device)
    for _ in range(3):
        trainer.step(batch, "here")
    assert not trainer.objective.towers.context.table.any()


def by_device() -> Interactions:
    """On a phone the next item is one of the first half, on a desktop one of the second; no other rule."""
    log = circle(users=80, length=10)
    rng = np.random.default_rng(3)
    device = rng.integers(1, 3, len(log.user)).astype(np.int16)
    item = (rng.integers(0, ITEMS // 2, len(log.user)) + (device - 1) * (ITEMS // 2)).astype(np.int32)
    return dataclasses.replace(log, item=item, device=device, devices=DEVICES)


def test_a_world_that_only_the_device_explains_is_explained_by_it() -> None:
    log, shape = by_device(), dataclasses.replace(SHAPE, devices=2)
    parts = split(log, "leave-one-out")
    trainer, made = (
        Trainer(parts.train, features(), shape, QUICK, 80),
        histories(parts.train).cut(QUICK.window),
    )
    batch = made.batch(torch.arange(len(made.length))).to(trainer.device)
    for _ in range(80):
        trainer.step(batch, "here")
    towers = trainer.towers.cpu().eval()
    assert not towers.context.table[0].any()
    table, users = embed_items(towers, features()), sorted(parts.targets)
    context = request_vectors(towers.context, log, parts.train, users)
    shares = []
    for added in (context, None):
        found = candidates(parts.train, users, towers, table, added)
        halves = np.stack([c.best[0][: ITEMS // 2] // (ITEMS // 2) for c in found])
        wanted = np.array([parts.targets[u][0] // (ITEMS // 2) for u in users])
        shares.append(float((halves == wanted[:, None]).mean()))
    assert shares[0] > 0.9 > 0.7 > shares[1]


@pytest.mark.parametrize("wrong", [{"devices": -1}, {"slots": -1}, {"vectors": -1}])
def test_a_bad_shape_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(SHAPE, **wrong)
