"""The cost model against sums by hand."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cost import (
    PRICES,
    RATES,
    Assumed,
    Measured,
    as_table,
    at_rest,
    banners,
    cost,
    erasures,
    events,
    main,
    measure,
)
from tests.test_template import CloudFormation

STATED = tomllib.loads(PRICES.read_text())
LIST = {name: entry["price"] for name, entry in STATED.items() if isinstance(entry, dict)}
TEMPLATE = Path(__file__).parents[2] / "template.yaml"
SEEN = Measured(1.4, 0.2, 0.2, 0.05, row_bytes=2049, key_bytes=80, line_bytes=1000)
COUNTED = {
    "AWS::CloudWatch::Alarm",
    "AWS::DynamoDB::Table",
    "AWS::Kinesis::Stream",
    "AWS::KinesisFirehose::DeliveryStream",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SQS::Queue",
    "AWS::SecretsManager::Secret",
    "AWS::Serverless::Function",
    "AWS::Serverless::HttpApi",
}
FREE = {"AWS::IAM::Role", "AWS::S3::BucketPolicy"}
HANDLER: dict[str, Any] = {
    "events_a_batch": 100,
    "milliseconds": {
        "banners": {"p50": 1.4},
        "events, one": {"p50": 0.2},
        "update, a batch of 100": {"p50": 20.0},
        "archive, a batch of 100": {"p50": 5.0},
    },
}


def test_a_banner_request_by_hand() -> None:
    said = banners(SEEN, Assumed(read_ms=4.0), LIST)
    assert said["HTTP API"] == 1.0
    # 5.4 ms are billed as 6, and of a thousand calls one begins with 600 ms
    assert said["Lambda"] == pytest.approx(0.2 + 6.6e-3 * 1.769 * 16.6667, abs=1e-4)
    assert said["SnapStart"] == pytest.approx(1000 * 1.769 * 0.0001397998)
    assert said["DynamoDB"] == 0.125
    assert said["logs"] == pytest.approx(0.9 * (0.50 + 0.03))
    assert said["transfer"] == pytest.approx(0.54)
    assert len(said) == 6


def test_an_event_by_hand() -> None:
    """Four shards at one a second: each of update's batches has an event, each of archive's 15."""
    said = events(SEEN, Assumed(), LIST, rate=1)
    # 0.2 ms of a vCPU are 0.69 with 512 MB: 8.69 ms, billed as 9
    assert said["collect"] == pytest.approx(0.2 + 9.6e-3 * 0.512 * 16.6667, abs=1e-4)
    # 1 KB in, read by update and by Firehose, kept for six days more, in a stream that is there all the time
    assert said["Kinesis"] == pytest.approx(1.024 * (0.08 + 2 * 0.04 + 0.1 * 6 / 30) + 0.04 / 3600 * 1e6)
    assert said["update"] == pytest.approx(0.2 + 26.6e-3 * 1.769 * 16.6667, abs=1e-4)
    assert said["rows"] == pytest.approx(3 * 0.625 + 0.125)  # one byte over 2 KB is a third unit
    assert said["Firehose"] == pytest.approx(5.12 * 0.029)
    # 15 events: 0.75 ms of a vCPU are 2.59; 10 for keys, 6 for three quarters of a new key; billed as 19
    assert said["archive"] == pytest.approx((0.2 + 19.6e-3 * 0.512 * 16.6667) / 15, abs=1e-4)
    assert said["keys"] == pytest.approx(0.125 / 1.2 + 0.625 / 20)
    assert said["S3"] == pytest.approx(1e6 / 300 / 1000 * 0.005)  # an object every 300 s
    assert said["logs"] == pytest.approx((0.9 + 1.4 + 1.4 / 15) * 0.53)
    assert len(said) == 10
    assert all(events(SEEN, Assumed(), LIST, rate=10_000)[part] <= said[part] for part in said)


def test_an_event_of_many_by_hand() -> None:
    """Ten shards at ten thousand a second: 500 events a batch, and as many for archive as 1 MiB holds."""
    said = events(SEEN, Assumed(), LIST, rate=10_000)
    sealed = 2**20 / 600
    assert said["update"] == pytest.approx((0.2 + 125.6e-3 * 1.769 * 16.6667) / 500, abs=1e-4)
    assert said["rows"] == pytest.approx((3 * 0.625 + 0.125) / 1.2)
    billed_s = sealed * (0.05 * 1.769 / 0.512 + 8 / 20) / 1000 + 18 * 10 / 1000  # keys by the hundred
    assert said["archive"] == pytest.approx((0.2 + billed_s * 0.512 * 16.6667) / sealed, rel=2e-3)
    assert said["S3"] == pytest.approx(1e9 / 2**26 / 1000 * 0.005)  # 64 MiB are there before 300 s are over
    assert said["logs"] == pytest.approx((0.9 + 1.4 / 500 + 1.4 / sealed) * 0.53)


def test_records_are_charged_by_whole_units() -> None:
    """1 KB of the stream, 5 KB of Firehose; one byte more is a unit more."""
    for part, size, first in (("Kinesis", 1024, 1), ("Firehose", 5120, 1)):
        at, over = (events(SEEN, Assumed(event_bytes=n), LIST, 1000)[part] for n in (size, size + 1))
        hours = 0.04 / 3600 / 1000 * 1e6 if part == "Kinesis" else 0.0
        assert over - hours == pytest.approx((first + 1) * (at - hours))


def test_an_erasure_and_what_is_at_rest_by_hand() -> None:
    said = erasures(SEEN, Assumed(), LIST)
    assert said["me"] == pytest.approx(0.2 + 41.6e-3 * 0.512 * 16.6667, abs=1e-4)  # five calls of 8 ms each
    assert said["rows"] == pytest.approx(3 * 0.625 + 0.125)
    assert said["keys"] == pytest.approx(0.625 + 0.125)
    assert at_rest(SEEN, Assumed(), LIST) == pytest.approx(
        {
            "rows of a million visitors": 2.149 * 0.25,
            "their point-in-time recovery": 2.149 * 0.20,
            "their keys": 0.180 * 0.25,
            "the archive of a million events": 1.0 * 0.023,
            "the snapshot of score": 1.769 * 2_592_000 * 0.0000015046,
            "metrics": 24 * 0.30,
            "alarms": 4 * 0.10,
            "the secret": 0.40,
            "looks at pointer and secret, a warm environment": 86.4 * 0.0004 + 0.864 * 0.05,
        }
    )


def test_what_is_stored_is_measured() -> None:
    """A key's item has 22 + 2 bytes of user, 8 + 8 of name, 32 + 8 of secret; a line has base64."""
    said = measure(HANDLER)
    assert (said.update_ms_an_event, said.archive_ms_an_event) == (0.2, 0.05)
    assert said.key_bytes == 24 + 16 + 40
    assert 600 * 4 / 3 < said.line_bytes < 800 * 4 / 3 + 50
    assert 1024 < said.row_bytes <= 2048


def test_what_the_template_says_is_what_is_counted() -> None:
    assumed, said = Assumed(), yaml.load(TEMPLATE.read_text(), CloudFormation)["Resources"]
    for name in ("score", "collect", "update", "archive", "me"):
        memory_mb = said[f"{name.title()}Function"]["Properties"]["MemorySize"]
        assert memory_mb == 1000 * getattr(assumed, f"{name}_gb")
    stream = said["UpdateFunction"]["Properties"]["Events"]["Log"]["Properties"]
    assert stream["BatchSize"] == assumed.most_a_batch
    assert said["EventStream"]["Properties"]["RetentionPeriodHours"] == 24 * (1 + assumed.kept_days)
    delivery = said["Archive"]["Properties"]["ExtendedS3DestinationConfiguration"]
    buffered = delivery["BufferingHints"]
    assert buffered == {"IntervalInSeconds": assumed.delivered_s, "SizeInMBs": assumed.delivered_mb}
    (lambda_,) = delivery["ProcessingConfiguration"]["Processors"]
    sizes = {p["ParameterName"]: p["ParameterValue"] for p in lambda_["Parameters"]}
    assert float(sizes["BufferSizeInMBs"]) == assumed.transformed_mb
    assert float(sizes["BufferIntervalInSeconds"]) == assumed.transformed_s
    kinds = Counter(resource["Type"] for resource in said.values())
    assert kinds["AWS::CloudWatch::Alarm"] == assumed.alarms
    days = {r["Properties"]["RetentionInDays"] for r in said.values() if r["Type"] == "AWS::Logs::LogGroup"}
    assert days == {30 * assumed.logs_kept_months}
    assert kinds.keys() == COUNTED | FREE, "what is new in the template is to be counted or left out in words"


def test_the_table_says_what_is_at_rest_and_what_is_left_out() -> None:
    table = as_table(cost(HANDLER))
    assert "| the snapshot of score | 6.90 |" in table and "\nLeft out: KMS calls" in table
    assert "A million erasures cost as many events and" in table


def test_a_report_without_the_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    took = {name: ms for name, ms in HANDLER["milliseconds"].items() if "archive" not in name}
    (tmp_path / "handler.json").write_text(json.dumps(HANDLER | {"milliseconds": took}))
    with pytest.raises(SystemExit):
        main(["--handler", str(tmp_path / "handler.json")])
    assert "no 'archive, a batch of 100'" in capsys.readouterr().err


def test_every_rate_and_every_price_has_its_place() -> None:
    report = cost(HANDLER)
    assert [row["a_second"] for row in report["rates"]] == list(RATES)
    for name, entry in STATED.items():
        if isinstance(entry, dict):
            assert entry["price"] > 0 and entry["page"].startswith("https://aws.amazon.com/"), name
            assert entry["seen"], name
            assert isinstance(entry["date"], datetime.date), name
    assert "not read anew" not in as_table(report)
    report["prices"]["kinesis_gb_in"]["seen"] = ""
    assert "not read anew, but taken as known: kinesis_gb_in." in as_table(report)
    assert report["prices_of"] == "2026-11-26 to 2026-11-28"
