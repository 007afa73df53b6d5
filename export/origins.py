"""Where each item row came from, 16 bytes each in `origins.bin`; a refresh needs it beside the catalogue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import ItemFeatures

ORIGINS = "origins.bin"
# the id that the item tower knows the row by (0: training never saw it), recency-weighted events, and a hash
# of the content that its embedding was made of
ORIGIN = np.dtype([("tower_id", "<i4"), ("popularity", "<f4"), ("content", "<u8")])

Origins = NDArray[Any]  # [N] of ORIGIN


def origins(
    tower_ids: NDArray[np.int64], popularity: NDArray[np.float32], content: NDArray[np.uint64]
) -> Origins:
    """tower_ids, popularity and `content_hash` of N rows, [N] each."""
    made = np.zeros(len(tower_ids), ORIGIN)
    made["tower_id"], made["popularity"], made["content"] = tower_ids, popularity, content
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
    found = np.fromfile(path, ORIGIN)
    if len(found) != items or path.stat().st_size != items * ORIGIN.itemsize:
        raise CorruptBundle(f"{path}: {path.stat().st_size} bytes; expected {items * ORIGIN.itemsize}")
    return found
