"""`python -m export`: what it publishes, and the planted defects that it must not publish."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import export.__main__ as command
from export import scorers
from export.__main__ import Unproven, main, publish
from export.embed import Content, Embedded, embed
from export.handover import product, read_held_out
from functions.core.context import Asked, hour_code, weekday_code
from functions.core.features import Vocabulary, item_features
from functions.core.repeats import Repeats
from functions.core.served import open_bundle
from functions.core.user_row import Float16
from tests.bundles import DEVICE, LOG_ONLY, products, shoppers, tiny_checkpoint
from train.checkpoint import Meta, load, save
from train.context import Requests
from train.demand import demand
from train.evaluate import TowerItems, Visitors, user_rows
from train.handover import write_demand, write_held_out, write_popularity, write_products
from train.log import Interactions
from train.split import split
from train.towers import Shape, Towers

LOOSE = 0.05  # 40 users: one rank more or less is a percent of NDCG


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def test_the_command_publishes_what_can_be_opened(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--max-ndcg-loss", "0.05"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    pointer = json.loads((tmp_path / "pointer.json").read_text())
    served = open_bundle(tmp_path / pointer["champion"], pointer["champion"])
    assert report["id"] == served.id == pointer["champion"]
    assert report["bytes"] == sum(
        f.stat().st_size for f in (tmp_path / served.id).iterdir() if f.is_file()
    ) - ((tmp_path / served.id / "manifest.json").stat().st_size)
    assert served.manifest.quantization["int8_ndcg_ratio"] == report["int8_ndcg_ratio"] >= 1 - LOOSE
    assert (served.manifest.showable, served.manifest.items) == (len(products()), len(products()) + LOG_ONLY)
    assert json.loads((tmp_path / f"{served.id}.report.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [served.id, f"{served.id}.report.json", "pointer.json"]
    )


def test_the_same_checkpoint_gives_the_same_bundle(checkpoint: Path, tmp_path: Path) -> None:
    ids = {publish(checkpoint, tmp_path / name, None, LOOSE)["id"] for name in ("a", "b")}
    again = publish(checkpoint, tmp_path / "a", None, LOOSE)["id"]
    assert ids == {again}


def worse_codes(table: Float16) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = real_quantize(table)
    return np.roll(codes, len(codes) // 2, axis=0), scales  # another category: 40 of 60 products are rescored


def flat_scales(table: Float16) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = real_quantize(table)
    return codes, scales * (-1)


def shifted_embeddings(model: Path, content: Content, tower_ids: np.ndarray) -> Embedded:
    made = embed(model, content, tower_ids)
    return replace(made, table=np.roll(made.table, 1, axis=0))


PLACES = {"embed": command.write_files.__globals__, "quantize": vars(scorers)}
real_quantize = scorers.quantize


@pytest.mark.parametrize(
    ("place", "defect", "failure"),
    [
        ("quantize", worse_codes, "recall@10"),
        ("quantize", flat_scales, "recall@10"),
        ("embed", shifted_embeddings, "item tower: row"),
    ],
)
def test_a_planted_defect_is_named_and_nothing_is_published(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    defect: Callable[..., object],
    failure: str,
) -> None:
    monkeypatch.setattr(scorers, "MOST_RESCORED", 40)  # to look at all 60 exactly would hide it
    monkeypatch.setitem(PLACES[place], place, defect)
    with pytest.raises(Unproven, match=failure):
        publish(checkpoint, tmp_path, None, LOOSE)
    assert list(tmp_path.iterdir()) == []


def test_swapped_users_of_torch_and_onnx_are_found(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: the torch side folds another history than the ONNX side."""
    import export.verify as verify

    real = verify.user_rows
    calls: list[int] = []

    def swapped(log: Interactions, users: list[int], encoder: object):  # type: ignore[no-untyped-def]
        calls.append(1)
        return real(log, users if len(calls) == 1 else users[::-1], encoder)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "user_rows", swapped)
    with pytest.raises(Unproven, match="user vectors: torch and ONNX differ"):
        publish(checkpoint, tmp_path, None, LOOSE)


def test_every_failure_is_told_at_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scorers, "MOST_RESCORED", 40)
    monkeypatch.setattr(scorers, "quantize", worse_codes)
    monkeypatch.setitem(command.write_files.__globals__, "embed", shifted_embeddings)
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "no pointer written" in told
    assert "item tower" in told and "recall@10" in told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("catalogue.jsonl", "", "0 lines; expected 62"),
        ("catalogue.jsonl", "{}\n" * 62, "line 1: item_id None; expected 'sku-000'"),
        ("catalogue.jsonl", "[\n" * 62, "expected a JSON object"),
        ("popularity.f32", "abcd", "1 numbers; expected 62"),
        ("demand.f32", "abcd", "4 bytes; expected 62 finite numbers above 0"),
        ("demand.f32", "abcd" * 62 + "e", "249 bytes; expected 62"),
        ("demand.f32", "abcd" * 61 + "\0" * 4, "248 bytes; expected 62 finite numbers above 0"),
        ("demand.f32", None, "demand.f32: missing"),
        ("held_out.npz", None, "held_out.npz: missing"),
        ("weights.safetensors", None, "weights.safetensors: missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_file(
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    message: str,
) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    assert main(["--checkpoint", str(copy), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert message in told and told.count(name) == told.count("expected") == 1
    assert not (tmp_path / "out" / "pointer.json").exists()


def test_without_a_catalogue_every_item_of_the_log_is_shown_by_its_id(copy: Path, tmp_path: Path) -> None:
    lines = (copy / "catalogue.jsonl").read_text().splitlines()
    bare = [json.dumps({"item_id": json.loads(line)["item_id"]}) for line in lines]
    (copy / "catalogue.jsonl").write_text("\n".join(bare) + "\n")
    made = publish(copy, tmp_path / "out", None, LOOSE)
    served = open_bundle(tmp_path / "out" / str(made["id"]))
    assert served.manifest.showable == served.manifest.items
    assert served.catalogue.product(0).title == "sku-000"


def test_a_shops_own_slots_are_served(checkpoint: Path, tmp_path: Path) -> None:
    slots = tmp_path / "slots.json"
    slots.write_text('{"hero": {"max_k": 3, "default_k": 1}}')
    made = publish(checkpoint, tmp_path / "out", slots, LOOSE)
    assert set(open_bundle(tmp_path / "out" / str(made["id"])).slots) == {"hero"}


@pytest.mark.parametrize("share", ["-1", "nan", "2", "x"])
def test_a_loss_that_is_no_share_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "--out", "o", "--max-ndcg-loss", share])
    assert share in capsys.readouterr().err


def test_a_checkpoint_that_was_cut_off_is_named(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = copy / "held_out.npz"
    held.write_bytes(held.read_bytes()[:40])
    assert main(["--checkpoint", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert str(held) in capsys.readouterr().err


@pytest.mark.parametrize("tags", ["new|organic", "new, organic", "new;organic;", ["new", "organic"]])
def test_tags_are_split_however_a_shop_writes_them(tags: object) -> None:
    assert product({"item_id": "i", "tags": tags}).tags == ("new", "organic")


@pytest.mark.parametrize("dim", [16, 20])
def test_a_shop_of_one_product_is_published(tmp_path: Path, dim: int) -> None:
    log = shoppers(1, users=3, length=4)
    log = replace(log, item=np.zeros_like(log.item))
    folder = tmp_path / "checkpoint"
    meta = Meta(("sku-000",), Vocabulary().names(), int(log.time_s.max()), {}, Repeats())
    save(folder, Towers(Shape(1, 0, 0, dim=dim, width=16)), meta)
    write_products(folder, products()[:1], log.item_ids)
    write_popularity(folder, log)
    write_demand(folder, demand(log, item_features(products()[:1], Vocabulary())))
    write_held_out(folder, split(log, "leave-one-out"), 0)
    made = publish(folder, tmp_path / "out", None, LOOSE)
    served = open_bundle(tmp_path / "out" / str(made["id"]))
    assert served.scorer.top(np.ones(dim), 10)[0].tolist() == served.popular()[0].tolist() == [0]
    nothing = served.scorer.mask(np.zeros(1, np.bool_))
    assert served.scorer.top(np.ones(dim), 10, nothing)[0].tolist() == []


def test_a_catalogue_of_no_items_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = json.loads((copy / "shape.json").read_text())
    (copy / "shape.json").write_text(json.dumps(shape | {"items": 0}))
    (copy / "item_ids.json").write_text("[]")
    (copy / "catalogue.jsonl").write_text("")
    assert main(["--checkpoint", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert "shape.items is 0; expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_that_is_none_is_told_with_its_item(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an export whose pruning numbers the rows anew, too."""
    towers, meta = load(copy)
    with torch.no_grad():
        towers.item.ids.weight[[1 + 8, 1 + 4]] = float("nan")
    save(copy, towers, meta)
    given = ["--checkpoint", str(copy), "--out", str(tmp_path / "out")]
    assert main(given) == 1
    assert "error: item_id 'sku-004', item row 4: [nan " in capsys.readouterr().err
    counts = np.fromfile(copy / "popularity.f32", "<f4")
    counts[:5] = 0, 0, 0, 0, 99
    counts[5:60] = 9
    counts.tofile(copy / "popularity.f32")
    assert main([*given, "--prune-items", "1"]) == 1
    assert "error: item_id 'sku-004', item row 0: [nan " in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_products_whose_vectors_are_zero_or_equal_are_published(copy: Path, tmp_path: Path) -> None:
    """A category without weights and twins: zero vectors score 0, twins are each listed once."""
    towers, meta = load(copy)
    lines = [json.loads(line) for line in (copy / "catalogue.jsonl").read_text().splitlines()]
    with torch.no_grad():
        for table in (towers.item.ids, towers.item.categories, towers.item.brands, towers.item.prices):
            table.weight.zero_()
        towers.item.ids.weight[11:13] = 1.0
    save(copy, towers, meta)
    made = publish(copy, tmp_path / "out", None, 1.0)
    served = open_bundle(tmp_path / "out" / str(made["id"]))
    rows, scores = served.scorer.top(np.ones(served.manifest.dim), len(lines))
    assert rows[:2].tolist() == [10, 11] and scores[0] == scores[1] > 0
    assert not scores[2:].any() and sorted(rows.tolist()) == list(range(served.manifest.showable))


def test_an_item_id_that_comes_twice_is_named(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = json.loads((copy / "item_ids.json").read_text())
    (copy / "item_ids.json").write_text(json.dumps([ids[0], ids[0], *ids[2:]]))
    lines = (copy / "catalogue.jsonl").read_text().splitlines(keepends=True)
    (copy / "catalogue.jsonl").write_text("".join([lines[0], lines[0], *lines[2:]]))
    assert main(["--checkpoint", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert "row 1: item_id 'sku-000'; expected once, but row 0 has it" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def in_a_context(folder: Path) -> Towers:
    """The checkpoint with a context in which everything says something, and users who ask after a week."""
    towers, meta = load(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in towers.context.parameters():
            weights.normal_(std=0.2)
        towers.context.clock[0] = 0
    save(folder, towers, meta)
    log = shoppers(len(products()) + LOG_ONLY)
    parts = split(log, "leave-one-out")
    write_held_out(folder, replace(parts, asked_s=int(log.time_s.max()) + 7 * 86_400), 0)
    return towers


def test_a_bundle_makes_of_a_request_what_training_did(copy: Path, tmp_path: Path) -> None:
    towers = in_a_context(copy)
    made = publish(copy, tmp_path / "out", None, LOOSE)
    served = open_bundle(tmp_path / "out" / str(made["id"]))
    log = shoppers(len(products()) + LOG_ONLY)
    rows = user_rows(log, list(range(40)), served.encoder)
    rng = np.random.default_rng(2)
    waits_s = rng.choice([0, 1, 50, 4_000, 90_000, 3_000_000], 40)
    device = rng.integers(0, 2, 40)
    time_s = np.array([row.last_s for row in rows]) + waits_s
    code = hour_code(time_s) + 25 * (weekday_code(time_s) + 8 * device)
    asked = Requests(code, time_s)
    own = [served.own(row) for row in rows]
    items = TowerItems(log.item_ids, served.items.table)
    wanted = Visitors(rows, own, items).queries(towers.context, asked)
    for row, met, now_s, named, query in zip(
        rows, own, time_s.tolist(), device.tolist(), wanted, strict=True
    ):
        said = Asked(DEVICE if named else None, None, now_s, row.elapsed_s(now_s))
        np.testing.assert_allclose(served.query(row, met, said), query, atol=5e-3)


def test_the_proof_asks_when_the_split_says_that_its_users_do(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_context(copy)
    asked: list[Float16] = []
    known = scorers.GroundTruth.of

    def spied(vectors: np.ndarray, *others: object) -> scorers.GroundTruth:
        asked.extend(vectors)
        return known(vectors, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(scorers.GroundTruth, "of", spied)
    made = publish(copy, tmp_path / "out", None, LOOSE)
    served = open_bundle(tmp_path / "out" / str(made["id"]))
    held = read_held_out(copy, load(copy)[1].item_ids)
    (row,) = user_rows(held.log, [0], served.encoder)
    assert held.asked_s is not None and held.asked_s > row.last_s + 86_400
    query = served.query(row, served.own(row), Asked(elapsed_s=held.asked_s - row.last_s))
    assert any(np.array_equal(vector, query) for vector in asked)
    assert not any(np.array_equal(vector, row.vector) for vector in asked)
