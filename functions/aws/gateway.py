"""API Gateway's side of the HTTP functions: requests in (payload 2.0), JSON and problems out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from functions.aws.telemetry import logger
from functions.core.problems import CONTENT_TYPE, problem, problem_of, status_of

Answer = dict[str, Any]


class Request:
    """One HTTP request as API Gateway hands it over."""

    def __init__(self, event: Mapping[str, Any]) -> None:
        context = event["requestContext"]
        stage = context.get("stage", "$default")
        path = str(event["rawPath"])
        self.method = str(context["http"]["method"])
        self.path = path if stage == "$default" else path.removeprefix(f"/{stage}")
        self.body: tuple[str | None, bool] = (event.get("body"), bool(event.get("isBase64Encoded")))
        self.query: dict[str, str] = event.get("queryStringParameters") or {}
        self._headers: Mapping[str, str] = event.get("headers") or {}

    @property
    def credential(self) -> str | None:
        """The Authorization header."""
        return next((v for name, v in self._headers.items() if name.lower() == "authorization"), None)


class Routes:
    """Which function answers what, by method and path; every error is answered as problem+json."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], Callable[[Request], Answer]] = {}

    def __call__(self, method: str, path: str) -> Callable[[Callable[[Request], Answer]], Any]:
        """Make the decorated function the answer to `method` on `path`."""

        def take(answer: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
            self._routes[method, path] = answer
            return answer

        return take

    def serve(self, event: Mapping[str, Any]) -> Answer:
        """The answer to one API Gateway event, with the time that it took."""
        started_s = time.perf_counter()
        answer = self._routed(event)
        duration_ms = 1000 * (time.perf_counter() - started_s)
        answer["headers"]["Server-Timing"] = f"handler;dur={duration_ms:.2f}"
        return answer

    def _routed(self, event: Mapping[str, Any]) -> Answer:
        try:
            request = Request(event)
            route = self._routes.get((request.method, request.path))
            if route is None:
                said = f"{request.method} {request.path}: there is no such route"
                return refusal(problem(404, said))
            return route(request)
        except Exception as error:
            if status_of(error) >= 500:
                logger.exception("request failed")
            return refusal(problem_of(error))


def reply(body: Mapping[str, Any], status: int = 200) -> Answer:
    """A JSON answer; nothing that is said to one visitor may be kept for another."""
    return _answer(status, "application/json", body)


def refusal(body: Mapping[str, Any]) -> Answer:
    """A problem as the answer."""
    answer = _answer(body["status"], CONTENT_TYPE, body)
    if body["status"] == 401:
        answer["headers"]["WWW-Authenticate"] = "Bearer"
    if body["status"] == 503:
        answer["headers"]["Retry-After"] = "1"
    return answer


def _answer(status: int, content_type: str, body: Mapping[str, Any]) -> Answer:
    return {
        "statusCode": status,
        "headers": {"Content-Type": content_type, "Cache-Control": "no-store"},
        "body": json.dumps(body, separators=(",", ":"), allow_nan=False),
        "isBase64Encoded": False,
    }
