"""Products that come, change and go without training: what a refresh must change, and what it must not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export.refresh as refreshing
from export.__main__ import main, publish, publish_refresh
from export.refresh import MAX_REMOVED
from functions.core.events import Event
from functions.core.fold import fold
from functions.core.served import ServedBundle
from tests.bundles import LOG_ONLY, champion, products, tiny_bundle, tiny_checkpoint
from train.checkpoint import load, save

LAMP = {
    "item_id": "new-lamp",
    "title": "Brass desk lamp",
    "category": "Lighting",
    "brand": "Nordlys",
    "price": 30.0,
}
LOOSE = 0.05  # 40 users: one rank more or less is a percent of NDCG
Items = list[dict[str, Any]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("original"))


@pytest.fixture
def bundles(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundles"))


def catalogue(bundles: Path, items: Items) -> Path:
    path = bundles.parent / "items.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return path


def refreshed(bundles: Path, items: Items, max_removed: float = MAX_REMOVED) -> dict[str, object]:
    return publish_refresh(bundles, catalogue(bundles, items), None, max_removed)


def row(bundle: ServedBundle, item_id: str) -> int:
    return bundle.catalogue.rows_of_ids([item_id])[item_id]


def table(bundles: Path, bundle: ServedBundle) -> np.ndarray:
    return np.fromfile(bundles / bundle.id / "embeddings.f16", "<f2").reshape(-1, bundle.manifest.dim)


def visitor(bundle: ServedBundle, *item_ids: str):  # type: ignore[no-untyped-def]
    events = [Event(f"e{n}", "click", item_id, 1000 + n) for n, item_id in enumerate(item_ids)]
    (after,), _ = fold([bundle.encoder.empty()], [events], bundle.encoder)
    return after


def test_the_same_catalogue_is_the_same_bundle_but_for_where_it_came_from(bundles: Path) -> None:
    before = champion(bundles)
    told = refreshed(bundles, products())
    after = champion(bundles)
    assert (told["new"], told["changed"], told["unchanged"], told["removed"]) == (0, 0, 60, 0)
    assert after.manifest.quantization["refreshed_from"] == before.id
    assert after.manifest.quantization["measured_on"] == before.id
    same = {n for n, f in after.manifest.files.items() if f == before.manifest.files[n]}
    assert same == set(before.manifest.files)
    assert after.manifest.golden == before.manifest.golden


def test_a_new_product_is_found_by_its_content_and_the_state_space_stays(bundles: Path) -> None:
    before = champion(bundles)
    told = refreshed(bundles, [*products(), LAMP])
    after = champion(bundles)
    assert (told["new"], told["changed"], told["removed"]) == (1, 0, 0)
    assert after.id != before.id and after.manifest.state_space == before.manifest.state_space
    assert (after.manifest.showable, after.manifest.items) == (61, 61 + LOG_ONLY)
    assert row(after, "new-lamp") < after.manifest.showable
    lamps, _ = after.candidates(visitor(after, "sku-000", "new-lamp"), 61)
    assert row(after, "new-lamp") in lamps
    alike = [item for item in products() if item["category"] == "Lighting"]
    wide = table(bundles, after).astype(np.float64)
    own = wide[row(after, "new-lamp")]
    to = {
        name: np.mean([wide[row(after, str(i["item_id"]))] @ own for i in some])
        for name, some in {"lamps": alike, "others": [i for i in products() if i not in alike]}.items()
    }
    assert to["lamps"] > to["others"]


def test_rows_of_before_are_kept_bit_for_bit(bundles: Path) -> None:
    before = champion(bundles)
    was = table(bundles, before)
    refreshed(bundles, [LAMP, *reversed(products())])
    after = champion(bundles)
    now = table(bundles, after)
    for item in [*(str(p["item_id"]) for p in products()), "sku-060", "sku-061"]:
        assert np.array_equal(was[row(before, item)].view(np.uint16), now[row(after, item)].view(np.uint16))


def test_a_state_of_before_goes_on_under_the_refreshed_bundle(bundles: Path) -> None:
    """The same events, half before and half after a refresh, end where they would have without one."""
    before = champion(bundles)
    half = visitor(before, "sku-003", "sku-004")
    refreshed(bundles, [*products(), LAMP])
    after = champion(bundles)
    more = [Event("e2", "click", "sku-005", 1002)]
    (mixed,), _ = fold([half], [more], after.encoder)
    assert np.array_equal(mixed.state, visitor(before, "sku-003", "sku-004", "sku-005").state)


def test_a_changed_product_is_embedded_again_with_its_own_id(bundles: Path) -> None:
    items = products()
    items[7] = {**items[7], "category": "Toys", "title": "Wooden train"}
    before = champion(bundles)
    told = refreshed(bundles, items)
    after = champion(bundles)
    assert (told["new"], told["changed"], told["unchanged"]) == (0, 1, 59)
    was, now = table(bundles, before)[row(before, "sku-007")], table(bundles, after)[row(after, "sku-007")]
    assert not np.array_equal(was, now)
    assert after.catalogue.product(row(after, "sku-007")).title == "Wooden train"
    again = refreshed(bundles, products())  # and back: the id is not forgotten
    assert again["changed"] == 1
    back = champion(bundles)
    assert back.manifest.quantization["refreshed_from"] == after.id
    assert back.manifest.quantization["measured_on"] == before.id
    assert np.array_equal(table(bundles, back)[row(back, "sku-007")], was)


def test_a_price_that_means_the_same_to_the_tower_changes_the_catalogue_alone(bundles: Path) -> None:
    items = products()
    items[0] = {**items[0], "url": "/elsewhere"}
    told = refreshed(bundles, items)
    after = champion(bundles)
    assert told["unchanged"] == 60
    assert after.catalogue.product(row(after, "sku-000")).url == "/elsewhere"


def test_a_removed_product_is_never_shown_and_still_moves_a_state(bundles: Path) -> None:
    before = champion(bundles)
    told = refreshed(bundles, products()[10:])
    after = champion(bundles)
    assert told["removed"] == 10 and after.manifest.showable == 50
    gone = [row(after, f"sku-{n:03d}") for n in range(10)]
    assert min(gone) >= 50
    who = visitor(after, "sku-003")
    assert np.array_equal(who.state, visitor(before, "sku-003").state)
    shown = {int(r) for r in after.candidates(who, 60)[0]} | {int(r) for r in after.popular("Lighting")[0]}
    assert not shown & set(gone)
    assert "Lighting" not in after.fallback["category"] or not set(
        after.fallback["category"]["Lighting"]
    ) & set(gone)
    refreshed(bundles, products())
    back = champion(bundles)
    assert (
        back.fallback == before.fallback
        and back.manifest.files["embeddings.f16"] == (before.manifest.files["embeddings.f16"])
    )


def bare(items: Items) -> Items:
    """The same without a title: in the catalogue, and not for sale."""
    return [{"item_id": item["item_id"], "category": item["category"]} for item in items]


@pytest.mark.parametrize(
    ("items", "given", "said"),
    [
        (products()[59:], [], "59 of 60 products on sale are not in it"),
        (products()[31:], [], "31 of 60 products on sale are not in it"),
        (
            [*products()[:20], *bare(products()[20:])],
            [],
            "40 of 60 products on sale are not in it, or have no",
        ),
        ([LAMP] * 2, ["--max-removed", "0.99"], "60 of 60 products on sale are not in it"),
        ([*products()[1:], LAMP], ["--max-removed", "0"], "1 of 60 products on sale are not in it"),
    ],
)
def test_a_catalogue_that_is_cut_is_refused_and_nothing_changes(
    bundles: Path, capsys: pytest.CaptureFixture[str], items: Items, given: list[str], said: str
) -> None:
    before = sorted(path.name for path in bundles.iterdir()), (bundles / "pointer.json").read_bytes()
    path = catalogue(bundles, items)
    assert main(["refresh", "--items", str(path), "--bundles", str(bundles), *given]) == 1
    told = capsys.readouterr().err
    assert f"error: {path}: {said}" in told and "--max-removed 1" in told and told.count("\n") == 1
    assert f"expected a share of {given[1] if given else '0.5'} at most" in told
    assert before == (
        sorted(path.name for path in bundles.iterdir()),
        (bundles / "pointer.json").read_bytes(),
    )


@pytest.mark.parametrize(
    ("kept", "given"), [(30, []), (1, ["--max-removed", "1"]), (18, ["--max-removed", "0.7"])]
)
def test_a_catalogue_within_the_bound_is_published(
    bundles: Path, capsys: pytest.CaptureFixture[str], kept: int, given: list[str]
) -> None:
    path = catalogue(bundles, products()[-kept:])
    assert main(["refresh", "--items", str(path), "--bundles", str(bundles), *given]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["removed"] == 60 - kept
    assert champion(bundles).manifest.showable == kept


def test_what_is_not_on_sale_anyway_may_go(bundles: Path) -> None:
    """Of 60, 30 left with one refresh; the next is held against what is on sale, not against what was."""
    refreshed(bundles, products()[30:])
    assert refreshed(bundles, products()[30:45])["removed"] == 15
    with pytest.raises(refreshing.BadRefresh, match="8 of 15 products on sale"):
        refreshed(bundles, products()[38:45])


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan", "x"])
def test_a_bound_that_is_no_share_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["refresh", "--items", "i", "--bundles", "b", f"--max-removed={share}"])
    assert share in capsys.readouterr().err


def test_a_thousand_new_products_come_in_one_call(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [{**LAMP, "item_id": f"new-{n}", "title": f"Lamp {n}"} for n in range(1000)]
    assert refreshed(bundles, [*products(), *many])["new"] == 1000
    assert "embedded 1,000 items on the CPU" in capsys.readouterr().out
    assert champion(bundles).manifest.showable == 1060


def test_an_item_id_that_comes_twice_is_one_product(bundles: Path) -> None:
    assert refreshed(bundles, [LAMP, *products(), LAMP, products()[0]])["new"] == 1
    after = champion(bundles)
    assert (after.manifest.showable, len(after.catalogue)) == (61, 61 + LOG_ONLY)
    found = after.catalogue.products(range(61 + LOG_ONLY))
    assert len({product.item_id for product in found}) == 61 + LOG_ONLY


def test_two_refreshes_at_once_and_one_of_them_is_told(
    bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = refreshing.refresh

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr("export.__main__.refresh", real)
        refreshed(bundles, [*products(), LAMP])
        return real(*arguments)

    monkeypatch.setattr("export.__main__.refresh", overtaken)
    items = bundles.parent / "mine.jsonl"
    items.write_text("".join(f"{json.dumps(item)}\n" for item in products()[5:]))
    assert main(["refresh", "--items", str(items), "--bundles", str(bundles)]) == 1
    assert "it was" in capsys.readouterr().err
    assert champion(bundles).manifest.showable == 61
    assert not list(bundles.glob(".partial-*"))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items.jsonl"),
        ([{"item_id": "a"}], "no product with a title"),
    ],
)
def test_a_catalogue_of_nothing_changes_nothing(
    bundles: Path, capsys: pytest.CaptureFixture[str], items: Items, message: str
) -> None:
    before = champion(bundles).id
    path = bundles.parent / "items.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    assert main(["refresh", "--items", str(path), "--bundles", str(bundles)]) == 1
    assert message in capsys.readouterr().err
    assert champion(bundles).id == before


def test_a_number_that_is_none_is_told_with_its_item(
    bundles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted defect: a tower that makes no numbers of what is new."""
    real: Callable[..., Any] = refreshing.embed

    def broken(*given: Any) -> Any:
        made = real(*given)
        made.table[made.due] = np.nan
        return made

    monkeypatch.setattr(refreshing, "embed", broken)
    path = catalogue(bundles, [*products()[:3], LAMP, *products()[3:]])
    assert main(["refresh", "--items", str(path), "--bundles", str(bundles)]) == 1
    assert "error: item_id 'new-lamp', item row 3: [nan " in capsys.readouterr().err


def test_a_table_that_the_tower_did_not_make_is_refused(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: the embeddings of other products."""
    real: Callable[..., Any] = refreshing._embedded

    def shifted(*given: Any) -> Any:
        origins, table = real(*given)
        return origins, np.roll(table, 1, axis=0)

    monkeypatch.setattr(refreshing, "_embedded", shifted)
    with pytest.raises(refreshing.BadRefresh, match="item tower differs from the table"):
        refreshed(bundles, products())


def test_without_a_pointer_there_is_nothing_to_refresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refresh", "--items", "x.csv", "--bundles", str(tmp_path)]) == 1
    assert "expected one that names a champion" in capsys.readouterr().err


def test_a_rollback_is_one_command(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = champion(bundles).id
    refreshed(bundles, [*products(), LAMP])
    assert main(["point", first, "--bundles", str(bundles)]) == 0
    assert champion(bundles).id == first
    assert main(["point", "0" * 32, "--bundles", str(bundles)]) == 1
    assert champion(bundles).id == first


@pytest.mark.parametrize(
    ("categories", "wide"), [(["Lighting"], False), (["Lighting", "Toys", "Kitchen"], True)]
)
def test_a_shop_of_variants_that_codes_do_not_tell_apart_is_refreshed(
    categories: list[str], wide: bool, tmp_path: Path
) -> None:
    """Codes leave out what all have in common; where there are several kinds, more is looked at exactly."""
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    towers, meta = load(folder)
    with torch.no_grad():
        towers.item.texts.weight.normal_(0, 1e-2)
    save(folder, towers, meta)
    bundles = tmp_path / "bundles"
    publish(folder, bundles, None, LOOSE)
    variants = [
        LAMP | {"item_id": f"{category}-{n}", "title": f"Model {n}, colour {n % 31}", "category": category}
        for n in range(1_500 // len(categories))
        for category in categories
    ]
    assert refreshed(bundles, variants, max_removed=1.0)["recall"] == 1.0
    rescored = champion(bundles).manifest.scorer.get("rescored", 40)
    assert isinstance(rescored, int) and (rescored > 40) is wide
    refreshed(bundles, products(), max_removed=1.0)
    assert champion(bundles).manifest.scorer == {"kind": "nbits"}  # and no longer than it is needed
