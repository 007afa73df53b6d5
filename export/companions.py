"""Companions of a checkpoint or of an older bundle, in the rows of a new one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import Alike


def in_rows(companions: Alike, now: NDArray[np.int64], items: int) -> Alike:
    """The same pairs where row n is row now[n] of `items`, or -1: gone.

    Who is not on sale stays among them, for the day that it is.
    """
    giver = now[np.repeat(np.arange(len(companions.bounds) - 1), np.diff(companions.bounds))]
    heir = now[companions.heirs]
    kept = (giver >= 0) & (heir >= 0)
    order = np.flatnonzero(kept)[np.argsort(giver[kept], kind="stable")]
    bounds = np.searchsorted(giver[order], np.arange(items + 1))
    return Alike(bounds.astype(np.int32), heir[order].astype(np.int32), companions.likeness[order])
