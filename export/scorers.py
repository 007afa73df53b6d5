"""Which scorer a bundle uses: each kind is built, held against exact search, and timed in turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.lists import build_lists
from export.score import quantize, quantize_columns, write_column_graph, write_score_graph
from functions.core.engine import open_search
from functions.core.index import Lists
from functions.core.ranking import top_k_numpy
from functions.core.scorer import Scorer, Top
from functions.core.user_row import Float16

CUT = 10
LEAST_RECALL = 0.999  # of the exact ten best
CHOSEN_FROM = 20_000  # items; below, calling a scan takes as long as the scan
INDEXED_FROM = 200_000  # items; below, no index can be a millisecond faster than the scan
INDEX_GAIN_US = 1000.0  # what an index, which is not exact, has to be worth
MARGIN = 2  # times the lists that these queries need: others need more
INTEGER_GAIN = 0.9  # of MatMulNBits' time, which keeps its speed on more CPUs
QUERIES, ROUNDS = 100, 5
SCORER_FILES = ("codes.u8", "scales.f32", "lists.bin", "score.onnx")
NO_LISTS = b"no lists"  # no file is empty: damage to one is always damage
NBITS: dict[str, object] = {"kind": "nbits"}
Named = tuple[dict[str, object], Scorer]


class Timed(Protocol):
    """Whatever finds the best rows for a vector."""

    def top(self, vector: Float16, k: int) -> Top:
        """At most k rows and their scores, best first."""
        ...


@dataclass(frozen=True)
class Chosen:
    """`scorer` as the manifest names it; what was measured of each kind that was tried."""

    scorer: Mapping[str, object]
    microseconds: Mapping[str, float]
    recall: Mapping[str, float]


def write_scorer(
    out: Path, embeddings: Float16, scorer: Mapping[str, object], lists: Lists | None = None
) -> None:
    """The files of one kind of scorer over the showable items [M, d]; raises NotFinite."""
    rows, dim = embeddings.shape
    if scorer["kind"] == "integer":
        codes, scales = quantize_columns(embeddings)
        codes.tofile(out / "codes.u8")
        write_column_graph(out / "score.onnx", rows, dim)
    else:
        table = embeddings if lists is None else embeddings[lists.rows]
        blocked, scales = quantize(table)
        blocked.tofile(out / "codes.u8")
        write_score_graph(out / "score.onnx", rows, dim)
    scales.astype("<f4").tofile(out / "scales.f32")
    (out / "lists.bin").write_bytes(lists.to_bytes() if lists else NO_LISTS)


def choose(out: Path, embeddings: Float16, vectors: NDArray[np.floating]) -> Chosen:
    """Replace the scorer in `out`, MatMulNBits, by a faster one that finds as much, where there is one.

    embeddings [M, d], vectors [Q, d] of users. Of few items nothing is timed: the choice would be chance.
    """
    if len(embeddings) < CHOSEN_FROM or not len(vectors):
        return Chosen(NBITS, {}, {})
    with TemporaryDirectory() as scratch:
        tried = _candidates(Path(scratch), out, embeddings, vectors)
        recall = {kind: recall_at(scorer, vectors, embeddings) for kind, (_, scorer) in tried.items()}
        micros = microseconds({kind: scorer for kind, (_, scorer) in tried.items()}, vectors)
        kind = _best(micros, recall)
        named, _ = tried[kind]
        if kind != "nbits":
            _remove(out)
            for name in SCORER_FILES:
                shutil.copyfile(Path(scratch) / kind / name, out / name)
    return Chosen(named, micros, recall)


def renew(
    out: Path, scorer: Mapping[str, object], embeddings: Float16, vectors: Float16
) -> Mapping[str, object]:
    """Write the kind that a bundle had over what it has now, and return what its manifest is to say.

    An index is built anew, if it still pays. One scale for all goes where a product has come that is so large
    that the others are no longer told apart, and does not come back before the next export.
    """
    if scorer.get("kind") == "integer":
        write_scorer(out, embeddings, scorer)
        opened = Scorer(open_search(out, scorer, *embeddings.shape), embeddings, len(embeddings))
        if recall_at(opened, vectors, embeddings) >= LEAST_RECALL:
            return scorer
        _remove(out)
    write_scorer(out, embeddings, NBITS)
    return choose(out, embeddings, vectors).scorer if scorer.get("kind") == "index" else NBITS


def _remove(folder: Path) -> None:
    """What is mapped stays what it is."""
    for name in SCORER_FILES:
        (folder / name).unlink()


def _candidates(scratch: Path, out: Path, embeddings: Float16, vectors: Float16) -> dict[str, Named]:
    rows, dim = embeddings.shape

    def opened(folder: Path, named: dict[str, object]) -> Named:
        return named, Scorer(open_search(folder, named, rows, dim), embeddings, rows)

    def built(named: dict[str, object], lists: Lists | None = None) -> Named:
        folder = scratch / str(named["kind"])
        folder.mkdir()
        write_scorer(folder, embeddings, named, lists)
        return opened(folder, named)

    tried = {"nbits": opened(out, NBITS), "integer": built({"kind": "integer"})}
    if rows >= INDEXED_FROM:
        lists = build_lists(embeddings)
        count, probes = len(lists.centroids), 1
        tried["index"] = built({"kind": "index", "lists": count, "probes": probes}, lists)
        while probes < count and recall_at(tried["index"][1], vectors, embeddings) < LEAST_RECALL:
            probes *= 2
            tried["index"] = opened(scratch / "index", tried["index"][0] | {"probes": probes})
        probes = min(MARGIN * probes, count)
        tried["index"] = opened(scratch / "index", tried["index"][0] | {"probes": probes})
    return tried


def recall_at(scorer: Scorer, vectors: Float16, embeddings: Float16, cut: int = CUT) -> float:
    """Of the exact best by dot product, the share found; what ties with the last is as right as the last."""
    found, wanted = 0, 0
    for vector in vectors[:QUERIES]:
        _, exact = top_k_numpy(vector, embeddings, cut)
        edge = exact[-1] if len(exact) else 0.0
        _, scores = scorer.top(vector, cut)
        found += int((scores >= edge - 1e-5 * max(abs(edge), 1e-6)).sum())
        wanted += len(exact)
    return found / wanted if wanted else 1.0


def microseconds(scorers: Mapping[str, Timed], vectors: Sequence[Float16] | Float16) -> dict[str, float]:
    """Median CPU time of a query of each, all of them in turns."""
    spent: dict[str, list[float]] = {kind: [] for kind in scorers}
    for _ in range(ROUNDS):
        for kind, scorer in scorers.items():
            scorer.top(vectors[0], CUT)
            for vector in vectors[: QUERIES // ROUNDS]:
                started = time.thread_time()
                scorer.top(vector, CUT)
                spent[kind].append(time.thread_time() - started)
    return {kind: round(float(np.median(times)) * 1e6, 1) for kind, times in spent.items()}


def _best(micros: Mapping[str, float], recall: Mapping[str, float]) -> str:
    sound = {kind for kind in micros if recall[kind] >= LEAST_RECALL}
    best = "nbits"
    if "integer" in sound and micros["integer"] < INTEGER_GAIN * micros["nbits"]:
        best = "integer"
    if "index" in sound and micros["index"] < micros[best] - INDEX_GAIN_US:
        best = "index"
    return best
