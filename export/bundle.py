"""Checkpoint → bundle: towers as ONNX, embeddings, int8 table, catalogue, fallback; manifest last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from sys import intern

import numpy as np
from numpy.typing import NDArray

from export.embed import Content, embed
from export.handover import Products, read_popularity, read_products
from export.origins import ORIGINS, Origins, origins
from export.score import NotFinite, require_finite
from export.scorers import NBITS, write_scorer
from export.towers import export_item_tower, export_user_tower
from functions.core.alike import ALIKE, Alike
from functions.core.bundle import Manifest, describe, state_space, write_manifest
from functions.core.catalogue import Product, write_catalogue
from functions.core.context import TABLE
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, Int64
from functions.core.repeats import NOBODY, Repeats
from functions.core.runtime import OnnxStep
from functions.core.served import golden
from functions.core.slots import Slot, dump_slots
from functions.core.user_row import Float16
from train.alike import find_alike
from train.checkpoint import Meta
from train.demand import Demand
from train.handover import read_companions, read_demand, write_companions
from train.refit import without_id
from train.towers import Towers

POPULAR = 200  # rows kept for every segment
GOLDEN_USERS, GOLDEN_EVENTS = 4, 16
FOLDED_KINDS = 7  # event type codes 0..6; an impression never advances a state


@dataclass(frozen=True)
class Source:
    """A checkpoint as export reads it, its N items in the order that they have in the bundle.

    tower_ids [N]: what the item tower knows a row by, 0 for what it places by content alone. popularity [N]:
    recency-weighted events. demand [N]: users expected by content. companions: which known products go
    together. pruned: what was left out, and by which rule, for the manifest.
    """

    towers: Towers
    meta: Meta
    products: Products
    tower_ids: Int64
    popularity: NDArray[np.float32]
    demand: Demand
    companions: Alike = NOBODY
    pruned: Mapping[str, object] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """N."""
        return len(self.meta.item_ids)


def read_source(folder: Path, towers: Towers, meta: Meta) -> Source:
    """The products beside the weights; raises BadCheckpoint."""
    items = len(meta.item_ids)
    tower_ids = np.where(without_id(towers.item), 0, np.arange(1, items + 1))
    products, counts = read_products(folder, meta), read_popularity(folder, items)
    expected, companions = read_demand(folder, items), read_companions(folder, meta)
    return Source(towers, meta, products, tower_ids, counts, expected, companions)


def write_files(source: Source, slots: Mapping[str, Slot], out: Path) -> None:
    """Every file of the bundle but the manifest, into the empty folder `out`."""
    export_user_tower(source.towers, out / "user_tower.onnx")
    export_item_tower(source.towers, out / "item_tower.onnx")
    made = embed(out / "item_tower.onnx", source.products.content, source.tower_ids)
    embeddings = made.table
    require_finite_items(embeddings, source.meta.item_ids)
    tables = [each.detach().half().numpy() for each in source.towers.context.tables()]
    for name, part in zip(("table", "factors", "interests"), tables, strict=True):
        require_finite(part, f"context {name} row")
    embeddings.astype("<f2").tofile(out / "embeddings.f16")
    showable = source.products.showable
    write_scorer(out, embeddings[:showable], NBITS)
    np.concatenate(tables).astype("<f2").tofile(out / TABLE)
    write_items(source.products.shown, source.popularity, showable, out)
    came = origins(source.tower_ids, source.popularity, made.content, source.demand)
    came.tofile(out / ORIGINS)
    write_alike(source.products.content, came, showable, source.meta.repeats, out)
    write_companions(out, source.companions)
    (out / "slots.json").write_text(dump_slots(slots), encoding="utf-8")
    _write_json(out / "vocabulary.json", source.meta.vocabulary)


def require_finite_items(embeddings: Float16, item_ids: Sequence[str]) -> None:
    """Raises NotFinite naming the first of N items that has a number that is none in [N, d]."""
    try:
        require_finite(embeddings)
    except NotFinite as error:
        first = int(np.flatnonzero(~np.isfinite(embeddings).all(1))[0])
        raise NotFinite(f"item_id {item_ids[first]!r}, {error}") from error


def write_items(shown: Sequence[Product], popularity: NDArray[np.float32], showable: int, out: Path) -> None:
    """The catalogue of all N rows, and the popular ones among the first `showable`."""
    categories: list[str] = []

    def noted() -> Iterator[Product]:
        for product in shown:
            categories.append(intern(product.category))
            yield product

    write_catalogue(out / "catalogue.sqlite", noted())
    _write_json(out / "fallback.json", fallback(categories[:showable], popularity[:showable]))


def write_alike(content: Content, came: Origins, showable: int, repeats: Repeats, out: Path) -> None:
    """Who inherits from whom, of N rows, their content and where they came from; no file if nobody does."""
    new, rows = came["tower_id"] == 0, np.arange(len(came))
    alike = find_alike(content(rows), new, showable, came["demand"]) if repeats.inherited else NOBODY
    if len(alike.heirs):
        (out / ALIKE).write_bytes(alike.to_bytes())


def finish(
    source: Source,
    out: Path,
    scorer: Mapping[str, object] = NBITS,
    proven: Mapping[str, object] | None = None,
) -> str:
    """Write the manifest, with golden vectors of the files as they are; returns the bundle's id.

    proven: its `quantization`. Before that the golden rows are left out, by which a defect of the scorer
    would be found on opening: the proof is to say all that is wrong.
    """
    shape, showable = source.towers.shape, source.products.showable
    embeddings = np.fromfile(out / "embeddings.f16", "<f2").reshape(-1, shape.dim)
    histories = golden_histories(source.items)
    step = OnnxStep(out / "user_tower.onnx")
    towers = [(out / name).read_bytes() for name in ("user_tower.onnx", "item_tower.onnx")]
    manifest = Manifest(
        state_space=state_space(*towers),
        dim=shape.dim,
        state_width=shape.state_width,
        items=source.items,
        showable=showable,
        files=describe(out),
        watermark=datetime.fromtimestamp(source.meta.watermark_s, UTC).isoformat(),
        metrics=dict(source.meta.metrics),
        quantization={**(proven or {}), **({"pruned": dict(source.pruned)} if source.pruned else {})},
        golden=golden(step, embeddings, histories, shape.state_width, 0 if proven is None else showable),
        repeats=asdict(source.meta.repeats),
        scorer=scorer,
    )
    return write_manifest(out, manifest)


def fallback(categories: Sequence[str], popularity: NDArray[np.float32]) -> dict[str, object]:
    """The most popular rows of what is on sale, of all and of each category, best first."""
    order = np.argsort(-popularity, kind="stable")
    by_category: dict[str, list[int]] = {}
    for row in order.tolist():
        name = categories[row]
        if name and popularity[row] > 0 and len(by_category.setdefault(name, [])) < POPULAR:
            by_category[name].append(row)
    return {"all": order[:POPULAR].tolist(), "category": {n: r for n, r in by_category.items() if r}}


def golden_histories(items: int) -> NDArray[np.int64]:
    """[H, T, 4] of row, kind, gap, value."""
    rng = np.random.default_rng(0)
    tops = (items, FOLDED_KINDS, GAP_BUCKETS, VALUE_BUCKETS)
    return np.stack([rng.integers(0, top, (GOLDEN_USERS, GOLDEN_EVENTS)) for top in tops], -1)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True), encoding="utf-8")
