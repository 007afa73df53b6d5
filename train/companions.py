"""Companions: the known products that the same users met, and what being met together adds to a list.

Two small vectors know what goes with what where each product was met often. Of a shop with many products and
few events of each, neighbours know it better (Ludewig & Jannach 2018, "Evaluation of session-based
recommendation algorithms"): so what a visitor did with a product adds to its nearest, on top of the towers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from functions.core.alike import Alike
from functions.core.repeats import NOBODY, Repeats
from functions.core.user_row import Float16
from train.baselines.neighbours import nearest
from train.baselines.ranking import user_items
from train.evaluate import Candidates, ndcg
from train.log import Interactions
from train.repeats import CUT

NEAREST = 20  # companions of a product
MOST_PAIRS = 2_000_000  # of them in all: 12 MB of a bundle
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
HALF_LIVES = (8.0, 32.0, 128.0)
LEAST_GAIN = 0.005  # of the list's NDCG@10: for less a bundle need not hold them

Rows = NDArray[np.int64]


def find_companions(log: Interactions) -> Alike:
    """Of each of the log's N products its nearest by cosine of who met them, ties to the lower row."""
    items = len(log.item_ids)
    count = min(NEAREST, MOST_PAIRS // items)
    if not count:
        return NOBODY
    near = nearest(user_items(log), count, "cosine").tocoo()
    likeness = near.data.astype(np.float16)
    apart = (near.row != near.col) & (likeness > 0)
    giver, heir, likeness = near.row[apart], near.col[apart], likeness[apart]
    order = np.lexsort((heir, -likeness.astype(np.float32), giver))
    giver, heir, likeness = giver[order], heir[order], likeness[order]
    kept = np.arange(len(giver)) - np.searchsorted(giver, giver) < count
    bounds = np.searchsorted(giver[kept], np.arange(items + 1))
    return Alike(bounds.astype(np.int32), heir[kept].astype(np.int32), np.minimum(likeness[kept], 1))


def choose_companions(
    repeats: Repeats, proposed: list[Candidates], targets: list[Rows], table: Float16, companions: Alike
) -> Repeats:
    """`repeats` with the weight and half-life of companions that rank best, if they gain LEAST_GAIN at least.

    proposed [U]: what `candidates` gives each user; targets [U]: item rows; table [N, d]: embeddings.
    """
    if not len(companions.heirs):
        return repeats
    wide = table.astype(np.float32)
    together = [replace(each, companions=companions) for each in proposed]

    def merit(tried: Repeats) -> float:
        return round(ndcg(np.stack([each.top(tried, wide, CUT) for each in together]), targets, CUT), 6)

    grid = [replace(repeats, companions=w, companions_half_life=h) for h in HALF_LIVES for w in WEIGHTS]
    merits = [merit(tried) for tried in tqdm(grid, desc="companions", disable=None)]
    best = max(merits)
    return grid[merits.index(best)] if best >= (1 + LEAST_GAIN) * merit(repeats) else repeats
