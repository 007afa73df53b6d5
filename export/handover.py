"""What a checkpoint folder holds besides the weights, read and checked (written by `train/handover.py`)."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.catalogue import Product
from functions.core.features import ItemFeatures, Vocabulary
from train.checkpoint import BadCheckpoint, Meta
from train.handover import CATALOGUE, HELD_OUT, POPULARITY, read_features
from train.log import Interactions


@dataclass(frozen=True)
class Products:
    """N items by row: products to show, features to embed; the first `showable` rows are on sale."""

    shown: list[Product]
    features: ItemFeatures
    showable: int


@dataclass(frozen=True)
class HeldOut:
    """Test users 0..U-1: their histories as a log, and the item rows that each went on to."""

    log: Interactions
    targets: list[NDArray[np.int64]]


def read_products(folder: Path, meta: Meta) -> Products:
    """The catalogue by row; raises BadCheckpoint naming the line.

    What has a title is on sale, and comes first. Without any catalogue every item of the log is.
    """
    lines = _lines(folder / CATALOGUE, len(meta.item_ids))
    ids = [line.get("item_id") for line in lines]
    wrong = next((n for n, (a, b) in enumerate(zip(ids, meta.item_ids, strict=True)) if a != b), None)
    if wrong is not None:
        place = f"{folder / CATALOGUE}, line {wrong + 1}"
        raise BadCheckpoint(f"{place}: item_id {ids[wrong]!r}; expected {meta.item_ids[wrong]!r}")
    titled = [bool(line.get("title")) for line in lines]
    showable = sum(titled) or len(lines)
    if not all(titled[:showable]) and any(titled):
        late = titled.index(False)
        raise BadCheckpoint(
            f"{folder / CATALOGUE}, line {late + 1}: no title; expected titled products first"
        )
    features = read_features(folder, lines, Vocabulary.read(meta.vocabulary))
    return Products([product(line) for line in lines], features, showable)


def read_popularity(folder: Path, items: int) -> NDArray[np.float32]:
    """[N] recency-weighted events; raises BadCheckpoint."""
    path = folder / POPULARITY
    counts = np.fromfile(_present(path), "<f4")
    if len(counts) != items or not np.isfinite(counts).all():
        raise BadCheckpoint(f"{path}: {len(counts)} numbers; expected {items} finite ones")
    return counts


def read_held_out(folder: Path, item_ids: Sequence[str]) -> HeldOut:
    """Raises BadCheckpoint where an array is missing or a row lies outside the catalogue."""
    path = folder / HELD_OUT
    try:
        with np.load(_present(path)) as read:
            arrays = {name: read[name] for name in read.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise BadCheckpoint(f"{path}: {error}; expected what `python -m train` writes") from error
    missing = {"history_bounds", "item", "kind", "time_s", "value", "target_bounds", "target"} - arrays.keys()
    if missing:
        raise BadCheckpoint(f"{path}: without {sorted(missing)}; expected them")
    for name in ("item", "target"):
        if arrays[name].size and not 0 <= arrays[name].min() <= arrays[name].max() < len(item_ids):
            raise BadCheckpoint(f"{path}: {name} up to {arrays[name].max()}; expected 0..{len(item_ids) - 1}")
    lengths = np.diff(arrays["history_bounds"])
    log = Interactions(
        user=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        **{name: arrays[name] for name in ("item", "kind", "time_s", "value")},
        user_ids=[str(user) for user in range(len(lengths))],
        item_ids=list(item_ids),
    )
    bounds = pairwise(arrays["target_bounds"].tolist())
    return HeldOut(log, [arrays["target"][a:b].astype(np.int64) for a, b in bounds])


def _lines(path: Path, items: int) -> list[Mapping[str, Any]]:
    with _present(path).open(encoding="utf-8") as text:
        try:
            lines = [json.loads(line) for line in text]
        except ValueError as error:
            raise BadCheckpoint(f"{path}: {error}; expected a JSON object on every line") from error
    if len(lines) != items:
        raise BadCheckpoint(f"{path}: {len(lines)} lines; expected {items}, one for every item row")
    return lines


def product(line: Mapping[str, Any]) -> Product:
    """What a line of a catalogue shows."""
    price = line.get("price")
    tags = line.get("tags") or ""
    return Product(
        item_id=str(line["item_id"]),
        title=str(line.get("title") or line["item_id"]),
        category=str(line.get("category") or ""),
        brand=str(line.get("brand") or ""),
        price=float(price) if isinstance(price, int | float) and math.isfinite(price) else math.nan,
        currency=str(line.get("currency") or ""),
        image_url=str(line.get("image_url") or ""),
        url=str(line.get("url") or ""),
        tags=tuple(tags if isinstance(tags, list) else _split(str(tags))),
    )


def _split(tags: str) -> list[str]:
    return [tag for tag in (part.strip() for part in re.split(r"[|;,]", tags)) if tag]


def _present(path: Path) -> Path:
    if not path.is_file():
        raise BadCheckpoint(f"{path}: missing; expected what `python -m train` writes")
    return path
