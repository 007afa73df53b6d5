"""Behaviour events: what a shop may send, and who a user is.

An event is JSON, one stream record each. Order is log order: `time` is a clamped feature, never a sort key.
"""

import base64
import hashlib
import hmac
import math
from datetime import datetime
from typing import NamedTuple

from functions.core.errors import InvalidEvent

EVENT_TYPES = ("view", "click", "cart", "purchase", "rating", "dismiss", "impression")
KINDS = {name: code for code, name in enumerate(EVENT_TYPES, start=1)}  # 0 is "other"
IMPRESSION = KINDS["impression"]
DISMISS = KINDS["dismiss"]

MAX_ID = 128  # characters in an event id or an item id
MAX_TOKEN = 4096
MAX_VALUE = 1e9
LATEST_AHEAD_S = 86_400  # a client's clock may run a day ahead, not more
KNOWN_FIELDS = frozenset({"event_id", "type", "item_id", "time", "value", "context", "token"})


class Event(NamedTuple):
    """One behaviour event, validated. `time_s` is whole seconds since 1970 (UTC)."""

    event_id: str
    type: str
    item_id: str
    time_s: int
    value: float | None = None
    token: str | None = None

    @property
    def kind(self) -> int:
        """The event type's code, 1..7."""
        return KINDS[self.type]


def user_key(secret: bytes, user_id: str) -> str:
    """The only name of a user behind `collect`: HMAC-SHA256 of the user id, 22 characters of base64url."""
    digest = hmac.new(secret, user_id.encode(), hashlib.sha256).digest()[:16]
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def parse_event(data: object, now_s: int) -> Event:
    """Validate one decoded JSON event; raises InvalidEvent naming field, value and expectation."""
    if not isinstance(data, dict):
        raise InvalidEvent("event", data, "a JSON object")
    if not KNOWN_FIELDS.issuperset(data):
        unknown = min(map(str, data.keys() - KNOWN_FIELDS))
        raise InvalidEvent(unknown, data.get(unknown), f"one of {sorted(KNOWN_FIELDS)}")
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidEvent("type", kind, f"one of {list(EVENT_TYPES)}")
    if not isinstance(data.get("context", {}), dict):
        raise InvalidEvent("context", data["context"], "a JSON object")
    return Event(
        _text(data, "event_id", MAX_ID),
        kind,
        _text(data, "item_id", MAX_ID),
        _time_s(data.get("time"), now_s),
        _value(data.get("value")),
        _text(data, "token", MAX_TOKEN) if data.get("token") is not None else None,
    )


def _text(data: dict[str, object], field: str, longest: int) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise InvalidEvent(field, value, f"a string of 1 to {longest} characters")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent(field, ascii(value), "text without lone surrogates") from error
    return value


def _time_s(value: object, now_s: int) -> int:
    expected = "an RFC 3339 time with an offset, such as 2026-11-24T12:00:00Z"
    if not isinstance(value, str) or len(value) > 40:
        raise InvalidEvent("time", value, expected)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise InvalidEvent("time", value, expected) from error
    if moment.tzinfo is None:
        raise InvalidEvent("time", value, expected)
    return min(max(math.floor(moment.timestamp()), 0), now_s + LATEST_AHEAD_S)


def _value(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_VALUE:
        raise InvalidEvent("value", value, f"a number from 0 to {MAX_VALUE:g}")
    return float(value)
