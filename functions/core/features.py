"""What the towers see of an event and of a product. Offline and online call these same functions."""

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GAP_BUCKETS = 32
VALUE_BUCKETS = 16
PRICE_BUCKETS = 32
TEXT_BUCKETS = 2**15  # hashed n-grams are 1..TEXT_BUCKETS; 0 is padding
TEXT_SLOTS = 32
CONTENT = ("category", "brand", "price", "text")  # of every product, as codes
NAMES = ("categories", "brands", "devices", "slots")

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def _edges(lowest: int, buckets: int) -> Float64:
    """Where buckets begin: 1 with anything, 2 with 2 ** lowest, then by powers of two, and NaN behind all."""
    powers = 2.0 ** np.arange(lowest, lowest + buckets - 2)
    return np.concatenate([[-np.inf], powers, [np.nan]])


GAP_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(GAP_BUCKETS - 2)])
VALUE_EDGES, PRICE_EDGES = _edges(-3, VALUE_BUCKETS), _edges(-4, PRICE_BUCKETS)


def gap_bucket(gap_s: ArrayLike) -> Int64:
    """Bucket of the seconds since the user's last event: 0 for none (negative), 1 for 0 s, then log2."""
    return GAP_EDGES.searchsorted(np.asarray(gap_s, np.float64), "right")


def value_bucket(value: ArrayLike) -> Int64:
    """Bucket of an event's value: 0 for none (NaN), then by powers of two from below 1/8 up."""
    return _bucket(VALUE_EDGES, np.asarray(value, np.float64))


def price_bucket(price: ArrayLike) -> Int64:
    """Bucket of a product's price: 0 for none (NaN), then by powers of the square root of two."""
    amount = np.minimum(np.asarray(price, np.float64), 1e100)  # the square of more is no float64
    return _bucket(PRICE_EDGES, amount**2)


def _bucket(edges: Float64, amount: Float64) -> Int64:
    return edges.searchsorted(amount, "right") % len(edges)  # behind all is 0


def _words(text: str) -> list[str]:
    """Runs of letters and digits with the marks that belong to them, in one spelling and case.

    Half of the letters of Hindi or Thai are marks (vowel signs), which `\\w` takes for the end of a word; and
    an accent is a letter's part or a mark after it, as whoever typed it likes.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    if plain.isascii():
        return re.findall(r"\w+", plain)
    apart = "".join(c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in plain)
    return [word for word in apart.split() if re.search(r"\w", word)]  # a mark alone is no word


def text_ngrams(text: str) -> list[int]:
    """At most TEXT_SLOTS distinct hashed words and character trigrams, words first; any script."""
    words = _words(text)
    trigrams = [f"#{w}#"[i : i + 3] for w in words for i in range(len(w))]
    seen = dict.fromkeys(1 + zlib.crc32(g.encode()) % TEXT_BUCKETS for g in [*words, *trigrams])
    return list(seen)[:TEXT_SLOTS]


@dataclass(frozen=True)
class Vocabulary:
    """Names in the order of their codes, which start at 1; 0 is unknown.

    `vectors` are the catalogue's columns of precomputed vectors and their widths, in the order in which the
    item tower takes them; `devices` and `slots` are what requests may come from.
    """

    categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    vectors: tuple[tuple[str, int], ...] = ()
    devices: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    _category: dict[str, int] = field(init=False, repr=False, compare=False)
    _brand: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_category", {c: i for i, c in enumerate(self.categories, 1)})
        object.__setattr__(self, "_brand", {b: i for i, b in enumerate(self.brands, 1)})

    @classmethod
    def read(cls, names: Mapping[str, Sequence[Any]]) -> "Vocabulary":
        """From what `vocabulary.json` holds; raises ValueError for what is no vocabulary."""
        try:
            vectors = tuple((str(name), int(width)) for name, width in names.get("vectors", ()))
            rest = {field: tuple(names.get(field, ())) for field in NAMES}
            return cls(vectors=vectors, **rest)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"vocabulary {str(names)[:100]}: {error}; expected lists of names") from error

    def names(self) -> dict[str, list[Any]]:
        """What `vocabulary.json` holds; `read` takes it back."""
        return {field: list(getattr(self, field)) for field in (*NAMES, "vectors")}

    @property
    def vector_width(self) -> int:
        """Numbers in a product's precomputed vectors, V."""
        return sum(width for _, width in self.vectors)

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
    vectors: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [B, V]

    def __post_init__(self) -> None:
        if not self.vectors.size:
            object.__setattr__(self, "vectors", np.zeros((len(self.category), 0), np.float32))

    def columns(self) -> dict[str, NDArray[Any]]:
        """The item tower's inputs after the item ids, by name, in order; `vectors` only where it has any."""
        names = (*CONTENT, *(("vectors",) if self.vectors.shape[1] else ()))
        return {name: getattr(self, name) for name in names}

    def take(self, rows: Int64) -> "ItemFeatures":
        """Content of some of the products."""
        return ItemFeatures(
            self.category[rows], self.brand[rows], self.price[rows], self.text[rows], self.vectors[rows]
        )


def joined_vectors(vectors: Mapping[str, Float32], vocabulary: Vocabulary, products: int) -> Float32:
    """Precomputed vectors by column, [B, width] each, as the item tower takes them, [B, V].

    Each is scaled to length 1, whatever its source; a row of zeros, or a column that is not there, is a
    missing vector and says nothing. Raises ValueError naming column, row and expectation.
    """
    joined = np.zeros((products, vocabulary.vector_width), np.float32)
    start = 0
    for name, width in vocabulary.vectors:
        if name in vectors:
            joined[:, start : start + width] = _unit(name, vectors[name], (products, width))
        start += width
    return joined


def _unit(name: str, vectors: Float32, shape: tuple[int, int]) -> Float32:
    if vectors.shape != shape:
        raise ValueError(f"{name}: {list(vectors.shape)} numbers; expected {list(shape)}")
    broken = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(broken):
        row = int(broken[0])
        found = vectors[row].tolist()[:4]
        raise ValueError(f"{name}: row {row} is {found}…; expected {shape[1]} finite numbers")
    largest = np.abs(vectors).max(1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1.0)  # squares of the largest numbers fit no float32
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: Float32 = (scaled / np.where(length > 0, length, 1.0)).astype(np.float32)
    return unit


def item_features(
    products: list[Mapping[str, object]],
    vocabulary: Vocabulary,
    vectors: Mapping[str, Float32] | None = None,
) -> ItemFeatures:
    """Features of products by `title`, `category`, `brand`, `price`, `tags`, `text`; a missing one is 0.

    vectors: see `joined_vectors`.
    """
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
        vectors=joined_vectors(vectors or {}, vocabulary, len(products)),
    )


def _price(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
