"""`GET /v1/me` and `DELETE /v1/me`: what is held of a visitor, and that nothing is once it was erased."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from functions import collect, me, score, update
from functions.aws.errors import Refused
from functions.core import erasure
from functions.core.records import encode_erasure
from functions.core.tokens import verify
from functions.core.user_row import UserRow, event_hash
from tests.functions.account import (
    KEYS,
    TABLE,
    Account,
    Context,
    behaviour,
    credential,
    http,
    key_of,
    stream_record,
)
from tests.functions.test_update import SHARDS, deliver, row_of

Json = dict[str, Any]
ANN = key_of("ann")


def erase(user: str = "ann") -> tuple[int, Json]:
    answer = me.handler(http("DELETE", "/v1/me", authorization=credential(user)), Context())
    return answer["statusCode"], json.loads(answer["body"])


def held(user: str = "ann") -> Json:
    answer = score.handler(http("GET", "/v1/me", authorization=credential(user)), Context())
    assert answer["statusCode"] == 200
    body: Json = json.loads(answer["body"])
    return body


def send(*events: Json, user: str = "ann") -> None:
    answer = collect.handler(
        http("POST", "/v1/events", {"events": list(events)}, credential(user)), Context()
    )
    assert answer["statusCode"] == 202


def batch(account: Account) -> list[Json]:
    """All that the stream has, as Lambda delivers it."""
    return [
        stream_record(record["PartitionKey"], record["Data"], int(record["SequenceNumber"]), SHARDS[0])
        for record in account.records()
    ]


def ring(user: str = "ann") -> list[bytes]:
    return [entry.event for entry in row_of(user).ring]


def acts(numbers: range) -> list[Json]:
    return [behaviour(n, f"sku-{n:03d}", "click") for n in numbers]


def test_all_that_is_held_is_told_by_its_name(account: Account) -> None:
    send(behaviour(1, "sku-007", "cart"), behaviour(2, "sku-008", "impression"), behaviour(3, "not-sold"))
    nothing = held()
    assert (nothing["user_key"], nothing["row"]) == (ANN, None)
    assert [other["where"] for other in nothing["elsewhere"]] == ["archive", "stream", "quarantine"]
    assert deliver(batch(account)) == []
    row = held()["row"]
    assert row["events"] == [{"type": "cart", "item_id": "sku-007"}, {"type": "view", "item_id": None}]
    assert [seen["item_id"] for seen in row["impressions"]] == ["sku-008"]
    assert row["last_event_time"] == "2026-11-24T12:00:03Z"
    assert set(row["stored"]) >= {"state", "vector", "ring", "seen", "marks", "fav"}


def test_an_erasure_takes_the_row_at_once_and_is_signed(account: Account) -> None:
    send(*acts(range(3)))
    assert deliver(batch(account)) == []
    status, answer = erase()
    assert (status, answer["status"]) == (200, "erased")
    claims = verify(answer["receipt"], KEYS, time.time())
    assert (claims["kind"], claims["user_key"]) == ("erasure", ANN) and "sub" not in claims
    row = row_of("ann")
    assert (len(row.ring), row.seen, row.state.size, row.vector.size) == (0, (), 0, 0)
    assert row.version == 2  # a writer that read the row before fails its condition
    assert held()["row"]["events"] == []
    expires_s = int(account.items()[ANN]["ttl"]["N"])
    assert 7 * 86_400 < expires_s - time.time() < 9 * 86_400  # longer than the stream keeps a record


def test_a_receipt_is_no_credential(account: Account) -> None:
    receipt = erase()[1]["receipt"]
    answer = me.handler(http("DELETE", "/v1/me", authorization=f"Bearer {receipt}"), Context())
    assert answer["statusCode"] == 401


@pytest.mark.parametrize("seen_before", [0, 2, 4])
def test_events_in_flight_do_not_bring_the_user_back_and_a_new_life_begins(
    account: Account, seen_before: int
) -> None:
    send(*acts(range(4)))
    assert deliver(batch(account)[:seen_before]) == []
    assert erase()[0] == 200
    send(*acts(range(4, 6)))
    records = batch(account)
    for at in range(len(records)):  # one record a batch, each batch twice
        assert deliver(records[at : at + 1]) == deliver(records[at : at + 1]) == []
        assert ring() == [event_hash(f"e{n}") for n in range(4, 6)][: max(0, at - 4)]
    assert deliver(records) == []
    assert len(ring()) == 2 and row_of("ann").erasing_since_s == 0


def test_an_event_sent_again_after_the_erasure_is_of_the_new_life(account: Account) -> None:
    send(*acts(range(1)))
    assert erase()[0] == 200
    send(*acts(range(1)))
    assert deliver(batch(account)) == []
    assert ring() == [event_hash("e0")]


def test_the_reader_may_be_faster_than_the_tombstone(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream brings the erasure, and events after it, before the request comes to the row."""
    send(*acts(range(2)))
    own = me.eraser()
    bury = own._bury

    def late(*arguments: Any) -> bytes:
        send(*acts(range(2, 3)))
        assert deliver(batch(account)) == []
        return bury(*arguments)

    monkeypatch.setattr(own, "_bury", late)
    assert erase()[0] == 200
    assert ring() == [event_hash("e2")] and row_of("ann").erasing_since_s == 0


def test_a_writer_that_read_the_row_before_does_not_bring_the_user_back(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a row and without one: the tombstone makes either condition fail."""
    for user in ("ann", "new"):
        if user == "ann":
            send(*acts(range(2)), user=user)
            assert deliver(batch(account)) == []
        send(*acts(range(2, 4)), user=user)
        records = [r for r in batch(account) if r["kinesis"]["sequenceNumber"]]
        client = update.updater().rows._dynamodb
        real: Callable[..., Any] = client.put_item
        turns: list[int] = []

        def meanwhile(
            *, turns: list[int] = turns, user: str = user, real: Any = real, **arguments: Any
        ) -> Any:
            if not turns:
                turns.append(1)
                assert erase(user)[0] == 200
            return real(**arguments)

        with monkeypatch.context() as planted:
            planted.setattr(client, "put_item", meanwhile)
            assert deliver(records) == []
        assert turns and ring(user) == []
        assert deliver(batch(account)) == []
        assert ring(user) == [] and row_of(user).erasing_since_s == 0


def test_an_erasure_that_is_in_the_log_twice_counts_once(account: Account) -> None:
    receipt = b"12345678"
    records = [
        stream_record(ANN, behaviour(1), 1),
        stream_record(ANN, encode_erasure(ANN, receipt), 2),
        stream_record(ANN, behaviour(2), 3),
        stream_record(ANN, encode_erasure(ANN, receipt), 4),
    ]
    assert deliver(records) == []
    assert ring() == [event_hash("e2")]


def test_two_erasures_at_once_end_in_one_empty_row(account: Account) -> None:
    send(*acts(range(1)))
    assert erase()[0] == 200
    send(*acts(range(1, 2)))
    assert erase()[0] == 200
    for record in batch(account):
        assert deliver([record]) == []
        assert ring() == []
    assert row_of("ann").erasing_since_s == 0


def test_an_older_request_does_not_end_the_silence_that_a_newer_one_was_told_of(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request is slow: an event and a second request, answered, come before its tombstone."""
    own = me.eraser()
    bury = own._bury
    turns: list[int] = []

    def slow(*arguments: Any) -> bytes:
        if not turns:
            turns.append(1)
            send(*acts(range(1)))
            assert erase()[0] == 200
        return bury(*arguments)

    monkeypatch.setattr(own, "_bury", slow)
    assert erase()[0] == 200
    for record in batch(account):
        assert deliver([record]) == []
        assert ring() == []
    assert row_of("ann").erasing_since_s == 0


def test_a_row_that_nobody_can_read_is_erased_too(account: Account) -> None:
    send(*acts(range(1)))
    assert deliver(batch(account)) == []
    account.dynamodb.put_item(TableName=TABLE, Item={**account.items()[ANN], "ring": {"B": b"cut"}})
    assert erase()[0] == 200
    assert len(row_of("ann").ring) == 0


def test_when_the_log_does_not_take_it_nothing_is_said_to_be_erased(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(*acts(range(1)))
    assert deliver(batch(account)) == []

    def refuse(**arguments: Any) -> Any:
        raise Refused("ThrottlingException", 400)

    with monkeypatch.context() as planted:
        planted.setattr(me.eraser().log._kinesis, "put_record", refuse)
        assert erase()[0] == 503
    assert len(ring()) == 1


def test_an_erasure_whose_record_was_given_up_does_not_silence_a_user_for_ever(account: Account) -> None:
    assert erase()[0] == 200
    late = stream_record(ANN, behaviour(1), 10**20)
    for hours, expected in ((47.9, 0), (48.1, 1)):
        late["kinesis"]["approximateArrivalTimestamp"] = time.time() + hours * 3600
        late["kinesis"]["sequenceNumber"] = str(10**20 + expected)
        assert deliver([late]) == []
        assert len(ring()) == expected


def nothing_erased(row: UserRow, records: Any) -> Any:
    return row, [record.event for record in records if record.event is not None]


def no_tombstone(own: me.Eraser, *arguments: Any) -> bytes:
    return b""


@pytest.mark.parametrize("bug", ["no tombstone", "the log's record is passed over"])
def test_the_planted_bug_is_found(account: Account, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    if bug == "no tombstone":
        monkeypatch.setattr(me.Eraser, "_bury", no_tombstone)
    else:
        monkeypatch.setattr(update, "surviving", nothing_erased)
    send(*acts(range(2)))
    assert deliver(batch(account)[:1]) == []
    erase()
    at_once = len(ring())
    assert deliver(batch(account)) == []
    assert (at_once, len(ring())) != (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_however_it_is_delivered_the_last_erasure_ends_all_before_it(account: Account, seed: int) -> None:
    rng = random.Random(seed)
    sent: list[str] = []
    for number in range(30):
        if rng.random() < 0.15:
            assert erase()[0] == 200
            sent = []
        else:
            send(behaviour(number, f"sku-{number:03d}"))
            sent.append(f"e{number}")
        if rng.random() < 0.3:
            records = batch(account)
            start = rng.randrange(len(records))
            assert deliver(records[: rng.randint(start, len(records))]) == []
    assert deliver(batch(account)) == []
    assert ring() == [event_hash(name) for name in sent]
    if not sent:
        assert erasure.is_tombstone(row_of("ann"))
