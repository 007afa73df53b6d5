"""The best items for a user vector: a scan of int8 codes, then an exact look at the best of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.runtime import OnnxScan
from functions.core.user_row import Float16

RESCORED = 4  # candidates looked at exactly, for each one that is asked for
FEWEST = 40
Top = tuple[NDArray[np.int64], NDArray[np.float32]]


def blocks(dim: int) -> tuple[int, int]:
    """How MatMulNBits takes a row of `dim` codes: so many blocks of so many codes, each with one scale.

    A block is the largest power of two from 16 to 256 that divides dim; else 16, the last block padded.
    """
    block = next((size for size in (256, 128, 64, 32, 16) if dim % size == 0), 16)
    return -(-dim // block), block


class Scorer:
    """Top-k by dot product over the showable items of one bundle."""

    def __init__(self, scan: OnnxScan, embeddings: Float16, showable: int) -> None:
        """embeddings [N, d]; only the first `showable` rows are ever proposed."""
        self._scan = scan
        self._embeddings = embeddings
        self._showable = showable

    def scores(self, vector: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact dot products of these rows, [n], float32."""
        exact: NDArray[np.float32] = self._embeddings[rows].astype(np.float32) @ vector.astype(np.float32)
        return exact

    def top(self, vector: NDArray[np.floating], k: int) -> Top:
        """At most k rows and their scores, best first, ties to the lower row; vector [d]."""
        count = min(max(RESCORED * k, FEWEST), self._showable)
        if k <= 0 or count == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        rows = self._scan(vector.astype(np.float32), count)
        scores = self.scores(vector, rows)
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]
