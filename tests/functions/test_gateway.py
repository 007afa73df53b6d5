"""Requests as API Gateway hands them over (payload 2.0), and whatever goes wrong as a problem."""

from __future__ import annotations

import json
from typing import Any

import pytest

from functions.aws.gateway import Answer, Request, Routes, reply
from functions.core.errors import InvalidToken, Throttled
from tests.functions.account import http

route = Routes()


@route("GET", "/v1/echo")
def echo(request: Request) -> Answer:
    return reply({"body": request.body[0], "query": request.query, "credential": request.credential})


@route("GET", "/v1/fail")
def fail(request: Request) -> Answer:
    kinds = {"token": InvalidToken("expired"), "throttled": Throttled("a secret")}
    raise kinds.get(str(request.body[0]), ZeroDivisionError("a secret"))


def event(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    return http(method, path, None, None) | {"body": None} | more


def test_a_route_is_a_method_and_a_path() -> None:
    assert route.serve(event("/v1/echo"))["statusCode"] == 200
    for method, path in (
        ("POST", "/v1/echo"),
        ("GET", "/v1/echo/"),
        ("GET", "/v1"),
        ("GET", "/prod/v1/echo"),
    ):
        answer = route.serve(event(path, method))
        assert answer["statusCode"] == 404 and f"{method} {path}" in answer["body"]
        assert answer["headers"]["Content-Type"] == "application/problem+json"


def test_a_named_stage_is_no_part_of_the_path() -> None:
    given = event("/prod/v1/echo")
    given["requestContext"] = given["requestContext"] | {"stage": "prod"}
    assert route.serve(given)["statusCode"] == 200


def test_headers_have_no_case() -> None:
    answer = route.serve(event("/v1/echo", headers={"AUTHORIZATION": "Bearer x"}))
    assert json.loads(answer["body"]) == {"body": None, "query": {}, "credential": "Bearer x"}
    assert answer["headers"]["Cache-Control"] == "no-store" and answer["isBase64Encoded"] is False
    assert answer["headers"]["Server-Timing"].startswith("handler;dur=")


@pytest.mark.parametrize(
    ("body", "status", "header"),
    [("token", 401, "WWW-Authenticate"), ("throttled", 503, "Retry-After"), ("", 500, None)],
)
def test_what_a_route_raises_is_a_problem(
    body: str, status: int, header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    answer = route.serve(event("/v1/fail", body=body))
    assert answer["statusCode"] == status == json.loads(answer["body"])["status"]
    assert header is None or header in answer["headers"]
    assert "a secret" not in answer["body"]
    assert ("request failed" in caplog.text) == (status >= 500)


def test_an_event_that_is_no_request_is_a_problem_too() -> None:
    assert route.serve({"Records": []})["statusCode"] == 500
