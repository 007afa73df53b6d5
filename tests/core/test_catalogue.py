import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from functions.core.catalogue import BATCH, Catalogue, Product, write_catalogue
from functions.core.errors import CorruptBundle, VitrineError
from functions.core.favourites import item_prefix
from functions.core.user_row import item_key

COUNT = 2 * BATCH + 1
PRODUCTS = [
    Product(
        f"sku-{row}", f"Thing „{row}“", "toys", "Acmé", row / 4, "EUR", "/i.png", "/p?a=1", ("new", "sale")
    )
    for row in range(COUNT)
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    path = tmp_path_factory.mktemp("a catalogue #1?") / "catalogue.sqlite"
    assert write_catalogue(path, iter(PRODUCTS)) == COUNT
    opened = Catalogue(path)
    yield opened
    opened.close()


def test_round_trip(catalogue):
    assert len(catalogue) == COUNT
    assert catalogue.products(range(COUNT)) == PRODUCTS
    assert catalogue.product(COUNT - 1) == PRODUCTS[-1]
    assert catalogue.products([]) == []


def test_products_come_in_the_order_asked(catalogue):
    assert [product.item_id for product in catalogue.products([7, 3, 7])] == ["sku-7", "sku-3", "sku-7"]


def test_rows_by_id_and_key(catalogue):
    ids = [product.item_id for product in PRODUCTS]
    assert catalogue.rows_of_ids([*ids, "nope"]) == {item_id: row for row, item_id in enumerate(ids)}
    keys = [item_key(item_id) for item_id in ids]
    assert catalogue.rows_of_keys([*keys, b"\0" * 6]) == {key: row for row, key in enumerate(keys)}
    prefixes = [item_prefix(key) for key in keys]
    found = catalogue.rows_of_keys([*prefixes, b"\0" * 4])
    assert found == {prefix: prefixes.index(prefix) for prefix in prefixes}
    assert catalogue.rows_of_ids([]) == {} and catalogue.rows_of_keys([]) == {}


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_that_does_not_exist_is_named(catalogue, row):
    with pytest.raises(VitrineError, match=rf"row {row}; expected 0..{COUNT - 1}"):
        catalogue.products([0, row])


def test_threads_share_it(catalogue):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: catalogue.product(n % COUNT), range(4_000)))
    assert found == [PRODUCTS[n % COUNT] for n in range(4_000)]


def test_it_is_read_only(catalogue):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        catalogue._connection.execute("DELETE FROM item")


def test_of_two_items_with_one_key_the_lower_row_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("functions.core.catalogue.item_key", lambda item_id: b"123456")
    write_catalogue(tmp_path / "c", PRODUCTS[:3])
    assert Catalogue(tmp_path / "c").rows_of_keys([b"123456"]) == {b"123456": 0}


def test_an_empty_catalogue(tmp_path):
    assert write_catalogue(tmp_path / "c", []) == 0
    assert len(Catalogue(tmp_path / "c")) == 0


def test_the_same_products_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_catalogue(tmp_path / name, PRODUCTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (PRODUCTS[0], "row 2: item_id 'sku-0'.*row 0"),
        (Product("", "x"), "row 2: item_id ''"),
        (Product("x", "x", price=-3.0), "row 2: price -3.0"),
        (Product("x", "x", price=float("inf")), "row 2: price inf"),
    ],
)
def test_a_bad_product_is_named_and_the_old_file_stays(tmp_path, bad, message):
    path = tmp_path / "c"
    write_catalogue(path, PRODUCTS[:1])
    with pytest.raises(VitrineError, match=message):
        write_catalogue(path, [*PRODUCTS[:2], bad])
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    assert len(Catalogue(path)) == 1


def test_a_product_without_a_price_keeps_being_without_one(tmp_path):
    write_catalogue(tmp_path / "c", [Product("x", "x", price=float("nan"))])
    assert math.isnan(Catalogue(tmp_path / "c").product(0).price)


def test_no_file_and_a_wrong_file_are_corrupt(tmp_path):
    with pytest.raises(CorruptBundle, match="missing"):
        Catalogue(tmp_path / "missing")
    (tmp_path / "text").write_text("not a database, but long enough to look at" * 99)
    with pytest.raises(CorruptBundle, match="text"):
        Catalogue(tmp_path / "text")
