"""Whole handlers, warm, in this process, with tables that answer in 0 ms: what a request costs of our own.

A banner request is parsed, its credential checked, its row decoded, N items scored, rules applied, 5 banners
rendered and signed. CPU milliseconds of the process, each kind of call in turns; `scoring` alone beside them.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.device import describe
from bench.shop import LENGTH, PSEUDONYM
from bench.warm import Context, credential, http_event, warm_shop
from functions.core.engine import cpu
from functions.core.events import user_key

USERS = 50
ROUNDS = 10
BATCH = 100  # events of one Kinesis batch, each of another visitor
TARGETS_MS = {"banners": (3.0, 10.0)}  # p50, p99
Call = Callable[[int], object]


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench handler", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=1000, help="timed calls of each kind")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = measure(options.items, options.calls)
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(items: int, calls: int) -> dict[str, Any]:
    """The report, of a shop with so many products."""
    with warm_shop(items):
        spent = _in_turns(_cases(items), calls)
    return {
        **describe(torch.device("cpu")),
        **cpu(),
        "items": items,
        "calls": calls,
        "milliseconds": {name: _quantiles(times) for name, times in spent.items()},
        "events_a_batch": BATCH,
        "targets_ms": {name: {"p50": a, "p99": b} for name, (a, b) in TARGETS_MS.items()},
    }


def _cases(items: int) -> dict[str, Call]:
    from functions import archive, collect, score, update

    context, said = Context(), [f"u{number}" for number in range(USERS)]
    credentials = [credential(user) for user in said]
    keys = [user_key(PSEUDONYM, user) for user in said]
    for start in range(LENGTH):
        batch = [_event(f"h{start}-{at}", (start * 131 + at * 17) % items) for at in range(USERS)]
        update.handler(_batch(keys, batch, 1 + start * USERS), context)
    own = score.scorer()
    bundle = own.bundles.current
    assert bundle is not None
    vectors = np.random.default_rng(0).normal(size=(USERS, bundle.manifest.dim)).astype(np.float16)
    scorer, sequence = bundle.scorer, iter(range(10**6, 10**12, BATCH))
    users = [user_key(PSEUDONYM, f"a{number}") for number in range(BATCH)]  # of the archive's keys alone
    bring = [f"b{number}" for number in range(BATCH)]
    answer = score.handler(http_event("/v1/banners", {"slot": "home", "k": 5}, credentials[0]), context)
    body = json.loads(answer["body"])
    if (answer["statusCode"], body["tier"], len(body["banners"])) != (200, "personal", 5):
        raise RuntimeError(f"{answer}; expected five personal banners")
    asked = {"slot": "home", "k": 5}

    def fold(number: int) -> object:
        begin = next(sequence)
        events = [_event(f"{begin}-{at}", (number * 7 + at) % items) for at in range(BATCH)]
        return update.handler(_batch([user_key(PSEUDONYM, user) for user in bring], events, begin), context)

    def seal(number: int) -> object:
        begin = next(sequence)
        events = [_event(f"{begin}-{at}", (number * 7 + at) % items) for at in range(BATCH)]
        return archive.handler({"records": _firehose(users, events, begin)}, context)

    def collected(number: int) -> object:
        event = _event(f"c{number}", number % items)
        return collect.handler(http_event("/v1/events", event, credentials[number % USERS]), context)

    return {
        "scoring, ten of N": lambda number: scorer.top(vectors[number % USERS], 10),
        "banners": lambda number: score.handler(
            http_event("/v1/banners", asked, credentials[number % USERS]), context
        ),
        "events, one": collected,
        f"update, a batch of {BATCH}": fold,
        f"archive, a batch of {BATCH}": seal,
    }


def _event(name: str, item: int) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"event_id": name, "type": "view", "item_id": f"sku-{item:07d}", "time": moment}


def _firehose(keys: list[str], events: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    records = []
    for at, (key, event) in enumerate(zip(keys, events, strict=True)):
        data = base64.b64encode(json.dumps({"user_key": key, "event": event}).encode()).decode()
        place = {"shardId": "shardId-000000000000", "sequenceNumber": str(first + at), "partitionKey": key}
        arrived = {"approximateArrivalTimestamp": int(time.time() * 1000)}
        records.append({"recordId": str(first + at), "data": data, "kinesisRecordMetadata": place | arrived})
    return records


def _batch(keys: list[str], events: list[dict[str, Any]], first: int) -> dict[str, Any]:
    records = []
    for at, event in enumerate(events):
        key = keys[at % len(keys)]
        data = base64.b64encode(json.dumps({"user_key": key, "event": event}).encode()).decode()
        kinesis = {"partitionKey": key, "sequenceNumber": str(first + at), "data": data}
        kinesis |= {"kinesisSchemaVersion": "1.0"}
        record = {"eventID": f"shardId-000000000000:{first + at}", "eventSource": "aws:kinesis"}
        arrived = {"approximateArrivalTimestamp": time.time()}
        stream = "arn:aws:kinesis:eu-central-1:123456789012:stream/events"
        records.append({**record, "kinesis": kinesis | arrived, "eventSourceARN": stream})
    return {"Records": records}


def _in_turns(cases: dict[str, Call], calls: int) -> dict[str, list[float]]:
    """CPU seconds of the process, all its threads', in rounds over all cases."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(ROUNDS):
        for name, call in cases.items():
            count = calls if "batch" not in name else max(calls // 10, ROUNDS)
            for number in range(-(-count // ROUNDS)):
                started = time.process_time()
                call(turn * 1000 + number)
                spent[name].append(time.process_time() - started)
    return spent


def _quantiles(times: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.median(times)) * 1e3, 3),
        "p99": round(float(np.quantile(times, 0.99)) * 1e3, 3),
    }


def as_table(report: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    lines = [f"N = {report['items']:,}", "", "| | p50 ms | p99 ms | target | met |", "|---|---|---|---|---|"]
    for name, took in report["milliseconds"].items():
        target = report["targets_ms"].get(name)
        met = target and took["p50"] <= target["p50"] and took["p99"] <= target["p99"]
        shown = f"{target['p50']:g}, {target['p99']:g}" if target else ""
        verdict = "" if target is None else "yes" if met else "**no**"
        lines.append(f"| {name} | {took['p50']:.2f} | {took['p99']:.2f} | {shown} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
