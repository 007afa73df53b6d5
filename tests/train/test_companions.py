"""Who goes with whom: every cosine by hand, and chosen only where lists become better by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import train.companions as module
from functions.core.alike import Alike
from functions.core.repeats import NOBODY, Own, Repeats
from tests.train.test_evaluate import interactions
from train.__main__ import main
from train.baselines.ranking import user_items
from train.checkpoint import BadCheckpoint, Meta, load
from train.companions import choose_companions, find_companions
from train.evaluate import Candidates, evaluate
from train.handover import read_companions, write_companions
from train.log import Interactions, read_log
from train.split import split

USERS, LENGTH, ITEMS, START_S = 120, 10, 200, 1_600_000_000


def random_log(users: int = 40, items: int = 30, events: int = 300, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    return interactions(rng.integers(0, users, events).tolist(), rng.integers(0, items, events).tolist())


def pairs(companions: Alike) -> dict[tuple[int, int], float]:
    """(giver, companion) → cosine."""
    giver = np.repeat(np.arange(len(companions.bounds) - 1), np.diff(companions.bounds)).tolist()
    both = zip(giver, companions.heirs.tolist(), strict=True)
    return dict(zip(both, companions.likeness.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_nearest_by_who_met_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEAREST", 4)
    log = random_log(seed=seed)
    met = user_items(log).toarray()
    cosines = met.T @ met / np.maximum(np.outer(*[np.linalg.norm(met, axis=0)] * 2), 1e-9)
    np.fill_diagonal(cosines, 0)
    found = pairs(find_companions(log))
    for item in range(len(log.item_ids)):
        of = sorted((value for (giver, _), value in found.items() if giver == item), reverse=True)
        np.testing.assert_allclose(of, np.sort(cosines[item])[::-1][: len(of)], atol=2e-3)
        assert len(of) == min(4, int((cosines[item] > 0).sum()))
    assert all(cosines[pair] == pytest.approx(value, abs=2e-3) for pair, value in found.items())
    assert all(a != b for a, b in found)


def test_they_are_in_order_and_no_more_than_a_bundle_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    log = random_log()
    whole = find_companions(log)
    for row in range(len(log.item_ids)):
        of = whole.likeness[whole.bounds[row] : whole.bounds[row + 1]]
        assert (np.diff(of) <= 0).all() and len(of) <= module.NEAREST
    monkeypatch.setattr(module, "MOST_PAIRS", 3 * len(log.item_ids) + 1)
    few = find_companions(log)
    assert np.diff(few.bounds).max() == 3 and pairs(few).items() <= pairs(whole).items()
    monkeypatch.setattr(module, "MOST_PAIRS", len(log.item_ids) - 1)
    assert find_companions(log) is NOBODY


def test_who_shares_no_user_goes_with_nobody() -> None:
    assert not len(find_companions(interactions([0, 1, 2], [0, 1, 2])).heirs)
    assert not len(find_companions(interactions([0, 0], [0, 0])).heirs)
    assert pairs(find_companions(interactions([0, 0, 1], [0, 1, 2]))) == {(0, 1): 1, (1, 0): 1}


def test_equals_have_equal_chances() -> None:
    """A basket of sixty that one user bought: each is a companion of about twenty others."""
    companions = find_companions(interactions([0] * 60, list(range(60))))
    times = np.bincount(companions.heirs, minlength=60)
    assert times.sum() == 60 * module.NEAREST and times[:30].sum() == pytest.approx(600, abs=300)


def proposals(wanted: int) -> list[Candidates]:
    """Users who met item 0 and then item `wanted`, by towers that say something else."""
    table = np.eye(4, dtype=np.float32)
    vector = table[3] * np.float32(0.5)
    return [Candidates((np.array([3, 2]), (table @ vector)[[3, 2]]), Own([0]), vector) for _ in range(3)]


TOGETHER = Alike(np.array([0, 1, 1, 1, 1], np.int32), np.array([1], np.int32), np.array([0.5], np.float16))


def test_they_are_chosen_where_lists_become_better(monkeypatch: pytest.MonkeyPatch) -> None:
    table, before = np.eye(4, dtype=np.float16), Repeats(-1.0, 8.0, kinds=(1,))
    made, targets = proposals(1), [np.array([1])] * 3
    chosen = choose_companions(before, made, targets, table, TOGETHER)
    assert chosen.companions > 0 and (chosen.weight, chosen.half_life, chosen.kinds) == (-1.0, 8.0, (1,))
    served = [Candidates(each.best, each.own, each.vector, companions=TOGETHER) for each in made]
    assert evaluate(served, chosen, targets, table)["mrr@10"] == 1.0
    assert choose_companions(before, made, [np.array([3])] * 3, table, TOGETHER) is before
    assert choose_companions(before, made, targets, table, NOBODY) is before
    most = [np.array([3]), np.array([3]), np.array([3]), np.array([1])]  # more is found, and later
    assert choose_companions(before, [*made, made[0]], most, table, TOGETHER) is before
    mixed = [np.array([1]), np.array([1]), np.array([3])]
    gained = choose_companions(before, made, mixed, table, TOGETHER).companions
    monkeypatch.setattr(module, "LEAST_GAIN", 10.0)
    assert gained and choose_companions(before, made, mixed, table, TOGETHER) is before


def meta(items: int, repeats: Repeats = Repeats()) -> Meta:  # noqa: B008
    return Meta(tuple(map(str, range(items))), {}, 0, {}, repeats)


def test_a_checkpoint_keeps_them_and_damage_is_told(tmp_path: Path) -> None:
    write_companions(tmp_path, TOGETHER)
    assert pairs(read_companions(tmp_path, meta(4))) == {(0, 1): 0.5}
    for items in (3, 5):
        with pytest.raises(BadCheckpoint, match=r"companions\.bin: .*expected"):
            read_companions(tmp_path, meta(items))
    write_companions(tmp_path, NOBODY)
    assert read_companions(tmp_path, meta(4)) is NOBODY and not list(tmp_path.iterdir())
    with pytest.raises(BadCheckpoint, match=r"companions\.bin: missing"):
        read_companions(tmp_path, meta(4, Repeats(companions=1.0)))


def shop(folder: Path) -> list[str]:
    """Things of a hundred pairs: who meets one meets the other at once; no pair is met by many."""
    rng = np.random.default_rng(0)
    lines = []
    for turn in range(LENGTH):
        for user in range(USERS):
            own = np.random.default_rng(user).permutation(ITEMS // 2)
            item = 2 * own[turn // 2] + turn % 2
            time = START_S + 3600 * turn + int(rng.integers(3600))
            lines.append({"user_id": f"u{user}", "item_id": f"i{item}", "type": "view", "time": time})
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return ["--events", str(folder / "events.jsonl")]


SMALL = [
    "--set",
    "dim=8",
    "--set",
    "width=8",
    "--set",
    "blocks=1",
    "--epochs",
    "1",
    "--freshness-events",
    "99",
]


@pytest.mark.parametrize("more", [[], ["--hold-validation"]])
def test_training_keeps_those_of_all_that_it_learnt_from(tmp_path: Path, more: list[str]) -> None:
    out = tmp_path / "model"
    assert main([*shop(tmp_path), "--out", str(out), *SMALL, *more]) == 0
    log = read_log(tmp_path / "events.jsonl").to_arrays()
    parts = split(log, "time")
    learnt = split(parts.train, "time").train if more else parts.train
    kept = load(out)[1]
    assert kept.repeats.companions > 0
    assert pairs(read_companions(out, kept)) == pairs(find_companions(learnt))
    report = json.loads((out / "metrics.json").read_text())
    assert report["test"]["ndcg@10"] > 2 * report["test_without_repeats"]["ndcg@10"]
