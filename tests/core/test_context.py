"""The context vector against days and hours worked out by hand, and every way in which its file can lie."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from functions.core.context import (
    HOUR_AT,
    NAMES_AT,
    WEEKDAY_AT,
    Context,
    hour_code,
    read_context,
    table_rows,
    weekday_code,
)
from functions.core.errors import CorruptBundle
from functions.core.features import Vocabulary

VOCABULARY = Vocabulary(devices=("mobile", "desktop"), slots=("home",))
MONDAY_17H = int(datetime(2026, 11, 23, 17, 59, 59, tzinfo=UTC).timestamp())
DIM = 4


@pytest.mark.parametrize("time_s", [0, 1, 3599, 3600, 86_399, 86_400, MONDAY_17H, MONDAY_17H + 1, 2**31])
def test_hours_and_weekdays_are_those_of_the_calendar(time_s: int) -> None:
    moment = datetime.fromtimestamp(time_s, UTC)
    assert (hour_code(time_s), weekday_code(time_s)) == (1 + moment.hour, 1 + moment.weekday())


def written(folder: Path, table: np.ndarray) -> Path:
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY.names()))
    table.astype("<f2").tofile(folder / "context.f16")
    return folder


def table() -> np.ndarray:
    """Any numbers; row 0 is the unknown."""
    rows = np.random.default_rng(0).normal(size=(table_rows(2, 1), DIM)).astype(np.float16)
    rows[0] = 0
    return rows


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return read_context(written(tmp_path, table()), DIM)


def test_a_context_is_the_sum_of_its_rows(context: Context) -> None:
    rows = table().astype(np.float32)
    wanted = rows[NAMES_AT + 1] + rows[NAMES_AT + 2] + rows[HOUR_AT + 17] + rows[WEEKDAY_AT]
    np.testing.assert_allclose(context.vector("desktop", "home", MONDAY_17H), wanted, atol=1e-6)
    np.testing.assert_array_equal(context.vector(device="mobile"), rows[NAMES_AT])
    assert context.vector("mobile").dtype == np.float32


def test_what_is_unknown_or_not_given_adds_nothing(context: Context) -> None:
    assert not context.vector().any()
    assert not context.vector("fridge", "nowhere").any()
    np.testing.assert_array_equal(context.vector("fridge", "home"), context.vector(slot="home"))


@pytest.mark.parametrize("damage", ["short", "long", "nan", "unknown"])
def test_a_table_that_is_not_the_vocabularys_is_refused(tmp_path: Path, damage: str) -> None:
    rows = table()
    rows = {"short": rows[:-1], "long": np.concatenate([rows, rows[:1]])}.get(damage, rows)
    if damage in ("nan", "unknown"):
        rows[0 if damage == "unknown" else 3, 1] = np.nan if damage == "nan" else 1.0
    with pytest.raises(CorruptBundle, match=r"context\.f16: .*; expected"):
        read_context(written(tmp_path, rows), DIM)


@pytest.mark.parametrize("text", ["[", "[]", '{"devices": 3}', '{"vectors": [["a"]]}'])
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path, table())
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(CorruptBundle, match=r"vocabulary\.json"):
        read_context(tmp_path, DIM)
