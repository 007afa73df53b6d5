import json

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
    with np.errstate(all="raise"):
        assert price_bucket(1e300) == PRICE_BUCKETS - 1


def test_many_values_are_bucketed_as_one() -> None:
    gaps = np.array([-1.0, 0.0, 5.0, 1e6])
    assert gap_bucket(gaps).tolist() == [int(gap_bucket(g)) for g in gaps]


@pytest.mark.parametrize("text", ["Red Mug", "赤いマグカップ", "красная кружка", "كوب أحمر", "é" * 500])
def test_text_in_any_script_gives_bounded_ngrams(text: str) -> None:
    grams = text_ngrams(text)
    assert 0 < len(grams) <= TEXT_SLOTS
    assert all(1 <= g <= TEXT_BUCKETS for g in grams)
    assert grams == text_ngrams(text.upper().lower())


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Caf\u00e9 cr\u00e8me", "cafe\u0301 cre\u0300me"),  # accents as letters' parts, and as marks
        ("\uff21\uff22\uff23 \uff11", "abc 1"),  # full width
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e4d\u0e32"),  # Thai: a vowel sign in one piece, and in two
    ],
)
def test_one_text_in_two_spellings_gives_the_same_ngrams(text: str, same: str) -> None:
    assert text_ngrams(text) == text_ngrams(same)


def test_a_word_is_not_cut_at_its_vowel_signs() -> None:
    hindi = ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0915\u093f\u0924\u093e\u092c"]  # "Hindi", "book"
    words = [text_ngrams(word)[0] for word in hindi]
    assert text_ngrams(", ".join(hindi))[:2] == words
    assert text_ngrams("\u2764\ufe0f") == []  # a heart and the mark that colours it: no word


def test_missing_content_is_zero_and_not_an_error() -> None:
    features = item_features(
        [{}, {"title": "Mug", "category": "Kitchen", "price": 2.0}], Vocabulary(("Kitchen",))
    )
    assert features.category.tolist() == [0, 1]
    assert features.price.tolist()[0] == 0
    assert features.text[0].sum() == 0
    assert features.text[1].any()


VECTORS = Vocabulary(vectors=(("image", 2), ("text", 3)))


def test_vectors_lie_one_after_another_each_of_length_one() -> None:
    image = np.array([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0]], np.float32)
    text = np.array([[0.0, 0.0, 2.0], [1.0, 2.0, 2.0], [0.0, 1e-30, 0.0]], np.float32)
    features = item_features([{}] * 3, VECTORS, {"text": text, "image": image})
    wanted = [[0.6, 0.8, 0, 0, 1], [0, 0, 1 / 3, 2 / 3, 2 / 3], [1, 0, 0, 1, 0]]
    np.testing.assert_allclose(features.vectors, wanted, atol=1e-6)
    assert list(features.columns()) == ["category", "brand", "price", "text", "vectors"]


def test_a_missing_source_is_zeros_and_no_source_is_no_column() -> None:
    one = item_features([{}], VECTORS, {"text": np.ones((1, 3), np.float32)})
    assert one.vectors.shape == (1, 5) and not one.vectors[0, :2].any()
    none = item_features([{}, {}], Vocabulary())
    assert none.vectors.shape == (2, 0)
    assert "vectors" not in none.columns()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((1, 3), np.float32), r"image: \[1, 3\] numbers; expected \[1, 2\]"),
        (np.zeros((2, 2), np.float32), r"image: \[2, 2\] numbers; expected \[1, 2\]"),
        (np.array([[0, np.nan]], np.float32), r"image: row 0 is \[0.0, nan\]…; expected 2 finite numbers"),
    ],
)
def test_vectors_that_are_not_the_vocabularys_are_named(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        item_features([{}], VECTORS, {"image": vectors})


def test_a_vocabulary_is_read_as_it_was_written() -> None:
    made = Vocabulary(("a",), ("b",), (("image", 512),), ("mobile",), ("home", "cart"))
    assert Vocabulary.read(json.loads(json.dumps(made.names()))) == made
    assert Vocabulary.read({}) == Vocabulary()
