"""What a checkpoint folder holds besides the weights, read and checked (written by `train/handover.py`)."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.catalogue import Product
from functions.core.context import Asked
from functions.core.features import Int64, ItemFeatures, Vocabulary, item_features
from functions.core.repeats import Own
from functions.core.served import ServedBundle
from functions.core.user_row import UserRow
from train.checkpoint import BadCheckpoint, Meta
from train.handover import CATALOGUE, HELD_OUT, POPULARITY, VECTORS
from train.log import Interactions

ROWS_AT_ONCE = 65_536
ARRAYS = ("history_bounds", "item", "kind", "time_s", "value", "target_bounds", "target", "asked_s")


@dataclass(frozen=True)
class Products:
    """N items by row: what is shown of each, and the content that they are embedded by, read when asked for.

    content: rows [B] → their features. The first `showable` rows are on sale.
    """

    shown: Sequence[Product]
    content: Callable[[Int64], ItemFeatures]
    showable: int

    @property
    def features(self) -> ItemFeatures:
        """Content of all N at once."""
        return self.content(np.arange(len(self.shown)))

    def in_order(self, order: Int64, showable: int) -> Products:
        """The same products, row `order[n]` as row n, of which the first `showable` are on sale."""
        return Products(_InOrder(self.shown, order), lambda rows: self.content(order[rows]), showable)


@dataclass(frozen=True)
class HeldOut:
    """Test users 0..U-1: their histories as a log, and the item rows that each went on to."""

    log: Interactions
    targets: list[NDArray[np.int64]]
    asked_s: int | None = None  # when they ask, if that is known

    def queries(
        self, served: ServedBundle, rows: Sequence[UserRow], own: Sequence[Own]
    ) -> NDArray[np.float32]:
        """The vectors [U, d] of some users' rows as they ask; own [U]: what each has had to do with."""
        asked = [Asked(elapsed_s=row.elapsed_s(self.asked_s)) for row in rows]
        found = [served.query(*each) for each in zip(rows, own, asked, strict=True)]
        return np.array(found, np.float32).reshape(len(rows), served.manifest.dim)

    def in_order(self, order: Int64) -> HeldOut:
        """The same users where row `order[n]` is row n."""
        now = np.empty(len(order), np.int64)
        now[order] = np.arange(len(order))
        ids = [self.log.item_ids[row] for row in order.tolist()]
        log = replace(self.log, item=now[self.log.item].astype(self.log.item.dtype), item_ids=ids)
        return HeldOut(log, [now[target] for target in self.targets], self.asked_s)


class _Lines(Sequence[Product]):
    """The lines of a catalogue, read from its file when they are asked for: only where they begin is kept."""

    def __init__(self, path: Path, starts: NDArray[np.int64]) -> None:
        self._path, self._starts = path, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: Any) -> Any:
        with self._path.open("rb") as text:
            return product(self._line(text, row))

    def __iter__(self) -> Iterator[Product]:
        with self._path.open("rb") as text:
            for line in text:
                yield product(json.loads(line))

    def lines(self, rows: Int64) -> list[Mapping[str, Any]]:
        """What the file says of some rows."""
        with self._path.open("rb") as text:
            return [self._line(text, row) for row in rows.tolist()]

    def _line(self, text: Any, row: int) -> Mapping[str, Any]:
        text.seek(self._starts[row])
        line: Mapping[str, Any] = json.loads(text.readline())
        return line


class _InOrder(Sequence[Product]):
    def __init__(self, products: Sequence[Product], order: Int64) -> None:
        self._products, self._order = products, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, row: Any) -> Any:
        return self._products[int(self._order[row])]


def read_products(folder: Path, meta: Meta) -> Products:
    """The catalogue by row; raises BadCheckpoint naming the line.

    What has a title is on sale, and comes first. Without any catalogue every item of the log is.
    """
    starts, titled = _checked(folder / CATALOGUE, meta.item_ids)
    showable = int(titled.sum()) or len(titled)
    if titled.any() and not titled[:showable].all():
        late = int(np.flatnonzero(~titled)[0])
        raise BadCheckpoint(
            f"{folder / CATALOGUE}, line {late + 1}: no title; expected titled products first"
        )
    shown, vocabulary = _Lines(folder / CATALOGUE, starts), Vocabulary.read(meta.vocabulary)
    vectors = _vectors(folder / VECTORS, len(starts), vocabulary.vector_width)

    def content(rows: Int64) -> ItemFeatures:
        features = item_features(shown.lines(rows), vocabulary)
        return features if vectors is None else replace(features, vectors=np.asarray(vectors[rows]))

    return Products(shown, content, showable)


def _vectors(path: Path, items: int, width: int) -> NDArray[np.float32] | None:
    """The precomputed vectors [N, V], mapped; None where the model has none."""
    if not width:
        return None
    size = path.stat().st_size if path.is_file() else 0
    if size == 4 * items * width:
        mapped = np.memmap(path, "<f4", "r", shape=(items, width))
        starts = range(0, items, ROWS_AT_ONCE)
        if all(np.isfinite(mapped[start : start + ROWS_AT_ONCE]).all() for start in starts):
            return mapped
    raise BadCheckpoint(f"{path}: {size // 4} numbers; expected finite ones, {items} x {width}")


def read_popularity(folder: Path, items: int) -> NDArray[np.float32]:
    """[N] recency-weighted events; raises BadCheckpoint."""
    path = folder / POPULARITY
    counts = np.fromfile(_present(path), "<f4")
    if len(counts) != items or not np.isfinite(counts).all():
        raise BadCheckpoint(f"{path}: {len(counts)} numbers; expected {items} finite ones")
    return counts


def read_held_out(folder: Path, item_ids: Sequence[str]) -> HeldOut:
    """Raises BadCheckpoint where an array is missing or a row lies outside the catalogue."""
    path = _present(folder / HELD_OUT)
    try:
        with np.load(path) as read:
            arrays = {name: read[name] for name in read.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise BadCheckpoint(f"{path}: {error}; expected what `python -m train` writes") from error
    missing = set(ARRAYS) - arrays.keys()
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
    asked_s = next(iter(arrays["asked_s"].tolist()), None)
    return HeldOut(log, [arrays["target"][a:b].astype(np.int64) for a, b in bounds], asked_s)


def _checked(path: Path, item_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each line begins and whether it has a title, [N] each, once every line is known to be sound."""
    starts, titled = np.zeros(len(item_ids), np.int64), np.zeros(len(item_ids), np.bool_)
    at = lines = 0
    with _present(path).open("rb") as text:
        for lines, raw in enumerate(text, 1):
            line = _object(raw, f"{path}, line {lines}")
            if lines <= len(item_ids):
                if line.get("item_id") != item_ids[lines - 1]:
                    found = line.get("item_id")
                    raise BadCheckpoint(
                        f"{path}, line {lines}: item_id {found!r}; expected {item_ids[lines - 1]!r}"
                    )
                starts[lines - 1], titled[lines - 1] = at, bool(line.get("title"))
            at += len(raw)
    if lines != len(item_ids):
        raise BadCheckpoint(f"{path}: {lines} lines; expected {len(item_ids)}, one for every item row")
    return starts, titled


def _object(raw: bytes, place: str) -> Mapping[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise BadCheckpoint(f"{place}: {error}; expected a JSON object on every line") from error
    if not isinstance(line, dict):
        raise BadCheckpoint(f"{place}: {str(line)[:60]}; expected a JSON object on every line")
    return line


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
