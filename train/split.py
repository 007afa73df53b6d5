"""What may be learnt from, and what has to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from functions.core.events import DISMISS, IMPRESSION
from train.baselines.ranking import liked
from train.log import Interactions

SPLITS = ("time", "leave-one-out")
TEST_SHARE = 0.1  # of the events, the latest ones
MOST_USERS = 100_000

Targets = dict[int, NDArray[np.int64]]  # user → rows of the items to be found


@dataclass(frozen=True)
class Split:
    """What may be learnt from, and what each test user did afterwards.

    asked_s: when all of them ask for the lists that are judged, in seconds since 1970; None: nothing says so.
    """

    train: Interactions
    targets: Targets
    asked_s: int | None = None


def split(log: Interactions, how: str, most_users: int = MOST_USERS, seed: int = 0) -> Split:
    """Split by time (the latest tenth is the test) or leave each user's last event out.

    What was shown or dismissed is nothing to be found; dismissals after the event that is left out are out,
    too. Only users with a history are tested, at most `most_users` of them, drawn by `seed`. Raises
    ValueError for another `how`, or where no user can be tested.
    """
    if how not in SPLITS:
        raise ValueError(f"split: {how!r}; expected one of {list(SPLITS)}")
    counted, wanted = log.kind != IMPRESSION, np.zeros(len(log.user), bool)
    wanted[liked(log)] = True
    test = _latest(log, counted) if how == "time" else _from_the_last_of_each(log, counted, wanted)
    with_history = np.zeros(len(log.user_ids), bool)
    with_history[log.user[counted & ~test]] = True
    users = np.unique(log.user[test & wanted])
    users = users[with_history[users]]
    if not users.size:
        raise ValueError(_nobody_to_test(log, how, int(wanted.sum())))
    chosen = np.sort(np.random.default_rng(seed).permutation(users)[:most_users])
    targets, left = _targets(log.user[test & wanted], log.item[test & wanted], chosen), take(log, ~test)
    return Split(left, targets, start_of_test(left) if how == "time" else None)


def start_of_test(train: Interactions) -> int:
    """The second after the last event of what may be learnt from, as `split` by time gives it."""
    return int(train.time_s[train.kind != IMPRESSION].max()) + 1


def _nobody_to_test(log: Interactions, how: str, wanted: int) -> str:
    if not wanted:
        return f"{events_of(log)}; expected events that say what a user wanted, such as views or purchases"
    if how != "time":
        return (
            f"{events_of(log)}, split by {how}: no user has a history; expected users with 2 events or more"
        )
    at_once = ", all in one second" * bool(len(log.user) > 1 and log.time_s.min() == log.time_s.max())
    return (
        f"{events_of(log)}{at_once}, split by time: no user of the test part has a history; "
        "expected a log that covers a longer time, or --split leave-one-out"
    )


def events_of(log: Interactions) -> str:
    """How many events a log has, and how many of them are nothing that a user wanted."""
    names = {"impressions": IMPRESSION, "dismissals": DISMISS}
    counts = {name: int((log.kind == kind).sum()) for name, kind in names.items()}
    of_which = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"{len(log.user):,} events" + (f" ({of_which} among them)" if of_which else "")


def _latest(log: Interactions, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not counted.any():
        return counted
    latest = np.sort(log.time_s[counted])[-max(1, int(TEST_SHARE * counted.sum()))]
    test: NDArray[np.bool_] = counted & (log.time_s >= latest)
    return test


def _from_the_last_of_each(
    log: Interactions, counted: NDArray[np.bool_], wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Each user's last wanted event, and what came after it."""
    at = np.flatnonzero(wanted)
    users, from_the_end = np.unique(log.user[at][::-1], return_index=True)
    last = np.full(len(log.user_ids), len(log.user))
    last[users] = at[len(at) - 1 - from_the_end]
    test: NDArray[np.bool_] = counted & (np.arange(len(log.user)) >= last[log.user])
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
