"""Hyperparameters of the baselines, searched for on validation with the same number of trials each.

A study's first trial is the method's defaults; the others are proposed by a seeded tree-structured Parzen
estimator (Bergstra et al. 2011). What has nothing to tune gets as many trials as the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import optuna
from implicit.recommender_base import ModelFitError

from functions.core.features import ItemFeatures
from train.baselines import (
    BPR,
    IALS,
    SGD,
    SVD,
    Baseline,
    ContentKNN,
    ItemKNN,
    Markov,
    OwnHistory,
    Perceptron,
    Popularity,
    Random,
    RecentPopularity,
    UserKNN,
)
from train.baselines.neighbours import SIMILARITIES
from train.baselines.ranking import WEIGHTINGS

Space = Callable[[optuna.Trial], Baseline]
HALF_LIVES = (0.0, 4.0, 16.0, 64.0, 256.0, 1024.0)  # events; 0: none


@dataclass(frozen=True)
class Tuned:
    """The best of a study: `value` is its objective, `seconds` what all trials took of one CPU."""

    baseline: Baseline
    value: float
    trials: int
    seconds: float
    values: list[float]


@dataclass
class Done:
    """The objectives of the trials so far, and what they took of one CPU; `keep` is called after each."""

    values: list[float] = field(default_factory=list)
    seconds: float = 0.0
    keep: Callable[[Done], None] | None = None

    def add(self, value: float, seconds: float) -> None:
        """One more trial; seconds: of all of them."""
        self.values.append(value)
        self.seconds = seconds
        if self.keep:
            self.keep(self)


def tune(
    space: Space,
    objective: Callable[[Baseline], float],
    trials: int,
    seed: int,
    defaults: Mapping[str, object],
    done: Done | None = None,
) -> Tuned:
    """The baseline of `space` with the greatest objective in exactly `trials` trials; the first among equals.

    An objective that is not a number counts as 0, and so does a fit that ends in such numbers. done: the
    trials of a study that was stopped, which are proposed again and not run again; each new one is added.
    """
    done = done or Done()
    before = done.seconds
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(dict(defaults))
    started = time.process_time()

    def value(trial: optuna.Trial) -> float:
        baseline = space(trial)
        if trial.number < len(done.values):
            return done.values[trial.number]
        try:
            found = objective(baseline)
        except ModelFitError:  # what implicit calls factors that are not finite
            found = 0.0
        found = found if np.isfinite(found) else 0.0
        done.add(found, before + time.process_time() - started)
        return found

    study.optimize(value, n_trials=trials)
    best = space(optuna.trial.FixedTrial(study.best_params))  # type: ignore[arg-type]
    values = [float(trial.value or 0.0) for trial in study.trials]
    return Tuned(best, study.best_value, len(values), before + time.process_time() - started, values)


def defaults(method: type) -> dict[str, object]:
    """The numbers and names that a method has without tuning."""
    return {f.name: f.default for f in fields(method) if isinstance(f.default, int | float | str)}


def _recent_popularity(trial: optuna.Trial) -> Baseline:
    return RecentPopularity(trial.suggest_float("half_life_days", 0.5, 365, log=True))


def _own_history(trial: optuna.Trial) -> Baseline:
    return OwnHistory(trial.suggest_float("half_life", 1, 2000, log=True))


def _markov(trial: optuna.Trial) -> Baseline:
    return Markov(
        lags=trial.suggest_int("lags", 1, 5),
        decay=trial.suggest_float("decay", 0, 2),
        spread=trial.suggest_float("spread", 0, 1),
        power=trial.suggest_float("power", 0.5, 1.2),
        shrinkage=trial.suggest_float("shrinkage", 0, 50),
    )


def _user_knn(trial: optuna.Trial) -> Baseline:
    return UserKNN(
        neighbours=trial.suggest_int("neighbours", 10, 1000, log=True),
        similarity=trial.suggest_categorical("similarity", list(SIMILARITIES)),
        own=trial.suggest_float("own", 0, 2),
    )


def _item_knn(trial: optuna.Trial) -> Baseline:
    return ItemKNN(
        neighbours=trial.suggest_int("neighbours", 5, 500, log=True),
        similarity=trial.suggest_categorical("similarity", list(SIMILARITIES)),
        half_life=trial.suggest_categorical("half_life", HALF_LIVES),
    )


def _svd(trial: optuna.Trial) -> Baseline:
    return SVD(
        factors=trial.suggest_int("factors", 8, 256, log=True),
        weighting=trial.suggest_categorical("weighting", list(WEIGHTINGS)),
    )


def _sgd(trial: optuna.Trial) -> Baseline:
    return SGD(
        factors=trial.suggest_int("factors", 16, 128, log=True),
        l2=trial.suggest_float("l2", 1e-4, 0.3, log=True),
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.5, log=True),
        epochs=trial.suggest_int("epochs", 3, 12),
        negatives=trial.suggest_int("negatives", 1, 8),
    )


def _ials(trial: optuna.Trial) -> Baseline:
    return IALS(
        factors=trial.suggest_int("factors", 16, 128, log=True),
        regularization=trial.suggest_float("regularization", 1e-3, 100, log=True),
        alpha=trial.suggest_float("alpha", 0.3, 100, log=True),
    )


def _bpr(trial: optuna.Trial) -> Baseline:
    return BPR(
        factors=trial.suggest_int("factors", 16, 128, log=True),
        learning_rate=trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
        regularization=trial.suggest_float("regularization", 1e-4, 0.1, log=True),
        iterations=trial.suggest_int("iterations", 20, 100),
    )


def _perceptron(trial: optuna.Trial) -> Baseline:
    return Perceptron(
        hidden=trial.suggest_int("hidden", 32, 128, log=True),
        dropout=trial.suggest_float("dropout", 0, 0.8),
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        epochs=trial.suggest_int("epochs", 5, 20),
    )


METHODS: dict[str, tuple[type, Space]] = {
    "random": (Random, lambda trial: Random()),
    "popularity": (Popularity, lambda trial: Popularity()),
    "recent popularity": (RecentPopularity, _recent_popularity),
    "own history": (OwnHistory, _own_history),
    "Markov": (Markov, _markov),
    "user-KNN": (UserKNN, _user_knn),
    "item-KNN": (ItemKNN, _item_knn),
    "SVD": (SVD, _svd),
    "matrix factorisation, SGD": (SGD, _sgd),
    "iALS": (IALS, _ials),
    "BPR": (BPR, _bpr),
    "perceptron": (Perceptron, _perceptron),
}


def content_space(features: ItemFeatures) -> Space:
    """Content-KNN over what nobody has met."""

    def space(trial: optuna.Trial) -> Baseline:
        return ContentKNN(
            features,
            neighbours=trial.suggest_int("neighbours", 1, 200, log=True),
            half_life=trial.suggest_categorical("half_life", HALF_LIVES),
        )

    return space
