"""What runs the models: ONNX Runtime, or numpy where that cannot be imported, slower and to the same end."""

from __future__ import annotations

import mmap
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import CorruptBundle
from functions.core.index import ListSearch, read_lists
from functions.core.processor import processor
from functions.core.scans import Codes, ColumnCodes
from functions.core.scorer import FEWEST, Scan, Scorer, Search, WholeScan, blocks
from functions.core.user_row import Float16

try:
    from functions.core.runtime import OnnxScan, OnnxStep

    ENGINE = "onnxruntime"
except ImportError:
    ENGINE = "numpy"

KINDS = ("nbits", "integer", "index")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def open_step(model: Path) -> Any:
    """The user tower as the fold's Step, with state_width and dim."""
    if ENGINE == "onnxruntime":
        return OnnxStep(model)
    from functions.core.numpy_tower import NumpyStep

    return NumpyStep(model)


def open_scorer(directory: Path, scorer: Mapping[str, object], embeddings: Float16, showable: int) -> Scorer:
    """The scorer that a bundle's manifest names, over its files; embeddings [N, d]. Raises CorruptBundle."""
    rescored = scorer.get("rescored", FEWEST)
    if type(rescored) is not int or rescored < 1:
        raise CorruptBundle(f"{directory}: {rescored!r} rescored; expected a whole number, 1 at least")
    search = open_search(directory, scorer, showable, embeddings.shape[1])
    return Scorer(search, embeddings, showable, rescored)


def open_search(directory: Path, scorer: Mapping[str, object], rows: int, dim: int) -> Search:
    """What finds its candidates, among so many rows; raises CorruptBundle."""
    kind = scorer.get("kind")
    if kind not in KINDS:
        raise CorruptBundle(f"{directory}: scorer {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "integer":
        size = (directory / "scales.f32").stat().st_size
        if size != 4:  # it is not read, for it changes no order
            said = "expected 4, one scale for all; a bundle from before 2026-11-28 has to be exported anew"
            raise CorruptBundle(f"{directory / 'scales.f32'}: {size} bytes; {said}")
        columns = mapped(directory, "codes.u8", "i1", (dim, rows))
        return WholeScan(_scan(directory, (rows, dim), ColumnCodes, columns))
    count, block = blocks(dim)
    codes = mapped(directory, "codes.u8", "u1", (rows, count, block))
    scales = mapped(directory, "scales.f32", "<f4", (rows * count,))
    if len(scales) and not np.isfinite([scales.min(), scales.max()]).all():
        raise CorruptBundle(f"{directory / 'scales.f32'}: expected finite numbers")
    if kind == "nbits":
        return WholeScan(_scan(directory, (rows, dim), Codes, codes, scales))
    lists, probes = scorer.get("lists"), scorer.get("probes")
    if not isinstance(lists, int) or not isinstance(probes, int) or not 0 < probes <= lists:
        raise CorruptBundle(f"{directory}: {probes!r} of {lists!r} lists; expected whole numbers, 0 < probes")
    size = (directory / "lists.bin").stat().st_size
    read = read_lists(mapped(directory, "lists.bin", "u1", (size,)), rows, lists, dim)
    return ListSearch(read, Codes(codes, scales), probes)


def _scan(directory: Path, shape: tuple[int, int], by_numpy: Any, *codes: NDArray[Any]) -> Scan:
    """`codes` are the codes, and then their scales, where each row has its own."""
    if ENGINE == "numpy":
        read: Scan = by_numpy(*codes)
        return read
    try:
        scan = OnnxScan(directory / "score.onnx", *codes)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CorruptBundle(f"{directory / 'score.onnx'}: {error}") from error
    if (scan.rows, scan.dim) != shape:
        said = f"{scan.rows} rows of {scan.dim} numbers; expected {shape[0]} of {shape[1]} (manifest)"
        raise CorruptBundle(f"{directory / 'score.onnx'}: {said}")
    _let_go(codes[0])  # the runtime has packed them into memory of its own
    return scan


def _let_go(array: NDArray[Any]) -> None:
    """Drop the pages of a mapped file from memory; what is read again comes from the file."""
    pages = getattr(array.base, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def mapped(directory: Path, name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file of the bundle as an array, not read yet; raises CorruptBundle for one of another size."""
    path = directory / name
    wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.stat().st_size != wanted:
        raise CorruptBundle(f"{path}: {path.stat().st_size} bytes; expected {wanted} for {shape}")
    return np.asarray(np.memmap(path, kind, "r", shape=shape)) if wanted else np.zeros(shape, kind)


def cpu() -> dict[str, str]:
    """Name, the flags that int8 products depend on, and the engine: for the log of an environment's start."""
    said = processor()
    name, flags = said.get("model name", platform.machine()), said.get("flags", said.get("Features", ""))
    return {"cpu": name, "flags": " ".join(f for f in FLAGS if f in flags.split()), "engine": ENGINE}
