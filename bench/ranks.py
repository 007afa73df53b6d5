"""Where the one held-out item lands among all items, and what that says, with intervals over users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train import slices
from train.baselines import Scores

USERS_AT_ONCE = 512

Ranks = NDArray[np.int64]


def ranks(
    scores: NDArray[np.float32], target: NDArray[np.int64], masked: list[NDArray[np.int64]] | None = None
) -> Ranks:
    """Items before each user's target, [U]: scores [U, N], target [U] rows.

    masked: rows that are out of the race, by user; the target itself never is. A tie counts against the
    target, and so does a score that is not a number.
    """
    own = np.take_along_axis(scores, target[:, None], 1)
    before = ~(scores < own)
    before[np.arange(len(target)), target] = False
    if masked is not None:
        for user, rows in enumerate(masked):
            before[user, rows] = False
    count: Ranks = before.sum(1)
    return count


def rank_by_scores(
    scores: Scores,
    users: NDArray[np.int64],
    target: NDArray[np.int64],
    masked: list[NDArray[np.int64]] | None = None,
) -> Ranks:
    """`ranks` of `users` [U], whose scores are asked for USERS_AT_ONCE at a time."""
    found = []
    for at in range(0, len(target), USERS_AT_ONCE):
        some = slice(at, at + USERS_AT_ONCE)
        found.append(ranks(scores(users[some]), target[some], masked[some] if masked is not None else None))
    return np.concatenate(found)


def rank_by_dot_product(
    vectors: NDArray[np.floating],
    table: NDArray[np.floating],
    target: NDArray[np.int64],
    masked: list[NDArray[np.int64]] | None = None,
) -> Ranks:
    """`ranks` of vectors [U, d] against the items' table [N, d], in float32."""
    wide = table.astype(np.float32).T
    place = np.arange(len(target))
    return rank_by_scores(lambda some: vectors[some].astype(np.float32) @ wide, place, target, masked)


def hits(found: Ranks, k: int = 10) -> NDArray[np.float64]:
    """HR@k of each user, 0 or 1."""
    return (found < k).astype(np.float64)


def gains(found: Ranks, k: int = 10) -> NDArray[np.float64]:
    """NDCG@k of each user with one relevant item (Järvelin & Kekäläinen 2002)."""
    return np.where(found < k, 1 / np.log2(found + 2.0), 0.0)


def estimate(values: NDArray[np.float64], seed: int = 0) -> slices.Estimate:
    """Mean of per-user values and its interval, as `train.slices` has it.

    values [U], or [S, U] for S seeds: a user's seeds are averaged first, for they are no independent users.
    """
    return slices.estimate(values.mean(0) if values.ndim == 2 else values, seed=seed)
