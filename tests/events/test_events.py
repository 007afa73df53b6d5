"""Every sample event in `events/` through its handler, with what must come of it.

`${ann}` and `${new}` in an Authorization header stand for credentials, which expire and so cannot be stored.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from functions import collect, me, score, update
from functions.aws.rows import from_item
from tests.functions.account import Account, Context, credential, key_of

EVENTS = Path(__file__).parents[2] / "events"
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Expected:
    """The handler, and what its answer has; `before` names batches that the stream has brought already."""

    handler: Callable[[dict[str, Any], Any], dict[str, Any]]
    status: int = 200
    has: dict[str, Any] = field(default_factory=dict)
    wrong_field: str = ""
    before: tuple[str, ...] = ()


BATCH = ("kinesis_batch",)
ANSWERS = {
    "banners_known_user": Expected(score.handler, has={"tier": "personal", "banners": 4}, before=BATCH),
    "banners_new_user": Expected(score.handler, has={"tier": "popular", "banners": 6}),
    "banners_recent_events": Expected(
        score.handler, has={"tier": "personal", "banners": 3, "folded_ahead": 1}
    ),
    "banners_unknown_slot": Expected(score.handler, 400, wrong_field="slot"),
    "banners_k_out_of_range": Expected(score.handler, 400, wrong_field="k"),
    "banners_malformed_json": Expected(score.handler, 400, wrong_field="body"),
    "banners_unknown_parameter": Expected(score.handler, 400, wrong_field="sort"),
    "banners_no_credential": Expected(score.handler, 401),
    "visitors": Expected(score.handler, 201),
    "health": Expected(score.handler, has={"status": "ok", "items": 62}),
    "me_held": Expected(score.handler, has={"user_key": key_of("ann")}, before=BATCH),
    "me_erase": Expected(me.handler, has={"status": "erased"}, before=BATCH),
    "unknown_route": Expected(score.handler, 404),
    "events_single": Expected(collect.handler, 202, has={"accepted": 1}),
    "events_batch": Expected(collect.handler, 202, has={"accepted": 3}),
    "events_one_invalid": Expected(collect.handler, 202, has={"accepted": 2}),
}
# batch → events in the ring of each user afterwards, records in quarantine
BATCHES = {
    "kinesis_batch": ({"ann": 3, "bob": 1}, 0),
    "kinesis_erasure": ({"ann": 1, "bob": 1}, 0),
    "kinesis_redelivery": ({"ann": 3, "bob": 2}, 0),
    "kinesis_poison": ({"bob": 2}, 2),
    "kinesis_unknown_item": ({"bob": 1}, 0),
}


def read(name: str) -> dict[str, Any]:
    text = (EVENTS / f"{name}.json").read_text(encoding="utf-8")
    for user in ("ann", "new"):
        text = text.replace(f"Bearer ${{{user}}}", credential(user))
    event: dict[str, Any] = json.loads(text)
    return event


def test_every_file_has_an_expectation_and_every_expectation_a_file() -> None:
    assert {path.stem for path in EVENTS.glob("*")} == ANSWERS.keys() | BATCHES.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_request_is_answered(account: Account, name: str) -> None:
    expected = ANSWERS[name]
    for batch in expected.before:
        assert update.handler(read(batch), Context()) == {"batchItemFailures": []}
    answer = expected.handler(read(name), Context())
    body = json.loads(answer["body"])
    assert answer["statusCode"] == expected.status
    assert "Server-Timing" in answer["headers"]
    for key, value in expected.has.items():
        found = len(body[key]) if isinstance(body[key], list) else body[key]
        assert found == value, key
    if expected.status >= 400:
        assert answer["headers"]["Content-Type"] == PROBLEM
        assert (body["status"], bool(body["title"])) == (expected.status, True)
    if expected.wrong_field:
        (error,) = body["errors"]
        assert error["field"] == expected.wrong_field and error["expected"]


def test_one_invalid_event_loses_none_beside_it(account: Account) -> None:
    body = json.loads(collect.handler(read("events_one_invalid"), Context())["body"])
    assert [r["status"] for r in body["results"]] == ["accepted", "invalid", "accepted"]
    assert "glance" in body["results"][1]["error"]
    assert len(account.records()) == 2


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("deliveries", [1, 2])
def test_a_batch_is_folded_once_however_often_it_comes(account: Account, name: str, deliveries: int) -> None:
    rings, in_quarantine = BATCHES[name]
    for _ in range(deliveries):
        assert update.handler(read(name), Context()) == {"batchItemFailures": []}
    rows = account.items()
    assert {user: len(from_item(rows[key_of(user)]).ring) for user in rings} == rings
    assert len(rows) == len(rings)
    assert len(account.quarantine()) == in_quarantine
