"""The measurement of warm calls: both clients read the same item, and the table says who is cheaper."""

from __future__ import annotations

import pytest

from bench import calls


def test_both_are_timed_on_the_same_answers() -> None:
    report = calls.measure(1)
    assert set(report["microseconds"]) == {"get_item", "put_item"}
    assert all(us > 0 for by in report["microseconds"].values() for us in by.values())
    table = calls.as_table({"rounds": 1, "microseconds": {"get_item": {"ours": 100.0, "botocore": 250.0}}})
    assert "| get_item | 100 | 250 | 2.5 |" in table


def test_another_answer_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="expected the item"):
        calls._timed(lambda **given: {"Item": {}}, {})
