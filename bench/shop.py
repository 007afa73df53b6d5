"""A made-up shop for timing: a bundle of N products, towers untrained, and an account that answers now."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botocore.response import StreamingBody

from export.__main__ import publish
from functions.core.alike import Alike
from functions.core.features import Vocabulary, item_features
from functions.core.repeats import Repeats
from functions.core.tokens import Keys
from train.checkpoint import Meta, save
from train.companions import MOST_PAIRS, NEAREST
from train.demand import demand
from train.handover import (
    write_companions,
    write_demand,
    write_held_out,
    write_popularity,
    write_products,
)
from train.log import Interactions
from train.rules import facts, shape_for
from train.split import split
from train.towers import Towers

CATEGORIES, BRANDS, USERS, LENGTH = 40, 200, 200, 24
NEW_OF = 10  # one product of so many has no embedding of its own, and inherits from its like
KEYS, PSEUDONYM = Keys({"k1": b"1" * 32}, "k1"), bytes(range(32))
ENVIRONMENT = {
    "VITRINE_TABLE": "rows",
    "VITRINE_STREAM": "events",
    "VITRINE_BUCKET": "bundles",
    "VITRINE_SECRET": "secret",
    "VITRINE_KEYS": "keys",
    "VITRINE_DEADLINE_MS": "2000",
}


def make_bundle(folder: Path, items: int, dim: int | None = None) -> Path:
    """Export a shop of so many products; returns the folder of the bundle and its pointer.

    dim: numbers of a vector, if not what the rules of training say of such a log.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    categories = tuple(f"Category {number}" for number in range(CATEGORIES))
    brands = tuple(f"Brand {number}" for number in range(BRANDS))
    sold = [_product(number, categories, brands, rng) for number in range(items)]
    log, vocabulary = _log(items, rng), Vocabulary(categories, brands)
    checkpoint = folder / "checkpoint"
    meta = Meta(
        tuple(log.item_ids),
        vocabulary.names(),
        int(log.time_s.max()),
        {},
        Repeats(0.5, 16.0, inherited=0.3, newcomer=0.1, companions=0.3),
    )
    towers = Towers(shape_for(facts(log), CATEGORIES, BRANDS, content=True, dim=dim))
    with torch.no_grad():
        towers.item.ids.weight[1 + items - items // NEW_OF :] = towers.item.ids.weight[0]
    save(checkpoint, towers, meta)
    write_products(checkpoint, sold, log.item_ids)
    write_popularity(checkpoint, log)
    write_companions(checkpoint, _companions(items, rng))
    write_demand(checkpoint, demand(log, item_features([*sold], vocabulary)))
    write_held_out(checkpoint, split(log, "leave-one-out"), 0)
    publish(
        checkpoint, folder / "bundles", None, max_loss=1.0
    )  # towers that learnt nothing have nothing to lose
    return folder / "bundles"


def _companions(items: int, rng: np.random.Generator) -> Alike:
    """As many of each product as training keeps."""
    count = min(NEAREST, MOST_PAIRS // items, items - 1)
    bounds = np.arange(items + 1, dtype=np.int32) * count
    heirs = (np.repeat(np.arange(items), count) + rng.integers(1, items, items * count)) % items
    return Alike(bounds, heirs.astype(np.int32), rng.uniform(0.05, 0.5, items * count).astype(np.float16))


def _product(
    number: int, categories: tuple[str, ...], brands: tuple[str, ...], rng: np.random.Generator
) -> dict[str, object]:
    return {
        "item_id": f"sku-{number:07d}",
        "title": f"Product {number} of many words",
        "category": categories[number % CATEGORIES],
        "brand": brands[int(rng.integers(BRANDS))],
        "price": round(float(rng.uniform(2, 400)), 2),
        "currency": "EUR",
        "tags": "new" if number % 5 == 0 else None,
        "url": f"/p/{number}",
        "image_url": f"https://images.example/{number}.jpg",
    }


def _log(items: int, rng: np.random.Generator) -> Interactions:
    count = USERS * LENGTH
    at, user = np.divmod(np.arange(count), USERS)
    return Interactions(
        user=user.astype(np.int32),
        item=rng.integers(0, items, count).astype(np.int32),
        kind=rng.choice([1, 2, 3, 4], count).astype(np.int8),
        time_s=1_760_000_000 + at.astype(np.int64) * 3600,
        value=np.full(count, np.nan, np.float32),
        user_ids=[f"u{number}" for number in range(USERS)],
        item_ids=[f"sku-{number:07d}" for number in range(items)],
    )


class Account:
    """Stands in for the clients' session: every client is this object, every answer is at hand."""

    def __init__(self, bundles: Path) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._bundles = bundles

    def create_client(self, service: str, limits: object = None) -> Account:
        """Itself, for any service."""
        return self

    def get_item(self, Key: dict[str, dict[str, str]], **given: Any) -> dict[str, Any]:
        """DynamoDB's, of `rows`."""
        row = self.rows.get(Key["pk"]["S"])
        return {"Item": row} if row else {}

    def batch_get_item(self, RequestItems: dict[str, Any], **given: Any) -> dict[str, Any]:
        """DynamoDB's, of `rows`."""
        ((table, asked),) = RequestItems.items()
        keys = [key["pk"]["S"] for key in asked["Keys"]]
        return {"Responses": {table: [self.rows[key] for key in keys if key in self.rows]}}

    def put_item(self, Item: dict[str, Any], **given: Any) -> dict[str, Any]:
        """DynamoDB's: a row is kept, whatever its version."""
        self.rows[Item["pk"]["S"]] = Item
        return {}

    def put_record(self, **given: Any) -> dict[str, Any]:
        """Kinesis's."""
        return {"SequenceNumber": "1", "ShardId": "shardId-000000000000"}

    def get_secret_value(self, **given: Any) -> dict[str, Any]:
        """The shop's keys."""
        keys = {kid: secret.hex() for kid, secret in KEYS.secrets.items()}
        said = {"current": KEYS.current, "keys": keys, "pseudonym": PSEUDONYM.hex()}
        return {"SecretString": json.dumps(said)}

    def get_object(self, Key: str, **given: Any) -> dict[str, Any]:
        """S3's, from the folder of bundles."""
        data = (self._bundles / Key).read_bytes()
        return {"Body": StreamingBody(io.BytesIO(data), len(data)), "ContentLength": len(data)}
