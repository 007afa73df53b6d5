"""`python -m train --search N`: better settings than the rules', for a budget of N trainings.

Trial 0 has the rules' settings, the others what a tree-structured Parzen estimator proposes (Bergstra et al.
2011; Optuna, Akiba et al. 2019). A trial's value is the NDCG@10 of its best epoch on the validation users;
the test is not known here. A trial is ended early where it is below the median of the others at the same
share of its own schedule: a learning rate that falls over 40 epochs is not to be compared, epoch by epoch,
with one that falls over 10. One that diverges is noted, and the search goes on.

search.json, beside the checkpoint, is all that a search knows: it is written after every trial, and a search
that was killed goes on from it, and in the middle of the trial, to the same trials. Every trial's proposal
depends only on the seed, its number and the trials before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from train.checkpoint import FILES
from train.fit import STOP_ON, UNFINISHED, Epoch, History
from train.options import Options
from train.settings import Value, Values, changed, settings, shown
from train.towers import Shape
from train.trainer import Diverged

SEARCH, TRIALS = "search.json", "trials"
STARTUP = 6  # trials at random before the estimator proposes, and trials without which none is ended early
MARKS = 8  # points of a schedule at which trials are compared
WARM_UP = 2  # marks at which none is ended early: the first quarter of a schedule
SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class Times:
    """From `least` to `most` times what the rules say, each factor alike."""

    least: float
    most: float

    def distribution(self, default: Value) -> BaseDistribution | None:
        """None where there is nothing to multiply."""
        if not isinstance(default, int | float) or not default:
            return None
        low, high = self.least * default, self.most * default
        if isinstance(default, int):
            return IntDistribution(max(1, round(low)), round(high), log=True)
        return FloatDistribution(low, high, log=True)


@dataclass(frozen=True)
class Between:
    """From `low` to `high`, or to what the rules say, if that is beyond."""

    low: float
    high: float

    def distribution(self, default: Value) -> BaseDistribution | None:
        assert isinstance(default, float), default
        return FloatDistribution(min(self.low, default), max(self.high, default))


@dataclass(frozen=True)
class OneOf:
    """Any of these, or what the rules say."""

    choices: tuple[Value, ...]

    def distribution(self, default: Value) -> BaseDistribution | None:
        return CategoricalDistribution(tuple(dict.fromkeys((*self.choices, default))))


# What is searched: any field of `Shape` or `Options` can be added. A row has room for two blocks of 96 and
# vectors of 128.
RANGES: dict[str, Times | Between | OneOf] = {
    "dropout": Between(0.0, 0.6),
    "learning_rate": Times(1 / 4, 4),
    "item_rate": Times(1 / 10, 4),
    "weight_decay": Times(1 / 10, 10),
    "dim": OneOf((32, 64)),
    "width": OneOf((48, 64, 96)),
    "blocks": OneOf((1, 2)),
    "window": OneOf((100, 200, 400)),
    "epochs": Times(1 / 2, 2),
}


class Fit(Protocol):
    """One training into `out`; `watch` is called after every epoch. Raises Diverged."""

    def __call__(
        self, shape: Shape, options: Options, out: Path, resume: bool, watch: Callable[[History], None]
    ) -> History: ...


class CannotSearchOn(ValueError):
    """The search in the folder was another one."""


@dataclass(frozen=True)
class Trial:
    """What became of one training: `state` is complete, pruned (ended early) or diverged."""

    number: int
    state: str
    settings: dict[str, Value]
    value: float | None  # validation NDCG@10 of the best epoch; None where it diverged
    marks: dict[int, float]  # the best so far at each mark that was passed
    epochs: list[tuple[float, float]] = field(default_factory=list)  # loss, validation NDCG@10
    best_epoch: int = -1
    seconds: float = 0.0
    said: str = ""

    def frozen(self, searched: dict[str, BaseDistribution]) -> FrozenTrial:
        """As Optuna keeps it."""
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.FAIL}
        return create_trial(
            state=state[self.state],
            value=self.value,
            params={name: self.settings[name] for name in searched},
            distributions=searched,
            intermediate_values=self.marks,
        )


@dataclass(frozen=True)
class Found:
    """The best trial: its settings, and how its training went."""

    shape: Shape
    options: Options
    history: History
    trial: Trial


class Search:
    """A search in the folder `out`, `trials` of it behind it. fixed: names that are not to be varied."""

    def __init__(
        self, fit: Fit, shape: Shape, options: Options, out: Path, identity: str, fixed: Values
    ) -> None:
        self.fit, self.shape, self.options, self.out, self.identity = fit, shape, options, out, identity
        self.defaults = settings(shape, options)
        proposed = {
            name: of.distribution(self.defaults[name]) for name, of in RANGES.items() if name not in fixed
        }
        self.searched = {name: among for name, among in proposed.items() if among is not None}
        self.trials: list[Trial] = []

    def resume(self) -> None:
        """Take over the trials of search.json, if there is one; raises CannotSearchOn if it was another."""
        path = self.out / SEARCH
        if not path.is_file():
            return
        read = json.loads(path.read_text(encoding="utf-8"))
        if read["identity"] != self._key():
            raise CannotSearchOn(
                f"{path}: a search on another log, with other rules or ranges; expected {self._key()}, found "
                f"{read['identity']}; run without --resume to start anew"
            )
        for trial in read["trials"]:
            marks = {int(mark): value for mark, value in trial["marks"].items()}
            epochs = [(loss, ndcg) for loss, ndcg in trial["epochs"]]
            self.trials.append(Trial(**{**trial, "marks": marks, "epochs": epochs}))

    def run(self, trials: int) -> Found:
        """Train until there are `trials`, and put the best one's checkpoint into `out`.

        Raises Diverged where every trial did.
        """
        while len(self.trials) < trials:
            self._next(trials)
        best = self._best()
        if best is None:
            raise Diverged(f"all {trials} trials diverged; the first: {self.trials[0].said}")
        for name in FILES:
            shutil.copyfile(self._folder(best.number) / name, self.out / name)
        other = {name: value for name, value in best.settings.items() if value != self.defaults[name]}
        print(f"best of {len(self.trials)} trials: {best.number}, {shown(other) or 'the rules'}", flush=True)
        shape, options = changed(self.shape, self.options, best.settings)
        epochs = [Epoch(loss, {STOP_ON: value}) for loss, value in best.epochs]
        return Found(shape, options, History(epochs, best.best_epoch), best)

    def summary(self) -> dict[str, object]:
        """What a report says of it."""
        best, states = self._best(), [trial.state for trial in self.trials]
        assert best is not None
        return {
            "trials": len(self.trials),
            **{state: states.count(state) for state in ("complete", "pruned", "diverged")},
            "seconds": round(sum(trial.seconds for trial in self.trials), 1),
            "best": best.number,
            f"validation {STOP_ON}": best.value,
            f"validation {STOP_ON} of the rules": self.trials[0].value,
            "settings": best.settings,
        }

    def _next(self, trials: int) -> None:
        study = self._study()
        asked = study.ask(self.searched)
        values: dict[str, Value] = dict(asked.params)
        if asked.number:
            values = {name: _short(value, self.searched[name]) for name, value in values.items()}
        print(f"trial {asked.number} of {trials}: {shown(values) or 'nothing to vary'}", flush=True)
        trial = self._train(asked, values)
        before = self._best()
        self.trials.append(trial)
        self._write(trials)
        best = self._best()
        for each in (before, trial):
            if each is not None and each is not best:
                _keep_only_curves(self._folder(each.number))
        ended = trial.said or f"validation {STOP_ON} {trial.value:.4f}"
        best_yet = "" if best is None else f"; best so far: trial {best.number}, {best.value:.4f}"
        print(f"trial {trial.number} {trial.state}: {ended}{best_yet}", flush=True)

    def _study(self) -> optuna.Study:
        """A study of the trials so far, about to propose the next one."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        number = len(self.trials)
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, seed=self.options.seed * SEEDS_APART + number
            ),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARM_UP),
        )
        study.add_trials([trial.frozen(self.searched) for trial in self.trials])
        if not number:
            study.enqueue_trial({name: self.defaults[name] for name in self.searched})
        return study

    def _train(self, asked: optuna.Trial, values: dict[str, Value]) -> Trial:
        """Train the trial that was asked for, in a folder of its own, going on with what is there."""
        shape, options = changed(self.shape, self.options, values)
        folder = self._folder(asked.number)
        folder.mkdir(parents=True, exist_ok=True)
        marks: dict[int, float] = {}
        last = History()
        started = time.monotonic()

        def watch(history: History) -> None:
            nonlocal last
            last = history
            _mark(asked, marks, history, options.epochs)
            if len(history.epochs) < options.epochs and asked.should_prune():
                raise optuna.TrialPruned

        state, said = "complete", ""
        try:
            last = self.fit(shape, options, folder, True, watch)
        except optuna.TrialPruned:
            state = "pruned"
        except (Diverged, torch.OutOfMemoryError) as error:
            state, said = "diverged", str(error)
        else:
            _mark(asked, marks, last, options.epochs)  # where nothing was left to watch
        return Trial(
            asked.number,
            state,
            values,
            None if state == "diverged" else last.epochs[last.best].metrics[STOP_ON],
            marks,
            [(epoch.loss, epoch.metrics[STOP_ON]) for epoch in last.epochs],
            last.best,
            round(time.monotonic() - started, 1),
            said,
        )

    def _best(self) -> Trial | None:
        """The complete trial with the highest value, the earliest of equals."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)

    def _write(self, trials: int) -> None:
        best = self._best()
        report = {
            "objective": f"validation {STOP_ON}, the higher the better",
            "identity": self._key(),
            "asked": trials,
            "best": None if best is None else best.number,
            "ranges": {name: vars(RANGES[name]) for name in self.searched},
            "trials": [asdict(trial) for trial in self.trials],
        }
        part = self.out / f"{SEARCH}.part"
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.out / SEARCH)

    def _key(self) -> str:
        """What makes it this search: the log, the rules' settings and the ranges."""
        ranges = sorted((name, repr(among)) for name, among in self.searched.items())
        return hashlib.blake2b(repr((self.identity, ranges)).encode(), digest_size=8).hexdigest()

    def _folder(self, number: int) -> Path:
        return self.out / TRIALS / f"{number:03}"


def start_anew(out: Path) -> None:
    """Forget the search that is in the folder."""
    (out / SEARCH).unlink(missing_ok=True)
    shutil.rmtree(out / TRIALS, ignore_errors=True)


def _mark(asked: optuna.Trial, marks: dict[int, float], history: History, epochs: int) -> None:
    """Report the best so far at every mark that was passed: mark m is m / MARKS of the schedule.

    Between two epochs it lies on the line between them: else the one with fewer epochs would be ahead.
    """
    reached = [0.0, *(epoch.metrics[STOP_ON] for epoch in history.epochs)]
    best = np.maximum.accumulate(reached)
    for mark in range(len(marks) + 1, MARKS * len(history.epochs) // epochs + 1):
        at = np.interp(mark * epochs / MARKS, range(len(best)), best)
        marks[mark] = round(float(at), 6)  # what is equal must not differ by its last bit
        asked.report(marks[mark], mark)


def _short(value: Value, among: BaseDistribution) -> Value:
    """Four digits of a float, so that a person can read it: inside of its range, as everything is."""
    if not isinstance(among, FloatDistribution):
        return value
    return min(max(float(f"{value:.4g}"), among.low), among.high)


def _keep_only_curves(folder: Path) -> None:
    """Delete a trial's weights and state; what TensorBoard shows of it stays."""
    for name in (*FILES, UNFINISHED):
        (folder / name).unlink(missing_ok=True)
