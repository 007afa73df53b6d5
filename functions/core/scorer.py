"""The best items for a user vector: a search among int8 codes, then an exact look at the best of them."""

from __future__ import annotations

import math
import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import VitrineError
from functions.core.selection import Rows, Scores, ScoreType, best_rows, buffer, ceiling, lower
from functions.core.user_row import Float16

RESCORED = 2  # candidates looked at exactly, for each one that is asked for
FEWEST = 40  # unless the manifest says otherwise: it does where products are too alike for their codes
ZERO_POINT = 128  # of codes as MatMulNBits reads them: int8 + 128
FLOAT32 = (
    np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
)  # of all float16, by their bits
Mask = Scores  # [M] in the order of the codes, of the scan's type: a `ceiling` of what may be shown
Top = tuple[Rows, NDArray[np.float32]]


def blocks(dim: int) -> tuple[int, int]:
    """How MatMulNBits takes a row of `dim` codes: so many blocks of so many codes, each with one scale.

    A block is the largest power of two from 16 to 256 that divides dim; else 16, the last block padded.
    """
    block = next((size for size in (256, 128, 64, 32, 16) if dim % size == 0), 16)
    return -(-dim // block), block


class Search(Protocol):
    """Finds rows whose dot product with a vector is among the largest, by codes."""

    def __call__(self, vector: NDArray[np.float32], count: int, mask: Mask | None) -> Rows:
        """vector [d] → `count` rows in any order, fewer where the mask lets no more through."""
        ...

    def mask(self, eligible: NDArray[np.bool_]) -> Mask:
        """The mask of [M] rows that may be shown; worth keeping for as long as they may."""
        ...


class Scan(Protocol):
    """Approximate scores of all rows, up to one positive factor and what all items have in common."""

    rows: int
    dtype: ScoreType  # of its scores

    def __call__(self, vector: NDArray[np.float32], out: Any) -> None:
        """vector [d] → out [M] of that `dtype`; `out` is C-contiguous and one thread's."""
        ...


class WholeScan:
    """A Search that scores every row; its scores lie in one buffer, so it takes one caller at a time."""

    def __init__(self, scan: Scan) -> None:
        self._scan, self._lock = scan, threading.Lock()
        self._buffer = buffer(scan.rows, scan.dtype)
        self._scores = self._buffer[: scan.rows]

    def __call__(self, vector: NDArray[np.float32], count: int, mask: Mask | None) -> Rows:
        scores = self._scores
        with self._lock:
            self._scan(vector, scores)
            if mask is not None:
                lower(scores, mask)
            return best_rows(self._buffer, len(scores), count)

    def mask(self, eligible: NDArray[np.bool_]) -> Mask:
        return ceiling(eligible, self._scan.dtype)


class Scorer:
    """Top-k by dot product over the showable items of one bundle."""

    def __init__(self, search: Search, embeddings: Float16, showable: int, rescored: int = FEWEST) -> None:
        """embeddings [N, d]; only the first `showable` rows are ever proposed.

        rescored: candidates looked at exactly at least, however few are asked for.
        """
        self._search, self._rescored = search, rescored
        self._bits = np.asarray(embeddings).view(np.uint16)
        self._showable = showable

    def scores(self, vector: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
        """Exact dot products of these rows, [n], float32."""
        exact: NDArray[np.float32] = FLOAT32.take(self._bits.take(rows, 0)) @ vector.astype(np.float32)
        return exact

    def mask(self, eligible: NDArray[np.bool_]) -> Mask:
        """What `top` takes as `mask`, of [showable] rows that may be shown."""
        if eligible.shape != (self._showable,):
            raise VitrineError(f"eligible {eligible.shape}; expected [{self._showable}], one for each row")
        return self._search.mask(eligible)

    def top(self, vector: NDArray[np.floating], k: int, mask: Mask | None = None) -> Top:
        """At most k rows and their scores, best first, ties to the lower row; vector [d].

        Raises VitrineError for a vector that is not finite.
        """
        query = vector.astype(np.float32)
        if not math.isfinite(query.dot(query)):
            raise VitrineError(f"vector {vector}; expected finite numbers (top k)")
        if k <= 0 or self._showable == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        rows = self._search(query, min(max(RESCORED * k, self._rescored), self._showable), mask)
        scores = self.scores(query, rows)
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]
