"""What export needs besides the weights: products, popularity, demand, and test users for its proofs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import COMPANIONS, Alike, read_alike
from functions.core.errors import CorruptBundle
from functions.core.events import IMPRESSION
from functions.core.features import ItemFeatures, Vocabulary, item_features
from functions.core.repeats import NOBODY
from train.checkpoint import BadCheckpoint, Meta
from train.demand import Demand
from train.log import Interactions
from train.split import Split, rows_by_user

CATALOGUE = "catalogue.jsonl"
POPULARITY = "popularity.f32"
DEMAND = "demand.f32"
HELD_OUT = "held_out.npz"
VECTORS = "vectors.f32"
PROOF_USERS = 1_000
HALF_LIFE_S = 30 * 86_400  # an event a month old counts half


def write_products(folder: Path, products: Iterable[Mapping[str, object]], item_ids: list[str]) -> None:
    """One line per item row: what the catalogue says of it, or its id alone where only the log knows it."""
    known = [{k: v for k, v in product.items() if v is not None} for product in products]
    known += [{"item_id": item_id} for item_id in item_ids[len(known) :]]
    lines = (json.dumps(product, ensure_ascii=False, default=str) for product in known)
    (folder / CATALOGUE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_vectors(folder: Path, features: ItemFeatures) -> None:
    """The precomputed vectors [N, V] as the item tower takes them; no file where there are none."""
    (folder / VECTORS).unlink(missing_ok=True)
    if features.vectors.size:
        features.vectors.astype("<f4").tofile(folder / VECTORS)


def read_features(folder: Path, products: list[Mapping[str, object]], vocabulary: Vocabulary) -> ItemFeatures:
    """Content of a checkpoint's products, its lines of CATALOGUE; raises BadCheckpoint.

    The vectors come from VECTORS, where the vocabulary has any.
    """
    features = item_features(products, vocabulary)
    if not vocabulary.vectors:
        return features
    path, shape = folder / VECTORS, features.vectors.shape
    numbers = np.fromfile(path, "<f4") if path.is_file() else np.zeros(0, np.float32)
    if numbers.size != features.vectors.size or not np.isfinite(numbers).all():
        raise BadCheckpoint(f"{path}: {numbers.size} numbers; expected finite ones, {shape[0]} x {shape[1]}")
    return replace(features, vectors=numbers.reshape(shape).astype(np.float32))


def popularity(log: Interactions) -> NDArray[np.float32]:
    """Events per item row, [N], halved for every 30 days that they lie before the log's end."""
    counted = log.kind != IMPRESSION
    age_s = log.time_s.max() - log.time_s[counted]
    weights = np.exp2(-age_s / HALF_LIFE_S)
    counts = np.bincount(log.item[counted], weights=weights, minlength=len(log.item_ids))
    return counts.astype(np.float32)


def write_popularity(folder: Path, log: Interactions) -> None:
    """Little-endian float32 [N]."""
    popularity(log).astype("<f4").tofile(folder / POPULARITY)


def write_demand(folder: Path, expected: Demand) -> None:
    """Little-endian float32 [N]."""
    expected.astype("<f4").tofile(folder / DEMAND)


def read_demand(folder: Path, items: int) -> Demand:
    """[N] users expected to come to each product; raises BadCheckpoint."""
    path = folder / DEMAND
    if not path.is_file():
        raise BadCheckpoint(f"{path}: missing; expected what `python -m train` writes")
    found, size = np.fromfile(path, "<f4"), path.stat().st_size
    if size != 4 * items or not (np.isfinite(found) & (found > 0)).all():
        raise BadCheckpoint(f"{path}: {size} bytes; expected {items} finite numbers above 0, 4 bytes each")
    return found


def write_companions(folder: Path, companions: Alike) -> None:
    """Who goes with whom, as a bundle has it; no file where nobody does."""
    (folder / COMPANIONS).unlink(missing_ok=True)
    if len(companions.heirs):
        (folder / COMPANIONS).write_bytes(companions.to_bytes())


def read_companions(folder: Path, meta: Meta) -> Alike:
    """The same of a checkpoint; raises BadCheckpoint."""
    path, items = folder / COMPANIONS, len(meta.item_ids)
    if not path.is_file():
        if meta.repeats.companions:
            raise BadCheckpoint(f"{path}: missing; expected what `python -m train` writes")
        return NOBODY
    try:
        return read_alike(np.fromfile(path, "u1"), items, items, COMPANIONS)
    except CorruptBundle as error:
        raise BadCheckpoint(f"{folder}: {error}") from error


def write_held_out(folder: Path, parts: Split, seed: int) -> None:
    """Histories and targets of at most PROOF_USERS test users, one after the other, oldest first."""
    log = parts.train
    users = np.sort(np.random.default_rng(seed).permutation(sorted(parts.targets))[:PROOF_USERS])
    own = rows_by_user(log, users)
    rows = np.concatenate(own)
    targets = [parts.targets[int(user)] for user in users]
    np.savez_compressed(
        folder / HELD_OUT,
        history_bounds=_bounds(np.array([len(some) for some in own])),
        item=log.item[rows],
        kind=log.kind[rows],
        time_s=log.time_s[rows],
        value=log.value[rows],
        target_bounds=_bounds(np.array([len(target) for target in targets])),
        target=np.concatenate(targets).astype(np.int32),
        asked_s=np.array([] if parts.asked_s is None else [parts.asked_s], np.int64),
    )


def _bounds(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
