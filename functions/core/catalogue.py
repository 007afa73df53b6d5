"""The catalogue: products in one SQLite file, read at random by row or id without loading it whole."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from functions.core.errors import CorruptBundle, VitrineError
from functions.core.favourites import KIND, item_and_kind
from functions.core.user_row import item_key

KEY_BYTES = 6
BATCH = 500  # parameters of one query; SQLite's lowest default limit is 999

SCHEMA = """
CREATE TABLE item(
    row INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE, key BLOB NOT NULL, title TEXT NOT NULL,
    category TEXT NOT NULL, brand TEXT NOT NULL, price REAL, currency TEXT NOT NULL,
    image_url TEXT NOT NULL, url TEXT NOT NULL, tags TEXT NOT NULL)
"""
COLUMNS = "item_id, title, category, brand, price, currency, image_url, url, tags"


class Product(NamedTuple):
    """What the shop sells under one item id; `price` is in units of `currency` (ISO 4217), nan for none."""

    item_id: str
    title: str
    category: str = ""
    brand: str = ""
    price: float = 0.0
    currency: str = "USD"
    image_url: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()


def write_catalogue(path: Path, products: Iterable[Product]) -> int:
    """Write the products as rows 0, 1, … in the order given, replacing `path` in one step; returns how many.

    Raises VitrineError for a product that cannot be shown, or an item id that comes twice.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    connection = sqlite3.connect(partial)
    try:
        connection.execute(SCHEMA)
        count = connection.executemany(
            f"INSERT INTO item VALUES({','.join('?' * 11)})", _records(products)
        ).rowcount
        connection.execute("CREATE INDEX item_by_key ON item(key)")
        connection.commit()
    except BaseException:
        connection.close()
        partial.unlink(missing_ok=True)
        raise
    connection.close()
    os.replace(partial, path)
    return max(count, 0)  # SQLite says -1 when there was nothing to insert


def _records(products: Iterable[Product]) -> Iterator[tuple[Any, ...]]:
    rows: dict[str, int] = {}
    for row, product in enumerate(products):
        first = rows.setdefault(product.item_id, row)
        if first != row:
            raise VitrineError(
                f"row {row}: item_id {product.item_id!r}; expected once, but row {first} has it"
            )
        _require_showable(product, row)
        yield (
            row,
            product.item_id,
            item_key(product.item_id),
            product.title,
            product.category,
            product.brand,
            None if math.isnan(product.price) else float(product.price),
            product.currency,
            product.image_url,
            product.url,
            json.dumps(list(product.tags), ensure_ascii=False),
        )


def _require_showable(product: Product, row: int) -> None:
    if not product.item_id:
        raise VitrineError(f"row {row}: item_id ''; expected text that is not empty (catalogue)")
    if product.price < 0 or math.isinf(product.price):
        raise VitrineError(
            f"row {row}: price {product.price}; expected a number >= 0, or nan for none (catalogue)"
        )


class Catalogue:
    """Read-only access to a catalogue file, safe to share between threads; CorruptBundle when unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            raise CorruptBundle(f"{error}; expected a catalogue ({path})") from error
        # a connection is part of a cycle: without this its file stays open until the collector comes by
        weakref.finalize(self, self._connection.close).atexit = False
        try:
            # rows are 0, 1, …: the last one says how many, where counting would read the whole file
            self._count = int(self._query("SELECT COALESCE(MAX(row) + 1, 0) FROM item", ())[0][0])
        except CorruptBundle:
            self._connection.close()
            raise

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close the file; the catalogue is of no use afterwards."""
        with self._lock:
            self._connection.close()

    def rows_of_keys(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Row by item key (6 bytes) or by the prefix of one, known ones only; the lower of two rows."""
        found = self._rows_by("key", [key for key in keys if len(key) == KEY_BYTES])
        for prefix in (key for key in keys if len(key) < KEY_BYTES):
            bounds = (prefix, item_and_kind(prefix, KIND).ljust(KEY_BYTES, b"\xff"))
            ((row,),) = self._query("SELECT MIN(row) FROM item WHERE key BETWEEN ? AND ?", bounds)
            if row is not None:
                found[prefix] = row
        return found

    def rows_of_ids(self, item_ids: Sequence[str]) -> dict[str, int]:
        """Row by item id, known ids only."""
        return self._rows_by("item_id", item_ids)

    def product(self, row: int) -> Product:
        """The product in a row; raises VitrineError when there is no such row."""
        return self.products([row])[0]

    def products(self, rows: Sequence[int]) -> list[Product]:
        """The products in these rows, in the order given; raises VitrineError when one does not exist."""
        found: dict[int, Product] = {}
        for chunk in _chunks([int(row) for row in rows]):
            query = f"SELECT row, {COLUMNS} FROM item WHERE row IN ({_marks(chunk)})"
            found.update((record[0], _product(record[1:])) for record in self._query(query, chunk))
        missing = [int(row) for row in rows if int(row) not in found]
        if missing:
            raise VitrineError(f"row {missing[0]}; expected 0..{self._count - 1} ({self._path})")
        return [found[int(row)] for row in rows]

    def _rows_by(self, column: str, values: Sequence[Any]) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for chunk in _chunks(list(values)):
            query = f"SELECT {column}, row FROM item WHERE {column} IN ({_marks(chunk)}) ORDER BY row DESC"
            found.update(self._query(query, chunk))
        return found

    def _query(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise CorruptBundle(f"{error}; expected a catalogue ({self._path})") from error


def _product(record: tuple[Any, ...]) -> Product:
    values = dict(zip(COLUMNS.split(", "), record, strict=True))
    values["price"] = math.nan if values["price"] is None else values["price"]
    return Product(**{**values, "tags": tuple(json.loads(values["tags"]))})


def _chunks(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))


def _marks(values: list[Any]) -> str:
    return ",".join("?" * len(values))
