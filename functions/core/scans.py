"""Scans in numpy alone: an index is searched with one, and they serve where ONNX Runtime is missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.scorer import ZERO_POINT

CHUNK = 4096  # rows made float32 at a time: a megabyte at d = 64


class Codes:
    """Codes [M, blocks, block] uint8 as MatMulNBits reads them, scored in float32."""

    def __init__(self, codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> None:
        """scales [M * blocks]."""
        self.rows, self._blocks, self._block = codes.shape
        self.dtype = np.float32
        self._codes = np.asarray(codes).reshape(self.rows, -1)
        self._scales = np.asarray(scales).reshape(self.rows, self._blocks)
        self._zero = np.float32(ZERO_POINT)

    def query(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vector [d] as `part` wants it: [blocks * block, blocks], each block's numbers in its column."""
        wide = np.zeros((self._blocks, self._block, self._blocks), np.float32)
        padded = np.zeros(self._blocks * self._block, np.float32)
        padded[: len(vector)] = vector
        at = np.arange(self._blocks)
        wide[at, :, at] = padded.reshape(self._blocks, self._block)
        return wide.reshape(-1, self._blocks)

    def part(self, query: NDArray[np.float32], start: int, end: int) -> NDArray[np.float32]:
        """Scores of the rows start..end."""
        products = self._codes[start:end].astype(np.float32) @ query
        products -= self._zero * query.sum(0)
        products *= self._scales[start:end]
        scores: NDArray[np.float32] = products.sum(1)
        return scores

    def __call__(self, vector: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """vector [d] → out [M]."""
        query = self.query(vector)
        for start in range(0, self.rows, CHUNK):
            end = min(start + CHUNK, self.rows)
            out[start:end] = self.part(query, start, end)


class ColumnCodes:
    """Codes [d, M] int8 with one scale for all, as MatMulInteger reads them, scored in float32."""

    def __init__(self, codes: NDArray[np.int8]) -> None:
        self.rows = codes.shape[1]
        self.dtype = np.float32
        self._codes = np.asarray(codes)

    def __call__(self, vector: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """vector [d] → out [M]."""
        for start in range(0, self.rows, CHUNK):
            part = slice(start, start + CHUNK)
            np.matmul(vector, self._codes[:, part].astype(np.float32), out=out[part])
