"""Companions in a bundle: what training measured is served, after pruning and after a refresh, too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.__main__ import publish, publish_refresh
from export.companions import in_rows
from export.handover import read_products
from export.prune import Prune
from functions.core.alike import COMPANIONS, Alike
from functions.core.bundle import describe, write_manifest
from functions.core.errors import CorruptBundle
from functions.core.repeats import Repeats
from functions.core.served import ServedBundle, open_bundle
from tests.bundles import champion, products, require_measured, shoppers, tiny_checkpoint
from train.checkpoint import BadCheckpoint, load, save
from train.companions import find_companions
from train.evaluate import candidates, embed_items, user_rows
from train.handover import POPULARITY, read_companions, write_companions

TERM = Repeats(0.5, 16.0, companions=3.0, companions_half_life=8.0)


def checkpoint(folder: Path) -> Path:
    """The tiny one, with who goes with whom."""
    towers, meta = load(tiny_checkpoint(folder))
    save(folder, towers, replace(meta, repeats=TERM))
    write_companions(folder, find_companions(shoppers(len(meta.item_ids))))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, beside it."""
    folder = tmp_path_factory.mktemp("companions")
    publish(checkpoint(folder / "checkpoint"), folder / "bundles", None, max_loss=0.05)
    return folder / "bundles"


def by_name(bundle: ServedBundle) -> dict[tuple[str, str], float]:
    """(giver, companion) → cosine, by item id."""
    ids = [product.item_id for product in bundle.catalogue.products(list(range(bundle.manifest.items)))]
    of = bundle.companions
    giver = np.repeat(np.arange(len(ids)), np.diff(of.bounds)).tolist()
    both = zip(giver, of.heirs.tolist(), of.likeness.tolist(), strict=True)
    return {(ids[one], ids[other]): cosine for one, other, cosine in both}


def test_what_is_served_is_what_training_measured(made: Path) -> None:
    folder, served = made.parent / "checkpoint", champion(made)
    towers, meta = load(folder)
    table = embed_items(towers, read_products(folder, meta).features)
    companions = read_companions(folder, meta)
    log, users, joined = shoppers(len(meta.item_ids)), list(range(40)), 0
    rows = user_rows(log, users, served.encoder)
    for row, each in zip(rows, candidates(log, users, towers, table, companions=companions), strict=True):
        require_measured(served, row, each.ranked(meta.repeats, table.astype(np.float32)))
        joined += len(meta.repeats.company(each.own, companions))
    assert joined > len(users)


def test_pruned_products_keep_their_companions_and_are_not_shown(made: Path, tmp_path: Path) -> None:
    whole = by_name(champion(made))
    least = float(np.median(np.fromfile(made.parent / "checkpoint" / POPULARITY, "<f4")))
    publish(made.parent / "checkpoint", tmp_path, None, max_loss=0.9, wish=Prune(items=least))
    bundle = champion(tmp_path)
    assert 0 < bundle.manifest.showable < champion(made).manifest.showable
    assert by_name(bundle) == whole
    for row in user_rows(shoppers(62), list(range(20)), bundle.encoder):
        shown, _ = bundle.candidates(row)
        assert (shown < bundle.manifest.showable).all()


def test_a_refresh_keeps_who_goes_with_whom(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    sold = [item for item in reversed(products()) if item["item_id"] != "sku-003"]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f"{json.dumps(item)}\n" for item in [{**sold[5], "item_id": "new"}, *sold]))
    publish_refresh(bundles, items, None)
    whole, without = by_name(champion(made)), champion(bundles)
    assert by_name(without) == whole
    gone = without.catalogue.rows_of_ids(["sku-003"])["sku-003"]
    for row in user_rows(shoppers(62), list(range(20)), without.encoder):
        assert gone not in without.candidates(row)[0]
    items.write_text("".join(f"{json.dumps(item)}\n" for item in products()))
    publish_refresh(bundles, items, None)
    again = champion(bundles)
    back = again.catalogue.rows_of_ids(["sku-003"])["sku-003"]
    rows = user_rows(shoppers(62), list(range(40)), again.encoder)
    assert by_name(again) == whole, "who is back has the companions of before"
    assert any(
        back in again.repeats.company(again.repeats.own(r, again.items.rows), again.companions) for r in rows
    )


def test_rows_may_go_and_come(tmp_path: Path) -> None:
    """Four rows, of which the second is gone, the others in another order among six."""
    likeness = np.array([0.5, 0.25, 1, 0.75], np.float16)
    pairs = Alike(np.array([0, 2, 3, 3, 4], np.int32), np.array([1, 3, 0, 2], np.int32), likeness)
    moved = in_rows(pairs, np.array([4, -1, 0, 2]), 6)
    assert moved.bounds.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (moved.heirs.tolist(), moved.likeness.tolist()) == ([0, 2], [0.75, 0.25])
    assert not len(in_rows(Alike(), np.zeros(0, np.int64), 6).heirs)


def test_where_nobody_has_companions_there_is_no_file(tmp_path: Path) -> None:
    publish(tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundles", None, max_loss=0.05)
    bundle = champion(tmp_path / "bundles")
    assert COMPANIONS not in bundle.manifest.files and not len(bundle.companions.heirs)


def test_a_file_that_does_not_fit_its_bundle_is_refused_by_name(made: Path, tmp_path: Path) -> None:
    bundle = champion(made)
    folder = Path(shutil.copytree(made / bundle.id, tmp_path / "bundle"))
    wrong = replace(bundle.companions, heirs=np.full_like(bundle.companions.heirs, bundle.manifest.items))
    (folder / COMPANIONS).write_bytes(wrong.to_bytes())
    with pytest.raises(CorruptBundle, match=r"companions\.bin: .*sha256"):
        open_bundle(folder)
    write_manifest(folder, replace(bundle.manifest, files=describe(folder)))
    with pytest.raises(CorruptBundle, match=r"companions\.bin: rows"):
        open_bundle(folder)


def test_a_term_of_a_later_version_is_told(made: Path, tmp_path: Path) -> None:
    bundle = champion(made)
    folder = Path(shutil.copytree(made / bundle.id, tmp_path / "bundle"))
    write_manifest(folder, replace(bundle.manifest, repeats={**bundle.manifest.repeats, "tides": 1.0}))
    with pytest.raises(CorruptBundle, match=r"repeats: .*tides"):
        open_bundle(folder)


def test_a_checkpoint_that_lost_them_is_refused(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.parent / "checkpoint", tmp_path / "checkpoint"))
    (folder / COMPANIONS).unlink()
    with pytest.raises(BadCheckpoint, match=r"companions\.bin: missing"):
        publish(folder, tmp_path / "bundles", None, max_loss=0.05)
