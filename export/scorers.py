"""Which scorer a bundle uses: each kind is built, held against exact search, and timed in turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.lists import build_lists
from export.score import quantize, quantize_columns, write_column_graph, write_score_graph
from functions.core.engine import open_scorer, open_search
from functions.core.index import Lists
from functions.core.scorer import FEWEST, Scorer, Top
from functions.core.served import CANDIDATES
from functions.core.user_row import Float16

CUT = 10
RECALL = f"recall@{CUT}"
BLOCK_ROWS = 8192  # widened to float64 at a time
LEAST_RECALL = 0.999  # of the exact best
ELIGIBLE = 0.01  # share of the products
CHOSEN_FROM = 20_000  # items; below, calling a scan takes as long as the scan
INDEXED_FROM = 200_000  # items; below, no index can be a millisecond faster than the scan
INDEX_GAIN_US = 1000.0  # what an index, which is not exact, has to be worth
MARGIN = 2  # times the lists, or the candidates, that these queries need: others need more
MOST_RESCORED = 64 * FEWEST  # candidates looked at exactly; more take as long as a scan does
INTEGER_GAIN = 0.9  # of MatMulNBits' time, which keeps its speed on more CPUs
QUERIES, ROUNDS = 100, 5
SCORER_FILES = ("codes.u8", "scales.f32", "lists.bin", "score.onnx")
NO_LISTS = b"no lists"  # no file is empty: damage to one is always damage
Named = dict[str, object]  # a scorer, as the manifest does
NBITS: Named = {"kind": "nbits"}
Opened = tuple[Named, Scorer]


class Finder(Protocol):
    """Whatever finds the best rows for a vector."""

    def top(self, vector: NDArray[np.floating], k: int) -> Top:
        """At most k rows and their scores, best first."""
        ...


@dataclass(frozen=True)
class GroundTruth:
    """What recall is measured by: Q vectors of users, and for each what the last of the exact best has.

    vectors float64 [Q, d], QUERIES at most; embeddings [M, d]; shown: bool [M], which of them may be among
    the `cut` best; edges [Q], -inf where there are fewer.
    """

    vectors: NDArray[np.float64]
    embeddings: Float16
    cut: int
    shown: NDArray[np.bool_] | None
    edges: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.floating],
        embeddings: Float16,
        cut: int = CUT,
        shown: NDArray[np.bool_] | None = None,
    ) -> GroundTruth:
        """Of the first QUERIES of the vectors [Q, d], by float64 products with all items."""
        queries = vectors[:QUERIES].astype(np.float64)
        table = embeddings if shown is None else embeddings[shown]
        best = np.full((len(queries), cut), -np.inf)
        for start in range(0, len(table), BLOCK_ROWS):
            scores = queries @ table[start : start + BLOCK_ROWS].astype(np.float64).T
            best = np.partition(np.concatenate([best, scores], 1), -cut, 1)[:, -cut:]
        return cls(queries, embeddings, cut, shown, best.min(1, initial=np.inf))

    def recall(self, finder: Finder) -> float:
        """Of the exact best, the share found; what ties with the last is as right as the last."""
        top = finder.top
        if self.shown is not None:
            assert isinstance(finder, Scorer)
            top = partial(finder.top, mask=finder.mask(self.shown))
        there = len(self.embeddings) if self.shown is None else int(self.shown.sum())
        found, wanted = 0, min(self.cut, there) * len(self.vectors)
        for vector, edge in zip(self.vectors, self.edges.tolist(), strict=True):
            rows, _ = top(vector, self.cut)
            scores = self.embeddings[rows].astype(np.float64) @ vector
            right = scores >= edge - 1e-5 * max(abs(edge), 1e-6)
            found += int((right if self.shown is None else right & self.shown[rows]).sum())
        return found / wanted if wanted else 1.0


@dataclass(frozen=True)
class Demands:
    """What a scorer has to find to be served: the ten best, the candidates of a request, and the ten best
    where a hundredth of the products is eligible.

    The first alone would let pass what tells nothing apart but a few outsized products.
    """

    truths: Mapping[str, GroundTruth]

    @classmethod
    def of(cls, vectors: NDArray[np.floating], embeddings: Float16) -> Demands:
        """By vectors of users [Q, d], of the embeddings [M, d]."""
        shown = np.random.default_rng(3).random(len(embeddings)) < ELIGIBLE
        return cls(
            {
                RECALL: GroundTruth.of(vectors, embeddings),
                f"recall@{CANDIDATES}": GroundTruth.of(vectors, embeddings, CANDIDATES),
                f"{RECALL}, {ELIGIBLE:.0%} eligible": GroundTruth.of(vectors, embeddings, CUT, shown),
            }
        )

    @property
    def embeddings(self) -> Float16:
        """All that is scored, [M, d]."""
        return self.truths[RECALL].embeddings

    def met(self, scorer: Scorer) -> bool:
        """Whether it finds LEAST_RECALL of each."""
        return all(truth.recall(scorer) >= LEAST_RECALL for truth in self.truths.values())

    def measured(self, scorer: Scorer) -> dict[str, float]:
        """The share of each that it finds."""
        return {name: round(truth.recall(scorer), 6) for name, truth in self.truths.items()}


def too_little_found(name: str, share: float) -> str:
    """What is said of a scorer that does not find LEAST_RECALL of one of its demands."""
    return f"served: {name} is {share:.4f} of the exact best; expected {LEAST_RECALL}"


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
    Where products are so alike that their codes are the same, more candidates are looked at exactly.
    """
    if not len(vectors):
        return Chosen(NBITS, {}, {})
    demands = Demands.of(vectors, embeddings)
    nbits = _widened(out, NBITS, demands)
    if len(embeddings) < CHOSEN_FROM:
        return Chosen(nbits[0], {}, {})
    with TemporaryDirectory() as scratch:
        tried = {"nbits": nbits} | _rivals(Path(scratch), nbits[0], demands)
        recall = {kind: demands.truths[RECALL].recall(scorer) for kind, (_, scorer) in tried.items()}
        micros = microseconds({kind: scorer for kind, (_, scorer) in tried.items()}, vectors)
        kind = _best(micros, {kind for kind, (_, scorer) in tried.items() if demands.met(scorer)})
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
    if scorer.get("kind") == "index":
        write_scorer(out, embeddings, NBITS)
        return choose(out, embeddings, vectors).scorer
    demands = Demands.of(vectors, embeddings)
    if scorer.get("kind") == "integer":
        write_scorer(out, embeddings, scorer)
        if demands.met(open_scorer(out, scorer, embeddings, len(embeddings))):
            return scorer
        _remove(out)
    write_scorer(out, embeddings, NBITS)
    return _widened(out, NBITS, demands)[0]


def _remove(folder: Path) -> None:
    """What is mapped stays what it is."""
    for name in SCORER_FILES:
        (folder / name).unlink()


def _rivals(scratch: Path, nbits: Named, demands: Demands) -> dict[str, Opened]:
    """The other kinds, in folders of their own; nbits: how many candidates its codes need."""
    embeddings = demands.embeddings

    def built(named: Named, lists: Lists | None = None) -> Path:
        folder = scratch / str(named["kind"])
        folder.mkdir()
        write_scorer(folder, embeddings, named, lists)
        return folder

    integer: Named = {"kind": "integer"}
    rivals = {"integer": _widened(built(integer), integer, demands)}
    if len(embeddings) >= INDEXED_FROM:
        lists = build_lists(embeddings)
        count, probes = len(lists.centroids), 1
        index = nbits | {"kind": "index", "lists": count}
        folder = built(index, lists)

        def opened(probes: int) -> Opened:
            named = index | {"probes": probes}
            return named, open_scorer(folder, named, embeddings, len(embeddings))

        while probes < count and not demands.met(opened(probes)[1]):
            probes *= 2
        rivals["index"] = opened(min(MARGIN * probes, count))
    return rivals


def _widened(folder: Path, named: Named, demands: Demands) -> Opened:
    """A kind over its files, which looks at as many candidates exactly as these vectors need."""
    embeddings, rescored = demands.embeddings, FEWEST
    search = open_search(folder, named, *embeddings.shape)

    def scorer() -> Scorer:
        return Scorer(search, embeddings, len(embeddings), rescored)

    while rescored < min(MOST_RESCORED, len(embeddings)) and not demands.met(scorer()):
        rescored *= 2
    if rescored > FEWEST:
        rescored = min(MARGIN * rescored, MOST_RESCORED)
        named = named | {"rescored": rescored}
    return named, scorer()


def microseconds(scorers: Mapping[str, Finder], vectors: Sequence[Float16] | Float16) -> dict[str, float]:
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


def _best(micros: Mapping[str, float], sound: Set[str]) -> str:
    best = "nbits"
    if "integer" in sound and micros["integer"] < INTEGER_GAIN * micros["nbits"]:
        best = "integer"
    if "index" in sound and micros["index"] < micros[best] - INDEX_GAIN_US:
        best = "index"
    return best
