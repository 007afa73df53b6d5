"""Inverted lists of an item table: k-means centroids and the items nearest to each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.index import Lists

SAMPLED = 64  # items a list, that centroids are learnt from
ROUNDS = 8
CHUNK = 8192  # items assigned at a time


def build_lists(embeddings: NDArray[np.float16], seed: int = 0) -> Lists:
    """[M, d] → about sqrt(M) lists, by Lloyd's k-means on a sample; an item lies where it is nearest."""
    rng = np.random.default_rng(seed)
    count = 1 << round(np.log2(len(embeddings)) / 2)
    drawn = np.sort(rng.choice(len(embeddings), min(SAMPLED * count, len(embeddings)), replace=False))
    sample = embeddings[drawn].astype(np.float32)
    centroids = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centroids)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        sizes = np.diff(np.append(starts, len(order)))
        centroids[used] = np.add.reduceat(sample[order], starts, axis=0) / sizes[:, None]
    nearest = _nearest(embeddings, centroids)
    order = np.argsort(nearest, kind="stable")
    bounds = np.searchsorted(nearest[order], np.arange(count + 1))
    return Lists(order.astype(np.int32), bounds.astype(np.int32), centroids)


def _nearest(items: NDArray[np.floating], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    half_squares = np.einsum("ld,ld->l", centroids, centroids) / 2
    parts = [
        np.argmax(items[start : start + CHUNK].astype(np.float32) @ centroids.T - half_squares, axis=1)
        for start in range(0, len(items), CHUNK)
    ]
    return np.concatenate(parts)
