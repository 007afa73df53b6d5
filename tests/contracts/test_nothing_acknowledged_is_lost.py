"""Promise 3: what was answered with 202 is in the log, in the client's order, and in the row exactly once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from functions import collect
from functions.aws.errors import Closed, Refused, TimedOut
from functions.aws.log import Log
from functions.core.user_row import event_hash
from tests.functions.account import Account, Context, behaviour, credential, http, key_of, stream_record
from tests.functions.test_update import deliver, row_of

CASES = 10_000
RETRIES = 40
Json = dict[str, Any]


class Kinesis:
    """A log whose requests are refused, lost on their way, or answered in vain."""

    def __init__(self, rng: random.Random, trouble: float) -> None:
        self.records: list[Json] = []
        self._rng, self.trouble = rng, trouble

    def put_record(self, **put: Any) -> Json:
        after = put.get("SequenceNumberForOrdering")
        assert after is None or int(after) <= len(self.records)
        kind = self._rng.random() / self.trouble if self.trouble else 1.0
        if kind < 0.4:
            code = self._rng.choice(("ProvisionedThroughputExceededException", "InternalFailure"))
            raise Refused(code, 400)
        if kind < 0.7:
            raise Closed("log")
        self.records.append(json.loads(put["Data"])["event"])
        if kind < 1.0:
            raise TimedOut("log")
        return {"ShardId": "shardId-000000000000", "SequenceNumber": str(len(self.records))}


def post(events: list[Json]) -> tuple[int, Json]:
    answer = collect.handler(http("POST", "/v1/events", {"events": events}, credential("ann")), Context())
    return answer["statusCode"], json.loads(answer["body"])


def wrongs(kinesis: Kinesis, events: list[Json]) -> list[str]:
    """What one request's answer says that is not so."""
    start = len(kinesis.records)
    status, answer = post(events)
    logged = [event["event_id"] for event in kinesis.records[start:]]
    fates = [(r["event_id"], r["status"]) for r in answer["results"]]
    accepted = [name for name, fate in fates if fate == "accepted"]
    valid = [name for name, fate in fates if fate != "invalid"]
    found = []
    if not set(accepted) <= set(logged):
        found.append("accepted, and not in the log")
    if valid[: len(logged)] != logged:
        found.append("not in the client's order, or one was overtaken")
    if len(logged) > len(accepted) + 1:
        found.append("in the log, more than one of them not told")
    if (status == 202) != bool(accepted) or (not accepted and status != (503 if valid else 400)):
        found.append(f"status {status} with {len(accepted)} accepted")
    if [name for name, _ in fates] != [event["event_id"] for event in events]:
        found.append("results are not the events'")
    return found


def request(rng: random.Random, case: int) -> list[Json]:
    events = [behaviour(n, f"sku-{n:03d}") for n in range(rng.choice((1, 1, 2, 3, 5, 8)))]
    for n, event in enumerate(events):
        event["event_id"] = f"{case}-{n}"
        if rng.random() < 0.1:
            event["type"] = "glance"
    return events


def search(monkeypatch: pytest.MonkeyPatch, cases: range) -> list[str]:
    rng = random.Random(cases.start)
    found: list[str] = []
    kinesis = Kinesis(rng, 0.0)
    monkeypatch.setattr(collect.collector(), "log", Log(kinesis, "events"))
    for case in cases:
        kinesis.trouble = rng.choice((0.0, 0.1, 0.5, 1.0))
        found += wrongs(kinesis, request(rng, case))
    return found


def test_ten_thousand_requests_with_put_failures(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search(monkeypatch, range(CASES)) == []


@pytest.mark.parametrize("seed", range(25))
def test_a_client_that_sends_again_what_failed_has_each_event_in_the_row_once(
    account: Account, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    kinesis = Kinesis(rng, 0.5)
    monkeypatch.setattr(collect.collector(), "log", Log(kinesis, "events"))
    events = [behaviour(n, f"sku-{n:03d}") for n in range(rng.randint(1, 30))]
    waiting = events
    for _ in range(RETRIES):
        if not waiting:
            break
        fates = {r["event_id"]: r["status"] for r in post(waiting)[1]["results"]}
        waiting = [event for event in waiting if fates[event["event_id"]] == "failed"]
    assert not waiting
    assert len(kinesis.records) >= len(events)  # an answer lost on its way brings an event twice
    key = key_of("ann")
    assert deliver([stream_record(key, event, n + 1) for n, event in enumerate(kinesis.records)]) == []
    assert row_of("ann").ring.hashes() == [event_hash(event["event_id"]) for event in events]


def _run_on(log: Log, key: str, events: list[collect.Checked]) -> list[Json]:
    return [result for event in events for result in REAL(log, key, [event])]


def _told_before(log: Log, key: str, events: list[collect.Checked]) -> list[Json]:
    results = REAL(log, key, events)
    return [{**r, "status": "accepted"} if r["status"] == "failed" else r for r in results]


def _without_the_last(log: Log, key: str, events: list[collect.Checked]) -> list[Json]:
    return [*REAL(log, key, events[:-1]), {"event_id": events[-1].event_id, "status": "accepted"}]


REAL = collect.append


@pytest.mark.parametrize("bug", [_run_on, _told_before, _without_the_last])
def test_the_planted_bug_is_found(
    account: Account, monkeypatch: pytest.MonkeyPatch, bug: Callable[..., list[Json]]
) -> None:
    monkeypatch.setattr(collect, "append", bug)
    assert search(monkeypatch, range(200)) != []
