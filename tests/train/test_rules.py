"""Defaults by the log's size, length and sparsity."""

import numpy as np
import pytest

from functions.core.events import IMPRESSION
from train.log import Interactions
from train.options import Options
from train.rules import (
    FASTEST_ITEMS,
    LOGITS_AN_EPOCH,
    SLOW_ITEM_RATE,
    WIDE_UP_TO,
    Facts,
    facts,
    options_for,
    shape_for,
    softmax_items_for,
)

MOST = Options.full_softmax_items


def test_dropout_grows_as_histories_shorten() -> None:
    found = [shape_for(Facts(1_000, users, 100_000)).dropout for users in (100, 1_000, 10_000, 50_000)]
    assert found == sorted(found)
    assert 0.1 <= found[0] < found[-1] <= 0.5


def test_ids_learn_slowly_where_items_are_many_or_sampled() -> None:
    small, large = (options_for(Facts(items, 10, 10**8), Options()) for items in (WIDE_UP_TO, WIDE_UP_TO + 1))
    assert (small.item_rate, large.item_rate) == (Options.item_rate, SLOW_ITEM_RATE)
    assert options_for(Facts(MOST + 1, 10, 1_000), Options(item_rate=1.0)).item_rate == 1.0
    less = options_for(Facts(1_000, 10, 1_000), Options(full_softmax_items=999))
    assert (less.item_rate, less.history) == (SLOW_ITEM_RATE, "free")


def test_ids_learn_the_faster_the_fewer_events_an_item_has() -> None:
    rates = [
        options_for(Facts(1_000, 10, events), Options()).item_rate
        for events in (10**7, 50_000, 25_000, 10_000, 1_000, 0)
    ]
    assert rates[:4] == [Options.item_rate, Options.item_rate, 60.0, 150.0]
    assert rates[4] == rates[5] == FASTEST_ITEMS * Options.item_rate
    twice = options_for(Facts(1_000, 10, 10_000), Options(item_rate=60.0)).item_rate
    assert twice == 300.0


def test_every_item_is_scored_up_to_a_hundred_thousand_of_them() -> None:
    assert MOST == 100_000
    assert Options().scores_every(MOST) and not Options().scores_every(MOST + 1)
    assert not Options(loss="bpr").scores_every(10)


def test_without_a_gpu_a_large_catalogue_is_scored_whole_where_the_log_is_small() -> None:
    small, large = (Facts(80_000, 1_000, events) for events in (250_000, 250_001))
    assert small.items * small.events == LOGITS_AN_EPOCH
    assert softmax_items_for(small, gpu=False) == 80_000 > softmax_items_for(large, gpu=False) > 79_990
    assert softmax_items_for(large, gpu=True) == softmax_items_for(Facts(9, 1, 1), gpu=False) == MOST
    assert softmax_items_for(Facts(80_000, 1_000, 10**9), gpu=False) == 30_000
    assert softmax_items_for(Facts(9, 0, 0), gpu=False) == MOST


def test_the_loss_is_said() -> None:
    said = [Options(loss=loss).described(items) for loss, items in (("softmax", MOST), ("bpr", 10))]
    assert said[0] == "softmax over all 100,000 items"
    sample = "1,024 drawn and 512 of the batch, of"
    assert said[1] == f"bpr over a sample: {sample} 10 items"
    corrected = f"softmax over a sample: {sample} 100,001 items, logQ corrected"
    assert Options().described(MOST + 1) == corrected


def test_wide_vectors_are_for_what_is_quickly_scanned() -> None:
    small, large = (shape_for(Facts(items, 10, 1_000)) for items in (WIDE_UP_TO, WIDE_UP_TO + 1))
    assert (small.dim, large.dim) == (128, 64)
    assert shape_for(Facts(WIDE_UP_TO + 1, 10, 1_000), dim=128).dim == 128


def test_small_logs_are_seen_more_often() -> None:
    found = [options_for(Facts(100, 10, events), Options()).epochs for events in (10**3, 10**6, 10**8)]
    assert found == [60, 16, 8]
    assert options_for(Facts(100, 10, 10**6), Options(), epochs=3).epochs == 3


def test_the_history_is_masked_where_nobody_does_a_thing_twice() -> None:
    assert options_for(Facts(10, 10, 1_000, repeats=0.0), Options()).history == "masked"
    assert options_for(Facts(10, 10, 1_000, repeats=0.1), Options()).history == "weighed"
    assert options_for(Facts(MOST + 1, 10, 1_000, repeats=0.1), Options()).history == "free"


def test_a_repeat_is_a_users_event_with_an_item_that_the_same_user_has_met() -> None:
    none = np.zeros(6, np.float32)
    kind = np.array([1, 1, 1, 1, 4, IMPRESSION], np.int8)
    columns = np.array([0, 0, 1, 1, 1, 1], np.int32), np.array([0, 1, 0, 1, 1, 0], np.int32)
    log = Interactions(*columns, kind, np.arange(6), none, ["a", "b"], ["x", "y"])
    assert facts(log) == Facts(items=2, users=2, events=5, repeats=pytest.approx(1 / 5))
