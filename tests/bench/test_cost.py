"""The cost model against sums by hand."""

from __future__ import annotations

import tomllib

import pytest

from bench.cost import PRICES, RATES, Assumed, Measured, as_table, banners, cost, events

STATED = tomllib.loads(PRICES.read_text())
LIST = {name: entry["price"] for name, entry in STATED.items() if isinstance(entry, dict)}
HANDLER = {
    "events_a_batch": 100,
    "milliseconds": {
        "banners": {"p50": 1.4},
        "events, one": {"p50": 0.2},
        "update, a batch of 100": {"p50": 20.0},
    },
}


def test_a_banner_request_by_hand() -> None:
    said = banners(Measured(1.4, 0.2, 0.2, 1904), Assumed(read_ms=4.0), LIST)
    assert said["HTTP API"] == 1.0
    assert said["Lambda"] == pytest.approx(0.2 + 6e-3 * 1.769 * 16.6667, abs=1e-4)  # 5.4 ms are billed as 6
    assert said["DynamoDB"] == 0.125
    assert said["transfer"] == pytest.approx(0.54)


def test_an_event_by_hand() -> None:
    said = events(Measured(1.4, 0.2, 0.2, 2049), Assumed(), LIST, rate=1)
    assert said["DynamoDB"] == pytest.approx(3 * 0.625 + 0.125)  # one byte over 2 KB is a third unit
    assert said["Kinesis"] == pytest.approx(1.024 * (0.12 + 0.1 * 6 / 30) + 0.04 / 3600 * 1e6)
    busy = events(Measured(1.4, 0.2, 0.2, 2049), Assumed(), LIST, rate=10_000)
    assert all(busy[part] <= said[part] for part in said)


def test_every_rate_and_every_price_has_its_place() -> None:
    report = cost(HANDLER)
    assert [row["a_second"] for row in report["rates"]] == list(RATES)
    for name, entry in STATED.items():
        if isinstance(entry, dict):
            assert entry["price"] > 0 and entry["page"].startswith("https://aws.amazon.com/"), name
            assert entry["seen"], name
    assert "not read anew" not in as_table(report)
    report["prices"]["kinesis_gb_in"]["seen"] = ""
    assert "not read anew, but taken as known: kinesis_gb_in." in as_table(report)
    assert report["measured"]["update_ms_an_event"] == 0.2
