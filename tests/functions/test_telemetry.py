"""Lines of metrics, as CloudWatch reads them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from functions.aws.telemetry import emit


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_metrics_are_in_the_embedded_format(capsys: pytest.CaptureFixture[str]) -> None:
    """Every metric and every dimension that the directive names is a member of the line, once."""
    emit({"Banners": 5}, {"Duration": 1.5}, {"tier": "personal"}, {"shard": "s-1"})
    (line,) = said(capsys)
    (stated,) = line["_aws"]["CloudWatchMetrics"]
    assert isinstance(line["_aws"]["Timestamp"], int)
    (under,) = stated["Dimensions"]
    assert (stated["Namespace"], set(under)) == ("Vitrine", {"service", "tier"}) and len(under) == 2
    assert [(m["Name"], m["Unit"], line[m["Name"]]) for m in stated["Metrics"]] == [
        ("Banners", "Count", [5]),
        ("Duration", "Milliseconds", [1.5]),
    ]
    assert (line["service"], line["tier"], line["shard"]) == ("vitrine", "personal", "s-1")


def test_nothing_is_said_where_all_logging_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        emit({"Banners": 5})
    finally:
        logging.disable(logging.NOTSET)
    assert said(capsys) == []
