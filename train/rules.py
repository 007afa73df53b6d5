"""Where the defaults come from: the size, length and sparsity of the log, never the name of the data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from functions.core.events import IMPRESSION
from train.log import Interactions
from train.options import Options
from train.towers import Shape

WIDE_UP_TO = 50_000  # items; scanning a larger catalogue costs more than the wider vectors gain
WIDE, NARROW = 128, 64  # numbers of a vector
WIDTH = 80  # of a block's state
SLOW_ITEM_RATE = 2.0  # beyond, and where items are sampled: their gradients are mostly noise
WELL_KNOWN = 50  # events of an item, on average, from which ids learn at the rate that options have
FASTEST_ITEMS = 6.0  # times that rate, at most, where there are fewer
EVERY_ITEM_UP_TO = 100_000, 30_000  # with a GPU; without one
LOGITS_AN_EPOCH = 2 * 10**10  # without one: two minutes of a core, at d = 64
MET_AGAIN = 0.01  # share of events up to which nobody is said to do a thing twice
EVENTS_TO_SEE = 16_000_000  # over all epochs
LEAST_EPOCHS, MOST_EPOCHS = 8, 60


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    items: int
    users: int
    events: int  # impressions aside
    repeats: float = 1.0  # share of the events whose item the user has met before
    horizon_s: int = 0  # how long a list is judged by what comes; 0: by the next event alone

    @property
    def length(self) -> float:
        """Events of a user, on average."""
        return self.events / max(self.users, 1)


def facts(log: Interactions, horizon_s: int = 0) -> Facts:
    """Counts of what there is to learn from, for lists that are judged by what comes within the horizon."""
    counted = log.kind != IMPRESSION
    user, item, items = log.user[counted], log.item[counted], len(log.item_ids)
    pairs = len(np.unique(user.astype(np.int64) * items + item))
    return Facts(items, len(np.unique(user)), len(user), 1 - pairs / max(len(user), 1), horizon_s)


def shape_for(
    known: Facts, categories: int = 0, brands: int = 0, content: bool = False, dim: int | None = None
) -> Shape:
    """The model for such a log, with vectors of the width that was asked for, if one was.

    Dropout grows as histories shorten: .18 at 165 events each, a fifth at 130, four tenths at ten. Ids are
    dropped only where content can stand in for them.
    """
    sparse = 0.22 + 0.053 * math.log2(100 / max(known.length, 1.0))
    if dim is None:
        dim = WIDE if known.items <= WIDE_UP_TO else NARROW
    return Shape(
        items=known.items,
        categories=categories,
        brands=brands,
        dim=dim,
        width=WIDTH,
        dropout=round(min(max(sparse, 0.1), 0.5), 2),
        id_dropout=0.1 if content else 0.0,
    )


def softmax_items_for(known: Facts, gpu: bool) -> int:
    """Up to how many items the loss scores every one, beyond which a sample.

    A GPU does it for 100,000. Without one only a small log can: it takes 15 times as long as the sample.
    """
    with_gpu, without = EVERY_ITEM_UP_TO
    return with_gpu if gpu else min(max(LOGITS_AN_EPOCH // max(known.events, 1), without), with_gpu)


def options_for(known: Facts, chosen: Options, epochs: int | None = None) -> Options:
    """How to train on such a log: EVENTS_TO_SEE events in all, or the epochs that were asked for.

    Ids learn the faster, the fewer events an item has: its row is met in few batches, and has as far to go.

    What a user has met is treated as it will be in a list. Where nobody does a thing twice it is masked, and
    the state need not remember it in order to rule it out; else the repeat term is in the logits, and the
    towers learn what it does not say. Neither where items are sampled.
    """
    if epochs is None:
        epochs = min(max(round(EVENTS_TO_SEE / max(known.events, 1)), LEAST_EPOCHS), MOST_EPOCHS)
    every = chosen.scores_every(known.items)
    if every and known.items <= WIDE_UP_TO:
        seldom = WELL_KNOWN * known.items / max(known.events, 1)
        rate = round(chosen.item_rate * min(max(seldom, 1.0), FASTEST_ITEMS), 1)
    else:
        rate = min(chosen.item_rate, SLOW_ITEM_RATE)
    history = "masked" if known.repeats <= MET_AGAIN else "weighed"
    if not every:
        history = "free"
    return replace(chosen, epochs=epochs, item_rate=rate, history=history, horizon_s=known.horizon_s)
