"""Where each item row came from, 20 bytes each in `origins.bin`; a refresh needs it beside the catalogue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import ItemFeatures

ORIGINS = "origins.bin"
# the id that the item tower knows the row by (0: training never saw it), recency-weighted events, a hash of
# the content that its embedding was made of, and the users expected by content (nan: it came since training)
ORIGIN = np.dtype([("tower_id", "<i4"), ("popularity", "<f4"), ("content", "<u8"), ("demand", "<f4")])
WITHOUT_DEMAND = np.dtype(ORIGIN.descr[:3])  # of bundles until 2026-11-27

Origins = NDArray[Any]  # [N] of ORIGIN


def origins(
    tower_ids: NDArray[np.int64],
    popularity: NDArray[np.float32],
    content: NDArray[np.uint64],
    demand: NDArray[np.float32],
) -> Origins:
    """tower_ids, popularity, `content_hash` and demand of N rows, [N] each."""
    made = np.zeros(len(tower_ids), ORIGIN)
    made["tower_id"], made["popularity"], made["content"] = tower_ids, popularity, content
    made["demand"] = demand
    return made


def content_hash(features: ItemFeatures) -> NDArray[np.uint64]:
    """Of all that the item tower takes besides the id, [N]."""
    if not len(features.category):
        return np.zeros(0, np.uint64)
    columns = [np.atleast_2d(column.T).T for column in features.columns().values()]  # [N, w] each
    parts = [np.ascontiguousarray(column).view(np.uint8) for column in columns]
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in np.hstack(parts)]
    return np.frombuffer(b"".join(hashes), "<u8")


def read_origins(bundle: Path, items: int) -> Origins:
    """[N]; raises CorruptBundle."""
    path = bundle / ORIGINS
    size = path.stat().st_size
    if size == items * WITHOUT_DEMAND.itemsize:
        old = np.fromfile(path, WITHOUT_DEMAND)
        unknown = np.full(items, np.nan, np.float32)
        return origins(old["tower_id"], old["popularity"], old["content"], unknown)
    if size != items * ORIGIN.itemsize:
        raise CorruptBundle(f"{path}: {size} bytes; expected {items * ORIGIN.itemsize}")
    found = np.fromfile(path, ORIGIN)
    if not (np.isnan(found["demand"]) | (np.isfinite(found["demand"]) & (found["demand"] > 0))).all():
        raise CorruptBundle(f"{path}: demand; expected finite numbers above 0, or nan")
    return found
