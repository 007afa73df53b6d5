"""Baselines that look at neighbours: of the user, of the item, and of an item's content."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
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
ITEMS_AT_ONCE = 128


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
    """Dot products above 0 with the `neighbours` rows of [M, F] that have the largest, of [A, F]: [A, M].

    Rows that are equal are looked for once and found together, the lower first: half of a shop's products
    have a content that others have, too.
    """
    ask, who = _distinct(wanted)
    of, which = _distinct(among)
    places = np.argsort(which, kind="stable")  # of the rows of each content, one content after the other
    counts = np.bincount(which, minlength=len(of))
    starts = np.cumsum(counts) - counts
    used = np.flatnonzero(among.getnnz(0))  # of 33,000 columns a shop's titles use 6,000
    asked, others, nearest_of = wanted[ask][:, used], among[of][:, used], []
    for at in range(0, len(ask), ITEMS_AT_ONCE):
        part = asked[at : at + ITEMS_AT_ONCE].toarray()  # so the product is made of whole rows of numbers
        best = torch.from_numpy(others @ part.T).T.topk(min(neighbours, len(of)), 1)
        content, value = best.indices.numpy(), best.values.numpy()
        before = np.cumsum(counts[content], 1) - counts[content]  # rows of what is nearer
        taken = np.where(value > 0, (neighbours - before).clip(0, counts[content]), 0)  # [A, k]
        total = taken.sum(1)
        nth = np.arange(total.sum()) - np.repeat(np.cumsum(taken) - taken.ravel(), taken.ravel())
        columns = places[np.repeat(starts[content].ravel(), taken.ravel()) + nth]
        ends = np.r_[0, np.cumsum(total)]
        rows = (np.repeat(value.ravel(), taken.ravel()), columns, ends)
        nearest_of.append(csr_matrix(rows, shape=(len(total), among.shape[0])))
    if not nearest_of:
        return csr_matrix((0, among.shape[0]), dtype=np.float32)
    return vstack(nearest_of).tocsr()[who]


def _distinct(rows: csr_matrix) -> tuple[Rows, Rows]:
    """The first of each of the rows that differ, and which of those each row is, [A]."""
    rows.sort_indices()
    first: dict[tuple[bytes, bytes], int] = {}
    bounds = zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True)
    keys = [(rows.indices[a:b].tobytes(), rows.data[a:b].tobytes()) for a, b in bounds]
    which = np.array([first.setdefault(key, len(first)) for key in keys], np.int64)
    return np.unique(which, return_index=True)[1].astype(np.int64), which


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
