"""Embedding in bulk: by the chunk, on the fastest device that is there, and only what is due."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from export import embed as embedding
from export.embed import Content, embed, embed_by_torch, open_on_fastest
from export.handover import read_products
from export.origins import content_hash
from export.towers import export_item_tower
from export.verify import ULP, units_apart
from functions.core.features import ItemFeatures, Vocabulary, item_features
from tests.bundles import tiny_checkpoint
from train.checkpoint import Meta, load
from train.towers import Towers

ITEMS = 62


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Towers, Meta]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return (folder, *load(folder))


@pytest.fixture(scope="module")
def tower(checkpoint: tuple[Path, Towers, Meta], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tower") / "item_tower.onnx"
    export_item_tower(checkpoint[1], path)
    return path


class Asked:
    """Content of a checkpoint's products, and how many were asked for at a time."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.sizes: list[int] = []

    def __call__(self, rows: np.ndarray) -> ItemFeatures:
        self.sizes.append(len(rows))
        return self.content(rows)


def test_a_chunk_of_products_is_read_at_a_time(
    checkpoint: tuple[Path, Towers, Meta], tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, towers, meta = checkpoint
    content, tower_ids = read_products(folder, meta).content, np.arange(1, ITEMS + 1)
    whole = embed(tower, content, tower_ids)
    monkeypatch.setattr(embedding, "CHUNK", 7)
    asked = Asked(content)
    parts = embed(tower, asked, tower_ids)
    assert asked.sizes == [7] * 8 + [6]
    assert units_apart(whole.table, parts.table).max() <= ULP and parts.due.all()
    assert np.array_equal(whole.content, parts.content)
    assert np.array_equal(parts.content, content_hash(content(np.arange(ITEMS))))
    assert units_apart(embed_by_torch(towers.item, asked, tower_ids), whole.table).max() <= ULP
    assert max(asked.sizes) == 7


def test_what_is_not_due_is_read_and_not_embedded(
    checkpoint: tuple[Path, Towers, Meta], tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, meta = checkpoint
    content, tower_ids = read_products(folder, meta).content, np.arange(1, ITEMS + 1)
    whole = embed(tower, content, tower_ids)
    monkeypatch.setattr(embedding, "CHUNK", 20)
    old = whole.content.copy()
    old[[3, 41]] ^= 1  # of two products another content was embedded before
    some = embed(tower, content, tower_ids, lambda rows, hashes: hashes != old[rows])
    assert np.flatnonzero(some.due).tolist() == [3, 41]
    assert np.flatnonzero(some.table.any(1)).tolist() == [3, 41]
    assert units_apart(some.table[[3, 41]], whole.table[[3, 41]]).max() <= ULP


def test_a_catalogue_is_read_where_it_is_asked_for(checkpoint: tuple[Path, Towers, Meta]) -> None:
    folder, _, meta = checkpoint
    products = read_products(folder, meta)
    lines = [json.loads(line) for line in (folder / "catalogue.jsonl").read_text().splitlines()]
    rows = np.array([61, 3, 40, 3])
    expected = item_features([lines[row] for row in rows], Vocabulary.read(meta.vocabulary))
    for name, column in products.content(rows).columns().items():
        assert np.array_equal(column, expected.columns()[name])
    assert [product.item_id for product in products.shown] == list(meta.item_ids)
    turned = products.in_order(np.arange(ITEMS)[::-1].copy(), 5)
    assert turned.shown[0] == products.shown[61] and turned.showable == 5
    assert np.array_equal(turned.content(np.array([0])).text, products.content(np.array([61])).text)


@pytest.mark.parametrize(
    ("cuda", "offered", "expected"),
    [
        (True, True, ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        (True, False, ["CPUExecutionProvider"]),
        (False, True, ["CPUExecutionProvider"]),
    ],
)
def test_a_gpu_is_asked_for_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, offered: bool, expected: list[str]
) -> None:
    asked: list[Any] = []
    there = ["CPUExecutionProvider", *(["CUDAExecutionProvider"] if offered else [])]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(ort, "get_available_providers", lambda: there)
    monkeypatch.setattr(ort, "InferenceSession", lambda path, providers: asked.append(providers))
    open_on_fastest(Path("item_tower.onnx"))
    assert asked == [expected]


def test_items_a_second_are_told(
    checkpoint: tuple[Path, Towers, Meta], tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, meta = checkpoint
    embed(tower, read_products(folder, meta).content, np.arange(1, ITEMS + 1))
    said = capsys.readouterr().out
    assert f"embedded {ITEMS} items on the CPU, " in said and "tower alone on the CPU" not in said


class OnCuda:
    """A session of this machine that says it is a GPU's."""

    def __init__(self, model: Path) -> None:
        self._session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.run, self.get_outputs = self._session.run, self._session.get_outputs

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_on_a_gpu_items_a_second_are_told_for_the_cpu_too(
    checkpoint: tuple[Path, Towers, Meta],
    tower: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, meta = checkpoint
    content, tower_ids = read_products(folder, meta).content, np.arange(1, ITEMS + 1)
    by_cpu = embed(tower, content, tower_ids)
    capsys.readouterr()
    monkeypatch.setattr(embedding, "open_on_fastest", OnCuda)
    monkeypatch.setattr(embedding, "CHUNK", 20)
    made = embed(tower, content, tower_ids, lambda rows, hashes: rows >= 30)
    said = capsys.readouterr().out
    assert "embedded 32 items on the GPU, " in said
    assert re.search(r"the tower alone on the CPU [\d,]+ a second, by 10 of them", said)
    assert np.array_equal(made.table[:30], np.zeros_like(made.table[:30]))
    assert units_apart(made.table[30:], by_cpu.table[30:]).max() <= ULP
    embed(tower, content, tower_ids, lambda rows, hashes: rows < 0)
    assert "tower alone on the CPU" not in capsys.readouterr().out
