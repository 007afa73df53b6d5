"""Checkpoint → bundle: towers as ONNX, embeddings, int8 table, catalogue, fallback; manifest last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from export.handover import Products, read_popularity, read_products
from export.score import require_finite
from export.scorers import NBITS, write_scorer
from export.towers import export_item_tower, export_user_tower
from functions.core.bundle import Manifest, describe, state_space, write_manifest
from functions.core.catalogue import write_catalogue
from functions.core.context import TABLE
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, ItemFeatures
from functions.core.runtime import OnnxStep
from functions.core.served import golden
from functions.core.slots import Slot, dump_slots
from functions.core.user_row import Float16
from train.checkpoint import Meta
from train.towers import Towers

CHUNK = 8192  # items embedded in one call
POPULAR = 200  # rows kept for every segment
GOLDEN_USERS, GOLDEN_EVENTS = 4, 16
FOLDED_KINDS = 7  # event type codes 0..6; an impression never advances a state


@dataclass(frozen=True)
class Source:
    """A checkpoint as export reads it."""

    folder: Path
    towers: Towers
    meta: Meta
    products: Products

    @property
    def items(self) -> int:
        """N."""
        return len(self.meta.item_ids)


def read_source(folder: Path, towers: Towers, meta: Meta) -> Source:
    """The products beside the weights; raises BadCheckpoint."""
    return Source(folder, towers, meta, read_products(folder, meta))


def write_files(source: Source, slots: Mapping[str, Slot], out: Path) -> None:
    """Every file of the bundle but the manifest, into the empty folder `out`."""
    export_user_tower(source.towers, out / "user_tower.onnx")
    export_item_tower(source.towers, out / "item_tower.onnx")
    embeddings = embed(out / "item_tower.onnx", source.products.features)
    require_finite(embeddings)
    require_finite(source.towers.context.table.detach().half().numpy(), "context row")
    embeddings.astype("<f2").tofile(out / "embeddings.f16")
    showable = source.products.showable
    write_scorer(out, embeddings[:showable], NBITS)
    source.towers.context.table.detach().numpy().astype("<f2").tofile(out / TABLE)
    write_catalogue(out / "catalogue.sqlite", source.products.shown)
    _write_json(out / "fallback.json", fallback(source))
    (out / "slots.json").write_text(dump_slots(slots), encoding="utf-8")
    _write_json(out / "vocabulary.json", source.meta.vocabulary)


def finish(
    source: Source,
    out: Path,
    quantization: Mapping[str, object],
    scorer: Mapping[str, object] = NBITS,
) -> str:
    """Write the manifest, with golden vectors of the files as they are; returns the bundle's id."""
    shape = source.towers.shape
    embeddings = np.fromfile(out / "embeddings.f16", "<f2").reshape(-1, shape.dim)
    histories = _golden_histories(source.items)
    step = OnnxStep(out / "user_tower.onnx")
    towers = [(out / name).read_bytes() for name in ("user_tower.onnx", "item_tower.onnx")]
    manifest = Manifest(
        state_space=state_space(*towers),
        dim=shape.dim,
        state_width=shape.state_width,
        items=source.items,
        showable=source.products.showable,
        files=describe(out),
        watermark=datetime.fromtimestamp(source.meta.watermark_s, UTC).isoformat(),
        metrics=dict(source.meta.metrics),
        quantization=dict(quantization),
        golden=golden(step, embeddings, histories, shape.state_width),
        repeats=asdict(source.meta.repeats),
        scorer=scorer,
    )
    return write_manifest(out, manifest)


def embed(model: Path, features: ItemFeatures) -> Float16:
    """Embeddings [N, d] of items by row, on a GPU where ONNX Runtime has one, in chunks.

    Every chunk has one shape, so that a row does not depend on where it stands.
    """
    gpu = (
        ["CUDAExecutionProvider"] if torch.cuda.is_available() else []
    )  # asked for in vain, it prints errors
    wanted = [*gpu, "CPUExecutionProvider"]
    session = ort.InferenceSession(str(model), providers=wanted)
    count = len(features.category)
    parts = []
    with tqdm(
        total=count, desc=f"embed on {session.get_providers()[0][:4]}", unit="item", disable=None
    ) as bar:
        for start in range(0, count, CHUNK):
            rows = np.arange(start, start + CHUNK) % count
            (part,) = session.run(["item_embedding"], _inputs(features, rows))
            parts.append(part[: count - start].astype(np.float16))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _inputs(features: ItemFeatures, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    content = {name: column[rows] for name, column in features.columns().items()}
    return {"item_id": rows + 1, **content}


def fallback(source: Source) -> dict[str, object]:
    """The most popular showable rows, of all and of each category, best first."""
    counts = read_popularity(source.folder, source.items)[: source.products.showable]
    order = np.argsort(-counts, kind="stable")
    by_category: dict[str, list[int]] = {}
    for row in order.tolist():
        name = source.products.shown[row].category
        if name and counts[row] > 0 and len(by_category.setdefault(name, [])) < POPULAR:
            by_category[name].append(row)
    return {"all": order[:POPULAR].tolist(), "category": {n: r for n, r in by_category.items() if r}}


def _golden_histories(items: int) -> NDArray[np.int64]:
    """[H, T, 4] of row, kind, gap, value."""
    rng = np.random.default_rng(0)
    tops = (items, FOLDED_KINDS, GAP_BUCKETS, VALUE_BUCKETS)
    return np.stack([rng.integers(0, top, (GOLDEN_USERS, GOLDEN_EVENTS)) for top in tops], -1)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, sort_keys=True), encoding="utf-8")
