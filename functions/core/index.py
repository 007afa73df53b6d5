"""Inverted lists: items in the order of their nearest centroid, of which a query reads a few lists.

Not exact, so it is used only where it finds what the whole scan finds (export measures it), and where the
scan takes so long that it matters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.scans import Codes
from functions.core.scorer import Mask
from functions.core.selection import Rows, best_rows, buffer, ceiling, lower

NARROW = 0.05  # share of the items; where fewer are eligible, more lists are read
MORE = 4  # times as many lists are read where those before had too few items


class Lists(NamedTuple):
    """rows [M]: the item at each place, list by list; bounds [L + 1]: where lists begin; centroids [L, d]."""

    rows: NDArray[np.int32]
    bounds: NDArray[np.int32]
    centroids: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """As `lists.bin` of a bundle has it, little-endian, one array after the other."""
        return b"".join(
            np.ascontiguousarray(array, kind).tobytes()
            for array, kind in ((self.rows, "<i4"), (self.bounds, "<i4"), (self.centroids, "<f4"))
        )


def read_lists(data: NDArray[np.uint8], rows: int, lists: int, dim: int) -> Lists:
    """The opposite of `to_bytes`; raises CorruptBundle where sizes or numbers cannot be."""
    cut = (4 * rows, 4 * (rows + lists + 1), 4 * (rows + lists + 1 + lists * dim))
    if lists < 1 or len(data) != cut[2]:
        raise CorruptBundle(f"lists.bin: {len(data)} bytes; expected {cut[2]} of {rows} rows, {lists} lists")
    order = data[: cut[0]].view("<i4")
    bounds = data[cut[0] : cut[1]].view("<i4")
    if bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
        raise CorruptBundle(f"lists.bin: lists from {bounds[0]} to {bounds[-1]}; expected 0..{rows}, rising")
    if order.min() < 0 or order.max() >= rows:
        raise CorruptBundle(f"lists.bin: rows {order.min()}..{order.max()}; expected 0..{rows - 1}")
    return Lists(order, bounds, data[cut[1] :].view("<f4").reshape(lists, dim))


class ListSearch:
    """A Search in the lists whose centroids have the largest dot products with the vector."""

    def __init__(self, lists: Lists, codes: Codes, probes: int) -> None:
        """codes: in the order of the lists; probes: lists read for a query."""
        self._lists, self._codes, self._probes = lists, codes, probes

    def __call__(self, vector: NDArray[np.float32], count: int, mask: Mask | None) -> Rows:
        query = self._codes.query(vector)
        near = self._lists.centroids @ vector
        probes = min(self._probes, len(near))
        found, eligible = self._read(query, _largest(near, probes), count, mask)
        if eligible < NARROW:  # their best lie as much deeper
            probes = min(math.ceil(probes * NARROW / max(eligible, 1e-9)), len(near))
            found, _ = self._read(query, _largest(near, probes), count, mask)
        while len(found) < count and probes < len(near):
            probes = min(probes * MORE, len(near))
            found, _ = self._read(query, _largest(near, probes), count, mask)
        return found

    def _read(
        self, query: NDArray[np.float32], lists: NDArray[np.int64], count: int, mask: Mask | None
    ) -> tuple[Rows, float]:
        """The best rows of some lists, and which share of what is in them is eligible."""
        bounds = [(int(self._lists.bounds[i]), int(self._lists.bounds[i + 1])) for i in lists]
        total = sum(end - start for start, end in bounds)
        scores, at, eligible = buffer(total), 0, 1.0
        for start, end in bounds:
            scores[at : at + end - start] = self._codes.part(query, start, end)
            at += end - start
        if mask is not None:
            limits = np.concatenate([mask[start:end] for start, end in bounds])
            lower(scores[:total], limits)
            eligible = np.count_nonzero(limits > 0) / max(total, 1)
        best = best_rows(scores, total, count)
        starts = np.cumsum([0, *(end - start for start, end in bounds)])
        which = np.searchsorted(starts, best, "right") - 1
        places = best - starts[which] + np.array([start for start, _ in bounds])[which]
        rows: Rows = self._lists.rows[places].astype(np.int64)
        return rows, eligible

    def mask(self, eligible: NDArray[np.bool_]) -> Mask:
        return ceiling(eligible[self._lists.rows])


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Sorted, so that what is read lies in rising order."""
    return np.sort(np.argpartition(-scores, count - 1)[:count])
