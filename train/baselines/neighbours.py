"""Baselines that look at neighbours: of the user, of the item, and of an item's content."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from scipy.sparse import csr_matrix, diags, hstack, vstack
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from functions.core.features import PRICE_BUCKETS, TEXT_BUCKETS, ItemFeatures
from train.baselines.ranking import (
    Floats,
    Rows,
    Scores,
    before_popularity,
    item_counts,
    recent_items,
    user_items,
)
from train.log import Interactions

SIMILARITIES = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
ITEMS_AT_ONCE = 256


def nearest(matrix: csr_matrix, neighbours: int, similarity: str) -> csr_matrix:
    """Similarity of the columns of [M, C]: [C, C], the `neighbours` nearest of each beside itself."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: {similarity!r}; expected one of {list(SIMILARITIES)}")
    model = SIMILARITIES[similarity](K=neighbours + 1)
    with warnings.catch_warnings():  # it converts what it computed itself, and warns of that
        warnings.simplefilter("ignore")
        model.fit(matrix, show_progress=False)
    return model.similarity


@dataclass(frozen=True)
class ItemKNN:
    """Items near those of the user (Sarwar et al. 2001); then what is popular.

    An item is its own neighbour. With a `half_life`, a user's event counts half for every so many events of
    the same user after it; 0: log(1 + how often).
    """

    neighbours: int = 100
    similarity: str = "cosine"
    half_life: float = 0.0

    def fit(self, log: Interactions) -> Scores:
        near = nearest(user_items(log), self.neighbours, self.similarity)
        own = recent_items(log, self.half_life) if self.half_life else user_items(log)
        popular = item_counts(log)
        return lambda users: before_popularity((own[users] @ near).toarray(), popular)


@dataclass(frozen=True)
class UserKNN:
    """Items of the users most like this one (Herlocker et al. 1999), by likeness; then what is popular.

    own: how much the user's own items count, where the nearest neighbour's count 1.
    """

    neighbours: int = 100
    similarity: str = "cosine"
    own: float = 0.0

    def fit(self, log: Interactions) -> Scores:
        matrix, popular = user_items(log), item_counts(log)
        near = nearest(matrix.T.tocsr(), self.neighbours, self.similarity)  # [users, users]
        near.setdiag(0)  # what a weighting calls the likeness of a user to himself is no part of the method
        near.eliminate_zeros()

        def scores(users: Rows) -> Floats:
            found = near[users] @ matrix
            if self.own:
                likest = near[users].max(1).toarray()  # [U, 1]
                found = found + diags(self.own * np.where(likest > 0, likest, 1).ravel()) @ matrix[users]
            return before_popularity(found.toarray().astype(np.float32, copy=False), popular)

        return scores


def content_matrix(features: ItemFeatures) -> csr_matrix:
    """What is known of each item as a row of length 1: [N, F].

    Category, brand, price and text by tf-idf; precomputed vectors beside them, with as much to say.
    """
    rows, columns, width = [], [], 0
    for codes, size in (
        (features.category[:, None], int(features.category.max(initial=0)) + 1),
        (features.brand[:, None], int(features.brand.max(initial=0)) + 1),
        (features.price[:, None], PRICE_BUCKETS),
        (features.text, TEXT_BUCKETS + 1),
    ):
        row, place = np.nonzero(codes)  # code 0: unknown
        rows.append(row)
        columns.append(width + codes[row, place])
        width += size
    at = (np.concatenate(rows), np.concatenate(columns))
    counts = csr_matrix((np.ones(len(at[0]), np.float32), at), shape=(len(features.category), width))
    weighed = TfidfTransformer().fit_transform(counts) if counts.nnz else counts
    if features.vectors.any():
        weighed = normalize(hstack([weighed, normalize(features.vectors)]))
    return weighed.astype(np.float32).tocsr()


def nearest_rows(wanted: csr_matrix, among: csr_matrix, neighbours: int) -> csr_matrix:
    """Dot products above 0 with the `neighbours` rows of [M, F] that have the largest, of [A, F]: [A, M]."""
    parts = []
    for at in range(0, wanted.shape[0], ITEMS_AT_ONCE):
        cosines = (wanted[at : at + ITEMS_AT_ONCE] @ among.T).toarray()
        drop = max(cosines.shape[1] - neighbours, 0)
        np.put_along_axis(cosines, np.argpartition(cosines, drop - 1, 1)[:, :drop], 0.0, 1)
        parts.append(csr_matrix(cosines))
    return vstack(parts).tocsr() if parts else csr_matrix((0, among.shape[0]), dtype=np.float32)


@dataclass(frozen=True)
class ContentKNN:
    """Items whose content is near that of the user's items (Lops et al. 2011); it needs no event of an item.

    An item's score is the sum over its `neighbours` nearest items that were met at all, of cosine times how
    much the user met them (`half_life` as in `ItemKNN`). `new_only`: only what nobody has met is shown.
    """

    features: ItemFeatures
    neighbours: int = 20
    half_life: float = 0.0
    new_only: bool = True

    def fit(self, log: Interactions) -> Scores:
        content = content_matrix(self.features)
        popular = item_counts(log)
        met = np.flatnonzero(popular)
        among = np.flatnonzero(popular == 0) if self.new_only else np.arange(len(popular))
        near = nearest_rows(content[among], content[met], self.neighbours)  # [A, met]
        own = recent_items(log, self.half_life) if self.half_life else user_items(log)
        of_met = own[:, met]

        def scores(users: Rows) -> Floats:
            found = np.full((len(users), len(popular)), -np.inf, np.float32)
            found[:, among] = before_popularity((of_met[users] @ near.T).toarray(), popular[among])
            return found

        return scores
