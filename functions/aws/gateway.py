"""API Gateway's side of the HTTP functions: requests in, JSON and problems out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response

from functions.aws.telemetry import logger
from functions.core.problems import CONTENT_TYPE, problem, problem_of, status_of


def resolver() -> APIGatewayHttpResolver:
    """A router whose every error is answered as problem+json."""
    app = APIGatewayHttpResolver()

    @app.not_found
    def missing(error: Exception) -> Response[str]:
        event = app.current_event
        return refusal(problem(404, f"{event.http_method} {event.path}: there is no such route"))

    @app.exception_handler(Exception)  # type: ignore[untyped-decorator]
    def failed(error: Exception) -> Response[str]:
        if status_of(error) >= 500:
            logger.exception("request failed")
        return refusal(problem_of(error))

    return app


def serve(app: APIGatewayHttpResolver, event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The answer to one API Gateway event (payload 2.0), with the time that the handler took."""
    started_s = time.perf_counter()
    answer = app.resolve(event, context)
    duration_ms = 1000 * (time.perf_counter() - started_s)
    answer.setdefault("headers", {})["Server-Timing"] = f"handler;dur={duration_ms:.2f}"
    return answer


def reply(body: Mapping[str, Any], status: int = 200) -> Response[str]:
    """A JSON answer; nothing that is said to one visitor may be kept for another."""
    return Response(status, "application/json", _dump(body), headers={"Cache-Control": "no-store"})


def refusal(body: Mapping[str, Any]) -> Response[str]:
    """A problem as the answer."""
    headers: dict[str, str | list[str]] = {"Cache-Control": "no-store"}
    if body["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if body["status"] == 503:
        headers["Retry-After"] = "1"
    return Response(body["status"], CONTENT_TYPE, _dump(body), headers=headers)


def body_of(app: APIGatewayHttpResolver) -> tuple[str | None, bool]:
    """The request's body as it came, and whether it is base64."""
    raw = app.current_event.raw_event
    return raw.get("body"), bool(raw.get("isBase64Encoded"))


def query_of(app: APIGatewayHttpResolver) -> dict[str, str]:
    """The request's query parameters."""
    return app.current_event.raw_event.get("queryStringParameters") or {}


def credential_of(app: APIGatewayHttpResolver) -> str | None:
    """The request's Authorization header."""
    headers: Mapping[str, str] = app.current_event.raw_event.get("headers") or {}
    return next((value for name, value in headers.items() if name.lower() == "authorization"), None)


def _dump(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
