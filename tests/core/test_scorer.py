"""The int8 scan and its rescoring on tables of every width, against float64 brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.engine import KINDS, open_scorer
from functions.core.errors import CorruptBundle, VitrineError
from functions.core.index import read_lists
from functions.core.ranking import top_k_numpy
from functions.core.scorer import Scorer, blocks

export_score = pytest.importorskip("export.score", reason="the exporter is not in this environment")
scorers = pytest.importorskip("export.scorers", reason="the exporter is not in this environment")
build_lists = pytest.importorskip(
    "export.lists", reason="the exporter is not in this environment"
).build_lists


def scorer(table: np.ndarray, folder: Path) -> Scorer:
    scorers.write_scorer(folder, table, scorers.NBITS)
    return open_scorer(folder, scorers.NBITS, table, len(table))


@pytest.mark.parametrize(
    ("dim", "expected"),
    [(64, (1, 64)), (96, (3, 32)), (128, (1, 128)), (20, (2, 16)), (8, (1, 16)), (512, (2, 256))],
)
def test_blocks_cover_a_row(dim: int, expected: tuple[int, int]) -> None:
    assert blocks(dim) == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.sampled_from([1, 2, 39, 40, 41, 700]),
    dim=st.sampled_from([8, 16, 20, 64, 96, 256]),
    k=st.integers(1, 12),
)
def test_the_served_best_are_the_exact_best_of_clustered_items(
    seed: int, items: int, dim: int, k: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    table = (centres[rng.integers(0, 5, items)] + 0.3 * rng.normal(size=(items, dim))).astype(np.float16)
    vector = rng.normal(size=dim).astype(np.float16)
    rows, scores = scorer(table, tmp_path_factory.mktemp("score")).top(vector, k)
    _, exact = top_k_numpy(vector, table, k)
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4)
    assert len(set(rows.tolist())) == min(k, items)


def test_zero_rows_and_equal_rows_keep_their_order(tmp_path: Path) -> None:
    table = np.zeros((50, 16), np.float16)
    table[[3, 30]] = 1
    rows, scores = scorer(table, tmp_path).top(np.ones(16, np.float16), 4)
    assert rows[:2].tolist() == [3, 30]
    assert scores.tolist() == [16.0, 16.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    table = np.ones((4, 16), np.float16)
    table[2, 5] = bad
    for quantize in (export_score.quantize, export_score.quantize_columns):
        with pytest.raises(export_score.NotFinite, match="item row 2"):
            quantize(table)


def clustered(seed: int, items: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Items around a few centres, and 20 vectors near them, float16."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(items // 50, 1), dim))
    near = [centres[rng.integers(0, len(centres), n)] + 0.4 * rng.normal(size=(n, dim)) for n in (items, 20)]
    return near[0].astype(np.float16), near[1].astype(np.float16)


def of_kind(kind: str, table: np.ndarray, folder: Path, engine: str = "onnxruntime") -> Scorer:
    """A scorer over `table`; an index reads an eighth of its lists."""
    lists = build_lists(table) if kind == "index" else None
    named: dict[str, object] = {"kind": kind}
    if lists is not None:
        named |= {"lists": len(lists.centroids), "probes": -(-len(lists.centroids) // 8)}
    scorers.write_scorer(folder, table, named, lists)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("functions.core.engine.ENGINE", engine)
        return open_scorer(folder, named, table, len(table))


@pytest.mark.parametrize("engine", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [20, 64, 96])
def test_every_kind_on_either_engine_finds_the_same_rows(
    kind: str, engine: str, dim: int, tmp_path: Path
) -> None:
    table, vectors = clustered(3, 5_000, dim)
    made = of_kind(kind, table, tmp_path, engine)
    assert scorers.GroundTruth.of(vectors, table).recall(made) >= 0.99
    (plain := tmp_path / "plain").mkdir()
    reference = of_kind("nbits", table, plain)
    same = [np.array_equal(made.top(v, 10)[0], reference.top(v, 10)[0]) for v in vectors]
    assert sum(same) >= len(vectors) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eligible", [0.0, 0.01, 0.5, 1.0])
def test_a_mask_leaves_the_best_of_what_is_eligible(kind: str, eligible: float, tmp_path: Path) -> None:
    table, vectors = clustered(4, 3_000, 32)
    made = of_kind(kind, table, tmp_path)
    shown = np.random.default_rng(1).random(len(table)) < eligible
    mask = made.mask(shown)
    found = wanted = 0
    for vector in vectors:
        rows, scores = made.top(vector, 10, mask)
        assert shown[rows].all() and len(rows) == min(10, shown.sum()) and (np.diff(scores) <= 0).all()
        exact, _ = top_k_numpy(vector, table[shown], 10)
        found += len(np.intersect1d(rows, np.flatnonzero(shown)[exact]))
        wanted += len(exact)
    assert found >= 0.98 * wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(("items", "k"), [(1, 1), (1, 5), (2, 10), (17, 16), (17, 100)])
def test_few_items_and_more_asked_for_than_there_are(
    kind: str, engine: str, items: int, k: int, tmp_path: Path
) -> None:
    table, vectors = clustered(5, items, 17)  # no block divides 17
    rows, scores = of_kind(kind, table, tmp_path, engine).top(vectors[0], k)
    exact, expected = top_k_numpy(vectors[0], table, k)
    assert rows.tolist() == exact.tolist()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_items_and_a_zero_vector_give_rows_once_each(kind: str, tmp_path: Path) -> None:
    table = np.repeat(clustered(6, 40, 16)[0], 25, axis=0)
    made = of_kind(kind, table, tmp_path)
    for vector in (np.zeros(16, np.float16), table[0]):
        rows, _ = made.top(vector, 30)
        assert len(set(rows.tolist())) == 30
    if kind != "index":  # its ties are settled in the order of the lists that were read
        assert made.top(np.zeros(16, np.float16), 5)[0].tolist() == [0, 1, 2, 3, 4]


def test_no_items_no_rows() -> None:
    nothing = Scorer(lambda vector, count, mask: 1 / 0, np.zeros((0, 16), np.float16), 0)  # type: ignore[arg-type]
    assert nothing.top(np.ones(16, np.float16), 3)[0].tolist() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    table, vectors = clustered(7, 100, 16)
    vectors[0, 3] = bad
    with pytest.raises(VitrineError, match="finite"):
        of_kind("nbits", table, tmp_path).top(vectors[0], 3)


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    table, _ = clustered(8, 100, 16)
    with pytest.raises(VitrineError, match="100"):
        of_kind("nbits", table, tmp_path).mask(np.ones(99, bool))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"kind": "annoy"}, "annoy"),
        ({}, "None"),
        ({"kind": "index", "lists": 4, "probes": 5}, "5 of 4"),
        ({"kind": "index", "lists": 4, "probes": 1}, "lists.bin"),
        ({"kind": "nbits", "rescored": 0}, "0 rescored; expected a whole number, 1 at least"),
        ({"kind": "nbits", "rescored": "many"}, "'many' rescored"),
        ({"kind": "nbits", "rescored": True}, "True rescored"),
        ({"kind": "integer"}, "scales.f32: 1200 bytes; expected 4, one scale for all.*exported anew"),
    ],
)
def test_a_scorer_that_does_not_fit_its_files_is_refused(
    named: dict[str, object], said: str, tmp_path: Path
) -> None:
    table, _ = clustered(9, 100, 96)
    of_kind("nbits", table, tmp_path)
    with pytest.raises(CorruptBundle, match=said):
        open_scorer(tmp_path, named, table, len(table))


def test_lists_with_rows_that_are_not_there_are_refused() -> None:
    sound = build_lists(clustered(10, 300, 16)[0])
    count = len(sound.centroids)
    data = np.frombuffer(sound.to_bytes(), np.uint8)
    assert np.array_equal(read_lists(data, 300, count, 16).rows, sound.rows)
    for at, value in ((0, 300), (1, -1), (300, 1), (300 + count, 299), (301, 301)):
        wrong = data.copy().view("<i4")
        wrong[at] = value
        with pytest.raises(CorruptBundle, match=r"lists\.bin"):
            read_lists(wrong.view(np.uint8), 300, count, 16)


def test_the_choice_is_made_by_time_among_what_finds_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, vectors = clustered(11, 2_000, 32)
    of_kind("nbits", table, tmp_path)
    assert scorers.choose(tmp_path, table, vectors).scorer == {"kind": "nbits"}  # too few to be timed
    monkeypatch.setattr(scorers, "CHOSEN_FROM", 1)
    monkeypatch.setattr(scorers, "INDEXED_FROM", 1)
    for times, expected in (
        ({"nbits": 100.0, "integer": 95.0, "index": 90.0}, "nbits"),
        ({"nbits": 100.0, "integer": 80.0, "index": 50.0}, "integer"),
        ({"nbits": 3000.0, "integer": 2000.0, "index": 900.0}, "index"),
    ):
        folder = tmp_path / expected
        folder.mkdir()
        of_kind("nbits", table, folder)
        monkeypatch.setattr(scorers, "microseconds", lambda made, asked, times=times: times)
        chosen = scorers.choose(folder, table, vectors)
        assert chosen.scorer["kind"] == expected
        served = open_scorer(folder, chosen.scorer, table, len(table))
        assert scorers.GroundTruth.of(vectors, table).recall(served) >= 0.99


@pytest.mark.parametrize(("largest", "expected"), [(1.0, "integer"), (20_000.0, "nbits")])
def test_one_scale_for_all_goes_when_a_product_comes_beside_which_others_are_nothing(
    largest: float, expected: str, tmp_path: Path
) -> None:
    table, vectors = clustered(13, 2_000, 32)
    of_kind("integer", table, tmp_path)
    table[77, 5] = largest
    scorer = scorers.renew(tmp_path, {"kind": "integer"}, table, vectors)
    assert scorer == {"kind": expected}
    served = open_scorer(tmp_path, scorer, table, len(table))
    assert scorers.GroundTruth.of(vectors, table).recall(served) >= scorers.LEAST_RECALL


def test_an_index_is_built_anew_if_it_pays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table, vectors = clustered(14, 2_000, 32)
    named = {"kind": "index", "lists": 4, "probes": 4}
    assert scorers.renew(tmp_path, named, table, vectors) == {"kind": "nbits"}  # of so few
    assert scorers.renew(tmp_path, {"kind": "nbits"}, table, vectors) == {"kind": "nbits"}
    monkeypatch.setattr(scorers, "CHOSEN_FROM", 1)
    monkeypatch.setattr(scorers, "INDEXED_FROM", 1)
    times = {"nbits": 3000.0, "integer": 2900.0, "index": 900.0}
    monkeypatch.setattr(scorers, "microseconds", lambda made, asked: times)
    again = scorers.renew(tmp_path, named, table, vectors)
    assert again["kind"] == "index" and again != named
    open_scorer(tmp_path, again, table, len(table))


def test_what_does_not_find_enough_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table, vectors = clustered(12, 2_000, 32)
    of_kind("nbits", table, tmp_path)
    monkeypatch.setattr(scorers, "CHOSEN_FROM", 1)
    monkeypatch.setattr(scorers, "microseconds", lambda made, asked: {"nbits": 100.0, "integer": 1.0})

    def rolled(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = export_score.quantize_columns(embeddings)
        return np.roll(codes, 500, axis=1), scales

    monkeypatch.setattr(scorers, "quantize_columns", rolled)
    monkeypatch.setattr(scorers, "MOST_RESCORED", 160)
    assert scorers.choose(tmp_path, table, vectors).scorer == {"kind": "nbits"}


def alike(variants: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """3,000 items, so many of each that codes hardly tell apart, and 50 vectors near them, float16."""
    rng = np.random.default_rng(15)
    kinds = rng.normal(size=(3_000 // variants, 32))
    table = np.repeat(kinds, variants, 0) + apart * rng.normal(size=(3_000, 32))
    near = kinds[rng.integers(0, len(kinds), 50)] + 0.5 * rng.normal(size=(50, 32))
    return table.astype(np.float16), near.astype(np.float16)


@pytest.mark.parametrize(("variants", "apart"), [(100, 1e-3), (300, 1e-3), (300, 1e-2), (1_500, 3e-3)])
def test_where_codes_do_not_tell_variants_apart_more_are_looked_at_exactly(
    variants: int, apart: float, tmp_path: Path
) -> None:
    table, vectors = alike(variants, apart)
    plain = of_kind("nbits", table, tmp_path)
    truth = scorers.GroundTruth.of(vectors[25:], table)
    assert truth.recall(plain) < 0.99
    chosen = scorers.choose(tmp_path, table, vectors[:25]).scorer
    assert chosen["rescored"] > 40
    served = open_scorer(tmp_path, chosen, table, len(table))
    assert truth.recall(served) >= scorers.LEAST_RECALL  # of others than it was chosen by
    assert scorers.renew(tmp_path, scorers.NBITS, table, vectors[:25]) == chosen


@pytest.mark.parametrize("kind", ["integer", "index"])
def test_every_kind_is_tried_with_as_many_candidates_as_it_needs(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, vectors = alike(100, 1e-3)
    of_kind("nbits", table, tmp_path)
    for name in ("CHOSEN_FROM", "INDEXED_FROM"):
        monkeypatch.setattr(scorers, name, 1)
    times = {"nbits": 3000.0, "integer": 2900.0, "index": 2900.0} | {kind: 900.0}
    monkeypatch.setattr(scorers, "microseconds", lambda made, asked: times)
    chosen = scorers.choose(tmp_path, table, vectors).scorer
    assert chosen["kind"] == kind and chosen["rescored"] > 40
    served = open_scorer(tmp_path, chosen, table, len(table))
    assert scorers.GroundTruth.of(vectors, table).recall(served) >= scorers.LEAST_RECALL


@pytest.mark.parametrize(("items", "asked"), [(1, 3), (9, 3), (10, 3), (20_000, 3), (20_000, 0), (0, 3)])
def test_the_ground_truth_is_that_of_exact_search(items: int, asked: int) -> None:
    table, vectors = (
        part[:n] for part, n in zip(clustered(16, max(items, 1), 16), (items, asked), strict=True)
    )
    truth = scorers.GroundTruth.of(vectors, table)
    exact = [top_k_numpy(vector, table, 10)[1] for vector in vectors]
    wanted = [scores[-1] if len(scores) == 10 else -np.inf for scores in exact]
    np.testing.assert_allclose(truth.edges, wanted, rtol=1e-12)

    class Half:
        def top(self, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            rows, scores = top_k_numpy(vector, table, k)
            return rows[: len(rows) // 2], scores

    assert truth.recall(Half()) == ((min(items, 10) // 2) / min(items, 10) if items and asked else 1.0)


@pytest.mark.parametrize("kind", ["nbits", "integer"])  # an index, of the same codes, is not exact
def test_what_all_items_have_in_common_takes_nothing_of_their_codes(kind: str, tmp_path: Path) -> None:
    """Towers of few events put all items far out in one direction, and apart by little."""
    table, vectors = clustered(17, 3_000, 32)
    common = 300 * np.ones(32)
    far = (table + common).astype(np.float16)
    made = of_kind(kind, far, tmp_path)
    assert scorers.GroundTruth.of(vectors + np.float16(2), far).recall(made) >= scorers.LEAST_RECALL


def test_one_scale_is_not_chosen_where_it_tells_a_few_outsized_products_apart_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are the ten best of everybody; what comes after them in a request's candidates is chance."""
    table, vectors = clustered(18, 20_000, 32)
    outsized = np.arange(0, 20_000, 500)
    table[outsized] *= np.float16(40)
    (plain := tmp_path / "plain").mkdir()
    integer = of_kind("integer", table, plain)
    first = scorers.GroundTruth.of(vectors, table)
    assert first.recall(integer) == 1.0 and scorers.GroundTruth.of(vectors, table, 200).recall(integer) < 0.99
    of_kind("nbits", table, tmp_path)
    monkeypatch.setattr(scorers, "MOST_RESCORED", 320)
    monkeypatch.setattr(scorers, "microseconds", lambda made, asked: {"nbits": 100.0, "integer": 1.0})
    chosen = scorers.choose(tmp_path, table, vectors)
    assert chosen.scorer == {"kind": "nbits"}
    assert scorers.renew(plain, {"kind": "integer"}, table, vectors) == {"kind": "nbits"}
    served = open_scorer(tmp_path, chosen.scorer, table, len(table))
    measured = scorers.Demands.of(vectors, table).measured(served)
    assert list(measured) == ["recall@10", "recall@200", "recall@10, 1% eligible"]
    assert min(measured.values()) >= scorers.LEAST_RECALL


@pytest.mark.parametrize("eligible", [0.0, 0.0005, 0.3])
def test_the_ground_truth_of_what_is_eligible_is_of_nothing_else(eligible: float, tmp_path: Path) -> None:
    table, vectors = clustered(19, 3_000, 32)
    shown = np.random.default_rng(0).random(3_000) < eligible
    truth = scorers.GroundTruth.of(vectors, table, 10, shown)
    exact = [top_k_numpy(vector, table[shown], 10)[1] for vector in vectors]
    wanted = [scores[-1] if len(scores) == 10 else -np.inf for scores in exact]
    np.testing.assert_allclose(truth.edges, wanted, rtol=1e-12)
    made = of_kind("nbits", table, tmp_path)
    assert truth.recall(made) == 1.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(made, "mask", lambda shown: None)  # the planted bug: nothing is masked
        assert truth.recall(made) == 1.0 if eligible == 0 else truth.recall(made) < 0.9


@pytest.mark.parametrize("eligible", [0.01, 0.005])
def test_where_few_items_are_eligible_an_index_reads_more_lists(
    eligible: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, vectors = clustered(20, 40_000, 32)
    lists = build_lists(table)
    named = {"kind": "index", "lists": len(lists.centroids), "probes": 1}
    scorers.write_scorer(tmp_path, table, named, lists)
    made, every = open_scorer(tmp_path, named, table, len(table)), scorers.GroundTruth.of(vectors, table)
    while every.recall(made) < scorers.LEAST_RECALL:
        named |= {"probes": 2 * named["probes"]}
        made = open_scorer(tmp_path, named, table, len(table))
    assert named["probes"] <= named["lists"] // 4
    truth = scorers.GroundTruth.of(vectors, table, 10, np.random.default_rng(4).random(40_000) < eligible)
    found = truth.recall(made)
    assert found >= 0.9
    monkeypatch.setattr("functions.core.index.NARROW", 0.0)  # the planted bug: as many as for all items
    assert truth.recall(made) < found - 0.05
