"""What a checkpoint carries for export, against numbers worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from functions.core.features import Vocabulary, item_features
from tests.train.test_evaluate import interactions
from train.checkpoint import BadCheckpoint
from train.handover import (
    HALF_LIFE_S,
    popularity,
    read_features,
    write_held_out,
    write_products,
    write_vectors,
)
from train.split import split


def test_popularity_halves_every_thirty_days() -> None:
    log = interactions([0, 0, 0], [0, 0, 1])
    log = replace(log, time_s=np.array([0, HALF_LIFE_S, 2 * HALF_LIFE_S]))
    assert popularity(log).tolist() == pytest.approx([0.25 + 0.5, 1.0])


def test_an_impression_makes_nothing_popular() -> None:
    log = interactions([0, 0], [0, 1])
    assert popularity(replace(log, kind=np.array([7, 1], np.int8))).tolist() == [0.0, 1.0]


def test_products_are_lines_in_row_order_and_log_only_items_an_id(tmp_path: Path) -> None:
    write_products(tmp_path, [{"item_id": "a", "title": "Käse", "brand": None}], ["a", "x"])
    lines = (tmp_path / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"item_id": "a", "title": "Käse"}, {"item_id": "x"}]


def test_held_out_users_keep_their_order_and_their_targets(tmp_path: Path) -> None:
    parts = split(interactions([0, 1, 0, 1, 0], [0, 1, 2, 3, 4]), "leave-one-out")
    write_held_out(tmp_path, parts, seed=0)
    held = np.load(tmp_path / "held_out.npz")
    assert held["history_bounds"].tolist() == [0, 2, 3]
    assert held["item"].tolist() == [0, 2, 1]
    assert held["target_bounds"].tolist() == [0, 1, 2]
    assert held["target"].tolist() == [4, 3]
    assert held["asked_s"].tolist() == []
    write_held_out(tmp_path, replace(parts, asked_s=9), seed=0)
    assert np.load(tmp_path / "held_out.npz")["asked_s"].tolist() == [9]


def test_vectors_are_handed_over_as_they_are_and_a_cut_file_is_refused(tmp_path: Path) -> None:
    vocabulary = Vocabulary(vectors=(("image", 2),))
    products = [{"item_id": "a", "title": "Tea"}, {"item_id": "b"}]
    features = item_features(products, vocabulary, {"image": np.array([[3, 4], [0, 0]], np.float32)})
    write_vectors(tmp_path, features)
    found = read_features(tmp_path, products, vocabulary)
    assert found.vectors.tolist() == features.vectors.tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
    assert np.array_equal(found.text, features.text)
    path = tmp_path / "vectors.f32"
    for damage in (b"", path.read_bytes()[:-4], np.full(4, np.nan, "<f4").tobytes()):
        path.write_bytes(damage)
        with pytest.raises(BadCheckpoint, match=r"vectors\.f32: .* numbers; expected finite ones, 2 x 2"):
            read_features(tmp_path, products, vocabulary)
    write_vectors(tmp_path, item_features(products, Vocabulary()))
    assert not path.exists()
    with pytest.raises(BadCheckpoint, match=r"vectors\.f32: 0 numbers"):
        read_features(tmp_path, products, vocabulary)
