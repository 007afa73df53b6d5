"""Queries against days and hours worked out by hand, and every way in which the context's file can lie."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from functions.core.context import (
    ELAPSED_AT,
    HOUR_AT,
    NAMES_AT,
    WEEKDAY_AT,
    Asked,
    Context,
    hour_code,
    read_context,
    table_rows,
    weekday_code,
)
from functions.core.errors import CorruptBundle
from functions.core.features import GAP_BUCKETS, Vocabulary

VOCABULARY = Vocabulary(devices=("mobile", "desktop"), slots=("home",))
MONDAY_17H = int(datetime(2026, 11, 23, 17, 59, 59, tzinfo=UTC).timestamp())
DIM = 4
FACTORS_AT = table_rows(2, 1)
INTERESTS_AT = FACTORS_AT + GAP_BUCKETS
NOTHING = np.zeros(DIM, np.float16)
VECTOR = np.array([1, -2, 3, 0.5], np.float16)
MEAN = np.array([7, 11, -13, 2], np.float32)


@pytest.mark.parametrize("time_s", [0, 1, 3599, 3600, 86_399, 86_400, MONDAY_17H, MONDAY_17H + 1, 2**31])
def test_hours_and_weekdays_are_those_of_the_calendar(time_s: int) -> None:
    moment = datetime.fromtimestamp(time_s, UTC)
    assert (hour_code(time_s), weekday_code(time_s)) == (1 + moment.hour, 1 + moment.weekday())


def written(folder: Path, table: np.ndarray) -> Path:
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY.names()))
    table.astype("<f2").tofile(folder / "context.f16")
    return folder


def table() -> np.ndarray:
    """Any numbers; row 0 and the first of the factors and of the interests are the unknown."""
    rows = np.random.default_rng(0).normal(size=(table_rows(2, 1) + 2 * GAP_BUCKETS, DIM)).astype(np.float16)
    rows[[0, FACTORS_AT, INTERESTS_AT]] = 0
    return rows


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return read_context(written(tmp_path, table()), DIM)


def ask(context: Context, vector: np.ndarray, asked: Asked) -> np.ndarray:
    return context.query(vector, asked, lambda: MEAN)


def test_a_context_adds_the_sum_of_its_rows(context: Context) -> None:
    rows = table().astype(np.float32)
    wanted = rows[NAMES_AT + 1] + rows[NAMES_AT + 2] + rows[HOUR_AT + 17] + rows[WEEKDAY_AT]
    asked = Asked("desktop", "home", MONDAY_17H)
    np.testing.assert_allclose(ask(context, NOTHING, asked), wanted, atol=1e-6)
    np.testing.assert_array_equal(ask(context, NOTHING, Asked("mobile")), rows[NAMES_AT])
    assert ask(context, NOTHING, Asked("mobile")).dtype == np.float32


@pytest.mark.parametrize(("elapsed_s", "bucket"), [(0, 1), (1, 2), (59, 7), (3600, 13), (10**9, 31)])
def test_the_time_since_the_last_event_weighs_vector_and_general_interest_and_adds_a_row(
    context: Context, elapsed_s: int, bucket: int
) -> None:
    rows = table().astype(np.float32)
    wanted = VECTOR * (1 + rows[FACTORS_AT + bucket]) + rows[ELAPSED_AT - 1 + bucket]
    wanted = wanted + MEAN * rows[INTERESTS_AT + bucket]
    later = ask(context, VECTOR, Asked(elapsed_s=elapsed_s))
    np.testing.assert_allclose(later, wanted, rtol=1e-5)
    clock = ask(context, NOTHING, Asked(time_s=MONDAY_17H))
    both = ask(context, VECTOR, Asked(time_s=MONDAY_17H, elapsed_s=elapsed_s))
    np.testing.assert_allclose(both, wanted + clock, rtol=1e-5)


def test_the_mean_is_not_asked_for_where_it_does_not_count(context: Context) -> None:
    def never() -> np.ndarray:
        raise AssertionError("asked for")

    context.query(VECTOR, Asked("mobile", "home", MONDAY_17H), never)
    silent = context._replace(interests=np.zeros_like(context.interests))
    silent.query(VECTOR, Asked(elapsed_s=60), never)
    with pytest.raises(AssertionError, match="asked for"):
        context.query(VECTOR, Asked(elapsed_s=60), never)


def test_what_is_unknown_or_not_given_changes_nothing(context: Context) -> None:
    for asked in (Asked(), Asked("fridge", "nowhere"), Asked("", "", None, None)):
        np.testing.assert_array_equal(ask(context, VECTOR, asked), VECTOR.astype(np.float32))
    of_both, of_one = ask(context, VECTOR, Asked("fridge", "home")), ask(context, VECTOR, Asked(slot="home"))
    np.testing.assert_array_equal(of_both, of_one)


UNKNOWN = {"unknown": 0, "factor": FACTORS_AT, "interest": INTERESTS_AT}


@pytest.mark.parametrize("damage", ["short", "long", "nan", *UNKNOWN])
def test_a_table_that_is_not_the_vocabularys_is_refused(tmp_path: Path, damage: str) -> None:
    rows = table()
    rows = {"short": rows[:-1], "long": np.concatenate([rows, rows[:1]])}.get(damage, rows)
    if damage in ("nan", *UNKNOWN):
        rows[UNKNOWN.get(damage, 3), 1] = np.nan if damage == "nan" else 1.0
    with pytest.raises(CorruptBundle, match=r"context\.f16: .*; expected"):
        read_context(written(tmp_path, rows), DIM)


@pytest.mark.parametrize("text", ["[", "[]", '{"devices": 3}', '{"vectors": [["a"]]}'])
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path, table())
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(CorruptBundle, match=r"vocabulary\.json"):
        read_context(tmp_path, DIM)
