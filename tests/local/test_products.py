"""The shelves of the demo page, read from a real bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from local.account import read_pointer
from local.gateway import Request
from local.products import MAX_LIMIT, EmptyShelves, Shelves, demo_route, open_shelves

BUNDLES = Path(__file__).parents[1] / "data" / "tiny_bundle"
BUNDLE = BUNDLES / read_pointer(BUNDLES)["champion"]


def get(path: str, query: str = "") -> Any:
    return json.loads(demo_route(Shelves(BUNDLE), Request("GET", path, query, {}, b"", "127.0.0.1")).body)


def test_every_category_has_its_products_best_first() -> None:
    ranked = json.loads((BUNDLE / "fallback.json").read_text())
    categories = get("/demo/categories")["categories"]
    assert sorted(categories) == sorted(ranked["category"]) and len(categories) > 1
    for category in categories:
        products = get("/demo/products", f"category={category}&limit={MAX_LIMIT}")["products"]
        assert {product["category"] for product in products} == {category}
        assert len(products) == len(ranked["category"][category])
        ids = [Shelves(BUNDLE)._catalogue.product(row).item_id for row in ranked["category"][category]]
        assert [product["item_id"] for product in products] == ids


def test_a_product_is_what_the_page_shows_of_it() -> None:
    [product] = get("/demo/products", "limit=1")["products"]
    assert set(product) == {"item_id", "title", "category", "price", "tags", "image"}
    assert set(product["price"]) == {"amount", "currency"}
    assert set(product["image"]) == {"url", "alt"} and product["image"]["url"]


def test_the_category_of_the_best_seller_comes_first() -> None:
    [best] = get("/demo/products", "limit=1")["products"]
    assert get("/demo/categories")["categories"][0] == best["category"]


def test_an_unknown_category_has_no_products_and_the_limit_holds() -> None:
    assert get("/demo/products", "category=Nowhere")["products"] == []
    assert len(get("/demo/products", "limit=3")["products"]) == 3
    assert len(get("/demo/products")["products"]) == 24


@pytest.mark.parametrize("name", ["catalogue.sqlite", "fallback.json", "manifest.json"])
def test_a_corrupt_bundle_leaves_the_shelves_empty_and_the_log_names_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    (bundle / name).write_bytes(b"x")
    assert isinstance(open_shelves(bundle), EmptyShelves)
    assert name in capsys.readouterr().out
