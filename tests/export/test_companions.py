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
from export.store import open_store
from functions.core.alike import COMPANIONS, Alike
from functions.core.bundle import describe, write_manifest
from functions.core.errors import CorruptBundle
from functions.core.repeats import Repeats
from functions.core.served import ServedBundle, open_bundle
from tests.bundles import products, shoppers, tiny_checkpoint
from train.checkpoint import load, save
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


def champion(bundles: Path) -> ServedBundle:
    name = open_store(bundles).seen().champion
    return open_bundle(bundles / name, name)


def by_name(bundle: ServedBundle) -> dict[tuple[str, str], float]:
    """(giver, companion) → cosine, by item id; none with a companion that is not on sale."""
    ids = [product.item_id for product in bundle.catalogue.products(list(range(bundle.manifest.items)))]
    of = bundle.companions
    giver = np.repeat(np.arange(len(ids)), np.diff(of.bounds)).tolist()
    assert (of.heirs < bundle.manifest.showable).all()
    both = zip(giver, of.heirs.tolist(), of.likeness.tolist(), strict=True)
    return {(ids[one], ids[other]): cosine for one, other, cosine in both}


def test_what_is_served_is_what_training_measured(made: Path) -> None:
    folder, served = made.parent / "checkpoint", champion(made)
    towers, meta = load(folder)
    table = embed_items(towers, read_products(folder, meta).features)
    companions = read_companions(folder, len(table))
    log, users, joined = shoppers(len(meta.item_ids)), list(range(40)), 0
    rows = user_rows(log, users, served.encoder)
    for row, each in zip(rows, candidates(log, users, towers, table, companions=companions), strict=True):
        found, scores = served.candidates(row)
        measured, of = each.ranked(meta.repeats, table.astype(np.float32))
        shown = measured < served.manifest.showable
        expected = dict(zip(measured[shown].tolist(), of[shown].tolist(), strict=True))
        assert dict(zip(found.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, abs=0.02)
        joined += len(meta.repeats.company(each.own, companions))
    assert joined > len(users)


def test_pruned_products_are_nobodys_companions_and_have_their_own(made: Path, tmp_path: Path) -> None:
    whole = by_name(champion(made))
    least = float(np.median(np.fromfile(made.parent / "checkpoint" / POPULARITY, "<f4")))
    publish(made.parent / "checkpoint", tmp_path, None, max_loss=0.9, wish=Prune(items=least))
    bundle = champion(tmp_path)
    left = {p.item_id for p in bundle.catalogue.products(list(range(bundle.manifest.showable)))}
    assert 0 < bundle.manifest.showable < champion(made).manifest.showable
    assert by_name(bundle) == {pair: cosine for pair, cosine in whole.items() if pair[1] in left}
    assert {giver for giver, _ in by_name(bundle)} - left, "what is pruned still moves a visitor's list"


def test_a_refresh_keeps_who_goes_with_whom(made: Path, tmp_path: Path) -> None:
    bundles = Path(shutil.copytree(made, tmp_path / "bundles"))
    sold = [item for item in reversed(products()) if item["item_id"] != "sku-003"]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f"{json.dumps(item)}\n" for item in [{**sold[5], "item_id": "new"}, *sold]))
    publish_refresh(bundles, items, None)
    before, after = by_name(champion(made)), by_name(champion(bundles))
    assert after == {pair: cosine for pair, cosine in before.items() if pair[1] != "sku-003"}
    assert any(giver == "sku-003" for giver, _ in after)


def test_rows_may_go_and_come(tmp_path: Path) -> None:
    """Four rows, of which the second is gone, the others in another order among six."""
    likeness = np.array([0.5, 0.25, 1, 0.75], np.float16)
    pairs = Alike(np.array([0, 2, 3, 3, 4], np.int32), np.array([1, 3, 0, 2], np.int32), likeness)
    moved = in_rows(pairs, np.array([4, -1, 0, 2]), 6, 5)
    assert moved.bounds.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (moved.heirs.tolist(), moved.likeness.tolist()) == ([0, 2], [0.75, 0.25])
    assert in_rows(pairs, np.array([4, -1, 0, 2]), 6, 2).heirs.tolist() == [0]
    assert not len(in_rows(Alike(), np.zeros(0, np.int64), 6, 5).heirs)


def test_where_nobody_has_companions_there_is_no_file(tmp_path: Path) -> None:
    publish(tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundles", None, max_loss=0.05)
    bundle = champion(tmp_path / "bundles")
    assert COMPANIONS not in bundle.manifest.files and not len(bundle.companions.heirs)


def test_a_file_that_does_not_fit_its_bundle_is_refused_by_name(made: Path, tmp_path: Path) -> None:
    bundle = champion(made)
    folder = Path(shutil.copytree(made / bundle.id, tmp_path / "bundle"))
    wrong = replace(bundle.companions, heirs=np.full_like(bundle.companions.heirs, bundle.manifest.showable))
    (folder / COMPANIONS).write_bytes(wrong.to_bytes())
    with pytest.raises(CorruptBundle, match=r"companions\.bin: .*sha256"):
        open_bundle(folder)
    write_manifest(folder, replace(bundle.manifest, files=describe(folder)))
    with pytest.raises(CorruptBundle, match=r"companions\.bin: rows"):
        open_bundle(folder)
