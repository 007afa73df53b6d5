"""What banners and events cost on AWS: measured milliseconds and bytes times dated list prices.

Measured here: the handlers' CPU milliseconds (`python -m bench handler`), the fullest row's bytes. Assumed:
what `Assumed` says, above all what Lambda waits for tables and streams, which no laptop can measure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.reports import read_report
from bench.step import fullest_row, stored_bytes
from functions.core.user_row import encode

PRICES = Path(__file__).with_name("prices.toml")
RATES = (1, 10, 100, 1_000, 10_000)  # banner requests a second, and as many events
SECONDS_A_MONTH = 30 * 86_400
STATE_WIDTH, DIM = 256, 64  # of the row whose bytes are counted
Parts = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Milliseconds in the handlers, as `python -m bench handler` has them; bytes of the fullest row."""

    banners_ms: float
    collect_ms: float
    update_ms_an_event: float
    row_bytes: int


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    read_ms: float = 4.0  # DynamoDB's answer to a GetItem, which score waits for
    put_record_ms: float = 8.0  # Kinesis's answer to a PutRecord, which collect waits for
    batch_wait_ms: float = 25.0  # reads and writes of a batch, side by side, which update waits for
    batch_latency_s: float = 0.5  # events of so long come in one batch, a shard
    most_a_batch: int = 500  # the template's
    events_a_shard: float = 1000.0  # a second; a stream on demand grows to so many
    score_gb: float = 1.769  # the template's memory
    collect_gb: float = 0.512
    update_gb: float = 1.769
    event_bytes: int = 600
    answer_bytes: int = 6_000  # five banners with their tokens
    log_bytes: int = 700  # an access line and the metrics' line
    kept_days: float = 6.0  # of the stream, beyond the first
    events_a_write: float = 1.2  # of one visitor in one batch, at 1,000 a second and more; 1 below


def main(arguments: list[str]) -> int:
    """Print the table; write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench cost", description=__doc__)
    parser.add_argument(
        "--handler", required=True, type=read_report, help="the report of `python -m bench handler --json`"
    )
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    report = cost(options.handler)
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


def cost(handler: dict[str, Any]) -> dict[str, Any]:
    """Dollars per million banner requests and per million events, by requests a second."""
    stated = tomllib.loads(PRICES.read_text(encoding="utf-8"))
    prices = {name: float(entry["price"]) for name, entry in stated.items() if isinstance(entry, dict)}
    took = handler["milliseconds"]
    batch = handler["events_a_batch"]
    row = stored_bytes({**encode(fullest_row(STATE_WIDTH, DIM)), "pk": "k" * 22, "ttl": 2**40})
    measured = Measured(
        took["banners"]["p50"],
        took["events, one"]["p50"],
        took[f"update, a batch of {batch}"]["p50"] / batch,
        row,
    )
    assumed = Assumed()
    return {
        "region": stated["region"],
        "prices_of": str(stated["date"]),
        "prices": stated,
        "measured": asdict(measured),
        "assumed": asdict(assumed),
        "rates": [
            {
                "a_second": rate,
                "banners": banners(measured, assumed, prices),
                "events": events(measured, assumed, prices, rate),
            }
            for rate in RATES
        ],
    }


def banners(measured: Measured, assumed: Assumed, prices: Parts) -> Parts:
    """Dollars of a million banner requests, by what takes them; they do not depend on the rate."""
    billed_s = math.ceil(measured.banners_ms + assumed.read_ms) / 1000
    return {
        "HTTP API": prices["http_api_million_requests"],
        "Lambda": prices["lambda_million_requests"]
        + 1e6 * billed_s * assumed.score_gb * prices["lambda_gb_second"],
        "DynamoDB": math.ceil(measured.row_bytes / 4096) * prices["dynamodb_million_reads"],
        "logs": 1e6 * assumed.log_bytes / 1e9 * prices["logs_gb_in"],
        "transfer": 1e6 * assumed.answer_bytes / 1e9 * prices["transfer_gb_out"],
    }


def events(measured: Measured, assumed: Assumed, prices: Parts, rate: float) -> Parts:
    """Dollars of a million events that come one by one, at `rate` a second."""
    shards = max(4.0, rate / assumed.events_a_shard)  # what a stream on demand begins with
    batch = min(max(rate / shards * assumed.batch_latency_s, 1.0), assumed.most_a_batch)
    collect_s = math.ceil(measured.collect_ms + assumed.put_record_ms) / 1000
    update_s = math.ceil(batch * measured.update_ms_an_event + assumed.batch_wait_ms) / 1000 / batch
    kilobytes = math.ceil(assumed.event_bytes / 1024) * 1024
    writes = 1e6 / (assumed.events_a_write if rate >= 1000 else 1.0)
    gigabytes = 1e6 * kilobytes / 1e9
    second = prices["lambda_gb_second"]
    return {
        "HTTP API": prices["http_api_million_requests"],
        "collect": prices["lambda_million_requests"] + 1e6 * collect_s * assumed.collect_gb * second,
        "Kinesis": gigabytes * (prices["kinesis_gb_in"] + prices["kinesis_gb_out"])
        + gigabytes * assumed.kept_days / 30 * prices["kinesis_gb_month_kept"]
        + prices["kinesis_stream_hour"] / 3600 / rate * 1e6,
        "update": prices["lambda_million_requests"] / batch + 1e6 * update_s * assumed.update_gb * second,
        "DynamoDB": writes / 1e6 * math.ceil(measured.row_bytes / 1024) * prices["dynamodb_million_writes"]
        + writes / 1e6 * math.ceil(measured.row_bytes / 4096) * prices["dynamodb_million_reads"],
        "logs": 1e6 * assumed.log_bytes / 1e9 * prices["logs_gb_in"],
    }


def as_table(report: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    lines = [
        f"Dollars per million, {report['region']}, list prices of {report['prices_of']}",
        "",
        "| a second | banner requests | events | a month, both |",
        "|---|---|---|---|",
    ]
    for row in report["rates"]:
        asked, told = sum(row["banners"].values()), sum(row["events"].values())
        month = (asked + told) * row["a_second"] * SECONDS_A_MONTH / 1e6
        lines.append(f"| {row['a_second']:,} | {asked:.2f} | {told:.2f} | {month:,.0f} |")
    for what in ("banners", "events"):
        lines += ["", f"A million {what}, by what takes it:", ""]
        names = list(report["rates"][0][what])
        lines += [f"| a second | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for row in report["rates"] if what == "events" else report["rates"][:1]:
            shown = " | ".join(f"{row[what][name]:.2f}" for name in names)
            lines.append(f"| {row['a_second']:,}{'' if what == 'events' else ' and more'} | {shown} |")
    for kind in ("measured", "assumed"):
        listed = ", ".join(f"{name} {value:g}" for name, value in report[kind].items())
        lines += ["", f"{kind.capitalize()}: {listed}."]
    unseen = [
        name for name, entry in report["prices"].items() if isinstance(entry, dict) and not entry["seen"]
    ]
    if unseen:
        lines += ["", f"Prices that were not read anew, but taken as known: {', '.join(unseen)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
