"""A small, real bundle: sixty products in six categories, untrained towers, the files of the exporter itself.

`python -m tests.bundles` writes `tests/data/tiny_bundle` anew, for environments that have no exporter.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import publish
from export.store import open_store
from functions.core.features import Vocabulary, item_features
from functions.core.repeats import Repeats, Rows, Scores
from functions.core.served import ServedBundle, open_bundle
from functions.core.user_row import UserRow
from train.checkpoint import Meta, save
from train.demand import demand
from train.handover import write_demand, write_held_out, write_popularity, write_products
from train.log import Interactions
from train.split import split
from train.towers import Shape, Towers

STORED = Path(__file__).parent / "data" / "tiny_bundle"
DIM, WIDTH = 16, 16
MATERIALS = ("Oak", "Linen", "Copper", "Wool", "Glass")
THINGS = {
    "Lighting": ("Desk lamp", "Candle holder"),
    "Kitchen": ("Kettle", "Bread board"),
    "Textiles": ("Throw", "Cushion cover"),
    "Garden": ("Planter", "Watering can"),
    "Stationery": ("Notebook", "Pen tray"),
    "Toys": ("Building blocks", "Rocking horse"),
}
DEVICE = "robot"  # the only one that says anything
LOG_ONLY = 2  # items that only the log knows


def products() -> list[dict[str, object]]:
    """Sixty products a small shop could sell."""
    names = [(c, f"{m} {t.lower()}") for c, things in THINGS.items() for t in things for m in MATERIALS]
    return [
        {
            "item_id": f"sku-{number:03d}",
            "title": title,
            "category": category,
            "brand": ("Hearth & Co", "Nordlys", "Atelier 9")[number % 3],
            "price": round(4.5 + 3.7 * (number * 7 % 23), 2),
            "currency": "EUR",
            "tags": "new" if number % 5 == 0 else "handmade|gift" if number % 4 == 0 else None,
            "url": f"/p/sku-{number:03d}",
        }
        for number, (category, title) in enumerate(names)
    ]


def shoppers(items: int, users: int = 40, length: int = 24) -> Interactions:
    """Each of `users` mostly stays within one category of ten items."""
    rng = np.random.default_rng(5)
    at, user = np.divmod(np.arange(users * length), users)
    own = (user % 6) * 10 + rng.integers(0, 10, len(user))
    item = np.where(rng.random(len(user)) < 0.85, own, rng.integers(0, items, len(user)))
    kind = rng.choice([1, 2, 3, 4], len(user), p=[0.6, 0.2, 0.1, 0.1])
    return Interactions(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        kind=kind.astype(np.int8),
        time_s=1_760_000_000 + at.astype(np.int64) * 3600,
        value=np.full(len(user), np.nan, np.float32),
        user_ids=[f"u{number}" for number in range(users)],
        item_ids=[f"sku-{number:03d}" for number in range(items)],
    )


def tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder of untrained towers, with everything that export reads."""
    sold = products()
    log = shoppers(len(sold) + LOG_ONLY)
    vocabulary = Vocabulary(tuple(THINGS), ("Hearth & Co", "Nordlys", "Atelier 9"), devices=(DEVICE,))
    torch.manual_seed(seed)
    shape = Shape(len(log.item_ids), len(vocabulary.categories), 3, dim=DIM, width=WIDTH, devices=1)
    meta = Meta(tuple(log.item_ids), vocabulary.names(), int(log.time_s.max()), {}, Repeats(0.5, 16.0))
    towers = Towers(shape)
    with torch.no_grad():
        towers.item.texts.weight.zero_()  # two megabytes that git can compress
        towers.item.categories.weight.mul_(8)  # so that a click on a lamp speaks for lamps
        toys = towers.item.categories.weight[vocabulary.category("Toys")]
        towers.context.names[0] = 100 * toys  # who asks on a toy is shown toys
    save(folder, towers, meta)
    write_products(folder, sold, log.item_ids)
    write_popularity(folder, log)
    write_demand(folder, demand(log, item_features([*sold, *({} for _ in range(LOG_ONLY))], vocabulary)))
    write_held_out(folder, split(log, "leave-one-out"), seed)
    return folder


def tiny_bundle(folder: Path, seed: int = 0) -> Path:
    """Export it into `folder` (bundle and pointer); returns the folder."""
    publish(tiny_checkpoint(folder / "checkpoint", seed), folder / "bundles", None, max_loss=0.05)
    return folder / "bundles"


def champion(bundles: Path) -> ServedBundle:
    """The bundle that the pointer in a folder names."""
    name = open_store(bundles).seen().champion
    return open_bundle(bundles / name, name)


def require_measured(served: ServedBundle, row: UserRow, ranked: tuple[Rows, Scores]) -> None:
    """What is served for a row is what training ranked for it, but for what is not on sale."""
    found, scores = served.candidates(row)
    measured, of = ranked
    shown = measured < served.manifest.showable
    expected = dict(zip(measured[shown].tolist(), of[shown].tolist(), strict=True))
    assert dict(zip(found.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, abs=0.02)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = tiny_bundle(Path(scratch))
        shutil.rmtree(STORED, ignore_errors=True)
        shutil.copytree(made, STORED, ignore=shutil.ignore_patterns("report"))
