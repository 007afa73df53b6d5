"""A trained model on disk: weights beside the shape, vocabulary and item ids that give them meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from functions.core.repeats import Repeats
from train.towers import Shape, Towers

WEIGHTS = "weights.safetensors"
SHAPE = "shape.json"
VOCABULARY = "vocabulary.json"
ITEM_IDS = "item_ids.json"
META = "meta.json"
FILES = (WEIGHTS, SHAPE, VOCABULARY, ITEM_IDS, META)
META_FIELDS = {"watermark_s", "metrics", "repeats"}


class BadCheckpoint(ValueError):
    """A checkpoint folder that cannot be read as one model."""


@dataclass(frozen=True)
class Meta:
    """What the weights cannot say: the items by row, the time of the last event read."""

    item_ids: tuple[str, ...]
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    watermark_s: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    repeats: Repeats = field(default_factory=Repeats)


def save(folder: Path, towers: Towers, meta: Meta) -> None:
    """Write the checkpoint; raises BadCheckpoint unless there is one item id for every item row."""
    _check_items(towers.shape, meta.item_ids, folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in towers.state_dict().items()}
    part = folder / f"{WEIGHTS}.part"
    save_file(weights, part)
    os.replace(part, folder / WEIGHTS)  # a run that is killed here finds the old ones when it goes on
    _write(folder / SHAPE, asdict(towers.shape))
    _write(folder / VOCABULARY, dict(meta.vocabulary))
    _write(folder / ITEM_IDS, list(meta.item_ids))
    write_meta(folder, meta)


def write_meta(folder: Path, meta: Meta) -> None:
    """Write what is learnt beside the weights: the repeat term is chosen after the last epoch."""
    rest = {"watermark_s": meta.watermark_s, "metrics": dict(meta.metrics), "repeats": asdict(meta.repeats)}
    _write(folder / META, rest)


def load(folder: Path) -> tuple[Towers, Meta]:
    """Read it back, in eval mode on the CPU; raises BadCheckpoint on anything missing, extra or misshapen."""
    shape = _shape(folder / SHAPE)
    towers = Towers(shape)
    _load_weights(towers, folder / WEIGHTS)
    item_ids = tuple(_read(folder / ITEM_IDS))
    _check_items(shape, item_ids, folder)
    rest = _read(folder / META)
    if set(rest) != META_FIELDS:
        raise BadCheckpoint(f"{folder / META}: fields {sorted(rest)}; expected {sorted(META_FIELDS)}")
    repeats = Repeats(**rest["repeats"])
    meta = Meta(item_ids, _read(folder / VOCABULARY), rest["watermark_s"], rest["metrics"], repeats)
    return towers.eval(), meta


def _shape(path: Path) -> Shape:
    read = _read(path)
    expected = {f.name for f in fields(Shape)}
    if set(read) != expected:
        raise BadCheckpoint(f"{path}: fields {sorted(read)}; expected {sorted(expected)}")
    try:
        return Shape(**read)
    except (TypeError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def _load_weights(towers: Towers, path: Path) -> None:
    if not path.is_file():
        raise BadCheckpoint(f"{path}: missing; expected the weights")
    try:
        towers.load_state_dict(load_file(path), strict=True)
    except Exception as error:  # safetensors' own error is a bare Exception subclass
        raise BadCheckpoint(
            f"{path}: {error}; expected the weights of today's towers: those of others are to be trained anew"
        ) from error


def _check_items(shape: Shape, item_ids: tuple[str, ...], folder: Path) -> None:
    if len(item_ids) != shape.items:
        raise BadCheckpoint(f"{folder}: {len(item_ids)} item ids; expected {shape.items}, one for every row")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
