"""Which products without a history inherit from which: their nearest in content, found exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import Alike
from functions.core.features import ItemFeatures
from functions.core.repeats import NOBODY, Repeats
from train.baselines.neighbours import content_matrix, nearest_rows
from train.refit import without_id
from train.towers import Towers

NEAREST = 20  # of what has a history, and as many of what has none: what ContentKNN has by default
MOST_PAIRS = 3 * 10**9  # of products that are compared: a minute or two
MOST_HEIRS = 64  # of one product: a request looks at so many for each product that the visitor met

Rows = NDArray[np.int64]


def who_inherits(towers: Towers, features: ItemFeatures, repeats: Repeats) -> Alike:
    """Of what the towers place by content alone; nobody where inheriting is worth nothing."""
    return find_alike(features, without_id(towers.item)) if repeats.inherited else NOBODY


def find_alike(features: ItemFeatures, new: NDArray[np.bool_], showable: int | None = None) -> Alike:
    """What each `new` product [N] inherits from, among all N: the nearest in content by cosine.

    Of the new ones only those among the first `showable` rows inherit. What has no content, or none in common
    with any other, has no like. Where comparing takes too long (MOST_PAIRS), new ones inherit from known ones
    alone, or nobody does.
    """
    heirs = np.flatnonzero(new[:showable])
    if not len(heirs):
        return _by_giver(heirs, heirs, np.zeros(0, np.float16), len(new))
    content = content_matrix(features)
    heir, giver, likeness = [], [], []
    for among in (np.flatnonzero(~new), np.flatnonzero(new)):
        if len(heirs) * len(among) > MOST_PAIRS:
            break
        near = nearest_rows(content[heirs], content[among], NEAREST + 1).tocoo()  # itself may be one
        heir.append(heirs[near.row])
        giver.append(among[near.col])
        likeness.append(near.data.astype(np.float16))
    if not heir:
        return _by_giver(heirs[:0], heirs[:0], np.zeros(0, np.float16), len(new))
    pairs = np.concatenate(heir), np.concatenate(giver), np.concatenate(likeness)
    apart = (pairs[0] != pairs[1]) & (pairs[2] > 0)
    return _by_giver(pairs[0][apart], pairs[1][apart], pairs[2][apart], len(new))


def _by_giver(heir: Rows, giver: Rows, likeness: NDArray[np.float16], items: int) -> Alike:
    """The pairs in the order of who gives, of each the MOST_HEIRS that are most like it."""
    order = np.lexsort((heir, -likeness.astype(np.float32), giver))
    heir, giver, likeness = heir[order], giver[order], likeness[order]
    first = np.searchsorted(giver, giver)
    kept = np.arange(len(giver)) - first < MOST_HEIRS
    bounds = np.searchsorted(giver[kept], np.arange(items + 1))
    return Alike(bounds.astype(np.int32), heir[kept].astype(np.int32), likeness[kept])
