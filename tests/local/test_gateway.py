"""API Gateway's rules, and the front around them, without a network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.front import Front, read_request
from local.function import Function, FunctionError
from local.gateway import MAX_BODY_BYTES, MAX_EVENT_BYTES, MalformedAnswer, Router, to_response
from local.products import EmptyShelves
from local.template import FunctionEntry, Template
from tests.local.small_template import write_template


def environ(
    method: str = "GET", path: str = "/echo", query: str = "", body: bytes = b"", **headers: str
) -> Any:
    """A request as waitress hands it over: the path decoded into latin-1, header names in capitals."""
    given = {f"HTTP_{name.upper()}": value for name, value in headers.items() if name != "content_type"}
    return {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": headers.get("content_type", ""),
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "wsgi.input": io.BytesIO(body),
        **given,
    }


@pytest.fixture
def front(tmp_path: Path) -> Front:
    router = Router(Template(write_template(tmp_path)).routes())
    functions = {entry.name: Function(entry).invoke for entry in router.functions}
    web = tmp_path / "web"
    web.mkdir()
    (web / "index.html").write_text("<!doctype html>home")
    return Front(router, functions, EmptyShelves(), web)


def call(front: Front, request: Any) -> tuple[str, list[tuple[str, str]], bytes]:
    seen: list[Any] = []
    body = b"".join(front(request, lambda status, headers: seen.append((status, headers))))
    return seen[0][0], seen[0][1], body


def echoed(front: Front, request: Any) -> dict[str, Any]:
    status, _, body = call(front, request)
    assert status == "201 Created"
    event: dict[str, Any] = json.loads(body)["event"]
    return event


def test_the_event_is_payload_2_0(front: Front) -> None:
    request = environ(
        "POST",
        "/echo",
        "a=1&b=x%20y&a=2&flag&b=%C3%A9",
        b'{"k": 3}',
        content_type="application/json",
        host="shop.example:8000",
        cookie="one=1; two=2",
        user_agent="test",
        accept="x, y",
    )
    event = echoed(front, request)
    context = event["requestContext"]
    assert event["version"] == "2.0" and event["routeKey"] == context["routeKey"] == "ANY /echo"
    assert event["rawPath"] == "/echo" and event["rawQueryString"] == "a=1&b=x%20y&a=2&flag&b=%C3%A9"
    assert event["queryStringParameters"] == {"a": "1,2", "b": "x y,é", "flag": ""}
    assert event["cookies"] == ["one=1", "two=2"] and "cookie" not in event["headers"]
    assert event["headers"]["content-type"] == "application/json" and event["headers"]["accept"] == "x, y"
    assert event["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert (event["body"], event["isBase64Encoded"]) == ('{"k": 3}', False)
    assert context["http"] == {
        "method": "POST",
        "path": "/echo",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "test",
    }
    assert context["domainName"] == "shop.example" and context["stage"] == "$default"


def test_what_a_request_lacks_its_event_lacks(front: Front) -> None:
    event = echoed(front, environ("GET", "/echo"))
    assert not {"body", "cookies", "queryStringParameters", "pathParameters"} & set(event)
    assert event["isBase64Encoded"] is False and event["rawQueryString"] == ""


@pytest.mark.parametrize(
    "content_type, body, text",
    [
        ("text/plain", "né".encode(), True),
        ("application/problem+json; charset=utf-8", b"{}", True),
        ("APPLICATION/JSON", b"{}", True),
        ("", b"plain", True),
        ("application/octet-stream", b"plain", False),
        ("image/png", b"\x89PNG", False),
        ("application/json", b"\xff\xfe", False),  # not UTF-8
    ],
)
def test_a_body_is_text_or_base64(front: Front, content_type: str, body: bytes, text: bool) -> None:
    event = echoed(front, environ("POST", "/echo", body=body, content_type=content_type))
    assert event["isBase64Encoded"] is not text
    assert (event["body"].encode() if text else base64.b64decode(event["body"])) == body


@pytest.mark.parametrize(
    "path, route, parameters",
    [
        ("/echo/fixed", "GET /echo/fixed", None),
        ("/echo/a b", "GET /echo/{name}", {"name": "a b"}),
        ("/echo/ä", "GET /echo/{name}", {"name": "ä"}),
        ("/echo/a/b", "GET /echo/{rest+}", {"rest": "a/b"}),
    ],
)
def test_the_most_specific_route_wins_and_paths_come_decoded(
    front: Front, path: str, route: str, parameters: dict[str, str] | None
) -> None:
    event = echoed(front, environ("GET", path))
    assert (event["routeKey"], event["rawPath"], event.get("pathParameters")) == (route, path, parameters)


@pytest.mark.parametrize(
    "method, path", [("POST", "/v1/health"), ("POST", "/"), ("GET", "/v1/nothing"), ("GET", "/v1/health/")]
)
def test_an_unknown_route_is_a_404_like_the_gateways(front: Front, method: str, path: str) -> None:
    status, headers, body = call(front, environ(method, path))
    assert (status, body) == ("404 Not Found", b'{"message":"Not Found"}')
    assert ("content-type", "application/json") in headers


def test_an_exception_is_a_500_that_says_nothing(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, body = call(front, environ("POST", "/echo", body=b"raise"))
    assert (status, body) == ("500 Internal Server Error", b'{"message":"Internal Server Error"}')
    assert "ValueError: asked for" in capsys.readouterr().err


def test_headers_and_cookies_come_through(front: Front) -> None:
    _, headers, body = call(front, environ())
    assert headers == [
        ("content-type", "application/json"),
        ("x-number", "7"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2"),
        ("content-length", str(len(body))),
    ]
    assert 4000 < json.loads(body)["remaining_ms"] <= 5000


def test_a_head_request_has_no_body(front: Front) -> None:
    _, headers, body = call(front, environ("HEAD"))
    assert body == b"" and int(dict(headers)["content-length"]) > 0


@pytest.mark.parametrize(
    "size, status", [(MAX_BODY_BYTES, "413"), (MAX_BODY_BYTES + 1, "413"), (2**20, "201")]
)
def test_a_body_too_large_for_the_gateway_or_the_function_is_a_413(
    front: Front, size: int, status: str
) -> None:
    answer, _, body = call(front, environ("POST", body=b"x" * size, content_type="text/plain"))
    assert answer.startswith(status)
    if status == "413":
        assert body == b'{"message":"Request Entity Too Large"}'


def test_a_body_above_the_gateways_limit_is_not_read() -> None:
    class Unreadable(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("read")

    request = environ("POST") | {"CONTENT_LENGTH": str(MAX_BODY_BYTES + 1), "wsgi.input": Unreadable()}
    status, _, _ = call(Front(Router([]), {}, EmptyShelves(), Path()), request)
    assert status.startswith("413")


def test_the_raw_query_is_ascii_again() -> None:
    assert read_request(environ(query="q=\xc3\xa9&r=%20")).query == "q=%C3%A9&r=%20"


@pytest.mark.parametrize(
    "answer, body",
    [({"a": 1}, b'{"a":1}'), ("text", b"text"), (None, b"null"), ([1], b"[1]")],
)
def test_an_answer_without_status_code_is_the_body(answer: object, body: bytes) -> None:
    response = to_response(answer)
    assert (response.status, response.body) == (200, body)
    assert response.headers == [("content-type", "application/json")]


def test_a_base64_answer_is_decoded_and_text_has_a_type() -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    response = to_response({"statusCode": "200", "body": encoded, "isBase64Encoded": True})
    assert response.body == b"\x00\xff"
    assert response.headers == [("content-type", "text/plain;charset=utf-8")]


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": 99},
        {"statusCode": 600},
        {"statusCode": True},
        {"statusCode": None},
        {"statusCode": "ok"},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "headers": {"a": "b\r\nset-cookie: c"}},
        {"statusCode": 200, "headers": {"a": ["b"]}},
        {"statusCode": 200, "headers": "a: b"},
        {"statusCode": 200, "body": "no base64!", "isBase64Encoded": True},
    ],
)
def test_an_answer_that_is_none_is_malformed(answer: object) -> None:
    with pytest.raises(MalformedAnswer):
        to_response(answer)


def answering(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Function:
    monkeypatch.setattr("tests.local.small_handlers.bare", lambda event, context: make())
    return Function(FunctionEntry("Bare", "tests.local.small_handlers.bare", 3, 128, {}))


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}])
def test_what_is_not_json_is_the_functions_error(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    with pytest.raises(FunctionError, match="Bare"):
        answering(lambda: value, monkeypatch).invoke({})


def test_an_answer_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = answering(lambda: "x" * (MAX_EVENT_BYTES - 2), monkeypatch)
    assert len(fits.invoke({})) == MAX_EVENT_BYTES - 2
    with pytest.raises(FunctionError, match="6291456"):
        answering(lambda: "x" * (MAX_EVENT_BYTES - 1), monkeypatch).invoke({})


def test_a_handler_cannot_change_its_callers_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.local.small_handlers.bare", lambda event, context: event["a"].append(2))
    function = Function(FunctionEntry("Bare", "tests.local.small_handlers.bare", 3, 128, {}))
    event = {"a": [1]}
    function.invoke(event)
    assert event == {"a": [1]}


def test_the_page_is_served_beside_the_api(front: Front) -> None:
    status, headers, body = call(front, environ(path="/"))
    assert (status, body) == ("200 OK", b"<!doctype html>home")
    assert dict(headers)["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=", "limit=%D9%A3", "colour=red"])
def test_a_wrong_parameter_of_the_demo_routes_is_named(front: Front, query: str) -> None:
    status, _, body = call(front, environ(path="/demo/products", query=query))
    assert status == "400 Bad Request" and query.partition("=")[0] in json.loads(body)["message"]


def test_without_a_bundle_there_are_no_products(front: Front) -> None:
    assert call(front, environ(path="/demo/products"))[2] == b'{"products": []}'
    assert call(front, environ(path="/demo/categories"))[2] == b'{"categories": []}'
