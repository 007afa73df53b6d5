"""A signed call of a service: where to, as whom, how often, and what its answer is.

Attempts are as in the standard mode of the AWS SDKs (their reference guide, "Retry behavior"), but for its
quota of retries.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from functions.aws.connection import Answer, Connection, Pool, Target
from functions.aws.credentials import Credentials, Source
from functions.aws.errors import NoAnswer, NoCredentials, Refused
from functions.aws.signature import Scope, signed

Said = TypeVar("Said")

MOST = 2**25  # bytes of an answer that is read whole: BatchGetItem's are up to 16 MB of base64
MOST_OF_AN_ERROR = 2**16
PAUSE_S, THROTTLED_S = 0.05, 1.0  # before the second attempt; twice as long before each other
LONGEST_S = 20.0
SKEW_S = 240.0  # a signature is good for 5 minutes
CLOCK = {  # what is said to a request that is signed too early or too late, among others
    "AuthFailure",
    "InvalidSignatureException",
    "RequestExpired",
    "RequestInTheFuture",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
ENDED = {"ExpiredToken", "ExpiredTokenException"}  # of credentials
# what reading raises of an answer that is none
UNREADABLE = (AttributeError, MemoryError, OverflowError, RecursionError, ValueError)
VARIABLES = {"secretsmanager": "SECRETS_MANAGER"}  # of AWS_ENDPOINT_URL_…, where it is not the name itself
XML_ERROR = re.compile(rb"<Error>.*?<Code>([^<]+)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)


class Limits(NamedTuple):
    """Seconds for a connection and for an answer, from sending to its end (of a file that is read in pieces:
    for each); attempts in all, connections kept."""

    connect_s: float
    read_s: float
    attempts: int
    connections: int = 10


class Request(NamedTuple):
    """What is asked; the path is encoded, names of headers are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


class Clock:
    """The time as the services have it, learnt from what they answer to one that is wrong."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Seconds since 1970."""
        return time.time() + self._ahead_s

    def corrected(self, refusal: Refused, signed_s: float) -> bool:
        """Whether it was wrong when a request was signed, and is no longer."""
        if refusal.code not in CLOCK or not refusal.date:
            return False
        try:
            theirs = datetime.strptime(refusal.date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        except ValueError:
            return False
        if abs(theirs.timestamp() - signed_s) <= SKEW_S:
            return False
        self._ahead_s = theirs.timestamp() - time.time()
        return True


class Transport:
    """Calls of one service. Threads share it."""

    def __init__(
        self,
        service: str,
        limits: Limits,
        source: Source,
        clock: Clock,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises NoCredentials without a region, ValueError for an endpoint that is no URL."""
        self._scope, self._source, self._clock = Scope(region(), service), source, clock
        url = endpoint(service, self._scope.region)
        self._prefix = urlsplit(url).path.rstrip("/")
        self._pool = Pool(Target.of(url), limits.connect_s, limits.read_s, limits.connections)
        self._attempts, self._sleep = limits.attempts, sleep

    def call(self, request: Request, read: Callable[[Reply], Said]) -> Said:
        """What `read` makes of the answer; raises Refused, NoAnswer, NoCredentials.

        `read` may raise NoAnswer for an answer that is none. Each attempt is signed anew.
        """
        attempt, mended = 1, False
        while True:
            credentials, signed_s = self._source.get(), self._clock.now_s()
            try:
                return self._said(request, credentials, signed_s, read)
            except Refused as error:
                if not mended and self._mended(error, credentials, signed_s):
                    mended = True
                    continue
                if attempt >= self._attempts or not error.passing:
                    raise
                pause_s = THROTTLED_S if error.throttled else PAUSE_S
            except NoAnswer:
                if attempt >= self._attempts:
                    raise
                pause_s = PAUSE_S
            self._sleep(random.random() * min(pause_s * 2 ** (attempt - 1), LONGEST_S))
            attempt += 1

    def _said(
        self, request: Request, credentials: Credentials, signed_s: float, read: Callable[[Reply], Said]
    ) -> Said:
        method, path, headers, body = request
        named = {**headers, "host": self._pool.target.authority}
        path = self._prefix + path
        named = signed(method, path, named, body, self._scope, credentials, signed_s)
        reply = Reply(*self._pool.ask(method, path, named, body), self._pool)
        if not 200 <= reply.status < 300:
            raise refusal(reply)
        try:
            return read(reply)
        except UNREADABLE as error:  # nothing of it is quoted: it may be a secret
            reply.close()
            raise NoAnswer(f"an answer that is none: {type(error).__name__}") from None

    def _mended(self, refused: Refused, credentials: Credentials, signed_s: float) -> bool:
        """Whether the request was signed at a wrong time, or as somebody who is no more, and now is not."""
        if refused.code in ENDED:
            return self._source.forget(credentials)
        return self._clock.corrected(refused, signed_s)


class Reply:
    """An answer, and its connection, which is kept when it was read to its end."""

    def __init__(self, answer: Answer, connection: Connection, pool: Pool) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._answer, self._pool = answer, pool
        self._connection: Connection | None = connection
        self._settle()

    def read(self, most: int | None = None) -> bytes:
        """The next `most` bytes, fewer at the end, or all; raises NoAnswer, TimedOut."""
        try:
            return self._answer.read(most)
        except BaseException:
            self.close()
            raise
        finally:
            self._settle()

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """All that is left, in pieces; each has the time of a whole answer."""
        while piece := self.read(size):
            yield piece
            if self._connection is not None:  # or it is another request's by now
                self._connection.go_on()

    def json(self) -> dict[str, Any]:
        """The answer of a service that speaks JSON; raises NoAnswer for what is none."""
        body = self.read(MOST + 1)
        self.close()
        stated = self.headers.get("x-amz-crc32")  # DynamoDB's
        if len(body) > MOST or (stated is not None and stated != str(zlib.crc32(body))):
            raise NoAnswer(
                f"{len(body)} bytes; expected {MOST} bytes at most, and the crc32 that their header states"
            )
        said = json.loads(body)
        if not isinstance(said, dict):
            raise NoAnswer(f"{len(body)} bytes of JSON; expected an object")
        return said

    def close(self) -> None:
        """Give up what is not read yet."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()

    def _settle(self) -> None:
        if self._connection is not None and self._answer.keeps:
            self._pool.give_back(self._connection)
            self._connection = None


def refusal(reply: Reply) -> Refused:
    """The error in an answer: its code from a header, from JSON, or from S3's XML, else the status alone."""
    try:
        body = reply.read(MOST_OF_AN_ERROR)
    except NoAnswer:  # the status was said all the same
        body = b""
    reply.close()
    code, message = reply.headers.get("x-amzn-errortype", ""), ""
    if found := XML_ERROR.search(body):
        code, message = found[1].decode(errors="replace"), (found[2] or b"").decode(errors="replace")
    elif body[:1] == b"{":
        try:
            said = json.loads(body)
            code = code or str(said.get("__type", ""))
            message = str(said.get("message") or said.get("Message") or "")
        except (AttributeError, ValueError, RecursionError):
            message = f"{len(body)} bytes that are no JSON"
    code = code.partition(":")[0].rpartition("#")[2]
    return Refused(code or str(reply.status), reply.status, message[:500], reply.headers.get("date", ""))


def region() -> str:
    """The function's; raises NoCredentials."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not found:
        raise NoCredentials("AWS_REGION is not set; expected the region of the function")
    return found


def endpoint(service: str, region: str) -> str:
    """The URL of a service: the environment's for it, the environment's for all, or AWS's."""
    variable = VARIABLES.get(service, service.upper())
    stated = os.environ.get(f"AWS_ENDPOINT_URL_{variable}") or os.environ.get("AWS_ENDPOINT_URL")
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return stated or f"https://{service}.{region}.{domain}"
