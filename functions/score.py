"""Banners for a visitor: `POST /v1/banners`; what is held of one: `GET /v1/me`; visitors and health beside.

There is always an answer: a table that is slow or down costs the personal tier, a bundle that cannot be had
costs the popular one, and what remains is the house banner. The price shown is the catalogue's, in its own
currency, whatever currency the visitor has: there is no exchange rate to turn it into another.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

from functions.aws.background import Background
from functions.aws.bundles import REFRESH_S as BUNDLE_REFRESH_S
from functions.aws.bundles import Bundles, bundle_client
from functions.aws.clients import session
from functions.aws.gateway import Answer, Request, Routes, reply
from functions.aws.memory import settled
from functions.aws.rows import Rows, hot_client
from functions.aws.secret import REFRESH_S as SECRET_REFRESH_S
from functions.aws.secret import Secret, ShopSecret, secret_client
from functions.aws.settings import Settings
from functions.aws.telemetry import emit, logger
from functions.core.banners import Visitor, answer, house
from functions.core.errors import VitrineError
from functions.core.events import user_key
from functions.core.held import held
from functions.core.requests import (
    BannerRequest,
    parse_banner_request,
    read_body,
    require_empty,
    require_no_query,
    subject,
)
from functions.core.served import ServedBundle
from functions.core.times import rfc3339
from functions.core.tokens import sign

VISITOR_LIFETIME_S = 90 * 86_400
FIRST_BUNDLE_S = 5.0  # of a cold start, waited for the first bundle
RESERVE_MS = 10.0  # of the deadline, kept for choosing after the row was read
READERS = 4
route = Routes()


class Scorer:
    """What a warm environment keeps. It waits for its first bundle; later ones come beside the requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._connect(None)

    def restored(self) -> None:
        """What a snapshot froze, perhaps days ago, is renewed: credentials, sockets, secret, pointer.

        The bundle is kept while the pointer names it: it is immutable, and opening it is what took long.
        """
        session.cache_clear()
        self.readers.shutdown(wait=False, cancel_futures=True)
        self._connect(self.bundles.current)

    def _connect(self, bundle: ServedBundle | None) -> None:
        settings = self.settings
        self.rows = Rows(hot_client(settings.deadline_ms), settings.table)
        self.secret = Secret(secret_client(), settings.secret)
        self.bundles = Bundles(bundle_client(), settings.bucket)
        self.bundles.current = bundle
        self.readers = ThreadPoolExecutor(READERS)
        self._chores = (
            Background(self.bundles.refresh, BUNDLE_REFRESH_S),
            Background(self.secret.refresh, SECRET_REFRESH_S),
        )
        self.tick()
        with suppress(VitrineError):
            self.rows.get("warm-up")  # the first call of a client sets up what the later ones use
        self.idle(FIRST_BUNDLE_S)

    def tick(self) -> None:
        """See to the bundle and the secret where it is time, out of the way of the request."""
        for chore in self._chores:
            chore.tick()

    def idle(self, timeout_s: float) -> bool:
        """Wait until nothing goes on beside the requests; whether that is so."""
        ends_s = time.monotonic() + timeout_s
        return all([chore.wait(max(ends_s - time.monotonic(), 0.0)) for chore in self._chores])

    def visitor(self, key: str, started_s: float) -> Visitor:
        """The visitor's row, if the table gives it within the deadline; never raises."""
        left_ms = self.settings.deadline_ms - RESERVE_MS - 1000 * (time.perf_counter() - started_s)
        try:
            row = self.readers.submit(self.rows.get, key).result(timeout=max(left_ms, 1.0) / 1000)
        except Exception as error:  # whatever is wrong with a row, there is an answer without it
            logger.warning("row not read", extra={"error": f"{error!r}"})
            return Visitor(key, reachable=False)
        return Visitor(key, row)


@cache
def scorer() -> Scorer:
    """The one Scorer of this environment."""
    return settled(Scorer(Settings.from_environment()))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one API Gateway event (payload 2.0)."""
    return route.serve(event)


@route("POST", "/v1/banners")
def banners(request: Request) -> Answer:
    """Banners for one slot, for the visitor whom the credential names."""
    started_s, now_s = time.perf_counter(), time.time()
    own = scorer()
    secret = own.secret.get()
    key = user_key(secret.pseudonym, subject(request.credential, secret.keys, now_s))
    require_no_query(request.query)
    bundle, arm = own.bundles.of(key)  # read once: an answer is made of one bundle
    body = read_body(*request.body)
    asked = parse_banner_request(body, bundle.slots if bundle else None, int(now_s))
    visitor = own.visitor(key, started_s) if bundle else Visitor(key, reachable=False)
    said = respond(bundle, asked, visitor._replace(arm=arm), secret, int(now_s))
    own.tick()
    duration_ms = 1000 * (time.perf_counter() - started_s)
    emit({"Banners": len(said["banners"])}, {"Duration": duration_ms}, {"tier": said["tier"]})
    return reply(said)


@route("POST", "/v1/visitors")
def visitors(request: Request) -> Answer:
    """A credential for a visitor whom the shop does not know, under a name that nobody can guess."""
    require_no_query(request.query)
    require_empty(*request.body)
    expires_s = int(time.time()) + VISITOR_LIFETIME_S
    claims = {"sub": f"visitor-{secrets.token_urlsafe(16)}", "exp": expires_s}
    token = sign(claims, scorer().secret.get().keys)
    return reply({"token": token, "expires": rfc3339(expires_s)}, 201)


@route("GET", "/v1/me")
def me(request: Request) -> Answer:
    """All that is held of the visitor whom the credential names."""
    own = scorer()
    secret = own.secret.get()
    key = user_key(secret.pseudonym, subject(request.credential, secret.keys, time.time()))
    require_no_query(request.query)
    return reply(held(key, own.rows.get(key), own.bundles.current))


@route("GET", "/v1/health")
def health(request: Request) -> Answer:
    """Whether there is a bundle to serve from, and which."""
    require_no_query(request.query)
    scorer().tick()
    bundle = scorer().bundles.current
    return reply(
        {
            "status": "ok" if bundle else "degraded",
            "bundle": bundle.id if bundle else None,
            "state_space": bundle.encoder.space if bundle else None,
            "items": bundle.manifest.items if bundle else 0,
        }
    )


def respond(
    bundle: ServedBundle | None,
    request: BannerRequest,
    visitor: Visitor,
    secret: ShopSecret,
    now_s: int,
) -> dict[str, Any]:
    """The answer in the best tier that works: with the row, without it, without the bundle."""

    def signed(claims: Mapping[str, Any]) -> str:
        return sign(claims, secret.keys)

    for who in (visitor, visitor._replace(row=None, reachable=False)):
        if bundle is not None:
            try:
                return answer(bundle, request, who, now_s, signed)
            except Exception:
                logger.exception("a tier failed", extra={"bundle": bundle.id})
    return house(request.slot, visitor.key, now_s, signed)


if "AWS_LAMBDA_INITIALIZATION_TYPE" in os.environ:
    scorer()  # in Lambda's init phase, where nobody waits for an answer yet
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    from snapshot_restore_py import register_after_restore  # Lambda's runtime has it, nothing else does

    register_after_restore(scorer().restored)
