"""Companions: the known products that the same users met, and what being met together adds to a list.

Two small vectors know what goes with what where each product was met often. Of a shop with many products and
few events of each, neighbours know it better (Ludewig & Jannach 2018, "Evaluation of session-based
recommendation algorithms"): so what a visitor did with a product adds to its nearest, on top of the towers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from functions.core.alike import Alike
from functions.core.repeats import NOBODY, Repeats
from functions.core.user_row import Float16
from train.alike import by_giver
from train.baselines.neighbours import nearest
from train.baselines.ranking import user_items
from train.evaluate import Candidates, evaluate
from train.log import Interactions

NEAREST = 20  # companions of a product
MOST_PAIRS = 1_000_000  # of them in all: 6 MB of a bundle, which a cold start reads
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
HALF_LIVES = (8.0, 32.0, 128.0)
LEAST_GAIN = 0.005  # of the lists' merit: for less a bundle need not hold them
MOST_LOSS = 0.001  # of their NDCG@10

Rows = NDArray[np.int64]


def find_companions(log: Interactions) -> Alike:
    """Of each of the log's N products its nearest by cosine of who met them, best first; of equals by lot."""
    items = len(log.item_ids)
    count = min(NEAREST, MOST_PAIRS // items)
    if not count:
        return NOBODY
    shuffled = np.random.default_rng(0).permutation(items)  # of equals implicit keeps the higher rows
    near = nearest(user_items(log)[:, shuffled], count, "cosine").tocoo()
    likeness = near.data.astype(np.float16)
    apart = (near.row != near.col) & (likeness > 0)
    giver, heir = shuffled[near.row[apart]], shuffled[near.col[apart]]
    return by_giver(heir, giver, np.minimum(likeness[apart], 1), items, count)


def choose_companions(
    repeats: Repeats, proposed: list[Candidates], targets: list[Rows], table: Float16, companions: Alike
) -> Repeats:
    """`repeats` with the weight and half-life of companions that rank best, if they gain LEAST_GAIN at least.

    Best is NDCG@10 and recall@20 together, for the towers know what comes first and neighbours what comes at
    all; NDCG@10 alone may lose MOST_LOSS.

    proposed [U]: what `candidates` gives each user; targets [U]: item rows; table [N, d]: embeddings.
    """
    if not len(companions.heirs):
        return repeats
    together = [replace(each, companions=companions) for each in proposed]

    def merits(tried: Repeats) -> tuple[float, float]:
        found = evaluate(together, tried, targets, table)
        return found["ndcg@10"], found["recall@20"]

    first = merits(repeats)
    floor, best, least = (1 - MOST_LOSS) * first[0], repeats, (1 + LEAST_GAIN) * sum(first)
    for weight, half_life in tqdm([*product(WEIGHTS, HALF_LIVES)], desc="companions", disable=None):
        tried = replace(repeats, companions=weight, companions_half_life=half_life)
        found = merits(tried)
        if found[0] >= floor and sum(found) > least:
            best, least = tried, sum(found)
    return best
