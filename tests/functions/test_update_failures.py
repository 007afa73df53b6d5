"""What goes wrong on the way into the table stops one user alone, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from functions import update
from functions.aws.errors import Refused, TimedOut
from functions.aws.transport import THROTTLED_S
from tests.functions.account import BUCKET, TABLE, Account, Context, behaviour, key_of, stream_record
from tests.functions.test_update import SHARDS, deliver, row_of, same

Call = Callable[..., Any]
POISON = {
    "not JSON": b"\xff\xfe no JSON",
    "NaN": b'{"user_key": "%s", "event": {"value": NaN}}' % (b"a" * 22),
    "no event": b'{"user_key": "aaaaaaaaaaaaaaaaaaaaaa"}',
    "no user key": b'{"user_key": "x", "event": {}}',
    "a list": b"[]",
    "nothing": b"",
    "unknown type": json.dumps({"user_key": "a" * 22, "event": behaviour(1, kind="glance")}).encode(),
}


def throttle(operation: str) -> Refused:
    return Refused("ProvisionedThroughputExceededException", 400, f"{operation}: too fast")


def intercept(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Call, dict[str, Any]], Any]
) -> None:
    """Every call of the table's client named `name` goes through `change(real, arguments)`."""
    client = update.updater().rows._dynamodb
    real = getattr(client, name)
    monkeypatch.setattr(client, name, lambda **arguments: change(real, arguments))


def records(user: str, numbers: range, start: int) -> list[dict[str, Any]]:
    key = key_of(user)
    numbered = enumerate(numbers, start)
    return [stream_record(key, behaviour(n, f"sku-{n:03d}"), at, SHARDS[0]) for at, n in numbered]


def entries(user: str, numbers: range) -> list[tuple[str, dict[str, Any]]]:
    return [(user, behaviour(n, f"sku-{n:03d}")) for n in numbers]


@pytest.mark.parametrize("name", POISON)
def test_a_poison_record_is_kept_whole_and_stops_nobody(account: Account, name: str) -> None:
    poison = stream_record("", POISON[name], 7)
    assert deliver([poison, *records("ann", range(2), 8)]) == []
    (kept,) = account.quarantine().values()
    assert kept["record"] == poison and kept["reason"]
    assert same("ann", entries("ann", range(2)))


def test_what_quarantine_refuses_is_not_acknowledged(account: Account) -> None:
    assert deliver(records("ann", range(1), 1)) == []  # the bundle is in memory from here on
    own = update.updater()
    own.quarantine._bucket = "no-such-bucket"
    batch = [stream_record("", b"poison", 2), *records("bob", range(2), 3)]
    assert deliver(batch) == ["2"]
    assert same("bob", entries("bob", range(2)))
    own.quarantine._bucket = BUCKET
    assert deliver(batch) == []
    assert len(account.quarantine()) == 1
    assert same("bob", entries("bob", range(2)))


def test_a_throttled_write_stops_that_user_alone(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [*records("ann", range(2), 1), *records("bob", range(2, 4), 3), *records("ann", range(4, 5), 5)]
    update.updater()

    def refuse_bob(real: Call, arguments: dict[str, Any]) -> Any:
        if arguments["Item"]["pk"]["S"] == key_of("bob"):
            raise throttle("PutItem")
        return real(**arguments)

    with monkeypatch.context() as planted:
        intercept(planted, "put_item", refuse_bob)
        assert deliver(batch) == ["3"]
    assert key_of("bob") not in account.items()
    assert deliver(batch[2:]) == []  # as Lambda does: from the lowest failed one on
    assert same("ann", [*entries("ann", range(2)), *entries("ann", range(4, 5))])
    assert same("bob", entries("bob", range(2, 4)))


def test_a_table_that_cannot_be_read_acknowledges_nothing(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(real: Call, arguments: dict[str, Any]) -> Any:
        raise throttle("BatchGetItem")

    update.updater()
    with monkeypatch.context() as planted:
        intercept(planted, "batch_get_item", refuse)
        assert deliver(records("ann", range(3), 4)) == ["4"]
    assert account.items() == {}
    assert deliver(records("ann", range(3), 4)) == []
    assert same("ann", entries("ann", range(3)))


def test_keys_that_stay_unprocessed_are_read_again(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert deliver([*records("ann", range(1), 1), *records("bob", range(1), 2)]) == []
    calls: list[int] = []

    def only_one(real: Call, arguments: dict[str, Any]) -> Any:
        keys = arguments["RequestItems"][TABLE]["Keys"]
        calls.append(len(keys))
        few = {TABLE: {"Keys": keys[:1], "ConsistentRead": True}}
        left = {TABLE: {"Keys": keys[1:]}} if keys[1:] else {}
        return {**real(RequestItems=few), "UnprocessedKeys": left}

    with monkeypatch.context() as planted:
        intercept(planted, "batch_get_item", only_one)
        assert deliver([*records("ann", range(1, 2), 3), *records("bob", range(1, 2), 4)]) == []
    assert calls == [2, 1]
    assert same("ann", entries("ann", range(2))) and same("bob", entries("bob", range(2)))


def test_a_write_whose_answer_was_lost_is_known_by_its_write_id(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client tries again by itself: the second put fails its condition, and it was us."""

    def lose(real: Call, arguments: dict[str, Any]) -> Any:
        real(**arguments)
        return real(**arguments)

    update.updater()
    with monkeypatch.context() as planted:
        intercept(planted, "put_item", lose)
        assert deliver(records("ann", range(3), 1)) == []
    assert row_of("ann").version == 1
    assert same("ann", entries("ann", range(3)))


def test_a_write_that_timed_out_and_was_done_is_not_done_again(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(real: Call, arguments: dict[str, Any]) -> Any:
        real(**arguments)
        raise TimedOut("table")

    update.updater()
    with monkeypatch.context() as planted:
        intercept(planted, "put_item", time_out)
        assert deliver(records("ann", range(3), 1)) == ["1"]
    assert deliver(records("ann", range(3), 1)) == []
    assert row_of("ann").version == 1
    assert same("ann", entries("ann", range(3)))


def test_another_writer_in_between_costs_neither_its_events_nor_ours(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent shard's last batch and its child's first can be under way at once."""
    theirs = [stream_record(key_of("ann"), behaviour(0, "sku-000"), 9, SHARDS[1])]
    turns: list[bool] = []

    def meanwhile(real: Call, arguments: dict[str, Any]) -> Any:
        if not turns:
            turns.append(True)
            assert deliver(theirs) == []
        return real(**arguments)

    update.updater()
    with monkeypatch.context() as planted:
        intercept(planted, "put_item", meanwhile)
        assert deliver(records("ann", range(1, 3), 1)) == []
    assert row_of("ann").version == 2
    assert same("ann", entries("ann", range(3)))


def test_a_writer_that_is_always_faster_does_not_hold_us_for_ever(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def always_faster(real: Call, arguments: dict[str, Any]) -> Any:
        tried.append(1)
        raise Refused("ConditionalCheckFailedException", 400)

    update.updater()
    with monkeypatch.context() as planted:
        intercept(planted, "put_item", always_faster)
        assert deliver(records("ann", range(1), 3)) == ["3"]
    assert len(tried) == update.TRIES


def test_without_any_bundle_the_batch_waits(fresh: None) -> None:
    account = Account(bundles=None)
    assert deliver(records("ann", range(3), 5)) == ["5"]
    assert account.items() == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"state": {"B": b"odd"}},
        {"state": {"B": b"\0" * 6}},  # another width under the same space
        {"marks": {"B": b"cut"}},
        {"ring": {"S": "text"}},
    ],
)
def test_a_corrupt_row_stops_its_user_alone_and_its_events_are_kept(
    account: Account, damage: dict[str, Any]
) -> None:
    assert deliver(records("ann", range(2), 1)) == []
    broken = {**account.items()[key_of("ann")], **damage}
    account.dynamodb.put_item(TableName=TABLE, Item=broken)
    batch = [*records("ann", range(2, 4), 3), *records("bob", range(2), 5)]
    assert deliver(batch) == []
    assert same("bob", entries("bob", range(2)))
    assert account.items()[key_of("ann")] == broken
    kept = account.quarantine().values()
    assert [entry["record"] for entry in kept] == batch[:2]


def test_a_state_that_is_not_finite_is_never_stored(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = update.updater()
    encoder = own.encoder()
    assert encoder is not None

    def poisoned(*columns: Any) -> Any:
        state, vector = encoder.step(*columns)
        return state * float("nan"), vector

    monkeypatch.setattr(own, "encoder", lambda: replace(encoder, step=poisoned))
    assert deliver(records("ann", range(2), 1)) == []
    assert account.items() == {}
    assert len(account.quarantine()) == 2


def test_a_row_of_another_state_space_is_made_anew_of_its_ring(account: Account) -> None:
    assert deliver(records("ann", range(3), 1)) == []
    item = account.items()[key_of("ann")]
    foreign = {**item, "space": {"S": "f" * 16}, "state": {"B": b"\x11" * len(item["state"]["B"])}}
    account.dynamodb.put_item(TableName=TABLE, Item=foreign)
    assert deliver(records("ann", range(3, 5), 4)) == []
    assert same("ann", entries("ann", range(5)))


def test_when_time_is_short_the_rest_is_delivered_again(account: Account) -> None:
    update.updater()
    answer = update.handler({"Records": records("ann", range(2), 6)}, Context(remaining_ms=1))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "6"}]}
    assert account.items() == {}
    assert deliver(records("ann", range(2), 6)) == []
    assert same("ann", entries("ann", range(2)))


def test_a_call_that_is_begun_in_time_ends_in_time(account: Account) -> None:
    transport = update.updater().rows._dynamodb._transport
    connect_s, answer_s = transport._pool._limits
    pauses_s = sum(THROTTLED_S * 2**pause for pause in range(transport._attempts - 1))
    slowest_s = transport._attempts * (2 * connect_s + answer_s) + pauses_s  # connecting and TLS
    assert slowest_s <= update.SPARE_S < Context().get_remaining_time_in_millis() / 1000


def test_the_lowest_failed_number_is_returned_whatever_the_order(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(real: Call, arguments: dict[str, Any]) -> Any:
        raise throttle("PutItem")

    update.updater()
    intercept(monkeypatch, "put_item", refuse)
    assert deliver([*records("bob", range(2), 3), *records("ann", range(2), 1)]) == ["1"]
