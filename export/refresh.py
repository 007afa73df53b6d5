"""Products that came, changed or went, without training: a new bundle of the same encoder.

The towers are copied byte for byte, so the state space stays and no user is rebuilt. A product that training
never saw is embedded from its content alone. What a user's state holds of a product is its embedding when the
event came; a refresh changes what is ahead, not what was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import embed, golden_histories, write_alike, write_items
from export.handover import product
from export.levels import recall
from export.origins import ORIGINS, Origins, origins, read_origins
from export.score import require_finite
from export.scorers import LEAST_RECALL, NBITS, QUERIES, choose, write_scorer
from export.verify import ULP, units_apart
from functions.core.bundle import MANIFEST, describe, write_manifest
from functions.core.catalogue import Product
from functions.core.context import TABLE
from functions.core.engine import open_step
from functions.core.errors import VitrineError
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, ItemFeatures, Vocabulary, item_features
from functions.core.served import ServedBundle, golden, golden_vectors, open_bundle
from functions.core.user_row import Float16
from train.log import read_catalogue
from train.mapping import Mapping as Names
from train.vectors import padded

KEPT = ("user_tower.onnx", "item_tower.onnx", "vocabulary.json", "slots.json", TABLE)
CHECKED = (
    256  # unchanged products that are embedded again, to see that the tower still gives what stands there
)
EVENTS = 8  # of a made-up visitor's history


class BadRefresh(VitrineError):
    """A catalogue that a bundle cannot be refreshed with."""


@dataclass(frozen=True)
class Refreshed:
    """How many products of the new catalogue are new, changed or as before, and how many left it."""

    new: int
    changed: int
    unchanged: int
    removed: int
    recall: float


@dataclass(frozen=True)
class _Rows:
    """The new bundle's rows: on sale first, then what has no title, then what the old one knows besides."""

    shown: list[Product]
    showable: int
    before: NDArray[np.int64]  # [N'] the row in the old bundle, -1: new
    embeddings: Float16  # [N', d]
    origins: Origins  # [N']
    features: ItemFeatures  # [N']; of what the new catalogue lacks, as far as the old one tells


def refresh(old: Path, items: Path | str, mapping: Names | None, out: Path) -> tuple[str, Refreshed]:
    """Write the bundle in `old` into the empty folder `out` with the catalogue in `items`; id and counts.

    Raises BadRefresh, UnusableLog, CorruptBundle, NotFinite.
    """
    served = open_bundle(old)
    try:
        rows, features = _rows(served, old, items, mapping)
        _check_tower(old, rows, features)
        return _write(served, old, rows, out)
    finally:
        served.close()


def _rows(
    served: ServedBundle, old: Path, items: Path | str, mapping: Names | None
) -> tuple[_Rows, ItemFeatures]:
    """All rows, and the features of those that the new catalogue has."""
    table, vectors, dropped = read_catalogue(items, mapping)
    print("\n".join([f"{table.num_rows:,} products in {items}", *dropped]), flush=True)
    lines: list[Mapping[str, Any]] = table.to_pylist()
    showable = sum(bool(line.get("title")) for line in lines)
    if not showable:
        raise BadRefresh(f"{items}: no product with a title; expected one at least")
    ids = [str(line["item_id"]) for line in lines]
    known = served.catalogue.rows_of_ids(ids)
    named = np.array([known.get(item_id, -1) for item_id in ids], np.int64)
    rest = np.setdiff1d(np.arange(served.manifest.items), named)
    before = np.concatenate([named, rest])
    gone = served.catalogue.products(rest.tolist())
    shown = [*(product(line) for line in lines), *gone]
    content = [*lines, *(_content(each) for each in gone)]
    everything = _features(content, old, padded(vectors, len(shown)), items)
    features = _take(everything, np.arange(len(lines)))
    was = read_origins(old, served.manifest.items)
    now = _origins(was, named, features)
    embeddings = _embeddings(old, served, before, now, was, features)
    now_all = np.concatenate([now, was[rest]])
    return _Rows(shown, showable, before, embeddings, now_all, everything), features


def _content(gone: Product) -> Mapping[str, Any]:
    """A product that the catalogue no longer has, as a line of it; what has no title is shown by its id."""
    title = None if gone.title == gone.item_id else gone.title
    names = ("category", "brand", "price", "tags")
    return {"title": title, **{name: getattr(gone, name) for name in names}}


def _features(
    lines: list[Mapping[str, Any]], old: Path, vectors: Mapping[str, Any], items: Path | str
) -> ItemFeatures:
    vocabulary = Vocabulary.read(json.loads((old / "vocabulary.json").read_bytes()))
    try:
        return item_features(lines, vocabulary, vectors)
    except ValueError as error:
        raise BadRefresh(f"{items}: {error} (the bundle's item tower)") from error


def _origins(was: Origins, named: NDArray[np.int64], features: ItemFeatures) -> Origins:
    """Of the products in the new catalogue; what the old bundle did not have has no id and no popularity."""
    tower_ids, popularity = np.zeros(len(named), np.int64), np.zeros(len(named), np.float32)
    known = named >= 0
    tower_ids[known] = was["tower_id"][named[known]]
    popularity[known] = was["popularity"][named[known]]
    return origins(tower_ids, popularity, features)


def _embeddings(
    old: Path,
    served: ServedBundle,
    before: NDArray[np.int64],
    now: Origins,
    was: Origins,
    features: ItemFeatures,
) -> Float16:
    """Those of unchanged content as they lie in the old bundle, bit for bit; the others embedded now."""
    table = np.fromfile(old / "embeddings.f16", "<f2").reshape(-1, served.manifest.dim)
    embeddings = np.zeros((len(before), served.manifest.dim), np.float16)
    embeddings[before >= 0] = table[before[before >= 0]]
    due = np.flatnonzero(_is_due(now, was, before[: len(now)]))
    if len(due):
        embeddings[due] = embed(old / "item_tower.onnx", _take(features, due), now["tower_id"][due])
    require_finite(embeddings)
    return embeddings


def _is_due(now: Origins, was: Origins, named: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which products of the new catalogue are new, or of another content."""
    due: NDArray[np.bool_] = (named < 0) | (now["content"] != was["content"][np.maximum(named, 0)])
    return due


def _take(features: ItemFeatures, rows: NDArray[np.int64]) -> ItemFeatures:
    f = features
    return ItemFeatures(f.category[rows], f.brand[rows], f.price[rows], f.text[rows], f.vectors[rows])


def _check_tower(old: Path, rows: _Rows, features: ItemFeatures) -> None:
    """Rows of the new catalogue, embedded once more, against the table; raises BadRefresh."""
    count = len(features.category)
    some = np.unique(np.linspace(0, count - 1, min(CHECKED, count)).astype(np.int64))
    again = embed(old / "item_tower.onnx", _take(features, some), rows.origins["tower_id"][some])
    off = units_apart(again, rows.embeddings[some]).max(1)
    if off.max() > ULP:
        worst = int(some[off.argmax()])
        raise BadRefresh(
            f"{old}: the item tower differs from the table by {off.max():.3g} float16 units for "
            f"{rows.shown[worst].item_id!r}; expected {ULP} at most"
        )


def _write(served: ServedBundle, old: Path, rows: _Rows, out: Path) -> tuple[str, Refreshed]:
    for name in KEPT:
        shutil.copyfile(old / name, out / name)
    rows.embeddings.astype("<f2").tofile(out / "embeddings.f16")
    write_items(rows.shown, rows.origins["popularity"], rows.showable, out)
    rows.origins.tofile(out / ORIGINS)
    write_alike(rows.features, rows.origins["tower_id"] == 0, rows.showable, served.repeats, out)
    vectors = _visitors(served, rows)
    scorer = _write_scorer(served, rows, vectors, out)
    name = _write_manifest(served, rows, scorer, {}, out)
    opened = open_bundle(out, name)
    found = recall(opened.scorer, list(vectors), rows.embeddings[: rows.showable])
    opened.close()
    if found < LEAST_RECALL:
        raise BadRefresh(f"served: recall@10 {found:.4f} of the exact best; expected {LEAST_RECALL}")
    counts = _counts(served, rows, read_origins(old, served.manifest.items), found)
    measured_on = served.manifest.quantization.get("measured_on", served.id)
    told = {"refreshed_from": served.id, "measured_on": measured_on, "recall@10": round(found, 6)}
    return _write_manifest(served, rows, scorer, told, out), counts


def _counts(served: ServedBundle, rows: _Rows, was: Origins, found: float) -> Refreshed:
    sold = rows.before[: rows.showable]
    due = _is_due(rows.origins[: rows.showable], was, sold)
    new = int((sold < 0).sum())
    left = np.setdiff1d(np.arange(served.manifest.showable), sold)
    return Refreshed(new, int(due.sum()) - new, int((~due).sum()), len(left), found)


def _visitors(served: ServedBundle, rows: _Rows) -> Float16:
    """Vectors [Q, d] after made-up histories among what is on sale, new products too."""
    rng = np.random.default_rng(2)
    tops = (rows.showable, 5, GAP_BUCKETS, VALUE_BUCKETS)
    histories = np.stack([rng.integers(0, top, (QUERIES, EVENTS)) for top in tops], -1)
    return golden_vectors(served.encoder.step, rows.embeddings, histories, served.encoder.state_width)


def _write_scorer(served: ServedBundle, rows: _Rows, vectors: Float16, out: Path) -> Mapping[str, object]:
    """The kind that the old bundle has; an index is built anew, if it still pays."""
    kind = NBITS if served.manifest.scorer.get("kind") == "index" else served.manifest.scorer
    shown = rows.embeddings[: rows.showable]
    write_scorer(out, shown, kind)
    if kind is served.manifest.scorer:
        return kind
    return choose(out, shown, vectors).scorer


def _write_manifest(
    served: ServedBundle, rows: _Rows, scorer: Mapping[str, object], told: Mapping[str, object], out: Path
) -> str:
    old = served.manifest
    (out / MANIFEST).unlink(missing_ok=True)
    step = open_step(out / "user_tower.onnx")
    histories = golden_histories(len(rows.shown))
    manifest = replace(
        old,
        items=len(rows.shown),
        showable=rows.showable,
        files=describe(out),
        scorer=dict(scorer),
        quantization={**old.quantization, **told},
        golden=golden(step, rows.embeddings, histories, old.state_width),
    )
    return write_manifest(out, manifest)
