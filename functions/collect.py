"""`POST /v1/events`: behaviour events into the log. 202 says that the log has them, not that it will."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, NamedTuple

from functions.aws.background import Background
from functions.aws.gateway import Answer, Request, Routes, refusal, reply
from functions.aws.log import Log, log_client
from functions.aws.memory import settled
from functions.aws.secret import REFRESH_S, Secret, ShopSecret, secret_client
from functions.aws.settings import Settings
from functions.aws.telemetry import emit, logger
from functions.core.errors import InvalidEvent, InvalidRequest, InvalidToken, Unavailable
from functions.core.events import parse_event, user_key
from functions.core.problems import problem
from functions.core.records import encode_record
from functions.core.requests import parse_batch, read_body, require_no_query, subject
from functions.core.tokens import Decision, Keys, verify

ACCEPTED, FAILED, INVALID = "accepted", "failed", "invalid"
route = Routes()


class Collector:
    """What a warm environment keeps."""

    def __init__(self, settings: Settings) -> None:
        self.log = Log(log_client(), settings.stream)
        self.secret = Secret(secret_client(), settings.secret)
        self.rotation = Background(self.secret.refresh, REFRESH_S)


class Checked(NamedTuple):
    """One event of a request: its record for the log, or what is wrong with it."""

    event_id: str | None
    record: bytes = b""
    error: InvalidRequest | None = None


@cache
def collector() -> Collector:
    """The one Collector of this environment."""
    return settled(Collector(Settings.from_environment()))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one API Gateway event (payload 2.0)."""
    return route.serve(event)


@route("POST", "/v1/events")
def collect(request: Request) -> Answer:
    """Check each event, append the good ones to the log in order, and say of each what became of it."""
    now_s = time.time()
    secret = collector().secret.get()
    collector().rotation.tick()
    key = user_key(secret.pseudonym, subject(request.credential, secret.keys, now_s))
    require_no_query(request.query)
    raw, is_batch = parse_batch(read_body(*request.body))
    place = "events[{}]." if is_batch else ""
    checked = [check(event, key, secret, now_s, place.format(at)) for at, event in enumerate(raw)]
    results = append(collector().log, key, checked)
    counts = {status: sum(r["status"] == status for r in results) for status in (ACCEPTED, FAILED, INVALID)}
    emit({f"Events{status.title()}": count for status, count in counts.items()})
    if counts[ACCEPTED]:
        return reply({"accepted": counts[ACCEPTED], "results": results}, 202)
    errors = [event.error for event in checked if event.error]
    refused = problem(400, "no event is valid", errors)
    if counts[FAILED]:
        refused = problem(503, "the log does not take events now; send them again", errors)
    return refusal({**refused, "results": results})


def check(raw: object, key: str, secret: ShopSecret, now_s: float, place: str) -> Checked:
    """One event, validated, its decision token too; never raises for what a caller may send."""
    claimed = raw.get("event_id") if isinstance(raw, dict) else None
    event_id = claimed[:128] if isinstance(claimed, str) else None
    try:
        event = parse_event(raw, int(now_s))
        if event.token is not None:
            require_own(event.token, key, event.item_id, secret.keys, now_s)
        assert isinstance(raw, dict)  # parse_event took it
        return Checked(event_id, encode_record(key, raw))
    except InvalidRequest as error:
        return Checked(event_id, error=InvalidEvent(place + error.field, error.value, error.expected))


def require_own(token: str, key: str, item_id: str, keys: Keys, now_s: float) -> None:
    """Raises InvalidEvent for a token that is forged, expired, or of a decision about somebody else."""
    try:
        decision = Decision.from_claims(verify(token, keys, now_s))
    except InvalidToken as error:
        raise InvalidEvent("token", token[:20], f"the token of a banner ({error.reason})") from error
    if decision.user_key != key:
        raise InvalidEvent("token", token[:20], "the token of a banner that this visitor was shown")
    if decision.item_id != item_id:
        raise InvalidEvent("token", token[:20], f"the token of a banner for item {item_id!r}")


def append(log: Log, key: str, events: list[Checked]) -> list[dict[str, Any]]:
    """Append the valid events one after the other; after one that failed, none may overtake it."""
    results: list[dict[str, Any]] = []
    sequence: str | None = None
    failure: Unavailable | None = None
    for event in events:
        result: dict[str, Any] = {"event_id": event.event_id, "status": ACCEPTED}
        if event.error is not None:
            result |= {"status": INVALID, "error": str(event.error)}
        elif failure is None:
            try:
                sequence = log.put(key, event.record, sequence).sequence
            except Unavailable as error:
                failure = error
                logger.error("the log refused an event", extra={"error": str(error)})
        if failure is not None and event.error is None:
            result |= {"status": FAILED, "error": "the log did not take it; send it again"}
        results.append(result)
    return results
