"""Which products without a history inherit from which: their nearest in content, found exactly.

How much is a matter of likeness, and of how many come to such products at all (`train.demand`): of two that
are alike to what a visitor bought, the one that hardly anybody will buy inherits less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import Alike
from functions.core.features import ItemFeatures
from functions.core.repeats import NOBODY, Repeats
from train.baselines.neighbours import content_matrix, nearest_rows
from train.demand import Demand
from train.refit import without_id
from train.towers import Towers

NEAREST = 20  # of what has a history, and as many of what has none: what ContentKNN has by default
MOST_PAIRS = 3 * 10**9  # of products that are compared: a minute or two
MOST_HEIRS = 64  # of one product: a request looks at so many for each product that the visitor met
POWER = 0.5  # of demand
IN_DEMAND = 0.99  # quantile of the heirs' demand: from there on likeness is the cosine alone

LEAST = np.finfo(np.float16).smallest_subnormal

Rows = NDArray[np.int64]


def who_inherits(towers: Towers, features: ItemFeatures, repeats: Repeats, demand: Demand | None) -> Alike:
    """Of what the towers place by content alone; nobody where inheriting is worth nothing."""
    return find_alike(features, without_id(towers.item), None, demand) if repeats.inherited else NOBODY


def find_alike(
    features: ItemFeatures,
    new: NDArray[np.bool_],
    showable: int | None = None,
    demand: Demand | None = None,
) -> Alike:
    """What each `new` product [N] inherits from, among all N: the nearest in content by cosine.

    Of the new ones only those among the first `showable` rows inherit. What has no content, or none in common
    with any other, has no like. Where comparing takes too long (MOST_PAIRS), new ones inherit from known ones
    alone, or nobody does. demand [N], nan where it is not known: users expected to come to each; a cosine is
    scaled down by the root of the heir's.
    """
    heirs = np.flatnonzero(new[:showable])
    if not len(heirs):
        return by_giver(heirs, heirs, np.zeros(0, np.float16), len(new), MOST_HEIRS)
    content = content_matrix(features)
    heir, giver, likeness = [], [], []
    for among in (np.flatnonzero(~new), np.flatnonzero(new)):
        if len(heirs) * len(among) > MOST_PAIRS:
            break
        near = nearest_rows(content[heirs], content[among], NEAREST + 1).tocoo()  # itself may be one
        heir.append(heirs[near.row])
        giver.append(among[near.col])
        likeness.append(near.data)
    if not heir:
        return by_giver(heirs[:0], heirs[:0], np.zeros(0, np.float16), len(new), MOST_HEIRS)
    pairs = np.concatenate(heir), np.concatenate(giver), np.concatenate(likeness)
    apart = (pairs[0] != pairs[1]) & (pairs[2].astype(np.float16) > 0)
    heirs, givers, cosines = (column[apart] for column in pairs)
    scaled = cosines if demand is None else cosines * _scale(heirs, givers, cosines, demand)
    likeness = np.maximum(scaled.astype(np.float16), LEAST)
    return by_giver(heirs, givers, likeness, len(new), MOST_HEIRS)


def _scale(heir: Rows, giver: Rows, cosine: NDArray[np.float32], demand: Demand) -> NDArray[np.float64]:
    """Of each pair [E] the root of its heir's demand, in units of what is IN_DEMAND; 1 at most.

    Where an heir's is not known, the mean of its nearest (of logarithms, by cosine), or else of all heirs.
    """
    known = np.isfinite(demand)
    logs = np.log(demand, where=known, out=np.zeros(len(demand)))
    weight = cosine * known[giver]
    total, sums = (np.bincount(heir, w, len(demand)) for w in (weight, weight * logs[giver]))
    logs = np.where(known, logs, np.divide(sums, total, where=total > 0, out=np.full(len(sums), np.nan)))
    heirs = np.unique(heir)
    if np.isnan(logs[heirs]).all():
        return np.ones(len(heir))
    logs = np.where(np.isnan(logs), np.nanmean(logs[heirs]), logs)
    scale: NDArray[np.float64] = np.exp(POWER * np.minimum(logs - np.quantile(logs[heirs], IN_DEMAND), 0))
    return scale[heir]


def by_giver(heir: Rows, giver: Rows, likeness: NDArray[np.float16], items: int, most: int) -> Alike:
    """Pairs [E] in the order of who gives, of each the `most` that are most like it, best first."""
    order = np.lexsort((heir, -likeness.astype(np.float32), giver))
    heir, giver, likeness = heir[order], giver[order], likeness[order]
    first = np.searchsorted(giver, giver)
    kept = np.arange(len(giver)) - first < most
    bounds = np.searchsorted(giver[kept], np.arange(items + 1))
    return Alike(bounds.astype(np.int32), heir[kept].astype(np.int32), likeness[kept])
