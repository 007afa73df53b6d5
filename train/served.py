"""A checkpoint as it answers, and whom its answers are judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from functions.core.alike import Alike
from functions.core.events import IMPRESSION
from functions.core.features import ItemFeatures
from functions.core.repeats import NOBODY, Repeats
from functions.core.user_row import Float16
from train.alike import who_inherits
from train.companions import find_companions
from train.context import Requests
from train.demand import Demand, demand
from train.evaluate import CUTS, USERS_AT_ONCE, Candidates, candidates, embed_items, lists
from train.log import Interactions
from train.split import Split, rows_by_user, take
from train.towers import Towers

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Served:
    """A checkpoint as it answers: towers, embeddings of the catalogue [N, d], repeat term, who follows.

    expected [N]: the demand that `alike` was made with.
    """

    towers: Towers
    table: Float16
    repeats: Repeats
    alike: Alike = NOBODY
    companions: Alike = NOBODY
    expected: Demand = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def of(
        cls,
        towers: Towers,
        features: ItemFeatures,
        repeats: Repeats,
        expected: Demand,
        companions: Alike = NOBODY,
    ) -> Served:
        """As it answers with this repeat term; demand and companions are of what the towers learnt from."""
        alike = who_inherits(towers, features, repeats, expected)
        return cls(towers, embed_items(towers, features), repeats, alike, companions, expected)

    def retrained(self, towers: Towers, features: ItemFeatures, log: Interactions) -> Served:
        """As other towers of the same products answer, which learnt from `log`, with the same repeat term."""
        companions = find_companions(log) if self.repeats.companions else NOBODY
        return Served.of(towers, features, self.repeats, demand(log, features), companions)

    def proposed(
        self, log: Interactions, users: list[int], asked: Requests | None = None
    ) -> list[Candidates]:
        """What is proposed to each user after the user's history in the log, by where and when they ask."""
        return candidates(
            log,
            users,
            self.towers,
            self.table,
            asked,
            self.repeats.kinds,
            self.alike,
            self.companions,
        )

    def lists(self, proposed: list[Candidates]) -> Rows:
        """The first items of each list, [U, 20], best first, -1 where there are fewer."""
        return lists(proposed, self.repeats, self.table)


@dataclass(frozen=True)
class Exam:
    """The users of the test, ascending, their targets and what they did before; `asked`: when they ask.

    Split by time they all do as the test begins; else nothing says when, and nothing is made of it.
    """

    train: Interactions
    users: list[int]
    targets: list[Rows]
    asked: Requests | None = None

    @classmethod
    def of(cls, parts: Split, most: int | None = None, seed: int = 0) -> Exam:
        """All users of the split, or `most` of them, drawn by `seed`."""
        users = np.array(sorted(parts.targets))
        if most is not None:
            users = np.sort(np.random.default_rng(seed).permutation(users)[:most])
        asked = None if parts.asked_s is None else Requests.at(parts.asked_s, len(users))
        return cls(parts.train, users.tolist(), [parts.targets[user] for user in users.tolist()], asked)

    def masked(self, best: Iterator[Tensor]) -> Rows:
        """Lists [U, 20] by scores [U, N], which come USERS_AT_ONCE rows at a time, without the histories.

        A user's targets stay in the race, also where they are in the history.
        """
        counted = take(self.train, self.train.kind != IMPRESSION)
        own = rows_by_user(counted, self.users)
        found = []
        for at, scores in zip(range(0, len(self.users), USERS_AT_ONCE), best, strict=True):
            for row, some, wanted in zip(scores, own[at:], self.targets[at:], strict=False):
                met = counted.item[some].astype(np.int64)
                row[torch.from_numpy(np.setdiff1d(met, wanted))] = -torch.inf
            top = scores.topk(min(CUTS[-1], scores.shape[1]), 1)
            found.append(torch.where(top.values > -torch.inf, top.indices, -1).numpy())
        return np.concatenate(found)
