"""What may be learnt from, and what has to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from functions.core.events import IMPRESSION
from train.log import Interactions

SPLITS = ("time", "leave-one-out")
TEST_SHARE = 0.1  # of the events, the latest ones
MOST_USERS = 100_000

Targets = dict[int, NDArray[np.int64]]  # user → rows of the items to be found


@dataclass(frozen=True)
class Split:
    """What may be learnt from, and what each test user did afterwards."""

    train: Interactions
    targets: Targets


def split(log: Interactions, how: str, most_users: int = MOST_USERS, seed: int = 0) -> Split:
    """Split by time (the latest tenth is the test) or leave each user's last event out.

    Only users with a history are tested, at most `most_users` of them, drawn by `seed`. Raises ValueError for
    another `how`, or where no user can be tested.
    """
    if how not in SPLITS:
        raise ValueError(f"split: {how!r}; expected one of {list(SPLITS)}")
    counted = log.kind != IMPRESSION
    test = _latest(log, counted) if how == "time" else _last_of_each(log, counted)
    with_history = np.zeros(len(log.user_ids), bool)
    with_history[log.user[counted & ~test]] = True
    users = np.unique(log.user[test])
    users = users[with_history[users]]
    if not users.size:
        raise ValueError(
            f"{len(log.user)} events, split by {how}: no user of the test part has a history; "
            f"expected a log that covers a longer time{', or --split leave-one-out' * (how == 'time')}"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(users)[:most_users])
    return Split(take(log, ~test), _targets(log.user[test], log.item[test], chosen))


def _latest(log: Interactions, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not counted.any():
        return counted
    latest = np.sort(log.time_s[counted])[-max(1, int(TEST_SHARE * counted.sum()))]
    test: NDArray[np.bool_] = counted & (log.time_s >= latest)
    return test


def _last_of_each(log: Interactions, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    test = np.zeros(len(log.user), bool)
    at = np.flatnonzero(counted)
    _, from_the_end = np.unique(log.user[at][::-1], return_index=True)
    test[at[len(at) - 1 - from_the_end]] = True
    return test


def _targets(user: NDArray[np.int32], item: NDArray[np.int32], users: NDArray[np.int32]) -> Targets:
    pairs = np.unique(np.stack([user, item], 1).astype(np.int64), axis=0)  # by user, then by item
    bounds = np.searchsorted(pairs[:, 0], [users, users + 1])
    return {int(u): pairs[a:b, 1] for u, a, b in zip(users, *bounds, strict=True)}


def rows_by_user(log: Interactions, users: Sequence[int] | NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """The rows of the log of each of these users, in the log's order, [U]."""
    order = np.argsort(log.user, kind="stable")
    bounds = np.searchsorted(log.user[order], np.add.outer(np.asarray(users, np.int64), [0, 1]))
    return [order[first:last] for first, last in bounds]


def take(log: Interactions, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Interactions:
    """Some rows of the log: a mask [n], or places, ascending."""
    names = ("user", "item", "kind", "time_s", "value", "device", "slot")
    columns = {name: getattr(log, name) for name in names}
    return replace(log, **{name: column[rows] for name, column in columns.items() if column is not None})
