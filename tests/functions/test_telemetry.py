"""Lines of the log and of metrics, as CloudWatch reads them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from functions.aws.telemetry import Lines, emit, logger


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_has_what_was_given_beside_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    logger.warning("%s refused", "a row", extra={"error": "no such table", "odd": {1}})
    (line,) = said(capsys)
    assert (line["level"], line["message"], line["error"]) == ("WARNING", "a row refused", "no such table")
    assert line["odd"] == "{1}" and line["service"] == "vitrine"
    assert line["location"].startswith("test_telemetry.test_a_line_has")
    assert line["timestamp"].endswith("Z")


def test_an_exception_is_told_with_its_trace_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("7 is odd\nand long")
    except ValueError:
        logger.exception("request failed")
    (line,) = said(capsys)
    assert line["exception_name"] == "ValueError" and "7 is odd\nand long" in line["exception"]


def test_the_runtimes_own_handler_does_not_tell_it_once_more() -> None:
    assert not logger.propagate
    assert [isinstance(handler, Lines) for handler in logger.handlers].count(True) == 1


def test_a_line_that_cannot_be_written_breaks_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    with monkeypatch.context() as full:
        full.setattr(sys, "stdout", Full())
        logger.error("row not read")


def test_metrics_are_in_the_embedded_format(capsys: pytest.CaptureFixture[str]) -> None:
    """Every metric and every dimension that the directive names is a member of the line, once."""
    emit({"Banners": 5}, {"Duration": 1.5}, {"tier": "personal"}, {"shard": "s-1"})
    (line,) = said(capsys)
    (stated,) = line["_aws"]["CloudWatchMetrics"]
    assert isinstance(line["_aws"]["Timestamp"], int)
    assert (stated["Namespace"], stated["Dimensions"]) == ("Vitrine", [["service", "tier"]])
    assert [(m["Name"], m["Unit"], line[m["Name"]]) for m in stated["Metrics"]] == [
        ("Banners", "Count", [5]),
        ("Duration", "Milliseconds", [1.5]),
    ]
    assert (line["service"], line["tier"], line["shard"]) == ("vitrine", "personal", "s-1")


def test_nothing_is_said_where_all_logging_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        emit({"Banners": 5})
        logger.error("lost")
    finally:
        logging.disable(logging.NOTSET)
    assert said(capsys) == []
