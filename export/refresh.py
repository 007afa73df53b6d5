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

from export.bundle import golden_histories, require_finite_items, write_alike, write_items
from export.companions import in_rows
from export.embed import CHUNK, Content, embed
from export.handover import product
from export.origins import ORIGINS, Origins, origins, read_origins
from export.prune import is_rare, rare_behind
from export.scorers import LEAST_RECALL, QUERIES, RECALL, Demands, renew, too_little_found
from export.verify import ULP, units_apart
from functions.core.bundle import Manifest, describe, write_manifest
from functions.core.catalogue import Product
from functions.core.context import TABLE
from functions.core.engine import open_step
from functions.core.errors import VitrineError
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, ItemFeatures, Vocabulary, item_features
from functions.core.served import ServedBundle, golden, golden_vectors, open_bundle
from functions.core.user_row import Float16
from train.handover import write_companions
from train.log import read_catalogue
from train.mapping import Mapping as Names
from train.vectors import padded

KEPT = ("user_tower.onnx", "item_tower.onnx", "vocabulary.json", "slots.json", TABLE)
CHECKED = (
    256  # unchanged products that are embedded again, to see that the tower still gives what stands there
)
EVENTS = 8  # of a made-up visitor's history
MAX_REMOVED = 0.5  # of the products on sale: more than a season's change takes, less than a cut file loses


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
    """The new bundle's rows: on sale first, then what is pruned, then what has no title, then what the old
    one knows besides."""

    shown: list[Product]
    showable: int
    named: int  # so many of them are in the new catalogue
    before: NDArray[np.int64]  # [N'] the row in the old bundle, -1: new
    embeddings: Float16  # [N', d]
    origins: Origins  # [N']
    content: Content  # of rows of N'; of what the new catalogue lacks, as far as the old one tells


def refresh(
    old: Path, items: Path | str, mapping: Names | None, out: Path, max_removed: float = MAX_REMOVED
) -> tuple[str, Refreshed]:
    """Write the bundle in `old` into the empty folder `out` with the catalogue in `items`; id and counts.

    max_removed: the share of the products on sale that may go, 1 for all of them. Raises BadRefresh,
    UnusableLog, CorruptBundle, NotFinite.
    """
    served = open_bundle(old)
    try:
        rows = _rows(served, old, items, mapping, max_removed)
        _check_tower(old, rows)
        return _write(served, old, rows, out)
    finally:
        served.close()


def _rows(
    served: ServedBundle, old: Path, items: Path | str, mapping: Names | None, max_removed: float
) -> _Rows:
    table, vectors, dropped = read_catalogue(items, mapping)
    print("\n".join([f"{table.num_rows:,} products in {items}", *dropped]), flush=True)
    ids = [str(item_id) for item_id in table["item_id"].to_pylist()]
    known = served.catalogue.rows_of_ids(ids)
    named = np.array([known.get(item_id, -1) for item_id in ids], np.int64)
    was = read_origins(old, served.manifest.items)
    order, showable = _order(served, was, named, sum(map(bool, table["title"].to_pylist())))
    if not showable:
        raise BadRefresh(f"{items}: no product with a title (or all are pruned); expected one at least")
    table, named = table.take(order), named[order]
    _require_kept(served, named[:showable], items, max_removed)
    rest = np.setdiff1d(np.arange(served.manifest.items), named)
    gone = served.catalogue.products(rest.tolist())
    shown = [*(product(line) for part in table.to_batches(CHUNK) for line in part.to_pylist()), *gone]
    every = padded({name: column[order] for name, column in vectors.items()}, len(shown))
    content = _content_of(table, gone, every, old, items)
    now, embeddings = _embedded(old, was, named, content)
    require_finite_items(embeddings, [product.item_id for product in shown[: len(named)]])
    kept = np.fromfile(old / "embeddings.f16", "<f2").reshape(-1, served.manifest.dim)[rest]
    return _Rows(
        shown,
        showable,
        len(named),
        np.concatenate([named, rest]),
        np.concatenate([embeddings, kept]),
        np.concatenate([now, was[rest]]),
        content,
    )


def _order(
    served: ServedBundle, was: Origins, named: NDArray[np.int64], titled: int
) -> tuple[NDArray[np.int64], int]:
    """The new catalogue's rows, what export pruned behind what is on sale; and how many are on sale."""
    pruned = np.zeros(len(named), np.bool_)
    rule = served.manifest.quantization.get("pruned")
    if isinstance(rule, Mapping) and "items_below" in rule:
        origin = was[np.maximum(named, 0)]
        rare = is_rare(origin["tower_id"], origin["popularity"], float(rule["items_below"]))
        pruned = rare & (named >= 0)
    return rare_behind(pruned, titled)


def _require_kept(
    served: ServedBundle, sold: NDArray[np.int64], items: Path | str, max_removed: float
) -> None:
    """Raises BadRefresh where a catalogue takes more than its share of products off sale: it may be cut."""
    removed, before = _removed(served, sold), served.manifest.showable
    if removed / before > max_removed:
        raise BadRefresh(
            f"{items}: {removed:,} of {before:,} products on sale are not in it, or have no title there; "
            f"expected a share of {max_removed:g} at most. Where they are to go: --max-removed 1"
        )


def _removed(served: ServedBundle, sold: NDArray[np.int64]) -> int:
    """How many of the products on sale in the old bundle are not among those rows of it."""
    return len(np.setdiff1d(np.arange(served.manifest.showable), sold))


def _content_of(
    table: Any, gone: list[Product], vectors: Mapping[str, Any], old: Path, items: Path | str
) -> Content:
    """Content of rows, the new catalogue's `table` first, made when it is asked for."""
    vocabulary = Vocabulary.read(json.loads((old / "vocabulary.json").read_bytes()))

    def content(rows: NDArray[np.int64]) -> ItemFeatures:
        lines: list[Mapping[str, Any]] = table.take(rows[rows < table.num_rows]).to_pylist()
        lines += [_content(gone[row - table.num_rows]) for row in rows[rows >= table.num_rows].tolist()]
        try:
            return item_features(lines, vocabulary, {name: v[rows] for name, v in vectors.items()})
        except ValueError as error:
            raise BadRefresh(f"{items}: {error} (the bundle's item tower)") from error

    return content


def _content(gone: Product) -> Mapping[str, Any]:
    """A product that the catalogue no longer has, as a line of it; what has no title is shown by its id."""
    title = None if gone.title == gone.item_id else gone.title
    names = ("category", "brand", "price", "tags")
    return {"title": title, **{name: getattr(gone, name) for name in names}}


def _embedded(old: Path, was: Origins, named: NDArray[np.int64], content: Content) -> tuple[Origins, Float16]:
    """Of the products in the new catalogue; what the old bundle did not have has no id and no popularity, and
    nobody knows the demand of it, nor of what has other content now.

    Embeddings of unchanged content are those of the old bundle, bit for bit; the others are made now.
    """
    known = named >= 0
    before = was[np.maximum(named, 0)]
    tower_ids = np.where(known, before["tower_id"], 0).astype(np.int64)
    popularity = np.where(known, before["popularity"], 0).astype(np.float32)
    made = embed(
        old / "item_tower.onnx",
        content,
        tower_ids,
        lambda rows, hashes: ~known[rows] | (hashes != before["content"][rows]),
    )
    table = np.fromfile(old / "embeddings.f16", "<f2").reshape(len(was), -1)
    embeddings = np.where(made.due[:, None], made.table, table[np.maximum(named, 0)])
    demand = np.where(known & ~made.due, before["demand"], np.nan).astype(np.float32)
    return origins(tower_ids, popularity, made.content, demand), embeddings


def _is_due(now: Origins, was: Origins, named: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which products of the new catalogue are new, or of another content."""
    due: NDArray[np.bool_] = (named < 0) | (now["content"] != was["content"][np.maximum(named, 0)])
    return due


def _check_tower(old: Path, rows: _Rows) -> None:
    """Rows of the new catalogue, embedded once more, against the table; raises BadRefresh."""
    some = np.unique(np.linspace(0, rows.named - 1, min(CHECKED, rows.named)).astype(np.int64))
    tower_ids = rows.origins["tower_id"][some].astype(np.int64)
    again = embed(old / "item_tower.onnx", lambda at: rows.content(some[at]), tower_ids)
    off = units_apart(again.table, rows.embeddings[some]).max(1)
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
    write_alike(rows.content, rows.origins, rows.showable, served.repeats, out)
    now = np.full(served.manifest.items, -1)
    now[rows.before[rows.before >= 0]] = np.flatnonzero(rows.before >= 0)
    write_companions(out, in_rows(served.companions, now, len(rows.before)))
    vectors = _visitors(served, rows)
    scorer = renew(out, served.manifest.scorer, rows.embeddings[: rows.showable], vectors)
    manifest = _manifest(served, rows, scorer, out)
    opened = open_bundle(out, write_manifest(out, manifest))
    demands = Demands.of(vectors, rows.embeddings[: rows.showable]).measured(opened.scorer)
    opened.close()
    for what, share in demands.items():
        if share < LEAST_RECALL:
            raise BadRefresh(too_little_found(what, share))
    counts = _counts(served, rows, read_origins(old, served.manifest.items), demands[RECALL])
    measured_on = served.manifest.quantization.get("measured_on", served.id)
    told = {"refreshed_from": served.id, "measured_on": measured_on, **demands}
    proven = replace(manifest, quantization={**manifest.quantization, **told})
    return write_manifest(out, proven), counts


def _counts(served: ServedBundle, rows: _Rows, was: Origins, found: float) -> Refreshed:
    sold = rows.before[: rows.showable]
    due = _is_due(rows.origins[: rows.showable], was, sold)
    new = int((sold < 0).sum())
    return Refreshed(new, int(due.sum()) - new, int((~due).sum()), _removed(served, sold), found)


def _visitors(served: ServedBundle, rows: _Rows) -> Float16:
    """Vectors [Q, d] after made-up histories among what is on sale, new products too."""
    rng = np.random.default_rng(2)
    tops = (rows.showable, 5, GAP_BUCKETS, VALUE_BUCKETS)
    histories = np.stack([rng.integers(0, top, (QUERIES, EVENTS)) for top in tops], -1)
    return golden_vectors(served.encoder.step, rows.embeddings, histories, served.encoder.state_width)


def _manifest(served: ServedBundle, rows: _Rows, scorer: Mapping[str, object], out: Path) -> Manifest:
    """Of the files in `out`, with what was said of quantization before."""
    old = served.manifest
    step = open_step(out / "user_tower.onnx")
    histories = golden_histories(len(rows.shown))
    return replace(
        old,
        items=len(rows.shown),
        showable=rows.showable,
        files=describe(out),
        scorer=dict(scorer),
        golden=golden(step, rows.embeddings, histories, old.state_width, rows.showable),
    )
