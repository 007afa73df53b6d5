"""Baselines that count: popularity, the user's own history, transitions; and chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from train.baselines.ranking import (
    Floats,
    Rows,
    Scores,
    age_in_events,
    before_popularity,
    item_counts,
    liked,
    recent_items,
)
from train.log import Interactions

DAY_S = 86_400

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Random:
    """Every order of the items is equally likely; a user's stays the same."""

    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        def drawn(user: int) -> Floats:
            return np.random.default_rng((self.seed, user)).random(len(log.item_ids), np.float32)

        return lambda users: np.stack([drawn(int(user)) for user in users])


@dataclass(frozen=True)
class Popularity:
    """The items with most events, the same for everybody."""

    def fit(self, log: Interactions) -> Scores:
        counts = item_counts(log)
        return lambda users: np.tile(counts, (len(users), 1))


@dataclass(frozen=True)
class RecentPopularity:
    """Popularity whose events count half for every `half_life_days` that they lie before the log's end."""

    half_life_days: float = 30.0

    def fit(self, log: Interactions) -> Scores:
        at = liked(log)
        age_days = (log.time_s.max() - log.time_s[at]) / DAY_S
        weights = np.exp2(-age_days / self.half_life_days)
        counts = np.bincount(log.item[at], weights, len(log.item_ids)).astype(np.float32)
        return lambda users: np.tile(counts, (len(users), 1))


@dataclass(frozen=True)
class OwnHistory:
    """The user's own items, the often and recently met first; then what is popular.

    An event counts half for every `half_life` events of the same user after it.
    """

    half_life: float = 64.0

    def fit(self, log: Interactions) -> Scores:
        own, popular = recent_items(log, self.half_life), item_counts(log)
        return lambda users: before_popularity(own[users].toarray(), popular)


@dataclass(frozen=True)
class Markov:
    """What came 1 to `lags` events after the user's newest items, in all histories; then what is popular.

    Counts at a lag weigh lag ** -spread, and are pooled over the lags; counts ** power are divided by their
    sum and `shrinkage`, so that what was seen once says less. The user's item `lag` events ago weighs
    lag ** -decay.
    """

    lags: int = 5
    decay: float = 1.0
    spread: float = 0.0
    power: float = 1.0
    shrinkage: float = 0.0

    def fit(self, log: Interactions) -> Scores:
        at = liked(log)
        at = at[np.argsort(log.user[at], kind="stable")]
        user, item, popular = log.user[at], log.item[at], item_counts(log)
        following = self._transitions(user, item, len(popular))
        newest = _newest(user, item, self.lags, len(log.user_ids))

        def scores(users: Rows) -> Floats:
            found = np.zeros((len(users), len(popular)), np.float32)
            for lag in range(1, self.lags + 1):
                from_item = newest[users, lag - 1]
                there = np.flatnonzero(from_item >= 0)
                found[there] += following[from_item[there]].toarray() * np.float32(lag**-self.decay)
            return before_popularity(found, popular)

        return scores

    def _transitions(self, user: Int32, item: Int32, items: int) -> csr_matrix:
        """[N, N]: the share of each item in what came after another."""
        counts = csr_matrix((items, items), dtype=np.float32)
        for lag in range(1, self.lags + 1):
            same = user[:-lag] == user[lag:]
            weight = np.full(int(same.sum()), lag**-self.spread, np.float32)
            counts = counts + csr_matrix((weight, (item[:-lag][same], item[lag:][same])), (items, items))
        counts.data **= self.power
        total = np.asarray(counts.sum(1)).ravel() + self.shrinkage
        counts.data /= np.repeat(total, np.diff(counts.indptr)).astype(np.float32)
        return counts


def _newest(user: Int32, item: Int32, count: int, users: int) -> Rows:
    """The newest `count` items of every user, newest first, -1 where there are fewer: [users, count]."""
    newest = np.full((users, count), -1, np.int64)
    age = age_in_events(user)
    recent = age < count
    newest[user[recent], age[recent]] = item[recent]
    return newest
