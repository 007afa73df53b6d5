"""What the towers see of an event and of a product. Offline and online call these same functions."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

GAP_BUCKETS = 32
VALUE_BUCKETS = 16
PRICE_BUCKETS = 32
TEXT_BUCKETS = 2**15  # hashed n-grams are 1..TEXT_BUCKETS; 0 is padding
TEXT_SLOTS = 32

Int64 = NDArray[np.int64]


def gap_bucket(gap_s: ArrayLike) -> Int64:
    """Bucket of the seconds since the user's last event: 0 for none (negative), 1 for 0 s, then log2."""
    gap = np.asarray(gap_s, np.float64)
    bucket = 2 + np.floor(np.log2(np.maximum(gap, 1.0)))
    bucket = np.where(gap < 1, 1, bucket)
    return np.where(gap < 0, 0, np.clip(bucket, 0, GAP_BUCKETS - 1)).astype(np.int64)


def value_bucket(value: ArrayLike) -> Int64:
    """Bucket of an event's value: 0 for none (NaN), then by powers of two from below 1/8 up."""
    amount = np.asarray(value, np.float64)
    return _power_of_two(amount, lowest=-3, buckets=VALUE_BUCKETS)


def price_bucket(price: ArrayLike) -> Int64:
    """Bucket of a product's price: 0 for none (NaN), then by powers of the square root of two."""
    amount = np.asarray(price, np.float64)
    return _power_of_two(amount**2, lowest=-4, buckets=PRICE_BUCKETS)


def _power_of_two(amount: NDArray[np.float64], lowest: int, buckets: int) -> Int64:
    power = np.floor(np.log2(np.maximum(np.nan_to_num(amount, posinf=1e300), 2.0 ** (lowest - 1))))
    bucket = np.clip(power - lowest + 2, 1, buckets - 1)
    return np.where(np.isnan(amount), 0, bucket).astype(np.int64)


def text_ngrams(text: str) -> list[int]:
    """At most TEXT_SLOTS distinct hashed words and character trigrams, words first; any script."""
    words = re.findall(r"\w+", text.casefold())
    trigrams = [f"#{w}#"[i : i + 3] for w in words for i in range(len(w))]
    seen = dict.fromkeys(1 + zlib.crc32(g.encode()) % TEXT_BUCKETS for g in [*words, *trigrams])
    return list(seen)[:TEXT_SLOTS]


@dataclass(frozen=True)
class Vocabulary:
    """Category and brand names in the order of their codes, which start at 1; 0 is unknown."""

    categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    _category: dict[str, int] = field(init=False, repr=False, compare=False)
    _brand: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_category", {c: i for i, c in enumerate(self.categories, 1)})
        object.__setattr__(self, "_brand", {b: i for i, b in enumerate(self.brands, 1)})

    def category(self, name: object) -> int:
        """Code of a category; 0 where it is missing or new."""
        return self._category.get(str(name), 0)

    def brand(self, name: object) -> int:
        """Code of a brand; 0 where it is missing or new."""
        return self._brand.get(str(name), 0)


@dataclass(frozen=True)
class ItemFeatures:
    """Content of B products as the item tower takes it."""

    category: Int64  # [B]
    brand: Int64  # [B]
    price: Int64  # [B]
    text: Int64  # [B, TEXT_SLOTS]


def item_features(products: list[Mapping[str, object]], vocabulary: Vocabulary) -> ItemFeatures:
    """Features of products by `title`, `category`, `brand`, `price`, `tags`, `text`; a missing one is 0."""
    text = np.zeros((len(products), TEXT_SLOTS), np.int64)
    for row, product in enumerate(products):
        words = " ".join(str(product[f]) for f in ("title", "tags", "text") if product.get(f))
        grams = text_ngrams(words)
        text[row, : len(grams)] = grams
    prices = [_price(p.get("price")) for p in products]
    return ItemFeatures(
        category=np.array([vocabulary.category(p.get("category")) for p in products], np.int64),
        brand=np.array([vocabulary.brand(p.get("brand")) for p in products], np.int64),
        price=price_bucket(np.array(prices, np.float64)),
        text=text,
    )


def _price(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
