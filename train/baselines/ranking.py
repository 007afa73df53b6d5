"""From a log to the matrices that baselines learn from, and from their scores to lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from functions.core.events import DISMISS, IMPRESSION
from train.log import Interactions

USERS_AT_ONCE = 64
WEIGHTINGS = ("log", "binary", "count")  # what n events of a user with an item count

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Scores = Callable[[Rows], Floats]  # users [U] → [U, N]; what must not be shown has -inf


class Baseline(Protocol):
    """Hyperparameters of a method."""

    def fit(self, log: Interactions) -> Scores:
        """Learn from the whole log; the scores are for users of that log, in batches."""
        ...


def top(
    scores: Scores, users: Sequence[int], k: int, masked: Sequence[NDArray[np.integer]] | None = None
) -> Rows:
    """The k best rows of each user, best first, ties to the lower row: [U, k].

    masked: rows that a user must not be shown, one array a user. -1 where there are fewer than k.
    """
    found = []
    for at in range(0, len(users), USERS_AT_ONCE):
        part = scores(np.asarray(users[at : at + USERS_AT_ONCE], np.int64))
        for place in range(len(part) if masked is not None else 0):
            assert masked is not None
            part[place, masked[at + place]] = -np.inf
        found += [_best(row, k) for row in part]
    return np.stack(found) if found else np.empty((0, k), np.int64)


def _best(scores: Floats, k: int) -> Rows:
    """The k best of [N]; a score that is not a number counts as none."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    edge = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else -np.inf
    rows = np.flatnonzero((scores >= edge) & (scores > -np.inf))
    best = rows[np.lexsort((rows, -scores[rows]))][:k].astype(np.int64)
    return np.pad(best, (0, k - len(best)), constant_values=-1)


def liked(log: Interactions) -> Rows:
    """Positions of the events that speak for their item, oldest first: no impression, no dismissal."""
    return np.flatnonzero((log.kind != IMPRESSION) & (log.kind != DISMISS))


def item_counts(log: Interactions) -> Floats:
    """Events of every item, [N]."""
    return np.bincount(log.item[liked(log)], minlength=len(log.item_ids)).astype(np.float32)


def user_items(log: Interactions, weighting: str = "log") -> csr_matrix:
    """[users, items] float32: log(1 + how often), or 1 (`binary`), or how often (`count`)."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: {weighting!r}; expected one of {list(WEIGHTINGS)}")
    at = liked(log)
    counts = _sums(log, at, np.ones(len(at), np.float32))
    if weighting == "log":
        counts.data = np.log1p(counts.data)
    elif weighting == "binary":
        counts.data[:] = 1.0
    return counts


def recent_items(log: Interactions, half_life: float) -> csr_matrix:
    """[users, items] float32: a user's events, each halved for every `half_life` events after it."""
    at = liked(log)
    return _sums(log, at, np.exp2(-age_in_events(log.user[at]) / half_life).astype(np.float32))


def age_in_events(user: NDArray[np.integer]) -> Rows:
    """How many events of the same user come after each, [n]."""
    order = np.argsort(user, kind="stable")
    stops = np.cumsum(np.bincount(user))[user[order]] if len(user) else np.zeros(0, np.int64)
    age = np.empty(len(user), np.int64)
    age[order] = stops - 1 - np.arange(len(user))
    return age


def _sums(log: Interactions, at: Rows, weight: Floats) -> csr_matrix:
    shape = (len(log.user_ids), len(log.item_ids))
    matrix = csr_matrix((weight, (log.user[at], log.item[at])), shape=shape)
    matrix.sum_duplicates()
    return matrix


def before_popularity(scores: Floats, popular: Floats) -> Floats:
    """What has a score above 0, then all that nothing speaks for, the most popular first: [U, N]."""
    return np.where(scores > 0, scores, -1 / (1 + popular))
