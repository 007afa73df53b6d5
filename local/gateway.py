"""What API Gateway's HTTP API does with a request, payload format 2.0, without its I/O.

Source: AWS, "Create AWS Lambda proxy integrations for HTTP APIs"; routes as in "Create routes for HTTP APIs".
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from functions.core.errors import VitrineError
from local.template import FunctionEntry, Route

MAX_BODY_BYTES = 10 * 2**20
MAX_EVENT_BYTES = 6 * 2**20  # what an invocation of the function may carry
TEXT = re.compile(
    r"text/|application/(json|javascript|xml|x-www-form-urlencoded|[\w.-]+\+(json|xml))\b", re.IGNORECASE
)
STAGE = "$default"


class MalformedAnswer(VitrineError):
    """What the function returned is no HTTP answer."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; `headers` has lower-case names, repeated ones joined by commas; `query` is raw."""

    method: str
    path: str  # percent-decoded
    query: str
    headers: Mapping[str, str]
    body: bytes
    source_ip: str
    protocol: str = "HTTP/1.1"


@dataclass(frozen=True)
class Response:
    """One HTTP answer; a header may come more than once."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


def message(status: int, text: str) -> Response:
    """An answer of the gateway itself."""
    body = json.dumps({"message": text}, separators=(",", ":")).encode()
    return Response(status, [("content-type", "application/json")], body)


class Router:
    """The routes of one API; a fixed path goes before one with {names}, that before {greedy+}."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, *_pattern(route.path)) for route in sorted(routes, key=_specificity)]

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a request and the values of its {names}."""
        for route, pattern, names in self._routes:
            found = pattern.fullmatch(path)
            if found and route.method in (method, "ANY"):
                return route, dict(zip(names, found.groups(), strict=True))
        return None

    @property
    def functions(self) -> list[FunctionEntry]:
        """The functions behind the routes, each once."""
        return list({route.function.name: route.function for route, _, _ in self._routes}.values())


def _pattern(path: str) -> tuple[re.Pattern[str], list[str]]:
    parts = re.split(r"\{([^{}]+)\}", path)
    fixed, names = [re.escape(part) for part in parts[::2]], parts[1::2]
    groups = ["(.+)" if name.endswith("+") else "([^/]+)" for name in names]
    pattern = "".join(a + b for a, b in zip(fixed, [*groups, ""], strict=True))
    return re.compile(pattern), [name.rstrip("+") for name in names]


def _specificity(route: Route) -> tuple[int, int, str]:
    greedy, names = route.path.count("+}"), route.path.count("{")
    return greedy, names, "~" if route.method == "ANY" else route.method


def to_event(request: Request, route: Route, path_parameters: Mapping[str, str]) -> dict[str, Any]:
    """The event that the function behind a route gets for a request."""
    headers = {name: value for name, value in request.headers.items() if name != "cookie"}
    cookies = [c.strip() for c in request.headers.get("cookie", "").split(";") if c.strip()]
    route_key = f"{route.method} {route.path}"
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": _request_context(request, route_key),
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if request.query:
        event["queryStringParameters"] = _joined(parse_qsl(request.query, keep_blank_values=True))
    if path_parameters:
        event["pathParameters"] = dict(path_parameters)
    if request.body:
        event["body"], event["isBase64Encoded"] = _body(request)
    return event


def fits(event: Mapping[str, Any]) -> bool:
    """Whether an event is small enough to invoke a function with."""
    return len(json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")) <= MAX_EVENT_BYTES


def _request_context(request: Request, route_key: str) -> dict[str, Any]:
    now = time.time()
    host = request.headers.get("host", "")
    return {
        "accountId": "123456789012",
        "apiId": "local",
        "domainName": host.partition(":")[0],
        "domainPrefix": host.partition(".")[0].partition(":")[0],
        "http": {
            "method": request.method,
            "path": request.path,
            "protocol": request.protocol,
            "sourceIp": request.source_ip,
            "userAgent": request.headers.get("user-agent", ""),
        },
        "requestId": uuid.uuid4().hex[:16],
        "routeKey": route_key,
        "stage": STAGE,
        "time": datetime.fromtimestamp(now, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now * 1000),
    }


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _body(request: Request) -> tuple[str, bool]:
    """The body and whether it is in base64: text by its content type is text, if it is UTF-8 at all."""
    kind = request.headers.get("content-type", "text/plain")
    if TEXT.match(kind.strip()):
        try:
            return request.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(request.body).decode(), True


def to_response(answer: object) -> Response:
    """The HTTP answer for what a function returned; raises MalformedAnswer.

    Without a `statusCode` the whole answer is the body of a 200, as JSON.
    """
    if not isinstance(answer, Mapping) or "statusCode" not in answer:
        body = answer if isinstance(answer, str) else json.dumps(answer, separators=(",", ":"))
        return Response(200, [("content-type", "application/json")], body.encode())
    headers = _response_headers(answer)
    names = {name for name, _ in headers}
    if "content-type" not in names:
        headers.append(("content-type", "text/plain;charset=utf-8"))
    headers += [("set-cookie", str(cookie)) for cookie in answer.get("cookies") or []]
    return Response(_status(answer["statusCode"]), headers, _answer_body(answer))


def _status(value: object) -> int:
    try:
        status = int(str(value))
    except ValueError as error:
        raise MalformedAnswer(f"statusCode {value!r}; expected 100..599") from error
    if isinstance(value, bool) or not 100 <= status <= 599:
        raise MalformedAnswer(f"statusCode {value!r}; expected 100..599")
    return status


def _response_headers(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    headers = answer.get("headers") or {}
    if not isinstance(headers, Mapping):
        raise MalformedAnswer(f"headers {headers!r}; expected an object")
    found = []
    for name, value in headers.items():
        if isinstance(value, dict | list) or re.search(r"[\r\n\0]", f"{name}{value}"):
            raise MalformedAnswer(f"header {name!r} {value!r}; expected one line of text")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if name.lower() != "content-length":  # the body decides
            found.append((name.lower(), text))
    return found


def _answer_body(answer: Mapping[str, Any]) -> bytes:
    body = answer.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedAnswer(f"body {type(body).__name__}; expected text")
    if not answer.get("isBase64Encoded"):
        return body.encode("utf-8", "replace")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise MalformedAnswer(f"body {body[:40]!r}; expected base64") from error
