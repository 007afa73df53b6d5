"""Events a second of the whole update function on one core, over a table in memory.

All of it is timed in turns in one run: the function as it is; the same with one write for each event; with
one call of the encoder for each event; and with a fold that walks its events in a Python loop. What the
network takes is not in it: the table answers from a dict. A user with 100,000 events comes last: how long a
step takes at the beginning and at the end, and how large the row is. Then `bench.freshness`: how soon an
event is in the row on the local stack.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from bench import freshness
from bench.device import describe
from bench.step import stored_bytes
from export.towers import export_user_tower
from functions import update
from functions.aws.bundles import Bundles
from functions.aws.memory import settled
from functions.aws.quarantine import Quarantine
from functions.aws.rows import WRITERS, Rows
from functions.core import fold
from functions.core.events import EVENT_TYPES, user_key
from functions.core.fold import Encoder, Step
from functions.core.runtime import OnnxStep
from functions.core.user_row import MAX_BYTES, Float16, item_key
from train.towers import Shape, Towers

TARGET = 20_000  # events a second
BATCH, USERS, ITEMS = 1_000, 500, 3_416
ROUNDS = 20
RATES = (5.0, 50.0)  # events a second on the local stack
PAGE = "docs/benchmarks/stream.md"
BUNDLES = Path(__file__).parents[1] / "tests" / "data" / "tiny_bundle"
INTRODUCTION = f"""# The update function

Written by `python -m bench stream --page {PAGE}`, not by hand."""
LOCAL = """A changed row is the end of the batch that wrote it. Each part's percentiles are its own: they do
not add up. Calls of the table and of the log go to an emulator in one thread of a Python process, which the
front, the poller and the archive share: they are not what DynamoDB and Kinesis take."""
HOT_EVENTS, HOT_BATCH = 100_000, 1_000
WRITE_UNIT = 1024  # bytes of a row that one write unit of the table pays for
SHARD = "shardId-000000000000"
START_S = 1_795_521_600
CPU = torch.device("cpu")


@dataclass
class MemoryTable:
    """The two calls of the table that the function makes, answered from a dict."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: list[dict[str, Any]] = field(default_factory=list)

    def put_item(self, *, Item: dict[str, Any], ConditionExpression: str, **more: Any) -> None:
        """Write; nobody else does, so every condition holds."""
        key = Item["pk"]["S"]
        self.items[key] = Item
        self.written.append(Item)

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:
        """Read up to 100 rows."""
        ((table, request),) = RequestItems.items()
        keys = [key["pk"]["S"] for key in request["Keys"]]
        return {"Responses": {table: [self.items[key] for key in keys if key in self.items]}}


class NamedItems:
    """Embeddings of ITEMS items, seeded."""

    def __init__(self, dim: int) -> None:
        table = np.random.default_rng(0).normal(size=(ITEMS, dim)).astype(np.float16)
        self._by_key = {item_key(f"sku-{n}"): table[n] for n in range(ITEMS)}

    def embedding(self, key: bytes) -> Float16 | None:
        """[d] float16."""
        return self._by_key.get(key)


@dataclass(frozen=True)
class Timing:
    """One way to do it: all its batches together."""

    way: str
    events_per_s: float
    writes_per_event: float
    units_per_event: float


def item_bytes(item: dict[str, Any]) -> int:
    """A row's bytes as the table counts them."""
    plain = {name: next(iter(value.values())) for name, value in item.items()}
    return stored_bytes(plain | {name: int(plain[name]) for name in ("v", "ttl")})


def records(rng: random.Random, count: int, users: Sequence[str], first: int) -> list[dict[str, Any]]:
    """Kinesis records of events as a storefront sends them, with sequence numbers of 56 digits."""
    return [_record(rng, rng.choice(users), first + n) for n in range(count)]


def _record(rng: random.Random, key: str, number: int) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event_id": f"0b5a1c2e-{number:027d}",
        "type": rng.choice(EVENT_TYPES[:6]),
        "item_id": f"sku-{min(int(rng.expovariate(3 / ITEMS)), ITEMS - 1)}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START_S + number // 10)),
        "context": {"device": "mobile", "slot": "home"},
    }
    if rng.random() < 0.3:
        event["value"] = round(rng.uniform(1, 100), 2)
    data = json.dumps({"user_key": key, "event": event}, separators=(",", ":")).encode()
    sequence = str(49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000 + number)
    return {
        "kinesis": {
            "partitionKey": key,
            "sequenceNumber": sequence,
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": START_S + number / 10,
        },
        "eventID": f"{SHARD}:{sequence}",
    }


def updater(encoder: Encoder) -> tuple[update.Updater, MemoryTable]:
    """A warm environment over an empty table."""
    table = MemoryTable()
    current = SimpleNamespace(encoder=encoder)
    bundles = SimpleNamespace(current=current, refresh=lambda: True, of=lambda key: (current, "champion"))
    quarantine = Quarantine(None, "none")
    pool = ThreadPoolExecutor(WRITERS)
    own = update.Updater(Rows(table, "rows"), cast(Bundles, bundles), quarantine, pool)
    return settled(own), table


def deliver(own: update.Updater, batch: list[dict[str, Any]]) -> None:
    """One call of the function; raises RuntimeError unless it did everything."""
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
    answer = update.handle(own, {"Records": batch}, context)
    if answer["batchItemFailures"]:
        raise RuntimeError(f"{answer}; expected no failure")


def as_it_is(own: update.Updater, batch: list[dict[str, Any]]) -> None:
    """The function."""
    deliver(own, batch)


def write_per_event(own: update.Updater, batch: list[dict[str, Any]]) -> None:
    """Each record a batch of its own, as a handler written for single records does."""
    for record in batch:
        deliver(own, [record])


def call_per_event(own: update.Updater, batch: list[dict[str, Any]]) -> None:
    """Rows are read and written together, but each event is a call of the encoder."""
    encoder = own.encoder()
    assert encoder is not None

    def one_by_one(*columns: Any) -> Any:
        each = [encoder.step(*(column[n : n + 1] for column in columns)) for n in range(len(columns[0]))]
        return np.concatenate([s for s, _ in each]), np.concatenate([v for _, v in each])

    with _encoder_of(own, replace(encoder, step=cast(Step, one_by_one))):
        deliver(own, batch)


def loop_fold(own: update.Updater, batch: list[dict[str, Any]]) -> None:
    """Each event folded by a call of `fold` of its own, user by user."""
    real = fold.fold

    def looped(rows: Any, events: Any, encoder: Encoder) -> Any:
        folded, counts = list(rows), []
        for user, some in enumerate(events):
            for event in some:
                (folded[user],), count = real([folded[user]], [[event]], encoder)
                counts.append(count)
        return folded, fold.Folded(*(sum(getattr(c, f) for c in counts) for f in COUNTS))

    with _replaced(update, "fold", looped):
        deliver(own, batch)


COUNTS = ("folded", "duplicates", "unknown_items")
WAYS: dict[str, Callable[[update.Updater, list[dict[str, Any]]], None]] = {
    "the update function": as_it_is,
    "one write per event": write_per_event,
    "one ONNX call per event": call_per_event,
    "a Python loop over `fold`": loop_fold,
}


def measure(encoder: Encoder, rounds: int) -> list[Timing]:
    """All ways in turns, each over a table of its own that holds full rows already."""
    rng = random.Random(0)
    users = [user_key(b"s" * 32, f"user {n}") for n in range(USERS)]
    past = [records(rng, 10 * BATCH, users, 10 * BATCH * n) for n in range(6)]  # 120 events a user
    batches = [records(rng, BATCH, users, 60 * BATCH + BATCH * n) for n in range(rounds)]
    warm = {way: updater(encoder) for way in WAYS}
    for own, table in warm.values():
        for batch in past:
            deliver(own, batch)
        table.written.clear()
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for batch in batches:
        for way, act in WAYS.items():
            started = time.process_time()
            act(warm[way][0], batch)
            spent[way].append(time.process_time() - started)
    events = BATCH * rounds
    return [
        Timing(
            way,
            events / sum(spent[way]),
            len(warm[way][1].written) / events,
            sum(-(-item_bytes(item) // WRITE_UNIT) for item in warm[way][1].written) / events,
        )
        for way in WAYS
    ]


def hot_user(encoder: Encoder, events: int) -> dict[str, Any]:
    """One user with very many events: the row's size, and an event's time at the beginning and at the end."""
    rng, (own, table) = random.Random(1), updater(encoder)
    key = user_key(b"s" * 32, "hot")
    spent, largest = [], 0
    for first in range(0, events, HOT_BATCH):
        batch = records(rng, HOT_BATCH, [key], first)
        started = time.process_time()
        deliver(own, batch)
        spent.append((time.process_time() - started) / HOT_BATCH * 1e6)
        largest = max(largest, item_bytes(table.items[key]))
    fifth = len(spent) // 5 or 1
    return {
        "events": events,
        "largest_row_bytes": largest,
        "first_fifth_us": statistics.median(spent[:fifth]),
        "last_fifth_us": statistics.median(spent[-fifth:]),
    }


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    real = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, real)


@contextmanager
def _encoder_of(own: update.Updater, encoder: Encoder) -> Iterator[None]:
    with _replaced(own.bundles.current, "encoder", encoder):
        yield


def towers_encoder(blocks: int | None) -> Encoder:
    """The default towers with random weights, exported and run by ONNX Runtime on one thread."""
    torch.manual_seed(0)
    shape = Shape(items=ITEMS, categories=0, brands=0, **({"blocks": blocks} if blocks else {}))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "user_tower.onnx"
        export_user_tower(Towers(shape).eval(), model)
        step = OnnxStep(model)
    return Encoder("0" * 16, step.state_width, step.dim, step, NamedItems(step.dim))


def main(arguments: list[str]) -> int:
    """Measure and print; 0 whether or not the target is met."""
    parser = argparse.ArgumentParser(prog="python -m bench stream", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="batches of each way")
    parser.add_argument("--hot-events", type=int, default=HOT_EVENTS, help="of the one very active user")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--bundle", type=Path, default=BUNDLES, help="what the local stack serves")
    parser.add_argument("--local-seconds", type=float, default=30.0, help="at each rate; 0: without it")
    parser.add_argument("--page", type=Path, help=f"where to write the page, such as {PAGE}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    encoder = towers_encoder(None)
    with _replaced(update, "emit", lambda *_, **__: None):
        timings, hot = measure(encoder, options.rounds), hot_user(encoder, options.hot_events)
    report = {
        **describe(CPU),
        "date": datetime.date.today().isoformat(),
        "state_width": encoder.state_width,
        "dim": encoder.dim,
        "batch": BATCH,
        "users": USERS,
        "target": TARGET,
        "timings": [vars(timing) for timing in timings],
        "hot_user": hot,
    }
    if options.local_seconds:
        report["local"] = freshness.measure(options.bundle, RATES, options.local_seconds)
    print(page := page_of(report))
    if options.page:
        options.page.write_text(page)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def page_of(report: dict[str, Any]) -> str:
    """`docs/benchmarks/stream.md`."""
    reached = report["timings"][0]["events_per_s"] >= report["target"]
    parts = [
        INTRODUCTION,
        f"{report['date']}; {report['device']}, load {report['load']} when it began.",
        "## Events a second on one core",
        f"Batches of {report['batch']:,} events of {report['users']} users whose rows are full, state "
        f"{report['state_width']}, d {report['dim']}, random weights in ONNX Runtime, a table that answers "
        "from a dict; the process's own CPU time, all batches together (so that what comes once in many, "
        "such as a collection of garbage, is in it), all ways in turns in one run.",
        table_of(report),
        f"Target: {report['target']:,} events a second; reached: {'yes' if reached else '**no**'}.",
    ]
    if "local" in report:
        parts += ["## From `POST /v1/events` to a changed row", freshness.page_of(report["local"]), LOCAL]
    return "\n\n".join(parts) + "\n"


def table_of(report: dict[str, Any]) -> str:
    """The ways side by side, and the hot user, in Markdown."""
    lines = [
        "| | events a second | of the function's | writes per event | write units per event |",
        "|---|---|---|---|---|",
    ]
    best = report["timings"][0]["events_per_s"]
    for t in report["timings"]:
        lines.append(
            f"| {t['way']} | {t['events_per_s']:,.0f} | {t['events_per_s'] / best:.2f} "
            f"| {t['writes_per_event']:.3f} | {t['units_per_event']:.3f} |"
        )
    hot = report["hot_user"]
    lines += [
        "",
        f"One user with {hot['events']:,} events: the row at most {hot['largest_row_bytes']} bytes (of "
        f"{MAX_BYTES}), {hot['first_fifth_us']:.1f} µs an event in the first fifth, "
        f"{hot['last_fifth_us']:.1f} in the last.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
