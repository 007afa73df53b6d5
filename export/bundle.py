"""Checkpoint → bundle: towers as ONNX, embeddings, int8 table, catalogue, fallback; manifest last."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from export.handover import Products, read_popularity, read_products
from export.origins import ORIGINS, origins
from export.score import require_finite
from export.scorers import NBITS, write_scorer
from export.towers import export_item_tower, export_user_tower
from functions.core.alike import ALIKE
from functions.core.bundle import Manifest, describe, state_space, write_manifest
from functions.core.catalogue import Product, write_catalogue
from functions.core.context import TABLE
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, ItemFeatures
from functions.core.repeats import NOBODY, Repeats
from functions.core.runtime import OnnxStep
from functions.core.served import golden
from functions.core.slots import Slot, dump_slots
from functions.core.user_row import Float16
from train.alike import find_alike
from train.checkpoint import Meta
from train.refit import without_id
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
    features = source.products.features
    tower_ids = np.where(without_id(source.towers.item), 0, np.arange(1, source.items + 1))
    embeddings = embed(out / "item_tower.onnx", features, tower_ids)
    require_finite(embeddings)
    require_finite(source.towers.context.table.detach().half().numpy(), "context row")
    embeddings.astype("<f2").tofile(out / "embeddings.f16")
    showable = source.products.showable
    write_scorer(out, embeddings[:showable], NBITS)
    source.towers.context.table.detach().numpy().astype("<f2").tofile(out / TABLE)
    popularity = read_popularity(source.folder, source.items)
    write_items(source.products.shown, popularity, showable, out)
    origins(tower_ids, popularity, features).tofile(out / ORIGINS)
    write_alike(features, tower_ids == 0, showable, source.meta.repeats, out)
    (out / "slots.json").write_text(dump_slots(slots), encoding="utf-8")
    _write_json(out / "vocabulary.json", source.meta.vocabulary)


def write_items(shown: list[Product], popularity: NDArray[np.float32], showable: int, out: Path) -> None:
    """The catalogue of all N rows, and the popular ones among the first `showable`."""
    write_catalogue(out / "catalogue.sqlite", shown)
    _write_json(out / "fallback.json", fallback(shown[:showable], popularity[:showable]))


def write_alike(
    features: ItemFeatures, new: NDArray[np.bool_], showable: int, repeats: Repeats, out: Path
) -> None:
    """Who inherits from whom, of the N rows that these are the features of; no file where nobody does."""
    alike = find_alike(features, new, showable) if repeats.inherited else NOBODY
    if len(alike.heirs):
        (out / ALIKE).write_bytes(alike.to_bytes())


def finish(
    source: Source,
    out: Path,
    quantization: Mapping[str, object],
    scorer: Mapping[str, object] = NBITS,
) -> str:
    """Write the manifest, with golden vectors of the files as they are; returns the bundle's id."""
    shape = source.towers.shape
    embeddings = np.fromfile(out / "embeddings.f16", "<f2").reshape(-1, shape.dim)
    histories = golden_histories(source.items)
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


def embed(model: Path, features: ItemFeatures, tower_ids: NDArray[np.int64]) -> Float16:
    """Embeddings [N, d] of items, on a GPU where ONNX Runtime has one, in chunks; tower_ids [N].

    Every chunk has one shape, so that a row does not depend on where it stands.
    """
    session = open_on_fastest(model)
    count = len(tower_ids)
    width = session.get_outputs()[0].shape[1]
    embeddings = np.zeros((count, width), np.float16)
    device = "GPU" if session.get_providers()[0].startswith("CUDA") else "CPU"
    started = time.perf_counter()
    with tqdm(total=count, desc=f"embed on {device}", unit="item", disable=None) as bar:
        for start in range(0, count, CHUNK):
            rows = np.arange(start, start + CHUNK) % count
            inputs = {name: column[rows] for name, column in features.columns().items()}
            (part,) = session.run(["item_embedding"], {"item_id": tower_ids[rows].astype(np.int64), **inputs})
            here = slice(start, min(start + CHUNK, count))
            embeddings[here] = part[: here.stop - start]
            bar.update(here.stop - start)
    took_s = time.perf_counter() - started
    print(f"embedded {count:,} items on the {device}, {count / max(took_s, 1e-9):,.0f} a second", flush=True)
    return embeddings


def open_on_fastest(model: Path) -> ort.InferenceSession:
    """On a GPU where there is one for this ONNX Runtime; asked for in vain, it prints errors."""
    gpu = torch.cuda.is_available() and "CUDAExecutionProvider" in ort.get_available_providers()
    wanted = ["CUDAExecutionProvider"] if gpu else []
    return ort.InferenceSession(str(model), providers=[*wanted, "CPUExecutionProvider"])


def fallback(shown: list[Product], popularity: NDArray[np.float32]) -> dict[str, object]:
    """The most popular rows of what is on sale, of all and of each category, best first."""
    order = np.argsort(-popularity, kind="stable")
    by_category: dict[str, list[int]] = {}
    for row in order.tolist():
        name = shown[row].category
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
