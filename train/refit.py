"""New items: what content says of an item, fitted once more to the embeddings that training arrived at.

Ids learn thirty times as fast as content, and leave it little to say: what the tower makes of content alone
places an item that nobody has met hardly better than chance. So after the last epoch content is regressed
on the embeddings of what was met (as Gantner et al. 2010, "Learning attribute-to-feature mappings", map
attributes to factors; here by ridge regression, an item counting as the root of its events), and the ids keep
the rest: no embedding of an item that was met changes, and the others are placed by what theirs share.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import Ridge
from torch import Tensor

from functions.core.features import ItemFeatures
from train.log import Interactions
from train.slices import event_counts
from train.towers import ItemTower

PENALTY = 0.01  # of a squared weight, where each kind of content has a mean square of 1
SOLVED_AT_ONCE = 8_000  # items, or rows of content; where both are more, conjugate gradients
STEPS = 50  # of them, at most


def placed_by_content(log: Interactions, features: ItemFeatures) -> NDArray[np.bool_]:
    """Whether the log has no event but impressions of an item whose content says something, [N]."""
    new: NDArray[np.bool_] = says_something(features) & (event_counts(log) == 0)
    return new


def says_something(features: ItemFeatures) -> NDArray[np.bool_]:
    """Whether anything is known of a product beside its id, [N]."""
    items = len(features.category)
    says = [(column.reshape(items, -1) != 0).any(1) for column in features.columns().values()]
    found: NDArray[np.bool_] = np.logical_or.reduce(says)
    return found


@torch.no_grad()
def refit(tower: ItemTower, log: Interactions, features: ItemFeatures) -> None:
    """Fit the tower's content to its own embeddings of what the log has met; ids keep the remainder.

    Row 0 of the ids, and the rows that content alone places, get the mean embedding. Without content nothing
    changes.
    """
    counts = event_counts(log)
    new, met = says_something(features) & (counts == 0), np.flatnonzero(counts)
    if not len(met) or not any(column.any() for column in features.columns().values()):
        return
    columns = [torch.from_numpy(column) for column in features.columns().values()]
    trained = tower.eval()(torch.arange(1, len(new) + 1), *columns)
    weights = np.sqrt(counts[met])
    mean = torch.from_numpy(np.average(trained[met].numpy(), axis=0, weights=weights)).float()
    content, scale = _alike([part[met] for part in design(tower, features)])
    fitted = _ridge(content, (trained[met] - mean).double().numpy(), weights)
    _write(tower, torch.from_numpy(fitted * scale[:, None]).float())
    tower.ids.weight[0] = 0.0
    rest = trained - tower(torch.zeros(len(new), dtype=torch.int64), *columns)
    tower.ids.weight.copy_(torch.cat([mean[None], torch.where(torch.from_numpy(new)[:, None], mean, rest)]))


def is_refitted(tower: ItemTower) -> bool:
    """Whether `refit` has fitted the tower: then its content is a sum, and nothing is mixed."""
    return not bool(tower.mixed.weight.any())


def without_id(tower: ItemTower) -> NDArray[np.bool_]:
    """Which rows [N] the tower places by their content alone, as it would place what comes later."""
    ids = tower.ids.weight.detach()
    without: NDArray[np.bool_] = (ids[1:] == ids[0]).all(1).numpy()
    return without


def design(tower: ItemTower, features: ItemFeatures) -> list[csr_matrix]:
    """What the tower adds up for an item, one matrix [N, rows of it] for each of its tables."""
    tables = (
        (tower.categories, features.category[:, None]),
        (tower.brands, features.brand[:, None]),
        (tower.prices, features.price[:, None]),
        (tower.texts, features.text),
    )
    parts = [_rows(table.num_embeddings, codes) for table, codes in tables]
    return parts + ([csr_matrix(features.vectors)] if tower.vectors is not None else [])


def _ridge(
    content: csr_matrix, wanted: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What each column of the content [M, F] stands for, [F, d]; nothing where no item has it.

    Of a shop's many words few are in its titles, so the equations are mostly few enough to be solved exactly.
    """
    used = np.flatnonzero(content.getnnz(0))
    fitted = np.zeros((content.shape[1], wanted.shape[1]))
    if not len(used):  # whatever says something has not been met
        return fitted
    solver = "cholesky" if min(len(used), len(wanted)) <= SOLVED_AT_ONCE else "sparse_cg"
    model = Ridge(alpha=PENALTY * weights.mean(), solver=solver, max_iter=STEPS, fit_intercept=False)
    model.fit(content[:, used], wanted, weights)
    fitted[used] = model.coef_.T
    return fitted


def _alike(parts: list[csr_matrix]) -> tuple[csr_matrix, NDArray[np.float64]]:
    """The parts side by side, each scaled to a mean square of 1 an item: one penalty for all; the factors."""
    squares = [part.power(2).sum(1).mean() for part in parts]
    factors = [1 / np.sqrt(square) if square else 1.0 for square in squares]
    scale = np.repeat(factors, [part.shape[1] for part in parts])
    scaled = [part * factor for part, factor in zip(parts, factors, strict=True)]
    return hstack(scaled, format="csr"), scale


def _rows(width: int, codes: NDArray[np.int64]) -> csr_matrix:
    """The mean of the rows of a table that `codes` [N, C] name, 0 naming none: [N, width]."""
    item, place = np.nonzero(codes)
    share = 1.0 / (codes != 0).sum(1)[item]
    return csr_matrix((share, (item, codes[item, place])), shape=(len(codes), width))


def _write(tower: ItemTower, fitted: Tensor) -> None:
    """The tables' rows, [F, d], into the tower; content is a sum now, and nothing is mixed any more."""
    tables = [tower.categories, tower.brands, tower.prices, tower.texts]
    sizes = [table.num_embeddings for table in tables]
    *of_tables, of_vectors = torch.split(fitted, [*sizes, len(fitted) - sum(sizes)])
    for table, rows in zip(tables, of_tables, strict=True):
        table.weight.copy_(rows)
    if tower.vectors is not None:
        tower.vectors.weight.copy_(of_vectors.T)
    tower.mixed.weight.zero_()
