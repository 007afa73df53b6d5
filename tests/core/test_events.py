import re

import pytest

from functions.core.errors import InvalidEvent
from functions.core.events import EVENT_TYPES, KINDS, MAX_ID, parse_event, user_key

NOW = 1_800_000_000
GOOD = {"event_id": "e1", "type": "view", "item_id": "i1", "time": "2026-11-24T12:00:00Z"}


def test_an_event_is_read_as_it_was_sent() -> None:
    event = parse_event({**GOOD, "value": 3, "context": {"device": "mobile"}, "token": "t"}, NOW)
    assert (event.event_id, event.type, event.item_id) == ("e1", "view", "i1")
    assert (event.time_s, event.value, event.token, event.kind) == (1_795_521_600, 3.0, "t", 1)


def test_the_codes_of_the_types_never_move() -> None:
    assert KINDS == {
        "view": 1,
        "click": 2,
        "cart": 3,
        "purchase": 4,
        "rating": 5,
        "dismiss": 6,
        "impression": 7,
    }
    assert tuple(KINDS) == EVENT_TYPES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""),
        ("event_id", "x" * (MAX_ID + 1)),
        ("event_id", 7),
        ("event_id", "\ud800"),
        ("item_id", None),
        ("type", "stare"),
        ("type", ["view"]),
        ("time", "2026-11-24T12:00:00"),
        ("time", 1_795_521_600),
        ("time", "yesterday"),
        ("value", -1),
        ("value", float("nan")),
        ("value", float("inf")),
        ("value", True),
        ("context", "mobile"),
        ("token", ""),
        ("colour", "red"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(field: str, value: object) -> None:
    with pytest.raises(InvalidEvent, match=re.escape(field)) as caught:
        parse_event({**GOOD, field: value}, NOW)
    assert caught.value.field == field
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "event", 3, {}])
def test_what_is_no_event_is_refused(data: object) -> None:
    with pytest.raises(InvalidEvent):
        parse_event(data, NOW)


def test_the_time_is_clamped_between_1970_and_a_day_ahead() -> None:
    assert parse_event({**GOOD, "time": "1969-12-31T23:59:59Z"}, NOW).time_s == 0
    assert parse_event({**GOOD, "time": "2100-01-01T00:00:00Z"}, NOW).time_s == NOW + 86_400


def test_a_user_key_is_keyed_and_short() -> None:
    key = user_key(b"secret", "anna@example.com")
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", key)
    assert key == user_key(b"secret", "anna@example.com")
    assert key != user_key(b"other", "anna@example.com")
