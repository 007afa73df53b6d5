"""Settings by name: of the model's shape, of the training, and of nothing else."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from functions.core.features import ItemFeatures, Vocabulary
from tests.train.test_fit import circle
from train.options import Options
from train.rules import SLOW_ITEM_RATE
from train.run import Asked, Task, _settings
from train.settings import changed, read, settings, shown
from train.split import split
from train.towers import Shape

SHAPE, OPTIONS = Shape(items=5, categories=0, brands=0), Options()
KNOWN = settings(SHAPE, OPTIONS)


def test_values_have_the_type_of_what_they_replace() -> None:
    values = read(["dropout=0", "window = 50", "loss=bpr", "dropout=0.25"], KNOWN)
    assert values == {"dropout": 0.25, "window": 50, "loss": "bpr"}
    shape, options = changed(SHAPE, OPTIONS, values)
    assert (shape.dropout, options.window, options.loss) == (0.25, 50, "bpr")
    assert (shape.width, options.epochs) == (SHAPE.width, OPTIONS.epochs)


def test_what_is_shown_is_read_as_it_was() -> None:
    values = {"learning_rate": 0.1 + 0.2, "window": 7, "loss": "bpr"}
    assert read(shown(values).replace("--set", "").split(), KNOWN) == values


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("dropout", "expected NAME=VALUE with one of .*dropout"),
        ("drop=0.1", "expected NAME=VALUE"),
        ("items=7", "expected NAME=VALUE"),
        ("seed=7", "expected NAME=VALUE"),
        ("window=ten", "'ten'; expected int"),
        ("window=1.5", "'1.5'; expected int"),
    ],
)
def test_what_cannot_be_set_is_named(assignment: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"--set {assignment}: .*{said}" if "'" not in said else said):
        read([assignment], KNOWN)


def test_an_impossible_value_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(ValueError, match="dropout is 2"):
        changed(SHAPE, OPTIONS, {"dropout": 2.0})
    with pytest.raises(ValueError, match="'items' is no setting"):
        changed(SHAPE, OPTIONS, {"items": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(["clip", "item_rate", "weight_decay"], [-1.0, math.inf, math.nan]),
        *product(["clip", "item_rate"], [0.0]),
    ],
)
def test_what_would_train_nothing_or_uphill_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"options\.{name} is {value}; expected a number"):
        changed(SHAPE, OPTIONS, {name: value})


def test_weights_may_decay_not_at_all() -> None:
    assert changed(SHAPE, OPTIONS, {"weight_decay": 0.0})[1].weight_decay == 0.0


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], ("masked", 33.3)),  # 45 events of an item
        (["full_softmax_items=9"], ("free", SLOW_ITEM_RATE)),
        (["loss=bpr"], ("free", SLOW_ITEM_RATE)),
        (["full_softmax_items=9", "item_rate=7", "history=masked"], ("masked", 7.0)),
    ],
)
def test_the_rules_know_which_loss_is_set(assignments: list[str], expected: tuple[str, float]) -> None:
    parts = split(circle(), "leave-one-out")
    features = ItemFeatures(*np.zeros((3, 12), np.int64), np.zeros((12, 32), np.int64))
    task = Task(circle(), [], features, Vocabulary(), parts, parts, 0)
    options = _settings(task, Asked("", Path(), assignments=assignments))[1]
    assert (options.history, options.item_rate) == expected
