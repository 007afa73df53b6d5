"""An opened bundle against brute force, and every way in which a file can lie."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from functions.core.bundle import FILES, Manifest, describe, parse_manifest, write_manifest
from functions.core.context import Asked
from functions.core.errors import CorruptBundle
from functions.core.events import Event
from functions.core.fold import fold
from functions.core.ranking import top_k_numpy
from functions.core.served import ServedBundle, open_bundle

STORED = Path(__file__).parents[1] / "data" / "tiny_bundle"
ID = json.loads((STORED / "pointer.json").read_text())["champion"]


@pytest.fixture(scope="module")
def served() -> ServedBundle:
    return open_bundle(STORED / ID, ID)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / ID, tmp_path / ID))


def embeddings(served: ServedBundle) -> np.ndarray:
    manifest = served.manifest
    return np.fromfile(STORED / ID / "embeddings.f16", "<f2").reshape(manifest.items, manifest.dim)


def manifest_of(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_bytes(), "manifest.json")


@pytest.mark.parametrize("k", [0, 1, 10, 59, 60, 61, 500])
def test_the_best_are_those_of_brute_force(served: ServedBundle, k: int) -> None:
    shown = embeddings(served)[: served.manifest.showable]
    for seed in range(20):
        vector = np.random.default_rng(seed).normal(size=served.manifest.dim).astype(np.float16)
        rows, scores = served.scorer.top(vector, k)
        wanted, exact = top_k_numpy(vector, shown, k)
        assert rows.tolist() == wanted.tolist()
        np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-5)


def test_equal_scores_go_to_the_lower_row(served: ServedBundle) -> None:
    rows, scores = served.scorer.top(np.zeros(served.manifest.dim, np.float16), 5)
    assert (rows.tolist(), scores.tolist()) == (list(range(5)), [0.0] * 5)


def row_of(served: ServedBundle, *item_ids: str):  # type: ignore[no-untyped-def]
    events = [Event(f"e{n}", "view", item_id, 1000 + n) for n, item_id in enumerate(item_ids)]
    (row,), _ = fold([served.encoder.empty()], [events], served.encoder)
    return row


def test_candidates_are_sorted_showable_and_include_what_the_visitor_came_back_for(
    served: ServedBundle,
) -> None:
    row = row_of(served, "sku-007", "sku-060", "nobody")  # sku-060 is not in the catalogue
    rows, scores = served.candidates(row, 3)
    assert 7 in rows
    assert (rows < served.manifest.showable).all()
    assert (np.diff(scores) <= 0).all()
    plain, _ = replace(served, repeats=replace(served.repeats, weight=0.0)).candidates(row, 3)
    assert len(plain) == 3


def test_a_context_is_added_to_the_vector_and_to_nothing_else(served: ServedBundle) -> None:
    row = row_of(served, "sku-007")
    robot, mobile = (Asked(device, "home", 1_790_000_000) for device in ("robot", "mobile"))
    query, other = (served.query(row, served.own(row), asked) for asked in (robot, mobile))
    assert (query != row.vector).any() and (other == row.vector).all()
    plain = replace(served, repeats=replace(served.repeats, weight=0.0))
    rows, scores = plain.candidates(row, 5, robot)
    shown = embeddings(served)[: served.manifest.showable].astype(np.float32)
    exact = shown @ query
    assert rows.tolist() == np.argsort(-exact, kind="stable")[:5].tolist()
    np.testing.assert_allclose(scores, exact[rows], rtol=1e-4)
    again, _ = plain.candidates(row, 5, mobile)
    assert again.tolist() == plain.candidates(row, 5)[0].tolist() != rows.tolist()


def test_the_general_interest_is_of_what_is_not_on_sale_too(served: ServedBundle) -> None:
    factors, interests = np.full_like(served.context.factors, -1), np.ones_like(served.context.interests)
    context = served.context._replace(factors=factors, interests=interests)
    row = row_of(served, "sku-007", "sku-060", "nobody")
    query = replace(served, context=context).query(row, served.own(row), Asked(elapsed_s=60))
    np.testing.assert_allclose(query, embeddings(served)[[7, 60]].astype(np.float32).mean(0), atol=1e-6)


def test_an_item_that_only_the_log_knows_moves_the_state(served: ServedBundle) -> None:
    assert np.abs(row_of(served, "sku-060").vector).max() > 0
    assert not np.abs(row_of(served, "nobody").vector).any()


def test_the_popularity_tier_answers_by_category_and_for_an_unknown_one_as_for_all(
    served: ServedBundle,
) -> None:
    rows, scores = served.popular("Lighting")
    assert {product.category for product in served.catalogue.products(rows.tolist())} == {"Lighting"}
    assert (np.diff(scores) < 0).all()
    assert served.popular("Nothing")[0].tolist() == served.popular()[0].tolist()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "longer"])
def test_a_damaged_file_is_refused_by_name(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else data + b"\0")
    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        open_bundle(copy, ID)


def resealed(folder: Path, **changes: object) -> Path:
    """The folder with a manifest that states its files as they are: what only a look inside can refuse."""
    write_manifest(folder, replace(manifest_of(folder), files=describe(folder), **changes))  # type: ignore[arg-type]
    return folder


def test_another_encoder_under_the_same_name_is_refused(copy: Path) -> None:
    with pytest.raises(CorruptBundle, match=r"state space \w+; expected 0000"):
        open_bundle(resealed(copy, state_space="0" * 16))


def test_embeddings_that_are_not_the_manifests_are_caught_by_the_golden_vectors(copy: Path) -> None:
    table = np.fromfile(copy / "embeddings.f16", "<f2")
    np.roll(table, 16).tofile(copy / "embeddings.f16")
    with pytest.raises(CorruptBundle, match="golden vectors differ by"):
        open_bundle(resealed(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": 61}, r"embeddings\.f16: .* bytes; expected"),
        ({"showable": 61}, r"codes\.u8: .* bytes; expected|showable"),
        ({"showable": 0}, "0 showable"),
        ({"state_width": 64}, "state 32, dim 16; expected 64"),
        ({"golden": {}}, "golden"),
    ],
)
def test_a_manifest_that_contradicts_its_files_is_refused(
    copy: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(CorruptBundle, match=message):
        open_bundle(resealed(copy, **change))


def test_a_fallback_beyond_what_can_be_shown_is_refused(copy: Path) -> None:
    (copy / "fallback.json").write_text('{"all": [60], "category": {}}')
    with pytest.raises(CorruptBundle, match=r"fallback\.json: expected rows in 0\.\.59"):
        open_bundle(resealed(copy))


def test_a_graph_that_is_not_one_is_refused(copy: Path) -> None:
    (copy / "score.onnx").write_bytes(b"not a graph")
    with pytest.raises(CorruptBundle, match=r"score\.onnx"):
        open_bundle(resealed(copy))


def zeroed(folder: Path) -> None:
    size = (folder / "codes.u8").stat().st_size
    (folder / "codes.u8").write_bytes(bytes([128]) * size)


def mirrored(folder: Path) -> None:
    codes = np.fromfile(folder / "codes.u8", np.uint8)
    (255 - codes).tofile(folder / "codes.u8")


@pytest.mark.parametrize("lie", [zeroed, mirrored])
def test_a_scorer_of_other_products_is_found_by_the_golden_rows(
    copy: Path, lie: Callable[[Path], None]
) -> None:
    """Under a manifest that states its files as they are; and 40 of the 60 are looked at exactly."""
    lie(copy)
    with pytest.raises(CorruptBundle, match="of the 40 best rows of the golden vectors the scorer finds"):
        open_bundle(resealed(copy))
    golden = {name: part for name, part in manifest_of(copy).golden.items() if name != "best"}
    open_bundle(resealed(copy, golden=golden)).close()  # of bundles from before nothing is known


@pytest.mark.parametrize("best", [None, [], [[0] * 10] * 3, [[0, 99]] * 4, "rows", [[]] * 4])
def test_golden_rows_that_are_none_are_refused(copy: Path, best: object) -> None:
    golden = {**manifest_of(copy).golden, "best": best}
    with pytest.raises(CorruptBundle, match=r"golden rows|best rows"):
        open_bundle(resealed(copy, golden=golden))


def test_a_score_graph_of_another_shape_is_refused(copy: Path) -> None:
    score = pytest.importorskip("export.score", reason="the exporter is not in this environment")
    score.write_score_graph(copy / "score.onnx", 60, 8)
    with pytest.raises(CorruptBundle, match=r"score\.onnx"):
        open_bundle(resealed(copy))


@pytest.mark.parametrize(("name", "wrong"), [("slots.json", b"\xff"), ("fallback.json", b"[" * 10**5)])
def test_a_file_that_is_no_json_is_refused(copy: Path, name: str, wrong: bytes) -> None:
    (copy / name).write_bytes(wrong)
    with pytest.raises(CorruptBundle, match=name):
        open_bundle(resealed(copy))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_none_is_refused(copy: Path, number: float) -> None:
    scales = np.fromfile(copy / "scales.f32", "<f4")
    scales[7] = number
    scales.tofile(copy / "scales.f32")
    with pytest.raises(CorruptBundle, match=r"scales\.f32: expected finite numbers"):
        open_bundle(resealed(copy))
