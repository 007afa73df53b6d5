import numpy as np
import pytest

from functions.core.features import (
    GAP_BUCKETS,
    PRICE_BUCKETS,
    TEXT_BUCKETS,
    TEXT_SLOTS,
    VALUE_BUCKETS,
    Vocabulary,
    gap_bucket,
    item_features,
    price_bucket,
    text_ngrams,
    value_bucket,
)


@pytest.mark.parametrize(
    ("gap_s", "bucket"), [(-1, 0), (0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (86_400, 18), (2**60, 31)]
)
def test_gap_buckets_are_powers_of_two(gap_s: int, bucket: int) -> None:
    assert gap_bucket(gap_s) == bucket < GAP_BUCKETS


@pytest.mark.parametrize(
    ("value", "bucket"), [(np.nan, 0), (0.0, 1), (0.124, 1), (0.125, 2), (1.0, 5), (1e9, 15), (np.inf, 15)]
)
def test_value_buckets_are_powers_of_two(value: float, bucket: int) -> None:
    assert value_bucket(value) == bucket < VALUE_BUCKETS


def test_price_buckets_never_decrease_and_stay_in_range() -> None:
    buckets = price_bucket(np.geomspace(0.01, 1e12, 500))
    assert (np.diff(buckets) >= 0).all()
    assert buckets.min() == 1
    assert buckets.max() == PRICE_BUCKETS - 1
    assert price_bucket(np.nan) == 0


def test_many_values_are_bucketed_as_one() -> None:
    gaps = np.array([-1.0, 0.0, 5.0, 1e6])
    assert gap_bucket(gaps).tolist() == [int(gap_bucket(g)) for g in gaps]


@pytest.mark.parametrize("text", ["Red Mug", "赤いマグカップ", "красная кружка", "كوب أحمر", "é" * 500])
def test_text_in_any_script_gives_bounded_ngrams(text: str) -> None:
    grams = text_ngrams(text)
    assert 0 < len(grams) <= TEXT_SLOTS
    assert all(1 <= g <= TEXT_BUCKETS for g in grams)
    assert grams == text_ngrams(text.upper().lower())


def test_missing_content_is_zero_and_not_an_error() -> None:
    features = item_features(
        [{}, {"title": "Mug", "category": "Kitchen", "price": 2.0}], Vocabulary(("Kitchen",))
    )
    assert features.category.tolist() == [0, 1]
    assert features.price.tolist()[0] == 0
    assert features.text[0].sum() == 0
    assert features.text[1].any()
