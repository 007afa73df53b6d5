"""A bundle opened for serving: what can be mapped is not parsed, what is not verified is not served."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import ALIKE, COMPANIONS, Alike, read_alike
from functions.core.bundle import MANIFEST, Manifest, bundle_id, space_of_hashes, verify
from functions.core.catalogue import Catalogue
from functions.core.context import Asked, Context, read_context
from functions.core.engine import mapped, open_scorer, open_step
from functions.core.errors import CorruptBundle
from functions.core.fold import Encoder, Step
from functions.core.models import ITEM_TOWER, SCORE_GRAPH, USER_TOWER, check_model
from functions.core.ranking import top_k_numpy
from functions.core.repeats import NOBODY, Own, Repeats
from functions.core.scorer import Scorer
from functions.core.slots import Slot, load_slots
from functions.core.user_row import Float16, UserRow

CANDIDATES = 200
NOWHERE = Asked()
GOLDEN_BEST = 10  # rows of each golden vector
GOLDEN_REACHED = 0.9  # share of them: a scorer that is served finds .999; a wrong one, where there are few
# products, those that are looked at exactly whatever their codes are
GOLDEN_TOLERANCE = 2e-2  # another CPU may round another way now and then; a wrong file is off by far more
CACHED_KEYS = 65_536
MODELS = {"user_tower.onnx": USER_TOWER, "item_tower.onnx": ITEM_TOWER, "score.onnx": SCORE_GRAPH}

Candidates = tuple[NDArray[np.int64], NDArray[np.float64]]


class BundleItems:
    """Rows and embeddings by item key, as the fold asks for them; the keys last asked for are remembered."""

    def __init__(self, catalogue: Catalogue, embeddings: Float16) -> None:
        self._catalogue = catalogue
        self.table = embeddings  # [N, d]
        self._rows: dict[bytes, int | None] = {}

    def rows(self, keys: list[bytes]) -> list[int | None]:
        """Row of each key, or of a key's first bytes; None for an item that nobody knows."""
        unknown = [key for key in set(keys) if key not in self._rows]
        if unknown:
            if len(self._rows) + len(unknown) > CACHED_KEYS:
                self._rows = {}
                unknown = list(set(keys))
            found = self._catalogue.rows_of_keys(unknown)
            self._rows.update((key, found.get(key)) for key in unknown)
        return [self._rows[key] for key in keys]

    def embedding(self, key: bytes) -> Float16 | None:
        """[d] float16."""
        (row,) = self.rows([key])
        return None if row is None else self.table[row]


@dataclass(frozen=True)
class ServedBundle:
    """All that the functions ask of a bundle; safe to share between threads."""

    id: str
    manifest: Manifest
    encoder: Encoder
    items: BundleItems
    catalogue: Catalogue
    slots: Mapping[str, Slot]
    repeats: Repeats
    scorer: Scorer
    fallback: Mapping[str, Any]
    context: Context
    alike: Alike = NOBODY
    companions: Alike = NOBODY

    def candidates(self, row: UserRow, count: int = CANDIDATES, asked: Asked = NOWHERE) -> Candidates:
        """Showable rows and scores for a user who asks: the best by dot product and the user's own, best
        first."""
        own = self.own(row)
        query = self.query(row, own, asked)
        best = self.scorer.top(query, count)
        return self.ranked(best, own, lambda rows: self.scorer.scores(query, rows))

    def own(self, row: UserRow) -> Own:
        """What of the bundle's products the user has had to do with."""
        return self.repeats.own(row, self.items.rows)

    def query(self, row: UserRow, own: Own, asked: Asked) -> NDArray[np.float32]:
        """The user's vector [d] as the user asks."""
        return self.context.query(row.vector, asked, lambda: own.mean(self.items.table))

    def ranked(
        self,
        best: tuple[NDArray[np.int64], NDArray[np.floating]],
        own: Own,
        score: Callable[[NDArray[np.int64]], NDArray[np.floating]],
    ) -> Candidates:
        """The `best` rows by dot product, and what the user's own add; `score`: dot products of rows.

        What is no longer on sale adds to its like, and is shown to nobody.
        """
        return self.repeats.candidates(best, own, score, self.alike, self.manifest.showable, self.companions)

    def popular(self, category: str | None = None) -> Candidates:
        """Rows of the most popular items, of one category where it has any, best first.

        Scores fall with the logarithm of the rank, as shares of attention do (Zipf).
        """
        rows = self.fallback["category"].get(category) or self.fallback["all"]
        return np.array(rows, np.int64), -np.log(np.arange(1, len(rows) + 1, dtype=np.float64))

    def close(self) -> None:
        """Let go of the files."""
        self.catalogue.close()


def open_bundle(directory: Path, expected_id: str | None = None) -> ServedBundle:
    """Verify every byte, open, and check the golden vectors; raises CorruptBundle naming file and reason."""
    manifest = verify(directory, expected_id)
    _check_space(directory, manifest)
    for name, allowed in MODELS.items():
        check_model(directory / name, allowed)
    embeddings = mapped(directory, "embeddings.f16", "<f2", (manifest.items, manifest.dim))
    catalogue = Catalogue(directory / "catalogue.sqlite")
    if not 0 < manifest.showable <= manifest.items == len(catalogue):
        raise CorruptBundle(
            f"{directory}: {len(catalogue)} products, {manifest.items} items, {manifest.showable} showable; "
            "expected as many products as items, and 1 showable at least"
        )
    items = BundleItems(catalogue, embeddings)
    step = _step(directory, manifest)
    served = ServedBundle(
        id=bundle_id((directory / MANIFEST).read_bytes()),
        manifest=manifest,
        encoder=Encoder(manifest.state_space, manifest.state_width, manifest.dim, step, items),
        items=items,
        catalogue=catalogue,
        slots=load_slots(directory / "slots.json"),
        repeats=_repeats(directory, manifest),
        scorer=open_scorer(directory, manifest.scorer, embeddings, manifest.showable),
        fallback=_fallback(directory / "fallback.json", manifest.showable),
        context=read_context(directory, manifest.dim),
        alike=_alike(directory, manifest, ALIKE, manifest.showable),
        companions=_alike(directory, manifest, COMPANIONS, manifest.items),
    )
    check_golden(served, embeddings, directory)
    return served


def golden(
    step: Step, embeddings: Float16, histories: NDArray[np.int64], width: int, showable: int = 0
) -> dict[str, object]:
    """What the step makes of some histories [H, T, 4] (row, kind, gap, value), and the rows that are the best
    for each of these vectors among the first `showable`, if any: checked on every opening."""
    vectors = golden_vectors(step, embeddings, histories, width)
    told: dict[str, object] = {
        "histories": histories.tolist(),
        "vectors": base64.b64encode(vectors.astype("<f2").tobytes()).decode(),
    }
    if showable:
        shown = embeddings[:showable]
        told["best"] = [top_k_numpy(vector, shown, GOLDEN_BEST)[0].tolist() for vector in vectors]
    return told


def golden_vectors(step: Step, embeddings: Float16, histories: NDArray[np.int64], width: int) -> Float16:
    """Vectors [H, d] float16 after the histories [H, T, 4]; width: of the state."""
    state = np.zeros((len(histories), width), np.float16)
    vector = np.zeros((len(histories), embeddings.shape[1]), np.float16)
    for event in np.moveaxis(histories, 1, 0):
        row, kind, gap, value = (np.ascontiguousarray(column) for column in event.T)
        state, vector = step(state, embeddings[row], kind, gap, value)
    return vector


def check_golden(served: ServedBundle, embeddings: Float16, directory: Path) -> None:
    """Raises CorruptBundle where the encoder does not make of the golden histories what the manifest says, or
    the scorer does not find what is the best for these vectors."""
    stated, encoder = served.manifest.golden, served.encoder
    try:
        histories = np.array(stated["histories"], np.int64)
        users, events, _ = histories.shape
        if not users * events:
            raise ValueError(f"{users} histories of {events} events")
        found = golden_vectors(encoder.step, embeddings, histories, encoder.state_width)
        expected = np.frombuffer(base64.b64decode(str(stated["vectors"])), "<f2").reshape(found.shape)
        off = float(np.abs(found.astype(np.float32) - expected.astype(np.float32)).max())
    except Exception as error:  # a model's errors share no base class
        raise CorruptBundle(f"{directory}: golden vectors cannot be read ({error!r})") from error
    if not off <= GOLDEN_TOLERANCE:
        raise CorruptBundle(
            f"{directory}: golden vectors differ by {off:.3g}; expected {GOLDEN_TOLERANCE} at most"
        )
    if "best" in stated:  # bundles from before 2026-11-28 do not say
        _check_best(served.scorer, found, stated["best"], directory)


def _check_best(scorer: Scorer, vectors: Float16, stated: object, directory: Path) -> None:
    try:
        best = np.array(stated, np.int64).reshape(len(vectors), -1)
        reached = sum(_reached(scorer, *each) for each in zip(vectors, best, strict=True))
    except Exception as error:
        raise CorruptBundle(f"{directory}: golden rows cannot be found ({error!r})") from error
    if not reached >= max(GOLDEN_REACHED * best.size, 1):
        raise CorruptBundle(
            f"{directory}: of the {best.size} best rows of the golden vectors the scorer finds {reached}; "
            f"expected {GOLDEN_REACHED:.0%} at least"
        )


def _reached(scorer: Scorer, vector: Float16, best: NDArray[np.int64]) -> int:
    """How many of what the scorer finds are as good as the last of the `best` rows."""
    _, scores = scorer.top(vector, len(best))
    edge = float(scorer.scores(vector, best).min())
    return int((scores >= edge - 1e-4 * max(abs(edge), 1e-6)).sum())


def _check_space(directory: Path, manifest: Manifest) -> None:
    hashes = (manifest.files[name].sha256 for name in ("user_tower.onnx", "item_tower.onnx"))
    space = space_of_hashes(*hashes)  # of the files that were just held against them: they are 100 MB
    if space != manifest.state_space:
        raise CorruptBundle(f"{directory}: state space {space}; expected {manifest.state_space}")


def _step(directory: Path, manifest: Manifest) -> Any:
    path = directory / "user_tower.onnx"
    try:
        step = open_step(path)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CorruptBundle(f"{path}: {error}") from error
    if (step.state_width, step.dim) != (manifest.state_width, manifest.dim):
        raise CorruptBundle(
            f"{path}: state {step.state_width}, dim {step.dim}; "
            f"expected {manifest.state_width}, {manifest.dim} (manifest)"
        )
    return step


def _repeats(directory: Path, manifest: Manifest) -> Repeats:
    try:
        read = Repeats(**manifest.repeats)  # type: ignore[arg-type]
        read.check()
    except (TypeError, ValueError) as error:  # of a later version, say: its functions come first
        raise CorruptBundle(f"{directory / MANIFEST}: repeats: {error}") from error
    return read


def _alike(directory: Path, manifest: Manifest, name: str, rows: int) -> Alike:
    """Who follows from whom, of the first `rows`; a bundle in which nobody does has no such file."""
    if name not in manifest.files:
        return NOBODY
    data = mapped(directory, name, "u1", (manifest.files[name].bytes,))
    return read_alike(data, manifest.items, rows, name)


def _fallback(path: Path, showable: int) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
        lists = [read["all"], *read["category"].values()]
        sound = read["all"] and all(isinstance(r, int) and 0 <= r < showable for rows in lists for r in rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptBundle(f"{path}: {error!r}; expected rows of popular items") from error
    if not sound:
        raise CorruptBundle(f"{path}: expected rows in 0..{showable - 1}, at least one")
    return dict(read)
