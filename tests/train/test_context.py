"""Context in training: which logs have one, codes against rows, and a world that only context explains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.evaluate as evaluation
import train.trainer as trainer
import train.validation as validation
from functions.core.context import ELAPSED, NAMES_AT, Asked, Context, table_rows
from functions.core.events import DISMISS
from functions.core.features import gap_bucket
from functions.core.repeats import Own, Repeats
from functions.core.ring import ENTRY_BYTES, Ring, RingEntry
from functions.core.user_row import UserRow, event_hash, item_key, new_row
from tests.train.test_fit import ITEMS, QUICK, SHAPE, circle, features
from train.checkpoint import Meta, load, save
from train.context import (
    DROPPED,
    PARTS,
    ContextTable,
    Requests,
    event_codes,
    mean_so_far,
    next_event,
)
from train.dataset import held_out, histories
from train.evaluate import (
    Candidates,
    TowerItems,
    Visitors,
    candidates,
    embed_items,
    evaluate,
    torch_encoder,
    user_rows,
)
from train.log import Interactions
from train.repeats import choose_repeats
from train.served import Exam
from train.split import Split, split
from train.towers import Towers
from train.trainer import Trainer
from train.validation import choose

DEVICES, SLOTS = ("mobile", "desktop"), ("home", "cart", "product")


def shuffled_times(log: Interactions) -> Interactions:
    """The same events at times of all hours and weekdays."""
    gaps = np.random.default_rng(1).integers(1, 50_000, len(log.user))
    return dataclasses.replace(log, time_s=1_700_000_000 + np.cumsum(gaps))


def anything(devices: int, slots: int, dim: int) -> ContextTable:
    """A table in which everything says something."""
    table = ContextTable(devices, slots, dim).eval()
    for weights in table.parameters():
        torch.nn.init.normal_(weights.data)
    table.clock.data[0] = 0
    return table


def row_at(last_s: int, vector: np.ndarray) -> UserRow:
    """A user whose last event was then."""
    nothing = np.zeros(4, np.float16)
    return UserRow(nothing, vector.astype(np.float16), "", Ring(bytes(ENTRY_BYTES)), int(last_s))


def test_codes_stand_for_the_rows_that_serving_adds() -> None:
    log = shuffled_times(circle(users=40))
    rng = np.random.default_rng(0)
    device, slot = (rng.integers(0, n + 1, len(log.user)).astype(np.int16) for n in (2, 3))
    log = dataclasses.replace(log, device=device, slot=slot, devices=DEVICES, slots=SLOTS)
    table = anything(2, 3, 8)
    rows, factors, interests = (part.detach().numpy() for part in table.tables())
    starts = ((DEVICES, NAMES_AT), (SLOTS, NAMES_AT + 2))
    names = [{name: at + n for n, name in enumerate(of)} for of, at in starts]
    served = Context(rows, factors, interests, *names)
    some = [
        row_at(time_s, rng.normal(size=8)) for time_s in log.time_s - rng.integers(0, 10**6, len(log.user))
    ]
    some[3], some[4] = UserRow(some[3].state, some[3].vector, ""), row_at(int(log.time_s[4]) + 9, np.ones(8))
    own = [Own(rng.integers(0, ITEMS, 3).tolist(), {0: 0.5}) for _ in some]
    embeddings = rng.normal(size=(ITEMS, 8)).astype(np.float16)
    visitors = Visitors(some, own, TowerItems(log.item_ids, embeddings))
    found = visitors.queries(table, Requests.at_events(log, np.arange(len(log.user))))
    for at, row in enumerate(some):
        now_s = int(log.time_s[at])
        asked = Asked(("", *DEVICES)[device[at]], ("", *SLOTS)[slot[at]], now_s, row.elapsed_s(now_s))
        wanted = served.query(row.vector, asked, lambda at=at: own[at].mean(embeddings))
        np.testing.assert_allclose(found[at], wanted, atol=1e-4)
    assert NAMES_AT == 63 and len(rows) == table_rows(2, 3) == 68 and len(factors) == len(interests) == 32
    assert not rows[0].any() and not factors[0].any() and not interests[0].any()


def anything_told(log: Interactions) -> bool:
    return bool(event_codes(log).any())


def test_made_up_times_and_times_that_never_differ_are_no_context() -> None:
    log = circle()
    assert not anything_told(log)  # a minute apart, all of them
    own_pace = dataclasses.replace(log, time_s=log.time_s * (1 + log.user))
    assert not anything_told(own_pace)  # each user's as far apart as they were
    days = np.cumsum(np.random.default_rng(0).integers(0, 3, len(log.user))) * 7 * 86_400
    assert not anything_told(dataclasses.replace(log, time_s=days))  # always Thursday, midnight
    assert anything_told(shuffled_times(log))
    mobile = np.ones(len(log.user), np.int16)
    assert anything_told(dataclasses.replace(log, device=mobile, devices=DEVICES))
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
    assert not any(weights.any() for weights in trainer.objective.towers.context.parameters())


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
    assert not towers.context.clock[0].any()
    table, users = embed_items(towers, features()), sorted(parts.targets)
    asked = Requests.at_events(log, next_event(log, parts.train, users))
    shares = []
    for requests in (asked, None):
        found = candidates(parts.train, users, towers, table, requests)
        halves = np.stack([c.best[0][: ITEMS // 2] // (ITEMS // 2) for c in found])
        wanted = np.array([parts.targets[u][0] // (ITEMS // 2) for u in users])
        shares.append(float((halves == wanted[:, None]).mean()))
    assert shares[0] > 0.9 > 0.7 > shares[1]


@pytest.mark.parametrize("wrong", [{"devices": -1}, {"slots": -1}, {"vectors": -1}])
def test_a_bad_shape_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(SHAPE, **wrong)


def test_what_gains_the_validations_lists_nothing_is_silenced(tmp_path: Path) -> None:
    log, shape = shuffled_times(by_device()), dataclasses.replace(SHAPE, devices=2)
    parts = split(log, "leave-one-out")
    inner = split(parts.train, "leave-one-out")
    trainer = Trainer(inner.train, features(), shape, QUICK, 80)
    made = histories(inner.train).cut(QUICK.window)
    for _ in range(80):
        trainer.step(made.batch(torch.arange(len(made.length))).to(trainer.device), "here")
    towers = trainer.towers.cpu()
    with torch.no_grad():
        towers.context.clock[1:].normal_(std=9.0)  # chance that was taken for a rule
    save(tmp_path, towers, Meta(tuple(log.item_ids)))
    said, served = choose(tmp_path, features(), inner, parts.train, 0, seed=0)
    assert said["context"] == {"clock": False, "names": True, "elapsed": False, "interest": False}
    assert not served.towers.context.clock.any() and served.towers.context.names.any()
    again, _ = choose(tmp_path, features(), inner, parts.train, 0, seed=0)  # as a run that was ended there
    assert again == said


def test_the_validation_is_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a context that is silenced nothing is left in the repeat term and in what the checkpoint says."""
    chosen_by: list[list[Candidates]] = []

    def spied(proposed: list[Candidates], *more: Any) -> Repeats:
        chosen_by.append(proposed)
        return choose_repeats(proposed, *more)

    monkeypatch.setattr(validation, "choose_repeats", spied)
    log = by_elapsed()
    parts = split(dataclasses.replace(log, time_s=np.sort(log.time_s)), "time")
    inner = split(parts.train, "time")
    towers = Towers(SHAPE)
    towers.context = anything(0, 0, SHAPE.dim)
    save(tmp_path, towers, Meta(tuple(log.item_ids)))
    monkeypatch.setattr(validation, "_silent", lambda *_: PARTS)
    said, served = choose(tmp_path, features(), inner, parts.train, 0, seed=0)
    exam = Exam.of(inner)
    assert exam.asked is not None and not served.towers.context.heard
    proposed = served.proposed(exam.train, exam.users, exam.asked)
    kept = evaluate(proposed, served.repeats, exam.targets, served.table)
    assert said["validation"] == kept == load(tmp_path)[1].metrics
    first, last = (np.stack([each.vector for each in some]) for some in chosen_by)
    np.testing.assert_array_equal(last, [each.vector for each in proposed])
    assert (first != last).any()
    served.towers.context = anything(0, 0, SHAPE.dim)
    assert kept != evaluate(
        served.proposed(exam.train, exam.users, exam.asked), served.repeats, exam.targets, served.table
    )


def by_elapsed() -> Interactions:
    """Within the hour the next item is one of the first half, after days one of the second; no other rule."""
    log = circle(users=80, length=10)
    rng = np.random.default_rng(4)
    away = rng.integers(0, 2, len(log.user))
    gap_s = np.where(
        away, rng.integers(2 * 86_400, 4 * 86_400, len(away)), rng.integers(60, 3_600, len(away))
    )
    item = (rng.integers(0, ITEMS // 2, len(away)) + away * (ITEMS // 2)).astype(np.int32)
    time_s = np.zeros(len(away), np.int64)
    for user in range(80):
        own = np.flatnonzero(log.user == user)
        time_s[own] = 1_700_000_000 + np.cumsum(gap_s[own])
    return dataclasses.replace(log, item=item, time_s=time_s)


def test_a_world_that_only_the_time_since_the_last_event_explains_is_explained_by_it() -> None:
    log, options = by_elapsed(), dataclasses.replace(QUICK, horizon_s=1)
    parts = split(log, "leave-one-out")
    trainer = Trainer(parts.train, features(), SHAPE, options, 80)
    for epoch in range(80):
        made = histories(parts.train, 1).cut(QUICK.window, torch.Generator().manual_seed(epoch))
        trainer.step(made.batch(torch.arange(80)).to(trainer.device), "here")
    towers = trainer.towers.cpu().eval()
    table, users = embed_items(towers, features()), sorted(parts.targets)
    rows = next_event(log, parts.train, users)
    asked = Requests(np.zeros(len(users), np.int64), log.time_s[rows])  # the clock says nothing here
    wanted = log.item[rows] // (ITEMS // 2)
    shares = []
    for requests in (asked, None):
        found = candidates(parts.train, users, towers, table, requests)
        halves = np.stack([c.best[0][: ITEMS // 2] // (ITEMS // 2) for c in found])
        shares.append(float((halves == wanted[:, None]).mean()))
    assert shares[0] > 0.8 > 0.65 > shares[1]


def test_without_a_horizon_or_with_made_up_times_no_time_since_the_last_event_is_learnt() -> None:
    for log, horizon_s in ((by_elapsed(), 0), (circle(), 600)):
        trainer = Trainer(log, features(), SHAPE, dataclasses.replace(QUICK, horizon_s=horizon_s), 10)
        made = histories(log, horizon_s).cut(QUICK.window, torch.Generator().manual_seed(0))
        trainer.step(made.batch(torch.arange(8)).to(trainer.device), "here")
        context = trainer.objective.towers.context
        weights = context.elapsed_added, context.elapsed_factors, context.interests
        assert not any(each.any() for each in weights)


def test_a_time_that_training_never_saw_means_what_the_one_below_it_means() -> None:
    table = ContextTable(0, 0, 8)
    with torch.no_grad():
        table.elapsed_added[:5] = 1.0
        table.elapsed_factors[:5] = 0.5
    rows, factors, _ = table.tables()
    assert torch.equal(factors[5:], factors[5].expand(ELAPSED - 4, 8))
    assert torch.equal(rows[NAMES_AT - ELAPSED + 4 :], rows[NAMES_AT - ELAPSED + 4].expand(ELAPSED - 4, 8))
    assert factors[:6, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_silenced_changes_nothing_and_the_others_what_they_did(part: str) -> None:
    table, silent = anything(1, 1, 8), anything(1, 1, 8)
    silent.load_state_dict(table.state_dict())
    silent.silence([part])
    none = torch.zeros(1, dtype=torch.int64)
    hour = torch.tensor([7 + 25 * 3])  # of a Wednesday, from nowhere
    name = torch.tensor([25 * 8])  # the device, at no time
    vectors, nobody, mean = torch.ones(1, 8), torch.zeros(1, 8), torch.ones(1, 8)
    asked = {
        "clock": (vectors, mean, hour, none),
        "names": (vectors, mean, name, none),
        "elapsed": (vectors, nobody, none, none + 9),
    }
    for other, said in asked.items():
        assert torch.equal(silent(*said), vectors if other == part else table(*said))
    heard, known = (
        each(nobody, mean, none, none + 9) - each(nobody, nobody, none, none + 9) for each in (silent, table)
    )
    assert torch.equal(heard, nobody) if part == "interest" else torch.allclose(heard, known, atol=1e-5)


def test_a_request_comes_with_the_event_with_the_next_or_between() -> None:
    log = by_elapsed()
    made = histories(log, 1)
    wait_s = made.wait_s.numpy()
    drawn = [made.cut(QUICK.window, torch.Generator().manual_seed(seed)).columns[6] for seed in range(30)]
    elapsed = np.stack([each.numpy() for each in drawn])
    last = wait_s < 0
    assert last.sum() == 80 and not elapsed[:, last].any()
    days = wait_s > 86_400
    at_once, at_the_next = elapsed[:, days] == 1, elapsed[:, days] == gap_bucket(wait_s[days])
    assert at_once.mean() == pytest.approx(1 / 3, abs=0.02)
    assert 1 / 3 < at_the_next.mean() < 2 / 3  # a bucket of days is hours wide
    assert (elapsed[:, days] <= gap_bucket(wait_s[days])).all() and (elapsed[:, days] > 0).all()


def test_each_user_is_asked_at_the_moment_of_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    log, shape = shuffled_times(circle(users=20)), dataclasses.replace(SHAPE, devices=1, slots=1)
    towers = Towers(shape).eval()
    towers.context = anything(1, 1, SHAPE.dim)
    asked = Requests(np.zeros(20, np.int64), log.time_s.max() + np.arange(20) * 90_000)
    table = embed_items(towers, features())
    whole = candidates(log, list(range(20)), towers, table, asked)
    monkeypatch.setattr(evaluation, "USERS_AT_ONCE", 3)
    parts = candidates(log, list(range(20)), towers, table, asked)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)
    assert len({each.vector.tobytes() for each in whole}) == 20


def test_a_time_is_left_out_in_training_as_often_as_the_rest() -> None:
    table = anything(0, 0, 4).train()
    vectors, none = torch.ones(4000, 4), torch.zeros(4000, dtype=torch.int64)
    same = (table(vectors, vectors, none, none + 9) == vectors).all(1).double().mean().item()
    assert same == pytest.approx(DROPPED, abs=0.03)


def test_means_are_of_the_events_so_far_without_dismissals() -> None:
    embedded, item = torch.arange(8.0).view(1, 4, 2), torch.arange(4)[None]
    found = mean_so_far(embedded, item, torch.tensor([[1, 4, DISMISS, 2]]))
    np.testing.assert_allclose(found[0], [[0, 1], [1, 2], [1, 2], [8 / 3, 11 / 3]], rtol=1e-6)
    first = mean_so_far(embedded, item, torch.full((1, 4), DISMISS))
    assert not first.any()


def test_a_dismissal_takes_what_was_before_out_of_the_mean_as_it_does_when_served() -> None:
    """Random stretches of few items and many dismissals, against `Repeats.own` of each beginning."""
    rng, users, length = np.random.default_rng(6), 20, 30
    item = rng.integers(0, 5, (users, length))
    kind = np.where(rng.random((users, length)) < 0.3, DISMISS, 1)
    table = rng.normal(size=(5, 8)).astype(np.float16)
    rows = {item_key(f"i{n}"): n for n in range(5)}
    embedded = torch.from_numpy(table[item].astype(np.float32))
    found = mean_so_far(embedded, torch.from_numpy(item), torch.from_numpy(kind))
    for user, place in np.ndindex(users, length):
        ring = tuple(
            RingEntry(event_hash(str(n)), item_key(f"i{item[user, n]}"), int(kind[user, n]), 0, 0)
            for n in range(place + 1)
        )
        own = Repeats().own(
            new_row("", 0, 0).but(ring=Ring.of(ring)), lambda keys: [rows[key] for key in keys]
        )
        np.testing.assert_allclose(found[user, place], own.mean(table), atol=1e-5)


def test_the_parallel_form_asks_as_a_row_does() -> None:
    """With a general interest that is loud, and dismissals: what the towers learn is what is then served."""
    log = by_elapsed()
    log.kind[np.random.default_rng(7).random(len(log.kind)) < 0.2] = DISMISS
    objective = Trainer(log, features(), SHAPE, dataclasses.replace(QUICK, horizon_s=1), 1).averaged
    context = objective.towers.context = anything(0, 0, SHAPE.dim)
    context.interests.data *= 20
    table = embed_items(objective.towers, features())
    items = TowerItems(log.item_ids, table)
    rows = user_rows(log, list(range(80)), torch_encoder(objective.towers, items))
    waits_s = np.random.default_rng(0).integers(0, 10**6, 80)
    asked = Requests(np.zeros(80, np.int64), np.array([row.last_s for row in rows]) + waits_s)
    wanted = Visitors.of(rows, items).queries(context, asked)
    targets = {user: np.zeros(1, np.int64) for user in range(80)}
    made = held_out(Split(log, targets), 16).windows.batch(torch.arange(80))
    elapsed = torch.from_numpy(gap_bucket(waits_s))[:, None].expand_as(made.elapsed)
    with torch.no_grad():
        embedded = torch.from_numpy(table.astype(np.float32))[made.item]
        found = objective.vectors(embedded, dataclasses.replace(made, elapsed=elapsed))[:, -1]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=4e-3)
    deaf = Visitors(rows, [Own()] * 80, items).queries(context, asked)
    assert np.median(np.abs(wanted - deaf).max(1)) > 0.1


@pytest.mark.parametrize(("horizon_s", "learnt"), [(0, False), (1, True)])
def test_a_mean_is_made_where_an_interest_is_learnt(
    horizon_s: int, learnt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a look at every pair of events where there are dismissals."""
    made: list[bool] = []

    def counted(*parts: torch.Tensor) -> torch.Tensor:
        made.append(True)
        return mean_so_far(*parts)

    monkeypatch.setattr(trainer, "mean_so_far", counted)
    log = by_elapsed()
    training = Trainer(log, features(), SHAPE, dataclasses.replace(QUICK, horizon_s=horizon_s), 1)
    held = held_out(Split(log, {user: np.zeros(1, np.int64) for user in range(80)}), 16)
    assert training.objective.context_parts
    training.top(held, 5)
    assert bool(made) is learnt


def test_only_event_types_that_the_repeat_term_counts_are_in_the_mean() -> None:
    log = by_elapsed()
    log.kind[:] = np.where(log.item % 2, 4, 1)
    towers = Towers(SHAPE).eval()
    towers.context = anything(0, 0, SHAPE.dim)
    items = TowerItems(log.item_ids, embed_items(towers, features()))
    rows = user_rows(log, list(range(80)), torch_encoder(towers, items))
    asked = Requests.at(int(log.time_s.max()) + 86_400, 80)
    for kinds in ((1, 4), (4,)):
        own = [Repeats(kinds=kinds).own(row, items.rows) for row in rows]
        wanted = Visitors(rows, own, items).queries(towers.context, asked)
        found = Visitors.of(rows, items, kinds).proposed(towers.context, asked)
        np.testing.assert_array_equal([each.vector for each in found], wanted)
    whole = Visitors.of(rows, items, (1, 4)).proposed(towers.context, asked)
    assert not np.allclose([each.vector for each in whole], wanted, atol=1e-3)


def test_an_exam_asks_when_its_split_says() -> None:
    parts = split(dataclasses.replace(by_elapsed(), time_s=np.sort(by_elapsed().time_s)), "time")
    asked = Exam.of(parts, 5).asked
    assert asked is not None and asked.time_s.tolist() == [parts.asked_s] * 5 and not asked.code.any()
    assert Exam.of(split(by_elapsed(), "leave-one-out")).asked is None


def test_a_split_by_time_says_when_its_users_ask() -> None:
    log = by_elapsed()
    log = dataclasses.replace(log, time_s=np.sort(log.time_s))
    parts = split(log, "time")
    assert parts.asked_s == parts.train.time_s.max() + 1
    assert split(log, "leave-one-out").asked_s is None
    held = held_out(parts, QUICK.window).windows.batch(torch.arange(len(parts.targets)))
    for user, buckets in zip(sorted(parts.targets), held.elapsed.tolist(), strict=True):
        own = parts.train.time_s[parts.train.user == user]
        assert parts.asked_s is not None
        wanted = gap_bucket(parts.asked_s - own[-QUICK.window :]).tolist()
        assert buckets[: len(wanted)] == wanted
    assert not held.context.any()
