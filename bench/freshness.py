"""How soon an event is in its visitor's row: `python -m local` itself, over HTTP, at a given rate of events.

The moment of the row is the end of the batch that wrote it, as the update function's own line of metrics in
the poller's log says, with what reading, folding and writing took. What the local stack takes for a call of
the table or the log is the emulator's, not DynamoDB's or Kinesis's.
"""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from local.account import STREAM, client
from local.cloud import Cloud, CloudSettings
from local.visit import Api

VISITORS = 16
KINDS = ("view", "click", "cart", "purchase")
SLOT = "home"
ARRIVAL_S = 60.0
LAST = 5  # events of each visitor that are looked for in the row itself
PARTS = {
    "post": "POST answered: the log has it",
    "wait": "then until its batch begins",
    "ReadDuration": "rows read",
    "FoldDuration": "folded",
    "WriteDuration": "rows written",
    "total": "POST to changed row",
}


@dataclass(frozen=True)
class Sent:
    """One event, and when it was sent and answered, in seconds since 1970."""

    event_id: str
    sent_s: float
    answered_s: float


@dataclass(frozen=True)
class Done:
    """One batch as the update function tells of it: its last record, when it ended, what its parts took."""

    last: int
    ended_s: float
    parts_ms: dict[str, float]


def measure(bundles: Path, rates: Sequence[float], seconds: float) -> dict[str, Any]:
    """Milliseconds by part at each rate of events a second; RuntimeError where an event does not arrive."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        with Cloud(CloudSettings(bundles, logs, port=0)) as cloud:
            people = [Api(cloud.url) for _ in range(VISITORS)]
            for person in people:
                person.token = person.call("POST", "/v1/visitors")[0]["token"]
            items = [p["item_id"] for p in people[0].call("GET", "/demo/products?category=")[0]["products"]]
            send(people, items, "warm", 20.0, 2.0)
            return {
                "items": people[0].call("GET", "/v1/health")[0]["items"],
                "seconds": seconds,
                "rates": [{"rate": rate, **timed(cloud, people, items, rate, seconds)} for rate in rates],
            }


def timed(
    cloud: Cloud, people: Sequence[Api], items: Sequence[str], rate: float, seconds: float
) -> dict[str, Any]:
    """One rate: how many events, and the percentiles of each part in milliseconds."""
    sent = send(people, items, f"rate{rate:g}", rate, seconds)
    places = places_of(client("kinesis", cloud.endpoint))
    log = cloud.settings.logs / "poller.log"
    ends_s = time.monotonic() + ARRIVAL_S
    while (arrived := arrivals(sent, places, batches(log.read_text().splitlines()))) is None:
        if time.monotonic() > ends_s:
            raise RuntimeError(f"events not in their rows after {ARRIVAL_S:.0f} s; expected all of them")
        time.sleep(0.1)
    _require_in_rows(people, sent)
    took_s = max(event.answered_s for event in sent) - min(event.sent_s for event in sent)
    return {
        "events": len(sent),
        "answered_per_s": len(sent) / took_s,
        "parts_ms": {
            part: {f"p{p}": float(np.percentile(values, p)) for p in (50, 99)}
            for part, values in arrived.items()
        },
    }


def send(people: Sequence[Api], items: Sequence[str], name: str, rate: float, seconds: float) -> list[Sent]:
    """Events at an even rate, of all visitors in turns; a visitor's own wait for the answer to the last."""
    start_s, count = time.time() + 0.2, max(1, round(rate * seconds))

    def shop(nth: int) -> list[Sent]:
        return [
            _post(
                people[nth],
                f"{name}-{n}",
                KINDS[n % len(KINDS)],
                items[n * 7 % len(items)],
                start_s + n / rate,
            )
            for n in range(nth, count, len(people))
        ]

    with ThreadPoolExecutor(len(people)) as pool:
        return [one for some in pool.map(shop, range(len(people))) for one in some]


def _post(person: Api, event_id: str, kind: str, item: str, due_s: float) -> Sent:
    time.sleep(max(0.0, due_s - time.time()))
    event = {"event_id": event_id, "type": kind, "item_id": item, "time": datetime.now(UTC).isoformat()}
    sent_s = time.time()
    answer, _ = person.call("POST", "/v1/events", event)
    if answer["accepted"] != 1:
        raise RuntimeError(f"{event_id}: {answer}; expected 1 accepted")
    return Sent(event_id, sent_s, time.time())


def places_of(kinesis: Any) -> dict[str, tuple[str, int]]:
    """Shard and sequence number of each event in the stream, by event id."""
    places: dict[str, tuple[str, int]] = {}
    for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]:
        name = shard["ShardId"]
        first = kinesis.get_shard_iterator(StreamName=STREAM, ShardId=name, ShardIteratorType="TRIM_HORIZON")
        iterator, records = first["ShardIterator"], [None]
        while records:
            answer = kinesis.get_records(ShardIterator=iterator, Limit=10_000)
            iterator, records = answer["NextShardIterator"], answer["Records"]
            for record in records:
                event = json.loads(record["Data"])["event"]
                places[event["event_id"]] = (name, int(record["SequenceNumber"]))
    return places


def batches(lines: Iterable[str]) -> dict[str, list[Done]]:
    """The batches that a poller's log tells of, by shard, in order; not those of which something failed."""
    done: dict[str, list[Done]] = {}
    for line in lines:
        if line.startswith("{") and '"BatchDuration"' in line:
            told = json.loads(line)
            if not _number(told["RecordsFailed"]):
                parts = {name: _number(value) for name, value in told.items() if name.endswith("Duration")}
                one = Done(int(told["last"]), told["_aws"]["Timestamp"] / 1000, parts)
                done.setdefault(told["shard"], []).append(one)
    return done


def _number(value: Any) -> float:
    """A metric's value, which may be a list of one."""
    return float(value[0] if isinstance(value, list) else value)


def arrivals(
    sent: Sequence[Sent], places: dict[str, tuple[str, int]], done: dict[str, list[Done]]
) -> dict[str, list[float]] | None:
    """Milliseconds of each part, an entry for each event; None while some are not in a row yet."""
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for event in sent:
        shard, sequence = places[event.event_id]
        of = done.get(shard, [])
        at = bisect_left(of, sequence, key=lambda batch: batch.last)
        if at == len(of):
            return None
        batch = of[at]
        begun_s = batch.ended_s - batch.parts_ms["BatchDuration"] / 1000
        found["post"].append(1000 * (event.answered_s - event.sent_s))
        found["wait"].append(1000 * max(0.0, begun_s - event.answered_s))
        found["total"].append(1000 * (batch.ended_s - event.sent_s))
        for part, spent_ms in found.items():
            if part.endswith("Duration"):
                spent_ms.append(batch.parts_ms.get(part, 0.0))
    return found


def _require_in_rows(people: Sequence[Api], sent: Sequence[Sent]) -> None:
    """Each visitor's last events are in the row, as the banners' own answer says of those brought along."""
    each = len(sent) // len(people)
    if not each:
        return
    for nth, person in enumerate(people):
        own = [event.event_id for event in sent if int(event.event_id.split("-")[1]) % len(people) == nth][
            -LAST:
        ]
        brought = [
            {"event_id": name, "type": "view", "item_id": "x", "time": datetime.now(UTC).isoformat()}
            for name in own
        ]
        known = person.banners(SLOT, brought)[0]["already_in_row"]
        if set(known) != set(own):
            raise RuntimeError(f"visitor {nth}: {sorted(known)} in the row; expected {own}")


def page_of(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rates = report["rates"]
    heads = [f"{r['rate']:g} a second, p50 | p99" for r in rates]
    lines = ["| milliseconds | " + " | ".join(heads) + " |", "|---|" + "---|---|" * len(rates)]
    for part, name in PARTS.items():
        values = [f"{r['parts_ms'][part]['p50']:.0f} | {r['parts_ms'][part]['p99']:.0f}" for r in rates]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    sent = " and ".join(f"{r['events']} events ({r['answered_per_s']:.1f} answered a second)" for r in rates)
    head = (
        f"`python -m local` on 127.0.0.1 serves a bundle of {report['items']} items under the template's "
        f"mapping; {VISITORS} visitors, each with a connection and one event at a time, for "
        f"{report['seconds']:g} s at each rate: {sent}."
    )
    return "\n".join([head, "", *lines])
