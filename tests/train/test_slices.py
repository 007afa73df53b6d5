"""Slices and what lists are beside accurate, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.train.test_evaluate import interactions
from train.evaluate import metrics
from train.slices import (
    BINS,
    NOWHERE,
    SMOOTHING,
    USERS_AT_ONCE,
    Hits,
    beyond_accuracy,
    calibration,
    coverage,
    diversity,
    estimate,
    event_counts,
    novelty,
    popularity_class,
    power_of_two_bucket,
    reliability,
    slices,
    target_kinds,
)

TOP = np.arange(20)[None]


def worlds(seed: int, users: int = 300, items: int = 60) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random lists with holes at their ends, and one to twelve targets a user."""
    g = np.random.default_rng(seed)
    top = np.stack([g.permutation(items)[:20] for _ in range(users)])
    top[::7, 15:] = -1
    return top, [g.permutation(items)[: g.integers(1, 13)] for _ in range(users)]


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_is_what_evaluation_says(seed: int) -> None:
    top, targets = worlds(seed)
    _, found = Hits.find(top, targets, 60).scores()
    expected = metrics(top, targets, 60)
    assert found.keys() == {"hr@10", "ndcg@10", "recall@20"}
    for name, values in found.items():
        assert values.mean() == pytest.approx(expected[name], abs=1e-12)


def test_no_item_is_nobodys_hit() -> None:
    """-1 in one user's list must not be taken for the last item of the user before."""
    top = np.array([[0, 1], [-1, -1]])
    assert Hits.find(top, [np.array([5]), np.array([0])], 6).place.tolist() == [NOWHERE] * 2


def test_what_a_short_list_lacks_is_no_hit() -> None:
    _, found = Hits.find(np.array([[0, 1]]), [np.array([2])], 3).scores()
    assert {name: values.tolist() for name, values in found.items()} == {name: [0.0] for name in found}


def test_a_user_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some for each list"):
        Hits.find(TOP, [np.array([], np.int64)], 20)


def test_part_of_the_targets_is_scored_by_itself() -> None:
    hits = Hits.find(TOP, [np.array([0, 2, 15, 99])], 100)
    has, found = hits.scores(hits.item >= 2)
    assert has.tolist() == [True]
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@10"].tolist() == pytest.approx([1 / math.log2(4) / ideal])
    assert found["recall@20"].tolist() == pytest.approx([2 / 3])


def test_buckets_are_powers_of_two() -> None:
    bucket, names = power_of_two_bucket(np.array([0, 1, 2, 3, 4, 7, 8, 15, 16]))
    assert [names[b] for b in bucket] == ["0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "8-15", "16-31"]
    assert power_of_two_bucket(np.array([0]))[1] == ["0"]


def test_the_head_are_the_items_that_begin_within_a_fifth_of_the_events() -> None:
    counts = np.array([0, 1, 2, 2, 5])  # in order of events: 5 at 0 %, 2 at 50 %, 2 at 70 %, 1 at 90 %
    assert popularity_class(counts).tolist() == [3, 2, 1, 1, 0]
    edge = np.array([2] * 5)  # they begin at 0, 20, 40, 60 and 80 %: the bounds belong to what comes after
    assert popularity_class(edge).tolist() == [0, 1, 1, 1, 2]


def test_slices_by_history_popularity_type_and_device() -> None:
    # user 0 has one event, user 1 three; item 0 has 3 of 4 events (head), item 3 one (mid), item 1 none
    train = interactions([0, 1, 1, 1], [3, 0, 0, 0])
    top = np.array([[1, 2], [2, 3]])
    targets = [np.array([1, 2]), np.array([0, 3])]
    found = slices(
        top,
        targets,
        [0, 1],
        train,
        kinds=[np.array([1, 4]), np.array([4, 4])],
        devices=["phone", None],
    )
    assert {by: list(parts) for by, parts in found.items()} == {
        "all": ["all"],
        "history_length": ["1", "2-3"],
        "item_popularity": ["head", "mid", "new"],
        "repeat_or_new": ["new", "repeat"],
        "event_type": ["view", "purchase"],
        "device": ["phone"],
    }
    third = 1 / math.log2(3)
    assert mean(found["history_length"]["1"], "ndcg@10") == pytest.approx(1.0)
    assert mean(found["history_length"]["2-3"], "ndcg@10") == pytest.approx(third / (1 + third))
    assert mean(found["item_popularity"]["head"], "hr@10") == 0.0
    assert mean(found["item_popularity"]["mid"], "ndcg@10") == pytest.approx(third)
    # user 0 never had 1 or 2; user 1 had 0, which is not in the list, and not 3, which is second
    assert mean(found["repeat_or_new"]["repeat"], "hr@10") == 0.0
    assert found["repeat_or_new"]["repeat"]["users"] == 1
    assert mean(found["repeat_or_new"]["new"], "ndcg@10") == pytest.approx((1.0 + third) / 2)
    assert found["event_type"]["purchase"]["users"] == 2
    assert mean(found["event_type"]["purchase"], "recall@20") == pytest.approx((1 + 1 / 2) / 2)


def mean(part: dict[str, Any], name: str) -> float:
    return float(part[name]["mean"])


def test_a_log_without_types_and_devices_has_no_such_slice() -> None:
    found = slices(np.array([[1]]), [np.array([1])], [0], interactions([0, 0], [0, 1]))
    assert found.keys() == {"all", "history_length", "item_popularity", "repeat_or_new"}


def test_impressions_make_no_history_and_no_popularity() -> None:
    train = interactions([0, 0, 0, 0], [0, 1, 1, 1])
    train = replace(train, kind=np.array([1, 7, 7, 7], np.int8))
    assert event_counts(train).tolist() == [1, 0]
    found = slices(np.array([[1]]), [np.array([1])], [0], train)
    assert list(found["history_length"]) == ["1"]
    assert list(found["item_popularity"]) == ["new"]


def test_a_targets_type_is_that_of_the_last_event_with_it() -> None:
    log = interactions([0, 1, 0, 0, 0], [1, 1, 1, 2, 2])
    log = replace(log, kind=np.array([1, 3, 4, 2, 7], np.int8))
    found = target_kinds(log, [0, 1], [np.array([1, 2, 0]), np.array([1])])
    assert [kinds.tolist() for kinds in found] == [[4, 2, 0], [3]]


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    g = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        found = estimate(g.normal(5, 1, 100), seed=seed)
        assert found.low is not None and found.high is not None
        assert found.low < found.mean < found.high
        held += found.low <= 5 <= found.high
    assert 88 <= held <= 99


def test_users_are_resampled_whole() -> None:
    """Ten users of a hundred equal events each: a bootstrap over events would give a tenth of the width."""
    sums, counts = np.array([0.0, 100.0] * 5), np.full(10, 100)
    clustered, single = estimate(sums, counts), estimate(sums / 100)
    assert clustered == single
    assert clustered.low is not None and clustered.high is not None
    assert clustered.high - clustered.low > 0.4


def test_a_mean_over_events_weighs_users_by_their_events() -> None:
    assert estimate(np.array([3.0, 0.0, 9.0]), np.array([3, 1, 0])).mean == 0.75


def test_an_interval_is_the_same_again_under_one_seed_only() -> None:
    values = np.random.default_rng(1).random(50)
    assert estimate(values, seed=1) == estimate(values, seed=1) != estimate(values, seed=2)


def test_one_user_has_a_mean_and_no_interval_and_none_is_refused() -> None:
    alone = estimate(np.array([0.5]))
    assert (alone.mean, alone.low, alone.high) == (0.5, None, None)
    with pytest.raises(ValueError, match="expected at least one value"):
        estimate(np.zeros(0))


def test_coverage_counts_what_anybody_is_shown() -> None:
    assert coverage(np.array([[0, 1], [1, -1]]), 8) == 2 / 8


def test_diversity_is_one_minus_the_mean_cosine() -> None:
    embeddings = np.array([[1, 0], [0, 2], [3, 0], [-1, 0]], np.float16)
    top = np.array([[0, 2, -1], [0, 1, -1], [0, 3, -1], [0, 1, 2], [0, -1, -1]])
    found = diversity(top, embeddings)
    assert found[:4].tolist() == pytest.approx([0.0, 1.0, 2.0, 1 - 1 / 3])
    assert np.isnan(found[4])


def test_novelty_is_the_mean_of_the_self_information_in_bits() -> None:
    counts = np.array([8, 4, 3, 1, 0])
    found = novelty(np.array([[0, 1], [3, -1], [4, -1], [-1, -1]]), counts)
    assert found[:3].tolist() == pytest.approx([(1 + 2) / 2, 4, 4])
    assert np.isnan(found[3])


def test_calibration_is_the_divergence_of_the_categories() -> None:
    # categories: item 0 of 1, item 1 of 2, item 2 of none
    train = interactions([0, 0, 1, 2, 3], [0, 1, 0, 2, 0])
    top = np.array([[0, 1], [1, 2], [0, 1], [2, -1], [0, -1]])
    found = calibration(top, [0, 1, 2, 3, 1], train, np.array([1, 2, 0]))
    assert found[[0, 1, 4]].tolist() == pytest.approx([0.0, -math.log(SMOOTHING), 0.0], abs=1e-12)
    assert np.isnan(found[[2, 3]]).all()
    half = calibration(np.array([[0, 1]]), [1], train, np.array([1, 2, 0]))
    assert half.tolist() == pytest.approx([math.log(1 / ((1 - SMOOTHING) / 2 + SMOOTHING))])


def test_what_no_list_has_is_left_out() -> None:
    train = interactions([0, 0], [0, 1])
    found = beyond_accuracy(np.array([[0]]), [0], train, np.eye(2, dtype=np.float16), np.zeros(2, np.int64))
    assert found == {"coverage": 0.5, "novelty_bits": {"mean": 1.0, "low": None, "high": None}}


def test_more_users_than_go_through_at_once() -> None:
    users = USERS_AT_ONCE + 1
    train = interactions(list(range(users)), [u % 2 for u in range(users)])
    top = np.array([[u % 2] for u in range(users)])
    assert calibration(top, list(range(users)), train, np.array([1, 2])).tolist() == [0.0] * users


def test_reliability_bins_what_was_said_and_what_came() -> None:
    found: Any = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert [(b["events"], b["right"]) for b in found["bins"]] == [(2, 0.5), (2, 1.0)]
    assert found["ece"] == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        reliability(np.array([1.1]), np.array([True]))


def test_a_forecaster_that_says_what_comes_is_reliable() -> None:
    g = np.random.default_rng(2)
    probability = g.random(100_000)
    right = g.random(100_000) < probability
    assert reliability(probability, right)["ece"] < 0.01  # type: ignore[operator]
    assert reliability(1 - probability, right)["ece"] > 0.4  # type: ignore[operator]
    assert len(reliability(probability, right)["bins"]) == BINS  # type: ignore[arg-type]
