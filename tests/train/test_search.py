"""A search keeps to its budget, begins with the rules' settings, and keeps the best that it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from functions.core.favourites import PLACES
from functions.core.user_row import places_for
from train.checkpoint import FILES, WEIGHTS
from train.fit import STOP_ON, UNFINISHED, Epoch, History
from train.options import Options
from train.rules import WIDE_UP_TO, Facts, shape_for
from train.search import (
    MARKS,
    RANGES,
    SEARCH,
    STARTUP,
    TRIALS,
    CannotSearchOn,
    Search,
    Times,
    Trial,
    start_anew,
)
from train.settings import Value, changed, settings
from train.towers import Shape
from train.trainer import Diverged

SHAPE, OPTIONS = Shape(items=12, categories=0, brands=0, dropout=0.3), Options(epochs=8)
DEFAULTS = settings(SHAPE, OPTIONS)


class World:
    """Trainings that take no time: the nearer dropout is to `best`, the better, from the first epoch on."""

    def __init__(self, best: float = 0.05, diverge: Callable[[int], bool] = lambda number: False) -> None:
        self.best, self.diverge = best, diverge
        self.trained: list[tuple[Path, Shape, Options]] = []
        self.stop_at: tuple[int, int] | None = None  # trial, epoch

    def quality(self, shape: Shape) -> float:
        return 1.0 - abs(shape.dropout - self.best)

    def __call__(
        self, shape: Shape, options: Options, out: Path, resume: bool, watch: Callable[[History], None]
    ) -> History:
        number = int(out.name)
        self.trained.append((out, shape, options))
        state = out / UNFINISHED
        history = History()
        for _ in range(int(state.read_text()) if resume and state.exists() else 0):
            self._learn(history, shape, options)
        watch(history)
        while len(history.epochs) < options.epochs:
            if self.stop_at == (number, len(history.epochs)):
                raise KeyboardInterrupt
            if self.diverge(number):
                raise Diverged(f"epoch {len(history.epochs)}, step 3: loss nan")
            self._learn(history, shape, options)
            for name in FILES:
                (out / name).write_text(f"{name} {shape} {options}")
            state.write_text(str(len(history.epochs)))
            watch(history)
        return history

    def _learn(self, history: History, shape: Shape, options: Options) -> None:
        share = (len(history.epochs) + 1) / options.epochs
        history.epochs.append(Epoch(1.0 - share, {STOP_ON: self.quality(shape) * share}))
        history.best = len(history.epochs) - 1


def search(world: World, out: Path, seed: int = 0, **fixed: Value) -> Search:
    out.mkdir(exist_ok=True)
    return Search(world, SHAPE, replace(OPTIONS, seed=seed), out, "log", fixed)


def written(out: Path) -> list[dict[str, Any]]:
    """The trials of search.json, without the time that they took."""
    return [{**trial, "seconds": 0} for trial in json.loads((out / SEARCH).read_text())["trials"]]


def test_the_budget_is_kept_and_the_first_trial_has_the_settings_of_the_rules(tmp_path: Path) -> None:
    world = World()
    found = search(world, tmp_path).run(12)
    assert [out.name for out, _, _ in world.trained] == [f"{n:03}" for n in range(12)]
    assert world.trained[0][1:] == (SHAPE, OPTIONS)
    trials = written(tmp_path)
    assert len(trials) == 12
    assert trials[0]["settings"] == {name: DEFAULTS[name] for name in RANGES}
    assert found.trial.value == max(trial["value"] for trial in trials if trial["state"] == "complete")


def test_the_best_trials_weights_are_the_checkpoint(tmp_path: Path) -> None:
    found = search(World(), tmp_path).run(12)
    assert found.trial.number > 0 and found.trial.settings != {name: DEFAULTS[name] for name in RANGES}
    shape, options = changed(SHAPE, OPTIONS, found.trial.settings)
    assert (found.shape, found.options) == (shape, options)
    for name in FILES:
        assert (tmp_path / name).read_text() == f"{name} {shape} {options}"
    assert found.history.epochs[found.history.best].metrics[STOP_ON] == found.trial.value
    kept = [path.parent.name for path in tmp_path.glob(f"{TRIALS}/*/{WEIGHTS}")]
    assert kept == [f"{found.trial.number:03}"]  # the disk holds one model beside the checkpoint, not twelve


def test_the_best_is_neither_the_first_nor_the_last_and_the_earliest_of_equals(tmp_path: Path) -> None:
    world = World()
    qualities = iter([0.3, 0.2, 0.9, 0.1, 0.9, 0.2])
    tried: dict[Shape, float] = {}
    world.quality = lambda shape: tried.get(shape) or tried.setdefault(shape, next(qualities))  # type: ignore[method-assign]
    found = search(world, tmp_path).run(6)
    assert (found.trial.number, found.trial.value) == (2, 0.9)
    assert (tmp_path / WEIGHTS).read_text() == f"{WEIGHTS} {found.shape} {found.options}"


def test_it_finds_better_than_the_rules(tmp_path: Path) -> None:
    found = search(World(), tmp_path).run(16)
    assert found.trial.value is not None
    assert found.trial.value > World().quality(SHAPE) + 0.1


def test_one_seed_gives_the_same_trials_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        search(World(), tmp_path / name, seed).run(9)
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert [t["settings"] for t in written(tmp_path / "a")] != [
        t["settings"] for t in written(tmp_path / "c")
    ]


@pytest.mark.parametrize("stop_at", [(0, 0), (0, 3), (4, 2), (10, 1)])
def test_a_killed_search_goes_on_to_the_same_trials(tmp_path: Path, stop_at: tuple[int, int]) -> None:
    whole = search(World(), tmp_path / "whole").run(12)
    world = World()
    world.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        search(world, tmp_path / "killed").run(12)
    again = World()
    resumed = search(again, tmp_path / "killed")
    resumed.resume()
    assert resumed.run(12).trial.number == whole.trial.number
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert len(again.trained) == 12 - stop_at[0]  # what was done is not done again


def test_a_finished_search_can_be_given_more(tmp_path: Path) -> None:
    search(World(), tmp_path / "whole").run(12)
    search(World(), tmp_path / "more").run(7)
    world = World()
    more = search(world, tmp_path / "more")
    more.resume()
    more.run(12)
    assert [out.name for out, _, _ in world.trained] == [f"{n:03}" for n in range(7, 12)]
    assert written(tmp_path / "more") == written(tmp_path / "whole")


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    search(World(), tmp_path).run(3)
    start_anew(tmp_path)
    world = World(best=0.6)
    anew = search(world, tmp_path)
    anew.resume()
    anew.run(3)
    assert len(world.trained) == 3


def test_a_diverging_trial_does_not_end_the_search(tmp_path: Path) -> None:
    found = search(World(diverge=lambda number: number in (0, 2)), tmp_path)
    assert found.run(8).trial.state == "complete"
    trials = written(tmp_path)
    assert [trial["number"] for trial in trials if trial["state"] == "diverged"] == [0, 2]
    assert trials[2]["said"] == "epoch 0, step 3: loss nan" and trials[2]["value"] is None
    summary = found.summary()
    assert (summary["trials"], summary["diverged"]) == (8, 2)
    assert summary["validation ndcg@10 of the rules"] is None


def test_where_every_trial_diverges_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"all 3 trials diverged; the first: epoch 0, step 3: loss nan"):
        search(World(diverge=lambda number: True), tmp_path).run(3)
    assert not (tmp_path / WEIGHTS).exists()


def test_what_is_hopeless_is_ended_early_and_never_kept(tmp_path: Path) -> None:
    found = search(World(), tmp_path).run(30)
    trials = [Trial(**trial) for trial in written(tmp_path)]
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and all(trial.number >= STARTUP for trial in pruned)
    assert all(len(trial.epochs) < trial.settings["epochs"] for trial in pruned)  # type: ignore[operator]
    assert found.trial.state == "complete"


def test_trials_are_compared_at_the_same_share_of_their_schedules(tmp_path: Path) -> None:
    """All are equally good at equal shares: none may be ended for being longer than the others."""
    world = World()
    world.quality = lambda shape: 0.5  # type: ignore[method-assign]
    search(world, tmp_path).run(16)
    trials = written(tmp_path)
    assert len({trial["settings"]["epochs"] for trial in trials}) > 4
    assert {trial["state"] for trial in trials} == {"complete"}
    assert all(len(trial["marks"]) == MARKS for trial in trials)


def test_what_was_given_is_not_varied(tmp_path: Path) -> None:
    world = World()
    search(world, tmp_path, epochs=8, width=SHAPE.width).run(8)
    assert {options.epochs for _, _, options in world.trained} == {8}
    assert {shape.width for _, shape, _ in world.trained} == {SHAPE.width}
    assert len({shape.dropout for _, shape, _ in world.trained}) > 4


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    search(World(), tmp_path).run(2)
    with pytest.raises(CannotSearchOn, match=r"search\.json: a search on another log"):
        search(World(), tmp_path, dropout=0.3).resume()


def test_ranges_are_of_settings_and_hold_what_the_rules_say() -> None:
    assert RANGES.keys() <= DEFAULTS.keys()
    for name, among in RANGES.items():
        distribution = among.distribution(DEFAULTS[name])
        assert distribution is not None, name
        assert distribution._contains(distribution.to_internal_repr(DEFAULTS[name])), name
    assert Times(0.1, 10).distribution(0.0) is None


@pytest.mark.parametrize("items", [WIDE_UP_TO, WIDE_UP_TO + 1])
def test_whatever_is_proposed_fits_into_a_row(items: int) -> None:
    """Such as a state of 192 and a vector of 128 (tests/core/test_user_row.py)."""
    ruled = asdict(shape_for(Facts(items, 100, 10_000)))
    choices = {}
    for name in ("dim", "width", "blocks"):
        among = RANGES[name].distribution(ruled[name])
        assert isinstance(among, CategoricalDistribution)
        choices[name] = among.choices
    assert len(choices["dim"]) * len(choices["width"]) > 4
    for dim, width, blocks in product(*choices.values()):
        shape = Shape(**{**ruled, "dim": dim, "width": width, "blocks": blocks})
        assert places_for(shape.state_width, shape.dim) == PLACES
