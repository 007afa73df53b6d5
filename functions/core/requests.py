"""What a caller may ask: bodies of the API, parsed and checked; errors name field, value and expectation."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from functions.core.errors import InvalidEvent, InvalidRequest, InvalidToken, TooLarge
from functions.core.events import Event, parse_event
from functions.core.slots import MAX_K, Slot
from functions.core.tokens import Keys, verify

MAX_BODY_BYTES = 256 * 2**10
MAX_RECENT = 20
MAX_EVENTS = 100
MAX_SUBJECT = 256
BEARER = re.compile(r"Bearer +([A-Za-z0-9._-]+) *", re.IGNORECASE)
SHAPES = {  # optional fields of a banner request: pattern and what it is
    "device": (re.compile(r"[a-z][a-z0-9_-]{0,31}"), "a lower-case word such as 'mobile' or 'desktop'"),
    "locale": (
        re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}"),
        "a BCP 47 language tag such as 'en-GB'",
    ),
    "currency": (re.compile(r"[A-Z]{3}"), "an ISO 4217 code such as 'EUR'"),
}
BANNER_FIELDS = ("slot", "k", *SHAPES, "recent_events")


class BannerRequest(NamedTuple):
    """A request for k banners in one slot; `recent` are events that the stream may not have brought yet."""

    slot: Slot
    k: int
    recent: tuple[Event, ...] = ()
    device: str | None = None


def read_body(body: str | None, is_base64: bool) -> object:
    """The JSON value in a request's body; raises InvalidRequest for what is missing, too big or not JSON.

    NaN and Infinity pass here, as Python's JSON has them: one bad event must not lose the good ones.
    """
    data = _bytes(body or "", is_base64)
    if len(data) > MAX_BODY_BYTES:
        raise TooLarge("body", f"{len(data)} bytes", f"at most {MAX_BODY_BYTES} bytes")
    if not data.strip():
        raise InvalidRequest("body", "", "a JSON object")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", body, f"JSON in UTF-8 ({error})") from error


def require_no_query(query: Mapping[str, str]) -> None:
    """Raises InvalidRequest for any query parameter: none is known."""
    if query:
        name, value = next(iter(query.items()))
        raise InvalidRequest(name[:100], value, "no query parameters")


def require_empty(body: str | None, is_base64: bool) -> None:
    """Raises InvalidRequest for a body that is neither missing nor an empty object."""
    if body and read_body(body, is_base64) != {}:
        raise InvalidRequest("body", body, "no body, or an empty JSON object")


def parse_banner_request(body: object, slots: Mapping[str, Slot] | None, now_s: int) -> BannerRequest:
    """The banner request in a decoded body; raises InvalidRequest.

    Without `slots` (no bundle to read them from) any name passes, and a slot of that name is made up.
    """
    data = _object(body)
    _require_known(data, BANNER_FIELDS)
    slot = _slot(data.get("slot"), slots)
    for name, (pattern, expected) in SHAPES.items():
        value = data.get(name)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise InvalidRequest(name, value, expected)
    recent = _recent(data.get("recent_events"), now_s)
    return BannerRequest(slot, _k(data.get("k"), slot), recent, data.get("device"))


def parse_batch(body: object) -> tuple[list[object], bool]:
    """The raw events in a decoded body, and whether they came as a batch; raises InvalidRequest."""
    data = _object(body)
    if "events" not in data:
        return [data], False
    _require_known(data, ("events",))
    events = data["events"]
    if not isinstance(events, list) or not 1 <= len(events) <= MAX_EVENTS:
        found = f"{len(events)} events" if isinstance(events, list) else events
        raise InvalidRequest("events", found, f"a list of 1 to {MAX_EVENTS} events")
    return events, True


def subject(authorization: str | None, keys: Keys, now_s: float) -> str:
    """The user id that a request's credential vouches for; raises InvalidToken."""
    match = BEARER.fullmatch(authorization or "")
    if not match:
        raise InvalidToken("no credential; expected the header 'Authorization: Bearer <token>'")
    name = verify(match[1], keys, now_s).get("sub")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_SUBJECT:
        raise InvalidToken(f"sub is not a text of 1 to {MAX_SUBJECT} characters")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidToken("sub has lone surrogates") from error
    return name


def _bytes(body: str, is_base64: bool) -> bytes:
    try:
        return base64.b64decode(body, validate=True) if is_base64 else body.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("body", ascii(body[:100]), "base64" if is_base64 else "UTF-8") from error


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise InvalidRequest("body", body, "a JSON object")
    return body


def _require_known(data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(data.keys() - set(known))
    if unknown:
        raise InvalidRequest(ascii(unknown[0])[1:-1][:100], data[unknown[0]], f"one of {', '.join(known)}")


def _slot(name: object, slots: Mapping[str, Slot] | None) -> Slot:
    if slots is None and isinstance(name, str) and 0 < len(name) <= 64:
        return Slot(name, max_k=MAX_K)
    if not isinstance(name, str) or slots is None or name not in slots:
        raise InvalidRequest("slot", name, f"one of {', '.join(sorted(slots or ())) or 'the slots'}")
    return slots[name]


def _k(value: object, slot: Slot) -> int:
    if value is None:
        return slot.default_k
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= slot.max_k:
        raise InvalidRequest("k", value, f"an integer from 1 to {slot.max_k} (slot {slot.name!r})")
    return value


def _recent(value: object, now_s: int) -> tuple[Event, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_RECENT:
        found = f"{len(value)} events" if isinstance(value, list) else value
        raise InvalidRequest("recent_events", found, f"a list of at most {MAX_RECENT} events")
    return tuple(_event(raw, place, now_s) for place, raw in enumerate(value))


def _event(raw: object, place: int, now_s: int) -> Event:
    try:
        return parse_event(raw, now_s)
    except InvalidEvent as error:
        raise InvalidEvent(f"recent_events[{place}].{error.field}", error.value, error.expected) from error
