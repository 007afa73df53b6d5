"""As whom a function asks, as Lambda says it: in its environment, or, after a snapshot, at an address there.

Which variables there are, and which address is trusted, is the AWS SDKs and Tools Reference Guide's,
"Container credential provider"; when they are renewed is botocore's.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from functions.aws.connection import Connection, Target
from functions.aws.errors import Failure, NoCredentials, Refused

KEY, SECRET, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
ADDRESS = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
PASS, PASS_FILE = "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
NEARBY = {"localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"}
RENEWED_S, REQUIRED_S = 900, 600  # before they end: when one caller renews them, when nobody does without
AGAIN_S = 30.0  # after a renewal while the old ones hold, should it fail
TIMEOUT_S, ATTEMPTS, MOST = 2.0, 3, 2**16


class Credentials:
    """A key, its secret and, where it is temporary, its token. Never shown."""

    __slots__ = ("access_key", "expires_s", "secret_key", "token")

    def __init__(
        self, access_key: str, secret_key: str, token: str = "", expires_s: float = float("inf")
    ) -> None:
        self.access_key, self.secret_key, self.token = access_key, secret_key, token
        self.expires_s = expires_s

    def __repr__(self) -> str:
        return f"Credentials({self.access_key})"


class Source:
    """Where credentials come from; those of an address are kept while they hold. Many threads may ask."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._environment, self._clock, self._sleep = environment, clock, sleep
        self._lock = threading.Lock()
        self._kept: Credentials | None = None
        self._due_s = -float("inf")

    def get(self) -> Credentials:
        """Credentials that hold; raises NoCredentials."""
        if self._environment.get(KEY):
            if not self._environment.get(SECRET):
                raise NoCredentials(f"{SECRET} is not set; expected the secret of {KEY}")
            return Credentials(
                self._environment[KEY], self._environment[SECRET], self._environment.get(TOKEN, "")
            )
        if not self._environment.get(ADDRESS):
            raise NoCredentials(f"neither {KEY} nor {ADDRESS} is set; expected one of them")
        kept = self._kept
        if kept is not None and self._clock() < kept.expires_s - RENEWED_S:
            return kept
        return self._renewed()

    def _renewed(self) -> Credentials:
        """Ask anew. Who finds another asking goes on with the old ones, unless they are about to end. Where
        nobody answers, the old ones are used for as long as they hold."""
        kept = self._kept
        if not self._lock.acquire(blocking=self._left_s(kept) < REQUIRED_S):
            assert kept is not None
            return kept
        try:
            kept = self._kept
            if kept is None or self._left_s(kept) <= 0:
                kept = self._kept = self._asked()
            elif self._left_s(kept) < RENEWED_S and self._clock() >= self._due_s:
                self._due_s = self._clock() + AGAIN_S
                with suppress(Failure):
                    kept = self._kept = self._asked()
        finally:
            self._lock.release()
        return kept

    def forget(self, ended: Credentials) -> bool:
        """Whether there may be others than those that a service says have ended; many may be told at once."""
        if self._kept is ended:
            self._kept = None
        return ended.expires_s < float("inf")  # the environment's are what they are

    def _left_s(self, kept: Credentials | None) -> float:
        return kept.expires_s - self._clock() if kept else -float("inf")

    def _asked(self) -> Credentials:
        for attempt in range(ATTEMPTS):
            try:
                return self._ask()
            except NoCredentials:
                raise
            except Failure as error:
                if attempt == ATTEMPTS - 1:  # not as it is: a call would be tried again for it
                    raise NoCredentials(f"{ADDRESS}: {error}") from error
                self._sleep(TIMEOUT_S / 2)
        raise AssertionError("unreachable")

    def _ask(self) -> Credentials:
        address = self._environment[ADDRESS]
        target, path = trusted(address)
        headers = {"host": target.authority, **self._pass()}
        connection = Connection(target, TIMEOUT_S, TIMEOUT_S)
        try:
            answer = connection.ask("GET", path, headers)
            said = answer.read(MOST)
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused("", answer.status, f"{ADDRESS} {address}")
        try:
            found = json.loads(said)
            ends_s = datetime.fromisoformat(found["Expiration"]).timestamp()
            return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"], ends_s)
        except (KeyError, TypeError, ValueError) as error:  # not its text: it may quote the secret
            raise NoCredentials(
                f"{ADDRESS} {address}: {type(error).__name__}; expected JSON with AccessKeyId, "
                "SecretAccessKey, Token and Expiration"
            ) from None

    def _pass(self) -> dict[str, str]:
        """What the address wants to be shown: read anew each time, for a file's content changes."""
        if path := self._environment.get(PASS_FILE):
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read()
            except OSError as error:
                raise NoCredentials(f"{PASS_FILE} {path}: {error.strerror}") from error
        else:
            text = self._environment.get(PASS, "")
        if any(ord(letter) < 32 for letter in text):
            raise NoCredentials(f"{PASS_FILE if path else PASS}: a control character; expected one line")
        return {"authorization": text} if text else {}


def trusted(address: str) -> tuple[Target, str]:
    """The server and the path of an address that may see the pass: on this machine, or behind TLS."""
    parts = urlsplit(address)
    target = Target.of(address)
    if not (target.tls or target.host in NEARBY or _is_loopback(target.host)):
        raise NoCredentials(f"{ADDRESS} {address}: expected https, or http on this machine")
    return target, f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False
