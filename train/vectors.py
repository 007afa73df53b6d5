"""Precomputed vectors (of images, texts, …) in a catalogue's columns: lists, or text that is a JSON array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

DEFAULT = ("image_vector", "text_vector")  # looked for where the mapping names no other
SHOWN_CHARS = 60
NUMBERS = "array<float32>"


@dataclass(frozen=True)
class Vectors:
    """One column: [N, width] with rows of zeros where there is none; `bad` tells what others had."""

    values: npt.NDArray[np.float32]
    bad: list[str]
    reason: str


def names(mapped: Sequence[str] | None) -> Sequence[str]:
    """The columns to look at: those that a mapping names, or DEFAULT."""
    return DEFAULT if mapped is None else mapped


def staged(raw: Any, names: Sequence[str]) -> dict[str, Any]:
    """The columns `names` of a file's table: each as numbers, and as text where it was text."""
    found: dict[str, Any] = {}
    for name in names:
        column = raw[name] if name in raw.columns else ibis.null(str)
        if column.type().is_array():
            found |= {name: column.try_cast(NUMBERS), f"{name}_text": ibis.null(str)}
        else:
            text = column.cast("string").strip().nullif("").nullif("null")
            found |= {name: text.try_cast(NUMBERS), f"{name}_text": text}
    return found


def read(items: pa.Table, name: str) -> Vectors:
    """One column of the staged catalogue; its width is what most of its vectors have.

    Another width, a number that is none or not finite, or text that is no array makes a row bad.
    """
    lists = items[name].combine_chunks()
    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.fill_null(lists.flatten(), np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
    row = np.repeat(np.arange(len(length)), length)
    finite = np.bincount(row, ~np.isfinite(flat), len(length)) == 0
    widths = np.bincount(length[finite & (length > 0)])
    width = int(widths.argmax()) if widths.size else 0
    good = finite & (length == width) & (width > 0)
    values = np.zeros((len(length), width), np.float32)
    values[good] = flat[good[row]].reshape(int(good.sum()), width)
    there = pc.or_(items[name].is_valid(), items[f"{name}_text"].is_valid()).to_numpy()
    bad = [_told(items, name, row) for row in np.flatnonzero(there & ~good).tolist()]
    return Vectors(values, bad, f"{name}_not_{width}_numbers" if width else f"{name}_not_numbers")


def _told(items: pa.Table, name: str, row: int) -> str:
    """Where a value stands, and its beginning."""
    value = items[f"{name}_text"][row].as_py()
    text = str(items[name][row].as_py()) if value is None else repr(value)
    text = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
    return f"row {items['row'][row]}: {text} ({items['file'][row]})"


def padded(vectors: Mapping[str, npt.NDArray[np.float32]], items: int) -> dict[str, npt.NDArray[np.float32]]:
    """The columns with rows of zeros for items that only the log knows, [items, width] each."""
    return {name: np.pad(v, ((0, items - len(v)), (0, 0))) for name, v in vectors.items()}
