"""Item embeddings in bulk: on a GPU where there is one, a chunk of products in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from export.origins import content_hash
from functions.core.features import Int64, ItemFeatures
from functions.core.user_row import Float16
from train.towers import ItemTower

CHUNK = 8192  # items read and embedded in one call
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Content = Callable[[Int64], ItemFeatures]  # of item rows [B]
Hashes = NDArray[np.uint64]
Due = Callable[[Int64, Hashes], NDArray[np.bool_]]  # rows [B], hashes of their content [B] → which to embed


@dataclass(frozen=True)
class Embedded:
    """table [N, d], hashes of content [N], and which rows were due [N]; of the others the table has zeros."""

    table: Float16
    content: Hashes
    due: NDArray[np.bool_]


def embed(model: Path, content: Content, tower_ids: Int64, due: Due | None = None) -> Embedded:
    """Embed N items, whose `content` is asked for by the chunk, so that memory does not grow with it.

    tower_ids [N]: what the item tower knows them by. due: which need be embedded; without it all of them.
    """
    session, count = open_on_fastest(model), len(tower_ids)
    width = session.get_outputs()[0].shape[1]
    table, hashes = np.zeros((count, width), np.float16), np.zeros(count, np.uint64)
    made = Embedded(table, hashes, np.zeros(count, np.bool_))
    device = "GPU" if session.get_providers()[0] == CUDA else "CPU"
    reading_s, started = 0.0, time.perf_counter()
    first: tuple[Int64, ItemFeatures] | None = None  # chunk with something due
    with tqdm(total=count, desc=f"embed on {device}", unit="item", disable=None) as bar:
        for start in range(0, count, CHUNK):
            rows = np.arange(start, min(start + CHUNK, count))
            reading = time.perf_counter()
            features = content(rows)
            made.content[rows] = content_hash(features)
            reading_s += time.perf_counter() - reading
            wanted = np.ones(len(rows), np.bool_) if due is None else due(rows, made.content[rows])
            made.due[rows] = wanted
            taken = features.take(np.flatnonzero(wanted))
            made.table[rows[wanted]] = _run(session, tower_ids[rows[wanted]], taken)
            if first is None and wanted.any():
                first = tower_ids[rows[wanted]], taken
            bar.update(len(rows))
    _tell(int(made.due.sum()), device, time.perf_counter() - started, reading_s)
    if device == "GPU" and first is not None:
        _tell_by_cpu(model, *first)
    return made


@torch.inference_mode()
def embed_by_torch(tower: ItemTower, content: Content, tower_ids: Int64) -> Float16:
    """The same table by the tower itself, before it is exported."""
    parts = [np.zeros((0, tower.ids.embedding_dim), np.float16)]
    for start in range(0, len(tower_ids), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(tower_ids)))
        columns = map(torch.from_numpy, content(rows).columns().values())
        parts.append(tower(torch.from_numpy(tower_ids[rows]), *columns).half().numpy())
    return np.concatenate(parts)


def _run(session: ort.InferenceSession, tower_ids: Int64, features: ItemFeatures) -> Float16:
    """Every call has one shape, so that a row does not depend on where it stands."""
    if not len(tower_ids):
        return np.zeros((0, session.get_outputs()[0].shape[1]), np.float16)
    rows = np.arange(CHUNK) % len(tower_ids)
    inputs = {"item_id": tower_ids[rows].astype(np.int64), **features.take(rows).columns()}
    (part,) = session.run(["item_embedding"], inputs)
    with np.errstate(over="ignore"):  # what is too large is refused by row, as infinite
        embeddings: Float16 = part[: len(tower_ids)].astype(np.float16)
    return embeddings


def _tell(items: int, device: str, took_s: float, reading_s: float) -> None:
    tower_s = max(took_s - reading_s, 1e-9)
    print(
        f"embedded {items:,} items on the {device}, {items / max(took_s, 1e-9):,.0f} a second; "
        f"the tower alone {items / tower_s:,.0f} a second, the rest of the time is reading content",
        flush=True,
    )


def _tell_by_cpu(model: Path, tower_ids: Int64, features: ItemFeatures) -> None:
    """What the same tower does without the GPU, by one chunk after another that warms it up."""
    session = ort.InferenceSession(str(model), providers=[CPU])
    _run(session, tower_ids, features)
    started = time.perf_counter()
    _run(session, tower_ids, features)
    rate = len(tower_ids) / max(time.perf_counter() - started, 1e-9)
    print(f"the tower alone on the CPU {rate:,.0f} a second, by {len(tower_ids):,} of them", flush=True)


def open_on_fastest(model: Path) -> ort.InferenceSession:
    """On a GPU where there is one for this ONNX Runtime; asked for in vain, it prints errors."""
    gpu = torch.cuda.is_available() and CUDA in ort.get_available_providers()
    return ort.InferenceSession(str(model), providers=[CUDA, CPU] if gpu else [CPU])
