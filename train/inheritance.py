"""How much a product without a history inherits: tried on products that have one.

A tenth of them are taken for new: content is fitted without them, and each is placed and inherits as if it
had come today. Weight and half-life are those that rank them best among themselves, for the validation users
who came to one for the first time. In the whole list they may then crowd out what is known, so all of them
are shifted down until that costs next to nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import Alike
from functions.core.features import ItemFeatures
from functions.core.repeats import Own, Repeats
from functions.core.user_row import Float16
from train.alike import find_alike
from train.demand import demand
from train.evaluate import Candidates, embed_items, ndcg
from train.log import Interactions
from train.refit import refit, says_something, without_id
from train.repeats import HALF_LIVES
from train.slices import event_counts
from train.split import rows_by_user, take
from train.towers import Towers

HELD_OUT = 0.1  # share of the products that are taken for new
MOST_ITEMS = 100_000  # in a catalogue: a minute of one thread, and four times that for twice as many
CUT = 10
LEAST_USERS = 20  # who came to one: fewer say nothing
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SHIFTS = (
    *(0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -5.0, -6.0, -8.0, -10.0, -12.0, -16.0, -24.0, -32.0),
    *(-48.0, -64.0, -96.0, -128.0, -192.0, -256.0),
)
MOST_LOSS = 0.005  # of the whole list's NDCG@10

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """What J products, taken for new, are to U users, and what else those would be shown.

    rows [J] item rows, ascending; scores [U, J] their dot products, -inf for what the user has met; known and
    known_scores [U, CUT]: the best of all others, -1 and -inf behind the last; targets [U]: item rows.
    """

    rows: Rows
    scores: Floats
    known: Rows
    known_scores: Floats
    own: list[Own]
    targets: list[Rows]
    alike: Alike

    def inherited(self, repeats: Repeats) -> Floats:
        """What each user's own products add to the new ones, [U, J]."""
        added = np.zeros(self.scores.shape)
        for user, own in enumerate(self.own):
            found = repeats.inheritance(own, self.alike)
            heirs = np.fromiter(found, np.int64, len(found))
            place = np.searchsorted(self.rows, heirs) % len(self.rows)  # the rows ascend, so no set is made
            among = self.rows[place] == heirs
            added[user, place[among]] = np.fromiter(found.values(), np.float64, len(found))[among]
        return added

    def asked(self) -> Rows:
        """The users who came to one of the new products without having met it, as places."""
        return np.array([user for user, rows in enumerate(self.new_targets) if len(rows)], np.int64)

    def among_themselves(self, added: Floats) -> float:
        """NDCG@10 of the new products alone, for the users who came to one."""
        users, targets = self.asked(), self.new_targets
        best = _best(self.scores[users] + added[users])
        return ndcg(self.rows[best], [targets[user] for user in users], CUT)

    def whole(self, added: Floats) -> float:
        """NDCG@10 of whole lists."""
        new = self.scores + added
        some = _best(new)
        rows = np.hstack([self.known, self.rows[some]])
        scores = np.hstack([self.known_scores, np.take_along_axis(new, some, 1)])
        best = _best(scores)
        there = np.take_along_axis(scores, best, 1) > -np.inf
        return ndcg(np.where(there, np.take_along_axis(rows, best, 1), -1), self.targets, CUT)

    @cached_property
    def new_targets(self) -> list[Rows]:
        """Of each user's targets the new products that the user had not met."""
        pairs = zip(self.scores, self.targets, strict=True)
        return [np.intersect1d(self.rows[row > -np.inf], wanted) for row, wanted in pairs]


def choose_inheritance(repeats: Repeats, trial: Trial | None) -> Repeats:
    """`repeats` with the inheritance that is best in the trial; without one, where nothing is gained."""
    if trial is None or len(trial.asked()) < LEAST_USERS:
        return repeats
    nothing = np.zeros(trial.scores.shape)
    best, merit, added = repeats, trial.among_themselves(nothing), nothing
    for half_life in HALF_LIVES:
        unit = trial.inherited(replace(repeats, inherited=1.0, inherited_half_life=half_life))
        for weight in WEIGHTS:
            found = trial.among_themselves(weight * unit)
            if round(found - merit, 6) > 0:
                best = replace(repeats, inherited=weight, inherited_half_life=half_life)
                merit, added = found, weight * unit
    least = (1 - MOST_LOSS) * trial.whole(nothing - np.inf)
    shifts = (shift for shift in SHIFTS if trial.whole(added + shift) >= least)
    shift = next(shifts, None)
    return repeats if shift is None or not best.inherited else replace(best, newcomer=shift)


def hold_out(
    towers: Towers,
    log: Interactions,
    features: ItemFeatures,
    users: Sequence[int],
    targets: list[Rows],
    proposed: Sequence[Candidates],
    served: tuple[Repeats, Float16],
    seed: int = 0,
) -> Trial | None:
    """Take a tenth of the products for new, drawn by `seed`; None where there is nothing to take,
    or more than MOST_ITEMS to look through.

    log: what the towers learnt from. users [U] and their targets after it; proposed: what `candidates` gives
    them, whose vectors know nothing of what they had not met; served: the repeat term and the embeddings of
    what is known.
    """
    met = np.flatnonzero((event_counts(log) > 0) & says_something(features))
    rows = np.sort(np.random.default_rng(seed).permutation(met)[: round(HELD_OUT * len(met))])
    if not len(rows) or not users or len(log.item_ids) > MOST_ITEMS:
        return None
    taken = np.isin(np.arange(len(log.item_ids)), rows)
    apart = copy.deepcopy(towers)
    left = take(log, ~taken[log.item])
    refit(apart.item, left, features)
    table = embed_items(apart, features)[rows].astype(np.float32)
    scores = (np.stack([each.vector for each in proposed]) @ table.T).astype(np.float64)
    repeats, wide = served[0], served[1].astype(np.float32)
    known, known_scores = np.full((len(users), CUT), -1), np.full((len(users), CUT), -np.inf)
    for user, places in enumerate(rows_by_user(log, users)):
        before = np.isin(rows, log.item[places])
        scores[user, before] = -np.inf
        some, of = proposed[user].ranked(repeats, wide)
        kept = np.flatnonzero(~np.isin(some, rows[~before]))[:CUT]
        known[user, : len(kept)], known_scores[user, : len(kept)] = some[kept], of[kept]
    own = [each.own for each in proposed]
    alike = find_alike(features, without_id(apart.item), None, demand(left, features, taken))
    return Trial(rows, scores, known, known_scores, own, targets, alike)


def _best(scores: Floats) -> Rows:
    """The places of the CUT largest, [U, C] -> [U, CUT] at most, best first; ties to the lower place."""
    cut = min(CUT, scores.shape[1])
    least = np.partition(scores, -cut, axis=1)[:, -cut]
    user, place = np.nonzero(scores >= least[:, None])
    order = np.lexsort((place, -scores[user, place], user))
    first = np.searchsorted(user, np.arange(len(scores)))
    best: Rows = place[order][first[:, None] + np.arange(cut)]
    return best
