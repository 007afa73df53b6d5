"""New products in a bundle: who inherits is what training measured, and it comes with a refresh, too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.__main__ import publish, publish_refresh
from export.bundle import write_alike
from export.handover import read_products
from export.origins import ORIGINS, WITHOUT_DEMAND, origins, read_origins
from export.refresh import refresh
from functions.core.alike import ALIKE, read_alike
from functions.core.bundle import describe, write_manifest
from functions.core.errors import CorruptBundle
from functions.core.events import Event
from functions.core.fold import fold
from functions.core.repeats import Repeats
from functions.core.served import ServedBundle, open_bundle
from functions.core.user_row import UserRow
from tests.bundles import champion, products, require_measured, shoppers, tiny_checkpoint
from train.alike import who_inherits
from train.checkpoint import load, save
from train.evaluate import candidates, embed_items, user_rows
from train.handover import read_demand

TERM = Repeats(0.5, 16.0, inherited=6.0, inherited_half_life=4.0, newcomer=-2.0)
NEW = (4, 17, 38, 55)  # what nobody had met when the towers learnt
COPY = {**products()[3], "item_id": "copy"}


def checkpoint(folder: Path) -> Path:
    """The tiny one, with a term for new products, and some that have no id of their own."""
    towers, meta = load(tiny_checkpoint(folder))
    with torch.no_grad():
        towers.item.ids.weight[[row + 1 for row in NEW]] = towers.item.ids.weight[0].clone()
    save(folder, towers, replace(meta, repeats=TERM))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, beside it."""
    folder = tmp_path_factory.mktemp("inheritance")
    publish(checkpoint(folder / "checkpoint"), folder / "bundles", None, max_loss=0.05)
    return folder / "bundles"


def refreshed(bundles: Path, items: list[dict[str, Any]]) -> ServedBundle:
    path = bundles.parent / "items.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    publish_refresh(bundles, path, None)
    return champion(bundles)


def visitor(bundle: ServedBundle, *item_ids: str) -> UserRow:
    events = [Event(f"e{n}", "click", item_id, 1000 + n) for n, item_id in enumerate(item_ids)]
    (row,), _ = fold([bundle.encoder.empty()], [events], bundle.encoder)
    return row


def score(bundle: ServedBundle, row: UserRow, item_id: str) -> float:
    """Of an item among all candidates."""
    rows, scores = bundle.candidates(row)
    at = bundle.catalogue.rows_of_ids([item_id])[item_id]
    return float(scores[rows == at][0])


def dot(bundle: ServedBundle, row: UserRow, item_id: str) -> float:
    at = bundle.catalogue.rows_of_ids([item_id])[item_id]
    return float(bundle.scorer.scores(row.vector, np.array([at]))[0])


def test_what_is_served_is_what_training_measured(made: Path) -> None:
    served, (towers, meta) = champion(made), load(made.parent / "checkpoint")
    features = read_products(made.parent / "checkpoint", meta).features
    expected = read_demand(made.parent / "checkpoint", len(meta.item_ids))
    table, alike = embed_items(towers, features), who_inherits(towers, features, meta.repeats, expected)
    log, users, inherited = shoppers(len(meta.item_ids)), list(range(40)), 0
    rows = user_rows(log, users, served.encoder)
    for row, each in zip(rows, candidates(log, users, towers, table, alike=alike), strict=True):
        require_measured(served, row, each.ranked(meta.repeats, table.astype(np.float32)))
        inherited += len(meta.repeats.inheritance(each.own, alike))
    assert inherited > len(users)


def test_a_bundle_says_which_rows_training_never_saw(made: Path) -> None:
    bundle = champion(made)
    assert np.flatnonzero(bundle.alike.inherits).tolist() == list(NEW)
    tower_ids = read_origins(made / bundle.id, bundle.manifest.items)["tower_id"]
    assert np.flatnonzero(tower_ids == 0).tolist() == list(NEW)


@pytest.mark.parametrize(("term", "new"), [(Repeats(0.5, 16.0), NEW), (TERM, ())])
def test_where_nobody_inherits_there_is_no_file(
    made: Path, tmp_path: Path, term: Repeats, new: tuple[int, ...]
) -> None:
    folder = made.parent / "checkpoint"
    content = read_products(folder, load(folder)[1]).content
    came = origins(~np.isin(np.arange(62), new), *np.ones((3, 62)))
    write_alike(content, came, 60, term, tmp_path)
    assert not (tmp_path / ALIKE).exists()


def test_a_product_inherits_on_the_day_it_comes(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    after = refreshed(bundles, [COPY, *reversed(products())])
    row = visitor(after, "sku-009", "sku-003", "sku-020")
    found = score(after, row, "copy") - dot(after, row, "copy")
    assert found == pytest.approx(TERM.newcomer + TERM.inherited * log1p(0.5 ** (1 / 4)), abs=0.7)
    stranger = visitor(after, "sku-059")
    assert score(after, stranger, "copy") - dot(after, stranger, "copy") < found - 3
    own = visitor(after, "copy")
    assert score(after, own, "copy") - dot(after, own, "copy") == pytest.approx(TERM.weight * log1p(1))
    heirs = {f"sku-{n:03d}" for n in NEW} | {"copy"}
    rows = np.flatnonzero(after.alike.inherits).tolist()
    assert {product.item_id for product in after.catalogue.products(rows)} == heirs


def test_demand_stays_with_its_product_and_is_unknown_of_what_came(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    after = refreshed(bundles, [COPY, *reversed(products())])
    found = read_origins(bundles / after.id, after.manifest.items)["demand"]
    known = read_demand(made.parent / "checkpoint", 62)
    rows = after.catalogue.rows_of_ids([f"sku-{n:03d}" for n in range(62)])
    assert [found[rows[f"sku-{n:03d}"]] for n in range(62)] == known.tolist() and len(set(known.tolist())) > 2
    assert np.isnan(found[after.catalogue.rows_of_ids(["copy"])["copy"]])
    assert np.isnan(found).sum() == 1


def test_demand_of_what_has_other_content_now_is_unknown(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    changed = {**products()[7], "title": "Something else altogether"}
    after = refreshed(bundles, [changed if p["item_id"] == changed["item_id"] else p for p in products()])
    found = read_origins(bundles / after.id, after.manifest.items)["demand"]
    assert np.flatnonzero(np.isnan(found)).tolist() == [
        after.catalogue.rows_of_ids([changed["item_id"]])[changed["item_id"]]
    ]


@pytest.mark.parametrize("demand", [-1.0, 0.0, np.inf])
def test_demand_that_cannot_be_is_told(made: Path, tmp_path: Path, demand: float) -> None:
    came = read_origins(made / champion(made).id, 62)
    came["demand"][3] = demand
    came.tofile(tmp_path / ORIGINS)
    with pytest.raises(CorruptBundle, match=r"origins\.bin: demand; expected"):
        read_origins(tmp_path, 62)


def test_who_inherits_is_what_demand_makes_of_it(made: Path, tmp_path: Path) -> None:
    before, folder = champion(made), made.parent / "checkpoint"
    came = read_origins(made / before.id, 62)
    came["demand"][NEW[1]] /= 100
    write_alike(read_products(folder, load(folder)[1]).content, came, 60, TERM, tmp_path)
    less = read_alike(np.fromfile(tmp_path / ALIKE, np.uint8), 62, 60)
    for row in NEW:
        sums = [float(of.likeness[of.heirs == row].astype(np.float64).sum()) for of in (less, before.alike)]
        assert sums[0] == pytest.approx(sums[1] / (10 if row == NEW[1] else 1), rel=0.3)


def test_a_bundle_from_before_demand_was_known_is_refreshed(made: Path, tmp_path: Path) -> None:
    """What was new in it inherits by its cosines alone, and so does what comes."""
    old = champion(made)
    folder = Path(shutil.copytree(made / old.id, tmp_path / "bundle"))
    came = read_origins(folder, 62)
    short = came[list(WITHOUT_DEMAND.names or ())].astype(WITHOUT_DEMAND)
    (folder / ORIGINS).write_bytes(short.tobytes()[:-1])
    with pytest.raises(CorruptBundle, match=r"origins\.bin: 991 bytes; expected 1240"):
        read_origins(folder, 62)
    short.tofile(folder / ORIGINS)
    write_manifest(folder, replace(old.manifest, files=describe(folder)))
    items, out = tmp_path / "items.jsonl", tmp_path / "out"
    items.write_text("".join(f"{json.dumps(item)}\n" for item in [*products(), COPY]))
    out.mkdir()
    refresh(folder, items, None, out)
    after = open_bundle(out)
    copy = after.catalogue.rows_of_ids(["copy"])["copy"]
    assert after.alike.likeness[after.alike.heirs == copy].max() == 1
    now = read_origins(out, 63)
    assert np.isnan(now["demand"]).all() and (now["content"][:60] == came["content"][:60]).all()


def test_what_left_the_shop_leaves_its_visitors_to_its_copy(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    after = refreshed(bundles, [*(p for p in products() if p["item_id"] != "sku-003"), COPY])
    row = visitor(after, "sku-003")
    assert score(after, row, "copy") - dot(after, row, "copy") > TERM.newcomer + TERM.inherited * 0.6
    assert after.catalogue.rows_of_ids(["sku-003"])["sku-003"] >= after.manifest.showable
    shown, _ = after.candidates(row, 60)
    assert (shown < after.manifest.showable).all()


def test_the_neighbours_of_another_product_are_seen(made: Path, tmp_path: Path) -> None:
    """The planted defect: the copy has what a toy's like are worth."""
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    after = refreshed(bundles, [COPY, *reversed(products())])
    row = visitor(after, "sku-003")
    right = score(after, row, "copy")
    toy, copy = (after.catalogue.rows_of_ids([name])[name] for name in ("sku-055", "copy"))
    heirs = after.alike.heirs
    swapped = np.where(heirs == copy, toy, np.where(heirs == toy, copy, heirs)).astype(np.int32)
    wrong = replace(after, alike=replace(after.alike, heirs=swapped))
    assert score(wrong, row, "copy") < right - 2


def test_a_file_that_does_not_fit_its_bundle_is_refused_by_name(made: Path, tmp_path: Path) -> None:
    bundle = champion(made)
    folder = Path(shutil.copytree(made / bundle.id, tmp_path / "bundle"))
    wrong = replace(bundle.alike, heirs=np.full_like(bundle.alike.heirs, bundle.manifest.showable))
    (folder / ALIKE).write_bytes(wrong.to_bytes())
    with pytest.raises(CorruptBundle, match=r"alike\.bin: .*sha256"):
        open_bundle(folder)
    write_manifest(folder, replace(bundle.manifest, files=describe(folder)))
    with pytest.raises(CorruptBundle, match=r"alike\.bin: rows"):
        open_bundle(folder)
    (folder / ALIKE).unlink()
    with pytest.raises(CorruptBundle, match=r"alike\.bin"):
        open_bundle(folder)
