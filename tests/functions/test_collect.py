"""`POST /v1/events`: 202 says that the log has the events; each is answered for itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from functions import collect, score
from functions.aws.errors import Refused
from functions.core.tokens import sign, verify
from tests.functions.account import KEYS, Account, Context, behaviour, credential, http, key_of

Json = dict[str, Any]
WRONG_EVENTS: dict[str, tuple[Any, str]] = {
    "no id": ({**behaviour(1), "event_id": None}, "event_id"),
    "long id": ({**behaviour(1), "event_id": "x" * 1_000}, "event_id"),
    "unknown type": (behaviour(1, kind="glance"), "type"),
    "no item": ({**behaviour(1), "item_id": ""}, "item_id"),
    "no time": ({**behaviour(1), "time": None}, "time"),
    "a time without an offset": ({**behaviour(1), "time": "2026-11-24T12:00:00"}, "time"),
    "a value below zero": (behaviour(1, value=-1), "value"),
    "a value as text": (behaviour(1, value="9.99"), "value"),
    "the user in the event": (behaviour(1, user_id="eve"), "user_id"),
    "no object": ("view", "event"),
}


def send(body: object, user: str = "ann") -> tuple[int, Json]:
    answer = collect.handler(http("POST", "/v1/events", body, credential(user)), Context())
    return answer["statusCode"], json.loads(answer["body"])


def logged(account: Account) -> list[Json]:
    return [json.loads(record["Data"]) for record in account.records()]


def statuses(answer: Json) -> list[str]:
    return [result["status"] for result in answer["results"]]


def test_events_are_in_the_log_in_order_as_they_came(account: Account) -> None:
    events = [behaviour(n, f"sku-{n:03d}", context={"device": "mobile"}) for n in range(5)]
    status, answer = send({"events": events})
    assert (status, answer["accepted"], statuses(answer)) == (202, 5, ["accepted"] * 5)
    assert [result["event_id"] for result in answer["results"]] == [e["event_id"] for e in events]
    assert [record["event"] for record in logged(account)] == events


def test_nobody_behind_collect_learns_who_the_user_is(account: Account) -> None:
    assert send(behaviour(1), "ann@example.com")[0] == 202
    (record,) = account.records()
    assert b"ann" not in record["Data"]
    assert record["PartitionKey"] == json.loads(record["Data"])["user_key"] == key_of("ann@example.com")


@pytest.mark.parametrize("name", WRONG_EVENTS)
def test_one_wrong_event_is_told_and_loses_no_good_one(account: Account, name: str) -> None:
    wrong, field = WRONG_EVENTS[name]
    status, answer = send({"events": [behaviour(7), wrong, behaviour(8)]})
    assert (status, answer["accepted"]) == (202, 2)
    assert statuses(answer) == ["accepted", "invalid", "accepted"]
    assert answer["results"][1]["error"].startswith(f"events[1].{field}: ")
    assert [record["event"]["event_id"] for record in logged(account)] == ["e7", "e8"]


@pytest.mark.parametrize("name", WRONG_EVENTS)
def test_when_no_event_is_valid_it_is_a_400(account: Account, name: str) -> None:
    wrong, field = WRONG_EVENTS[name]
    status, answer = send({"events": [wrong]})
    assert (status, answer["errors"][0]["field"]) == (400, f"events[0].{field}")
    assert logged(account) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": []}, "events"),
        ({"events": [behaviour(n) for n in range(101)]}, "events"),
        ({"events": "all"}, "events"),
        ({"events": [behaviour(1)], "user": "eve"}, "user"),
        ([behaviour(1)], "body"),
        ("no JSON", "body"),
        ("", "body"),
    ],
)
def test_a_wrong_body_is_a_400(account: Account, body: object, field: str) -> None:
    status, answer = send(body)
    assert (status, answer["errors"][0]["field"]) == (400, field)
    assert logged(account) == []


def test_a_number_that_json_does_not_have_costs_its_event_alone(account: Account) -> None:
    good, bad = json.dumps(behaviour(1)), json.dumps(behaviour(2)).replace("}", ', "value": NaN}')
    status, answer = send(f'{{"events": [{bad}, {good}]}}')
    assert (status, statuses(answer)) == (202, ["invalid", "accepted"])
    assert [record["event"]["event_id"] for record in logged(account)] == ["e1"]


def test_an_event_that_is_too_large_for_the_log_costs_itself_alone(account: Account) -> None:
    status, answer = send({"events": [behaviour(1, context={"note": "x" * 40_000}), behaviour(2)]})
    assert (status, statuses(answer)) == (202, ["invalid", "accepted"])


@pytest.mark.parametrize("authorization", [None, "Bearer a.b.c", credential("ann", lifetime_s=-5)])
def test_without_a_credential_nothing_is_collected(account: Account, authorization: str | None) -> None:
    answer = collect.handler(http("POST", "/v1/events", behaviour(1), authorization), Context())
    assert answer["statusCode"] == 401
    assert logged(account) == []


def refuse_from(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The log refuses its `number`th record, and would take the ones after it."""
    client = collect.collector().log._kinesis
    real: Callable[..., Any] = client.put_record
    calls: list[int] = []

    def put(**arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise Refused("ProvisionedThroughputExceededException", 400, "slow down")
        return real(**arguments)

    monkeypatch.setattr(client, "put_record", put)


def test_after_an_event_that_failed_none_overtakes_it(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_from(monkeypatch, 3)
    status, answer = send({"events": [behaviour(n) for n in range(5)]})
    assert (status, answer["accepted"]) == (202, 2)
    assert statuses(answer) == ["accepted", "accepted", "failed", "failed", "failed"]
    assert [record["event"]["event_id"] for record in logged(account)] == ["e0", "e1"]


def test_when_the_log_takes_nothing_it_is_a_503(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_from(monkeypatch, 1)
    status, answer = send({"events": [behaviour(1), behaviour(2)]})
    assert (status, statuses(answer)) == (503, ["failed", "failed"])
    assert logged(account) == []


def test_each_record_names_the_one_before_it(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    client = collect.collector().log._kinesis
    real: Callable[..., Any] = client.put_record
    told: list[str | None] = []
    given: list[str] = []

    def put(**arguments: Any) -> Any:
        told.append(arguments.pop("SequenceNumberForOrdering", None))
        answer = real(**arguments)
        given.append(answer["SequenceNumber"])
        return answer

    monkeypatch.setattr(client, "put_record", put)
    send({"events": [behaviour(n) for n in range(3)]})
    assert told == [None, *given[:2]]


def shown_to(user: str) -> Json:
    event = http("POST", "/v1/banners", {"slot": "home", "k": 2}, credential(user))
    banner: Json = json.loads(score.handler(event, Context())["body"])["banners"][0]
    return banner


def test_a_click_answers_the_decision_that_was_shown(account: Account) -> None:
    banner = shown_to("ann")
    click = behaviour(1, banner["item_id"], "click", token=banner["token"])
    assert send(click)[0] == 202
    assert logged(account)[0]["event"]["token"] == banner["token"]


def test_the_answer_says_what_is_wrong_with_a_token(account: Account) -> None:
    banner = shown_to("ann")
    over = sign({**verify(banner["token"], KEYS, time.time()), "exp": int(time.time()) - 1}, KEYS)
    forged = banner["token"][:-4] + ("AAAA" if banner["token"][-4:] != "AAAA" else "BBBB")
    wrong = (
        (over, "ann", "expired"),
        (forged, "ann", "bad signature"),
        (banner["token"], "eve", "this visitor"),
    )
    for token, user, reason in wrong:
        act = behaviour(1, banner["item_id"], "click", token=token)
        status, answer = send({"events": [act, behaviour(2)]}, user)
        assert (status, statuses(answer)) == (202, ["invalid", "accepted"])
        error = answer["results"][0]["error"]
        assert error.startswith("events[0].token: ") and reason in error


def test_a_decision_that_is_not_the_callers_own_is_refused(account: Account) -> None:
    """A click cannot be forged: not for another visitor or item, nor with another token."""
    banner = shown_to("ann")
    token, item = banner["token"], banner["item_id"]
    assert send(behaviour(1, item, "click", token=token), "eve")[0] == 400
    assert send(behaviour(1, "sku-059" if item != "sku-059" else "sku-058", "click", token=token))[0] == 400
    assert send(behaviour(1, item, "click", token=token[:-4] + "AAAA"))[0] == 400
    assert (
        send(behaviour(1, item, "click", token=sign({"sub": "ann", "exp": time.time() + 9}, KEYS)))[0] == 400
    )
    assert logged(account) == []
