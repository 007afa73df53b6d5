"""Errors as `application/problem+json` (RFC 9457): which status, and what the caller can mend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from functions.core.errors import InvalidRequest, InvalidToken, TooLarge, Unavailable, VitrineError

NOT_TOLD: dict[int, str] = {
    HTTPStatus.INTERNAL_SERVER_ERROR: "an error that is our own fault; it has been logged",
    HTTPStatus.SERVICE_UNAVAILABLE: "a service that this needs did not answer; it may when asked again",
}
CONTENT_TYPE = "application/problem+json"
SHOWN_CHARS = 100
STATUS: tuple[tuple[type[VitrineError], HTTPStatus], ...] = (  # the first that fits
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (InvalidRequest, HTTPStatus.BAD_REQUEST),
    (InvalidToken, HTTPStatus.UNAUTHORIZED),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)


def problem(status: int, detail: str, errors: Sequence[InvalidRequest] = ()) -> dict[str, Any]:
    """The problem object: what is wrong, and each field at fault with its value and what was expected."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "errors": [
            {"field": error.field, "value": _shown(error.value), "expected": error.expected}
            for error in errors
        ],
    }


def status_of(error: Exception) -> int:
    """The HTTP status for an error; 500 for one that nobody raised on purpose."""
    return next((int(status) for kind, status in STATUS if isinstance(error, kind)), 500)


def problem_of(error: Exception) -> dict[str, Any]:
    """The problem object for an error. What a caller cannot mend is not told: it may name what is ours."""
    status = status_of(error)
    detail = NOT_TOLD.get(status, str(error))
    return problem(status, detail, [error] if isinstance(error, InvalidRequest) else ())


def _shown(value: object) -> object:
    """The value, if it is short and JSON has it; else the beginning of its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of very many digits"
    return text[:SHOWN_CHARS]
