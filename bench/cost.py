"""What banners and events cost on AWS: measured milliseconds and bytes times dated list prices.

All that `template.yaml` deploys is in one of three places: in the sums of a million, in the table of what a
month costs whether anybody comes or not, or in the list of what is left out. Measured here: the handlers' CPU
milliseconds (`python -m bench handler`), the bytes of the fullest row, of a key and of a line of the archive.
Assumed: what `Assumed` says, above all what Lambda waits for tables and streams, which no laptop can measure,
and that a core of the measuring machine is as fast as one of Lambda's vCPUs. Of those Lambda gives one for
1,769 MB of memory: score and update have one, collect, me and archive, with 512 MB, 29 % of one, so that what
they compute is billed 3.5 times as long.
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
from bench.step import KEY_BYTES, fullest_row, stored_bytes
from functions.aws.bundles import REFRESH_S as POINTER_S
from functions.aws.keys import BATCH as KEYS_A_READ
from functions.aws.keys import Entry, item_of
from functions.aws.secret import REFRESH_S as SECRET_S
from functions.core.archived import KEY_BYTES as SECRET_BYTES
from functions.core.archived import NAME_BYTES, Archived, DataKey
from functions.core.records import encode_record
from functions.core.sealed import NONCE_BYTES, seal
from functions.core.user_row import encode

PRICES = Path(__file__).with_name("prices.toml")
RATES = (1, 10, 100, 1_000, 10_000)  # banner requests a second, and as many events
SECONDS_A_MONTH = 30 * 86_400
STATE_WIDTH, DIM = 256, 64  # of the row whose bytes are counted
READERS = 2  # of the stream: update and Firehose, each charged for what it reads
KB, MB = 1024, 2**20
LEFT_OUT = (
    "KMS calls for the stream and the tables, by AWS's own words less than a few dollars a month a stream "
    "(https://docs.aws.amazon.com/streams/latest/dev/costs-performance.md); bundles in S3, and what new "
    "environments fetch of them; snapshots of versions that a deployment superseded; quarantine, its queue "
    "and what Firehose failed at, empty unless something is wrong; retries and redeliveries; restoring a "
    "backup; requests for a visitor's credential, for what is held and for health; reading and training on "
    "the archive; free tiers and volume discounts"
)
Parts = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Milliseconds in the handlers, as `python -m bench handler` has them; bytes of what is stored."""

    banners_ms: float
    collect_ms: float
    update_ms_an_event: float
    archive_ms_an_event: float
    row_bytes: int  # the fullest
    key_bytes: int
    line_bytes: int  # of the archive, of an event of `event_bytes`


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    read_ms: float = 4.0  # DynamoDB's answer to a GetItem, which score waits for
    put_record_ms: float = 8.0  # Kinesis's answer to a PutRecord, which collect waits for
    batch_wait_ms: float = 25.0  # reads and writes of a batch, side by side, which update waits for
    keys_ms: float = 10.0  # a BatchGetItem of 100 keys, which archive waits for, one after the other
    key_put_ms: float = 8.0  # a PutItem of a new key, alike
    erasure_calls: int = 5  # a row and a key, read and written, and a record, of `key_put_ms` each
    vcpu_gb: float = 1.769  # of memory, for one vCPU, and that as fast as the core that was measured on
    cold_share: float = 0.001  # of calls, in an environment that begins with them
    init_s: float = 0.6  # of such a beginning, billed; of a snapshot's restoring too
    batch_latency_s: float = 0.5  # events of so long come in one batch, a shard
    most_a_batch: int = 500  # the template's
    events_a_shard: float = 1000.0  # a second; a stream on demand grows to so many
    score_gb: float = 1.769  # the template's memory
    collect_gb: float = 0.512
    update_gb: float = 1.769
    archive_gb: float = 0.512
    me_gb: float = 0.512
    transformed_s: float = 60.0  # the template's: what Firehose gathers of a shard for one call of archive
    transformed_mb: float = 1.0
    delivered_s: float = 300.0  # the template's: what it gathers for one object of the archive
    delivered_mb: float = 64.0
    event_bytes: int = 600
    answer_bytes: int = 6_000  # five banners with their tokens
    log_bytes: int = 900  # of a request: access line, metrics, START, END, REPORT, and 26 more for each
    batch_log_bytes: int = 1_400  # of a batch of update's or archive's: metrics, START, END, REPORT, alike
    logs_kept_months: float = 1.0  # the template's, uncompressed
    kept_days: float = 6.0  # of the stream, beyond the first
    events_a_write: float = 1.2  # of one visitor in one batch, at 1,000 a second and more; 1 below
    events_a_key_read: float = 1.2  # of one visitor in a batch of archive's, which is never a smaller one
    events_a_visitor: float = 20.0  # ever: each new one needs a key
    item_bytes: int = 100  # that DynamoDB counts beside what an item holds
    metrics: int = 24  # names and dimensions of the functions' own
    alarms: int = 4  # the template's


def main(arguments: list[str]) -> int:
    """Print the table; write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench cost", description=__doc__)
    parser.add_argument(
        "--handler", required=True, type=read_report, help="the report of `python -m bench handler --json`"
    )
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    try:
        report = cost(options.handler)
    except KeyError as error:
        parser.error(f"the handlers' report has no {error}; expected one of this `python -m bench handler`")
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


def cost(handler: dict[str, Any]) -> dict[str, Any]:
    """Dollars per million banner requests and per million events, by requests a second."""
    stated = tomllib.loads(PRICES.read_text(encoding="utf-8"))
    entries = {name: entry for name, entry in stated.items() if isinstance(entry, dict)}
    prices = {name: float(entry["price"]) for name, entry in entries.items()}
    days = sorted(str(entry["date"]) for entry in entries.values())
    measured, assumed = measure(handler), Assumed()
    return {
        "region": stated["region"],
        "prices_of": " to ".join(dict.fromkeys((days[0], days[-1]))),
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
        "erasures": erasures(measured, assumed, prices),
        "a_month": at_rest(measured, assumed, prices),
        "left_out": LEFT_OUT,
    }


def measure(handler: dict[str, Any]) -> Measured:
    """Milliseconds of a handlers' report; bytes of a row, a key and a line, made here."""
    took, batch = handler["milliseconds"], handler["events_a_batch"]
    user, key = "k" * KEY_BYTES, DataKey(bytes(NAME_BYTES), bytes(SECRET_BYTES))
    row = {**encode(fullest_row(STATE_WIDTH, DIM)), "pk": user, "ttl": 2**40}
    stored_key = {"pk": user} | {name: value["B"] for name, value in item_of(Entry(key)).items()}
    padding = Assumed.event_bytes - len(encode_record(user, {"padding": ""}))
    event = {"padding": "." * padding}
    line = seal(Archived("shardId-000000000000", 10**55, 2e9, user, event), key, bytes(NONCE_BYTES))
    return Measured(
        took["banners"]["p50"],
        took["events, one"]["p50"],
        took[f"update, a batch of {batch}"]["p50"] / batch,
        took[f"archive, a batch of {batch}"]["p50"] / batch,
        stored_bytes(row),
        stored_bytes(stored_key),
        len(line),
    )


def banners(measured: Measured, assumed: Assumed, prices: Parts) -> Parts:
    """Dollars of a million banner requests, by what takes them; they do not depend on the rate."""
    score = called(1e6, measured.banners_ms, assumed.read_ms, assumed.score_gb, assumed, prices)
    return {
        "HTTP API": prices["http_api_million_requests"],
        "Lambda": score,
        "SnapStart": 1e6 * assumed.cold_share * assumed.score_gb * prices["snapstart_gb_restored"],
        "DynamoDB": units(measured.row_bytes, 4 * KB) * prices["dynamodb_million_reads"],
        "logs": logged(1e6 * assumed.log_bytes, assumed, prices),
        "transfer": 1e6 * assumed.answer_bytes / 1e9 * prices["transfer_gb_out"],
    }


def events(measured: Measured, assumed: Assumed, prices: Parts, rate: float) -> Parts:
    """Dollars of a million events that come one by one, at `rate` a second."""
    shards = max(4.0, rate / assumed.events_a_shard)  # what a stream on demand begins with
    batch = min(max(rate / shards * assumed.batch_latency_s, 1.0), assumed.most_a_batch)
    most_sealed = assumed.transformed_mb * MB / assumed.event_bytes
    sealed = min(max(rate / shards * assumed.transformed_s, 1.0), most_sealed)  # events of a call of archive
    update_ms, archive_ms = batch * measured.update_ms_an_event, sealed * measured.archive_ms_an_event
    keys_ms = units(sealed, KEYS_A_READ) * assumed.keys_ms
    keys_ms += sealed / assumed.events_a_visitor * assumed.key_put_ms
    gigabytes = 1e6 * units(assumed.event_bytes, KB) * KB / 1e9
    a_write = assumed.events_a_write if rate >= 1000 else 1.0
    objects = max(1e6 / (rate * assumed.delivered_s), 1e6 * measured.line_bytes / (assumed.delivered_mb * MB))
    log_bytes = assumed.log_bytes + assumed.batch_log_bytes * (1 / batch + 1 / sealed)
    writes, reads = prices["dynamodb_million_writes"], prices["dynamodb_million_reads"]
    return {
        "HTTP API": prices["http_api_million_requests"],
        "collect": called(
            1e6, measured.collect_ms, assumed.put_record_ms, assumed.collect_gb, assumed, prices
        ),
        "Kinesis": gigabytes * (prices["kinesis_gb_in"] + READERS * prices["kinesis_gb_out"])
        + gigabytes * assumed.kept_days / 30 * prices["kinesis_gb_month_kept"]
        + prices["kinesis_stream_hour"] / 3600 / rate * 1e6,
        "update": called(1e6 / batch, update_ms, assumed.batch_wait_ms, assumed.update_gb, assumed, prices),
        "rows": (units(measured.row_bytes, KB) * writes + units(measured.row_bytes, 4 * KB) * reads)
        / a_write,
        "Firehose": 1e6 * units(assumed.event_bytes, 5 * KB) * 5 * KB / 1e9 * prices["firehose_gb_in"],
        "archive": called(1e6 / sealed, archive_ms, keys_ms, assumed.archive_gb, assumed, prices),
        "keys": reads / assumed.events_a_key_read + writes / assumed.events_a_visitor,
        "S3": objects / 1000 * prices["s3_thousand_puts"],
        "logs": logged(1e6 * log_bytes, assumed, prices),
    }


def erasures(measured: Measured, assumed: Assumed, prices: Parts) -> Parts:
    """Dollars of a million erasures, beside what as many events cost: they go through the log as those do."""
    writes, reads = prices["dynamodb_million_writes"], prices["dynamodb_million_reads"]
    waits_ms = assumed.erasure_calls * assumed.key_put_ms
    return {
        "me": called(1e6, measured.collect_ms, waits_ms, assumed.me_gb, assumed, prices),
        "rows": units(measured.row_bytes, KB) * writes + units(measured.row_bytes, 4 * KB) * reads,
        "keys": units(measured.key_bytes, KB) * writes + units(measured.key_bytes, 4 * KB) * reads,
    }


def at_rest(measured: Measured, assumed: Assumed, prices: Parts) -> Parts:
    """Dollars a month of what is kept and what is always there, whether anybody comes or not."""
    rows, keys = ((size + assumed.item_bytes) / 1e3 for size in (measured.row_bytes, measured.key_bytes))
    looks = SECONDS_A_MONTH / POINTER_S / 1000 * prices["s3_thousand_gets"]
    looks += SECONDS_A_MONTH / SECRET_S / 10_000 * prices["secret_ten_thousand_calls"]
    return {
        "rows of a million visitors": rows * prices["dynamodb_gb_month"],
        "their point-in-time recovery": rows * prices["dynamodb_gb_month_recovery"],
        "their keys": keys * prices["dynamodb_gb_month"],
        "the archive of a million events": measured.line_bytes / 1e3 * prices["s3_gb_month"],
        "the snapshot of score": assumed.score_gb * SECONDS_A_MONTH * prices["snapstart_gb_second"],
        "metrics": assumed.metrics * prices["metric_month"],
        "alarms": assumed.alarms * prices["alarm_month"],
        "the secret": prices["secret_month"],
        "looks at pointer and secret, a warm environment": looks,
    }


def called(count: float, cpu_ms: float, wait_ms: float, gb: float, assumed: Assumed, prices: Parts) -> float:
    """Dollars of so many calls of a function with `gb` of memory.

    cpu_ms: of a whole vCPU, for each call; wait_ms: in which it computes nothing.
    """
    vcpus = min(gb / assumed.vcpu_gb, 1.0)  # more than one would not help: the handlers use one
    billed_s = math.ceil(cpu_ms / vcpus + wait_ms) / 1000 + assumed.cold_share * assumed.init_s
    return count * (prices["lambda_million_requests"] / 1e6 + billed_s * gb * prices["lambda_gb_second"])


def logged(size: float, assumed: Assumed, prices: Parts) -> float:
    """Dollars of so many bytes of logs, for as long as they are kept."""
    return size / 1e9 * (prices["logs_gb_in"] + assumed.logs_kept_months * prices["logs_gb_month"])


def units(size: float, of: int) -> int:
    """What is charged: units of so much, the last one whole."""
    return math.ceil(size / of)


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
    beside = ", ".join(f"{name} {dollars:.2f}" for name, dollars in report["erasures"].items())
    lines += [
        "",
        f"A million erasures cost as many events and {sum(report['erasures'].values()):.2f}: {beside}.",
    ]
    lines += ["", "At rest, beside the stream's hours, which are in the sum above:", ""]
    lines += ["| | dollars a month |", "|---|---|"]
    lines += [f"| {name} | {dollars:.2f} |" for name, dollars in report["a_month"].items()]
    for kind in ("measured", "assumed"):
        listed = ", ".join(f"{name} {value:g}" for name, value in report[kind].items())
        lines += ["", f"{kind.capitalize()}: {listed}."]
    lines += ["", f"Left out: {report['left_out']}."]
    unseen = [
        name for name, entry in report["prices"].items() if isinstance(entry, dict) and not entry["seen"]
    ]
    if unseen:
        lines += ["", f"Prices that were not read anew, but taken as known: {', '.join(unseen)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
