"""What the model has to beat: popularity, item-KNN and SVD, on the same histories, nothing masked."""

from __future__ import annotations

import warnings

import numpy as np
from implicit.nearest_neighbours import CosineRecommender
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from train.log import Interactions

NEIGHBOURS = 100
FACTORS = 64
USERS_AT_ONCE = 64

Top = NDArray[np.int64]  # [users, k] rows, best first


def user_items(log: Interactions) -> csr_matrix:
    """[users, items]: log(1 + how often), float32."""
    shape = (len(log.user_ids), len(log.item_ids))
    counts = csr_matrix((np.ones(len(log.user), np.float32), (log.user, log.item)), shape=shape)
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    return counts


def ranked(scores: NDArray[np.float32], k: int) -> Top:
    """The k best rows of each user, ties to the lower row: [users, N] → [users, k]."""
    k = min(k, scores.shape[1])
    return np.stack([_best(row, k) for row in scores])


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= edge)
    return rows[np.lexsort((rows, -scores[rows]))][:k].astype(np.int64)


def popularity(log: Interactions, users: list[int], k: int) -> Top:
    """The items with most events, the same for everybody."""
    counts = np.bincount(log.item, minlength=len(log.item_ids)).astype(np.float32)
    return np.repeat(ranked(counts[None], k), len(users), 0)


def item_knn(log: Interactions, users: list[int], k: int) -> Top:
    """Cosine between items (Sarwar et al. 2001), the NEIGHBOURS nearest of each; -1 where nothing is near."""
    matrix = user_items(log)
    model = CosineRecommender(K=NEIGHBOURS)
    with warnings.catch_warnings():  # it converts what it computed itself, and warns of that
        warnings.simplefilter("ignore")
        model.fit(matrix, show_progress=False)
    rows, _ = model.recommend(users, matrix[users], N=k, filter_already_liked_items=False)
    return np.asarray(rows, np.int64)


def svd(log: Interactions, users: list[int], k: int) -> Top:
    """Truncated SVD of the user-item matrix (PureSVD, Cremonesi et al. 2010)."""
    matrix = user_items(log)
    factors = min(FACTORS, min(matrix.shape) - 1)
    if factors < 1:
        return popularity(log, users, k)
    model = TruncatedSVD(factors, random_state=0)
    left = model.fit(matrix).transform(matrix[users])  # [users, factors]
    starts = range(0, len(users), USERS_AT_ONCE)
    return np.concatenate([ranked(left[a : a + USERS_AT_ONCE] @ model.components_, k) for a in starts])


BASELINES = {"popularity": popularity, "item_knn": item_knn, "svd": svd}
