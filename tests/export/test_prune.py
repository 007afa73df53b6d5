"""What is pruned is out of the lists and nowhere else, and a narrower state is another space."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export.prune as pruning
from export.__main__ import Unproven, main, publish, publish_refresh
from export.bundle import Source, read_source
from export.handover import HeldOut, read_held_out
from export.levels import FP32, SERVED
from export.origins import read_origins
from export.prune import Prune, without_rare
from export.store import open_store
from functions.core.events import Event
from functions.core.fold import fold, in_space
from functions.core.served import ServedBundle
from functions.core.user_row import UserRow
from tests.bundles import WIDTH, champion, products, tiny_checkpoint
from train.checkpoint import load
from train.towers import Block, Shape, Towers

ANY_LOSS = 1.0  # of 60 products a third is pruned
LEAST = 14.0  # events
NOTHING = f"{SERVED}, nothing pruned"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the same checkpoint is published whole, with fewer products, and with fewer channels."""
    wishes = {"whole": Prune(), "items": Prune(items=LEAST), "width": Prune(width=0.5)}
    made = {}
    for name, wish in wishes.items():
        made[name] = tmp_path_factory.mktemp(name)
        publish(checkpoint, made[name], None, ANY_LOSS, wish)
    return made


def report(folder: Path) -> dict[str, Any]:
    path = folder / open_store(folder).seen().champion / "report" / "quantization.json"
    return dict(json.loads(path.read_text()))


def visitor(bundle: ServedBundle, *item_ids: str) -> UserRow:
    events = [Event(f"e{n}", "click", item_id, 1000 + n) for n, item_id in enumerate(item_ids)]
    (row,), _ = fold([bundle.encoder.empty()], [events], bundle.encoder)
    return row


def ids(bundle: ServedBundle, rows: np.ndarray) -> set[str]:
    return {product.item_id for product in bundle.catalogue.products(rows.tolist())}


def rare(checkpoint: Path) -> set[str]:
    """By the rule as the option says it: fewer events than LEAST among what is on sale."""
    counts = np.fromfile(checkpoint / "popularity.f32", "<f4")
    return {str(p["item_id"]) for p, n in zip(products(), counts, strict=False) if n < LEAST}


def test_a_rare_product_is_in_no_list(checkpoint: Path, folders: dict[str, Path]) -> None:
    bundle, pruned = champion(folders["items"]), rare(checkpoint)
    assert 10 < len(pruned) < 50 and bundle.manifest.showable == 60 - len(pruned)
    row = visitor(bundle, *sorted(pruned)[:5])
    for rows in (bundle.scorer.top(row.vector, 100)[0], bundle.candidates(row)[0], bundle.popular()[0]):
        assert len(rows) == bundle.manifest.showable and not ids(bundle, rows) & pruned
    for category in bundle.fallback["category"]:
        assert not ids(bundle, bundle.popular(category)[0]) & pruned


def test_its_events_move_a_visitor_as_before(checkpoint: Path, folders: dict[str, Path]) -> None:
    whole, bundle = champion(folders["whole"]), champion(folders["items"])
    assert bundle.manifest.state_space == whole.manifest.state_space
    history = [*sorted(rare(checkpoint))[:6], "sku-003", "sku-061"]  # the last one only the log knows
    before, after = visitor(whole, *history), visitor(bundle, *history)
    assert np.array_equal(before.state, after.state) and np.array_equal(before.vector, after.vector)
    assert in_space([before], bundle.encoder) == [before]  # nobody is rebuilt


def test_a_row_keeps_what_it_was_made_of(folders: dict[str, Path]) -> None:
    """Embedding, tower id, popularity and content by item id, whatever the row is now."""
    found = []
    for name in ("whole", "items"):
        bundle = champion(folders[name])
        known = [product.item_id for product in bundle.catalogue.products(range(bundle.manifest.items))]
        origins = read_origins(folders[name] / bundle.id, bundle.manifest.items)
        found.append(
            {i: (bundle.items.table[n].tobytes(), origins[n].tobytes()) for n, i in enumerate(known)}
        )
    assert found[0] == found[1]


def test_before_and_after_stand_in_one_table(folders: dict[str, Path]) -> None:
    whole = report(folders["whole"])["levels"]
    for name in ("items", "width"):
        levels = report(folders[name])["levels"]
        assert list(levels)[-1] == SERVED and NOTHING in levels
        for key in ("ndcg", "found", "recall", "items", "state_bytes", "bytes_per_item"):
            assert levels[NOTHING][key] == whole[SERVED][key]
            assert levels[FP32][key] == whole[FP32][key]
    fewer, narrow = (report(folders[name])["levels"][SERVED] for name in ("items", "width"))
    assert fewer["items"] < 60 and fewer["state_bytes"] == 2 * 2 * WIDTH
    assert narrow["items"] == 60 and narrow["state_bytes"] == 2 * WIDTH
    assert report(folders["items"])["pruned"] == {"items_below": LEAST, "items": 60 - fewer["items"]}
    assert report(folders["width"])["pruned"] == {"channels": WIDTH // 2, "channels_before": WIDTH}
    text = (folders["width"] / champion(folders["width"]).id / "report" / "quantization.md").read_text()
    assert f"| {NOTHING} |" in text


def test_a_narrower_state_is_another_space(folders: dict[str, Path]) -> None:
    whole, bundle = champion(folders["whole"]), champion(folders["width"])
    assert bundle.manifest.state_width == whole.manifest.state_width // 2
    assert bundle.manifest.state_space != whole.manifest.state_space
    history = ("sku-003", "sku-017", "sku-003", "sku-061")
    before = visitor(whole, *history)
    (rebuilt,) = in_space([before], bundle.encoder)
    afresh = visitor(bundle, *history)
    assert rebuilt.space == bundle.manifest.state_space and len(rebuilt.state) == WIDTH
    assert np.array_equal(rebuilt.state, afresh.state) and np.array_equal(rebuilt.vector, afresh.vector)
    (back,) = in_space([rebuilt], whole.encoder)  # and a rollback is the same
    assert np.array_equal(back.state, before.state)


def test_a_refresh_keeps_out_what_export_pruned(
    checkpoint: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    bundles = Path(shutil.copytree(folders["items"], tmp_path / "bundles"))
    before, pruned = champion(bundles), rare(checkpoint)
    changed = sorted(pruned)[0]
    sold = [{**p, "title": "Another name"} if p["item_id"] == changed else p for p in products()]
    new = {"item_id": "new-lamp", "title": "Brass desk lamp", "category": "Lighting"}
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(p)}\n" for p in [new, *reversed(sold)]))
    publish_refresh(bundles, tmp_path / "items.jsonl", None)
    after = champion(bundles)
    assert ids(after, np.arange(after.manifest.showable)) == (
        ids(before, np.arange(before.manifest.showable)) | {"new-lamp"}
    )
    assert after.catalogue.product(after.catalogue.rows_of_ids([changed])[changed]).title == "Another name"
    history = sorted(pruned)[1:5]
    assert np.array_equal(visitor(before, *history).state, visitor(after, *history).state)


def test_pruning_that_loses_too_much_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    counts = np.sort(np.fromfile(checkpoint / "popularity.f32", "<f4")[:60])
    with pytest.raises(Unproven, match=r"served: NDCG@10 .* of fp32; expected 0\.9"):
        publish(checkpoint, tmp_path, None, 0.1, Prune(items=float(counts[-3])))  # three products are left
    assert list(tmp_path.iterdir()) == []


def test_users_go_on_to_what_they_went_on_to(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers, meta = load(checkpoint)
    source, held = read_source(checkpoint, towers, meta), read_held_out(checkpoint, meta.item_ids)

    def told(source: Source, held: HeldOut) -> list[list[str]]:
        names = source.meta.item_ids
        lists = [*held.targets, held.log.item]
        return [[names[row] for row in rows.tolist()] for rows in lists]

    pruned, users = without_rare(source, held, LEAST)
    assert pruned.meta.item_ids != source.meta.item_ids == tuple(held.log.item_ids)
    assert tuple(users.log.item_ids) == pruned.meta.item_ids
    assert told(pruned, users) == told(source, held)
    assert told(pruned, held) != told(source, held)  # the planted defect: users stay in the old rows


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prune-items", "1e6"], "all 60 products have less; expected one to stay"),
        (["--prune-width", "0.01"], "leaves 16 of 16 channels; expected fewer"),
    ],
)
def test_a_wish_that_cannot_be_met_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), *options]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "x"])
def test_a_number_of_events_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "--out", "o", "--prune-items", text])
    assert text in capsys.readouterr().err


def test_what_training_never_met_is_new_and_stays() -> None:
    met, events = np.array([0, 1, 2, 3]), np.array([0.0, 0.0, 0.99, 1.0])
    assert pruning.is_rare(met, events, 1.0).tolist() == [False, True, True, False]


def recurrence(seed: int = 0) -> tuple[Towers, list[tuple[torch.Tensor, ...]]]:
    """Towers with 16 channels in each block, and 30 histories of 20 events."""
    torch.manual_seed(seed)
    towers = Towers(Shape(5, 0, 0, dim=16, width=16)).eval()
    with torch.no_grad():
        for block in towers.user.blocks:
            assert isinstance(block, Block)
            for layer in (block.decay, block.value, block.gate):
                layer.weight.mul_(3)
    codes = [torch.randint(0, 5, (30, 1, 20)) for _ in range(3)]
    items = torch.randn(30, 1, 20, 16)
    return towers, [tuple(parts) for parts in zip(items, *codes, strict=True)]


def apart(one: Towers, other: Towers, histories: list[tuple[torch.Tensor, ...]]) -> float:
    """Largest difference of user vectors, of the largest number in them."""
    with torch.no_grad():
        pairs = [(one.user(*columns), other.user(*columns)) for columns in histories]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def test_channels_that_add_nothing_are_the_ones_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    towers, histories = recurrence()
    with torch.no_grad():
        for block in towers.user.blocks:
            assert isinstance(block, Block)
            block.outer.weight[:, ::2] = 0
    assert apart(towers, pruning._with_channels(towers, histories, 8), histories) < 1e-3
    monkeypatch.setattr(pruning, "_chosen", lambda *given: torch.arange(0, 16, 2))  # the planted defect
    assert apart(towers, pruning._with_channels(towers, histories, 8), histories) > 0.05


def test_a_channel_that_is_anothers_copy_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others add is fitted to those that stay; without the fit, half of it would be gone."""
    towers, histories = recurrence(1)
    with torch.no_grad():
        for block in towers.user.blocks:
            assert isinstance(block, Block)
            block.outer.weight[:, 8:] = 0.9 * block.outer.weight[:, :8]
            for layer in (block.decay, block.value, block.gate):
                layer.weight[8:], layer.bias[8:] = layer.weight[:8], layer.bias[:8]
    assert apart(towers, pruning._with_channels(towers, histories, 8), histories) < 2e-3
    monkeypatch.setattr(pruning, "PENALTY", 1e6)  # the planted defect: nothing is fitted
    assert apart(towers, pruning._with_channels(towers, histories, 8), histories) > 0.05


def test_towers_that_are_pruned_stay_as_they_were() -> None:
    towers, histories = recurrence()
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    narrow = pruning._with_channels(towers, histories, 8)
    assert narrow.shape.state_width == 16 and towers.shape == Shape(5, 0, 0, dim=16, width=16)
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert replace(narrow.shape, channels=4).state_width == 8  # type: ignore[call-arg]


@torch.no_grad()
def test_a_block_whose_gates_are_all_shut_can_be_narrowed() -> None:
    towers, histories = recurrence()
    block = towers.user.blocks[1]
    assert isinstance(block, Block)
    block.gate.weight.zero_()
    block.gate.bias.fill_(-1.0)
    narrow = pruning._with_channels(towers, histories, 8)
    item = torch.randn(1, 3, 16)
    codes = [torch.ones(1, 3, dtype=torch.int64)] * 3
    assert bool(narrow.user(item, *codes).isfinite().all())
