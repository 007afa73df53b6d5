"""How many come to a product, as its content says: what a product without a history may expect.

Counts of users are regressed on content (a generalized linear model with a log link: McCullagh & Nelder 1989,
chapter 6), twice: over all products, which says what sells at all; then over those that came lately or have
yet to come, with the first one's prediction beside the content, for what is new sells otherwise.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor

from functions.core.events import IMPRESSION
from functions.core.features import ItemFeatures
from train.baselines.neighbours import content_matrix
from train.log import Interactions
from train.split import take

LATEST = 0.1  # share of the events by which demand is counted
STEPS = 100  # of L-BFGS, at most
FURTHEST = 30.0  # of a logarithm from 0, so that demand is a positive float32

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Demand = NDArray[np.float32]


def demand(log: Interactions, features: ItemFeatures, without: Flags | None = None) -> Demand:
    """Users expected to come to each product, as its content says, [N]: above 0 and finite.

    Counted in the latest tenth of the log's events, impressions aside. Of the products `without` [N] nothing
    is learnt.
    """
    users, before = _counted(take(log, log.kind != IMPRESSION))
    learnt = np.ones(len(users), np.bool_) if without is None else ~without
    content = content_matrix(features).astype(np.float64)
    content = content[:, np.flatnonzero(content.getnnz(0))]
    expected = _expected(content, users, learnt)
    new = learnt & ~before
    if users[new].any():
        spread = expected[new].std()
        beside = (expected - expected[new].mean()) / (spread if spread > 1e-9 else 1.0)
        expected = _expected(hstack([content, csr_matrix(beside[:, None])], "csr"), users, new)
    found: Demand = np.exp(expected.clip(-FURTHEST, FURTHEST)).astype(np.float32)
    return found


def _counted(log: Interactions) -> tuple[Floats, Flags]:
    """Of each product the users who came to it in the latest tenth, and whether anybody had before, [N]."""
    items, events = len(log.item_ids), len(log.time_s)
    start_s = np.sort(log.time_s)[-max(1, int(LATEST * events))] if events else 0
    late = log.time_s >= start_s
    pairs = np.unique(np.stack([log.item[late], log.user[late]]), axis=1)
    users = np.bincount(pairs[0], minlength=items).astype(np.float64)
    return users, np.bincount(log.item[~late], minlength=items) > 0


def _expected(content: csr_matrix, users: Floats, rows: Flags) -> Floats:
    """Logarithm of the users expected of each product [N], learnt from `rows`; 0 where nobody came to any.

    Each coefficient has a prior of unit variance.
    """
    counts = users[rows]
    if not counts.any():
        return np.zeros(len(users))
    if not content.shape[1]:
        return np.full(len(users), np.log(counts.mean()))
    model = PoissonRegressor(alpha=1 / len(counts), max_iter=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough after STEPS
        model.fit(content[rows], counts)
    found: Floats = content @ model.coef_ + model.intercept_
    return found
