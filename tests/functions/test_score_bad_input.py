"""Whatever a caller sends to `score`, the answer is a problem that says what to mend, and never a 5xx."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from functions import score
from functions.core.tokens import Keys, sign
from tests.functions.account import KEYS, Account, Context, behaviour, credential, http

FAR_S = 4_000_000_000
Json = dict[str, Any]
WRONG_BODIES: dict[str, tuple[object, str]] = {
    "unknown slot": ({"slot": "attic"}, "slot"),
    "no slot": ({}, "slot"),
    "slot of another type": ({"slot": ["home"]}, "slot"),
    "k of none": ({"slot": "home", "k": 0}, "k"),
    "k below": ({"slot": "home", "k": -1}, "k"),
    "k above": ({"slot": "home", "k": 13}, "k"),
    "k enormous": ({"slot": "home", "k": 10**400}, "k"),
    "k as text": ({"slot": "home", "k": "3"}, "k"),
    "k and a half": ({"slot": "home", "k": 1.5}, "k"),
    "k as a boolean": ({"slot": "home", "k": True}, "k"),
    "unknown parameter": ({"slot": "home", "sort": "price"}, "sort"),
    "locale": ({"slot": "home", "locale": "english please"}, "locale"),
    "currency": ({"slot": "home", "currency": "euro"}, "currency"),
    "device": ({"slot": "home", "device": 7}, "device"),
    "recent events of another type": ({"slot": "home", "recent_events": {}}, "recent_events"),
    "too many recent events": ({"slot": "home", "recent_events": [behaviour(1)] * 21}, "recent_events"),
    "a recent event without a type": (
        {"slot": "home", "recent_events": [behaviour(1), {**behaviour(2), "type": None}]},
        "recent_events[1].type",
    ),
    "a recent event at no time": (
        {"slot": "home", "recent_events": [{**behaviour(1), "time": "yesterday"}]},
        "recent_events[0].time",
    ),
    "a list": ([], "body"),
    "a number": (3, "body"),
    "cut off": ('{"slot": "home"', "body"),
    "not a number": ('{"slot": "home", "k": NaN}', "k"),
    "infinite": ('{"slot": "home", "k": 1e999}', "k"),
    "very deep": ("[" * 100_000, "body"),
    "a lone surrogate": ('{"slot": "\\ud800"}', "slot"),
    "nothing": ("", "body"),
}


def send(event: Json) -> tuple[int, Json]:
    """Status and problem; every refusal is problem+json."""
    answer = score.handler(event, Context())
    headers = {name.lower(): value for name, value in answer.get("headers", {}).items()}
    headers |= {name.lower(): value for name, value in (answer.get("multiValueHeaders") or {}).items()}
    assert "application/problem+json" in str(headers["content-type"])
    body: Json = json.loads(answer["body"])
    assert body["status"] == answer["statusCode"] < 500
    assert "Traceback" not in answer["body"] and ".py" not in answer["body"]
    return answer["statusCode"], body


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_a_wrong_body_is_told_by_field_value_and_expectation(account: Account, name: str) -> None:
    body, field = WRONG_BODIES[name]
    status, problem = send(http("POST", "/v1/banners", body, credential("ann")))
    assert status == 400
    (error,) = problem["errors"]
    assert error["field"] == field and error["expected"]
    assert "value" in error


def test_a_value_is_shown_no_longer_than_it_helps(account: Account) -> None:
    _, problem = send(http("POST", "/v1/banners", {"slot": "x" * 100_000}, credential("ann")))
    assert len(problem["errors"][0]["value"]) == 100
    assert len(json.dumps(problem)) < 1_000


def test_a_body_beyond_all_measure_is_a_413(account: Account) -> None:
    status, _ = send(http("POST", "/v1/banners", '{"slot": "' + "x" * 300_000 + '"}', credential("ann")))
    assert status == 413


@pytest.mark.parametrize("data", ["%%%", base64.b64encode(b"\xff\xfe{").decode(), "é"])
def test_a_body_that_is_no_text_is_refused(account: Account, data: str) -> None:
    event = {**http("POST", "/v1/banners", data, credential("ann")), "isBase64Encoded": True}
    status, problem = send(event)
    assert (status, problem["errors"][0]["field"]) == (400, "body")


def test_a_body_in_base64_is_read(account: Account) -> None:
    data = base64.b64encode(b'{"slot": "home"}').decode()
    event = {**http("POST", "/v1/banners", data, credential("ann")), "isBase64Encoded": True}
    assert score.handler(event, Context())["statusCode"] == 200


@pytest.mark.parametrize("path", ["/v1/banners", "/v1/visitors"])
def test_no_query_parameter_is_known(account: Account, path: str) -> None:
    status, problem = send(http("POST", path, {"slot": "home"}, credential("ann"), "debug=1"))
    assert (status, problem["errors"][0]["field"]) == (400, "debug")


def forged(header: Json, claims: Json, secret: bytes = b"2" * 32) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims)
    ]
    mac = hmac.new(secret, ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, base64.urlsafe_b64encode(mac).decode().rstrip("=")])


CLAIMS = {"sub": "ann", "exp": FAR_S}
OWN = {"alg": "HS256", "kid": "k1"}
CREDENTIALS = {
    "none": None,
    "empty": "",
    "basic": "Basic YW5uOmFubg==",
    "two parts": "Bearer a.b",
    "nonsense": "Bearer a.b.c",
    "another key": "Bearer " + forged(OWN, CLAIMS),
    "another key id": "Bearer " + forged({"alg": "HS256", "kid": "k9"}, CLAIMS, b"1" * 32),
    "no algorithm": "Bearer " + forged({"alg": "none", "kid": "k1"}, CLAIMS, b"1" * 32),
    "expired": credential("ann", lifetime_s=-1),
    "no expiry": "Bearer " + sign({"sub": "ann"}, KEYS),
    "expiry as text": "Bearer " + sign({"sub": "ann", "exp": "never"}, KEYS),
    "no subject": "Bearer " + sign({"exp": FAR_S}, KEYS),
    "empty subject": "Bearer " + sign({"sub": "", "exp": FAR_S}, KEYS),
    "subject of another type": "Bearer " + sign({"sub": 7, "exp": FAR_S}, KEYS),
    "too long": "Bearer " + "a" * 5_000,
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_credential_that_is_not_ours_is_a_401(account: Account, name: str) -> None:
    status, problem = send(http("POST", "/v1/banners", {"slot": "home"}, CREDENTIALS[name]))
    assert status == 401 and problem["detail"]


def test_a_key_that_was_rotated_out_of_signing_still_verifies(account: Account) -> None:
    both = Keys({"k0": b"0" * 32, **KEYS.secrets}, "k1")
    token = sign(CLAIMS, Keys(both.secrets, "k0"))
    assert send(http("POST", "/v1/banners", {"slot": "home"}, f"Bearer {token}"))[0] == 401
    score.scorer().secret._value = type(score.scorer().secret.get())(
        both, score.scorer().secret.get().pseudonym
    )
    answer = score.handler(http("POST", "/v1/banners", {"slot": "home"}, f"Bearer {token}"), Context())
    assert answer["statusCode"] == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/banners"), ("POST", "/v2/banners"), ("GET", "/"), ("PUT", "/v1/health")]
)
def test_a_route_that_is_none_is_a_404(account: Account, method: str, path: str) -> None:
    status, problem = send(http(method, path, {"slot": "home"}, credential("ann")))
    assert status == 404 and path in problem["detail"]


def test_without_a_bundle_a_wrong_request_is_still_refused(fresh: None) -> None:
    Account(bundles=None)
    status, problem = send(http("POST", "/v1/banners", {"slot": "home", "k": 0}, credential("ann")))
    assert (status, problem["errors"][0]["field"]) == (400, "k")
