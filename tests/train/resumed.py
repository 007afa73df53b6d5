"""A small world to train in, for processes that are killed and for processes that work together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from functions.core.events import KINDS
from functions.core.features import ItemFeatures, Vocabulary
from train.fit import History, fit
from train.log import Interactions
from train.options import Options
from train.split import split
from train.towers import Shape

ITEMS = 12
SHAPE = Shape(items=ITEMS, categories=1, brands=1, dim=16, width=16, id_dropout=0.0, kind_dropout=0.0)
OPTIONS = Options(epochs=3, batch=16, window=8, learning_rate=2e-2, save_every_s=0.0)


def walks(users: int = 60, length: int = 10, seed: int = 0) -> Interactions:
    """Each user goes on by one or two items at a time."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, ITEMS, (users, 1))
    item = (start + np.cumsum(rng.integers(1, 3, (users, length)), 1)) % ITEMS
    user = np.repeat(np.arange(users), length).astype(np.int32)
    return Interactions(
        user,
        item.ravel().astype(np.int32),
        np.ones(users * length, np.int8),
        np.tile(np.arange(length, dtype=np.int64) * 60, users),
        np.full(users * length, np.nan, np.float32),
        [f"u{u}" for u in range(users)],
        [f"sku-{i}" for i in range(ITEMS)],
    )


def dismissals(users: int = 60) -> Interactions:
    """Walks of which nine in ten have but dismissals after the first event: nothing to predict."""
    log = walks(users)
    nothing = (log.user % 10 > 0) & (log.time_s > 0)
    return dataclasses.replace(log, kind=np.where(nothing, KINDS["dismiss"], log.kind).astype(np.int8))


def run(
    out: Path,
    dropout: float,
    resume: bool = True,
    options: Options = OPTIONS,
    log: Interactions | None = None,
    price: int = 0,
) -> History:
    """Train into `out`, going on from what is there; on `walks()` where no `log` is given.

    price: the bucket of every item's.
    """
    none = np.zeros(ITEMS, np.int64)
    content = ItemFeatures(none, none, none + price, np.zeros((ITEMS, 32), np.int64))
    out.mkdir(exist_ok=True)
    shape = dataclasses.replace(SHAPE, dropout=dropout)
    parts = split(walks() if log is None else log, "leave-one-out")
    return fit(parts, content, Vocabulary(("toys",)), shape, options, out, resume)
