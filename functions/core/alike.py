"""Which products follow from which: new ones from their like, known ones from those they are met with.

What a visitor did with a product says something of its like, too. Of a product that has a history the towers
know it; a product that training never saw has nothing but its content, and one vector says little of that. So
it inherits: from the visitor's own products among those that it is like (`functions.core.repeats`). For a
request to be short the lists are kept the other way round: by a product that somebody may have met, the new
ones that inherit from it.

What is known has companions (item-to-item collaborative filtering, Linden et al. 2003): the products that the
same users met. Where products are many and events few, a small vector cannot hold who goes with whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle

ALIKE, COMPANIONS = "alike.bin", "companions.bin"
MOST_HEIRS = 50  # products that become candidates for one visitor by one kind of list
LONGEST = 0x3C01  # bits of the float16 after 1: a cosine, rounded


@dataclass(frozen=True)
class Alike:
    """Of each item row the products that follow from it: heirs[bounds[row] : bounds[row + 1]].

    bounds [N + 1] rising from 0 to E; heirs [E] item rows; likeness [E] cosines, above 0: of their content
    for new ones, of who met them for companions.
    """

    bounds: NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    heirs: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    likeness: NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, np.float16))

    @cached_property
    def inherits(self) -> NDArray[np.bool_]:
        """Which item rows follow from any, [N]."""
        found = np.zeros(len(self.bounds) - 1, np.bool_)
        found[self.heirs] = True
        return found

    def inherited(self, met: Mapping[int, float]) -> dict[int, float]:
        """Σ likeness · weight of what was `met` (weight by item row), by product that was not.

        The MOST_HEIRS with the most of it, ties to the lower row.
        """
        if not len(self.heirs) or not met:
            return {}
        rows = np.fromiter(met, np.int64, len(met))
        first = self.bounds[rows].astype(np.int64)
        count = self.bounds[rows + 1] - first
        total = int(count.sum())
        if not total:
            return {}
        at = np.arange(total) + np.repeat(first - (np.cumsum(count) - count), count)
        weight = np.repeat(np.fromiter(met.values(), np.float64, len(met)), count)
        heirs, place = np.unique(self.heirs[at], return_inverse=True)
        sums = np.bincount(place, weight * self.likeness[at])
        nearest = np.argsort(-sums, kind="stable")[: MOST_HEIRS + len(met)].tolist()
        best = [at for at in nearest if int(heirs[at]) not in met]
        return {int(heirs[at]): float(sums[at]) for at in best[:MOST_HEIRS]}

    def to_bytes(self) -> bytes:
        """As a file of the bundle has it, little-endian, one array after the other."""
        arrays = ((self.bounds, "<i4"), (self.heirs, "<i4"), (self.likeness, "<f2"))
        return b"".join(np.ascontiguousarray(array, kind).tobytes() for array, kind in arrays)


def read_alike(data: NDArray[np.uint8], items: int, showable: int, name: str = ALIKE) -> Alike:
    """The opposite of `to_bytes`, of the file `name`; raises CorruptBundle where numbers cannot be."""
    head = 4 * (items + 1)
    bounds = data[:head].view("<i4") if len(data) >= head else np.zeros(1, "<i4")
    entries = int(bounds[-1])
    if len(data) != head + 6 * entries or bounds[0] != 0 or (np.diff(bounds) < 0).any():
        raise CorruptBundle(
            f"{name}: {len(data)} bytes, lists from {bounds[0]} to {entries}; "
            f"expected {head} and 6 for each place of lists that rise from 0"
        )
    found = Alike(bounds, data[head : head + 4 * entries].view("<i4"), data[head + 4 * entries :].view("<f2"))
    if entries and not 0 <= found.heirs.min() <= found.heirs.max() < showable:
        raise CorruptBundle(
            f"{name}: rows {found.heirs.min()}..{found.heirs.max()}; expected 0..{showable - 1}"
        )
    bits = found.likeness.view("<u2")  # in the order of the numbers, where those are above 0
    if entries and not 0 < bits.min() <= bits.max() <= LONGEST:
        raise CorruptBundle(f"{name}: likeness {found.likeness.min()}; expected 0 < cosine <= 1")
    return found
