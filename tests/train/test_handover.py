"""What a checkpoint carries for export, against numbers worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_evaluate import interactions
from train.handover import HALF_LIFE_S, popularity, write_held_out, write_products
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
