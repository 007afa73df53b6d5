"""One kept connection, and the part of HTTP/1.1 (RFC 9112) that AWS's services speak.

The standard library's client draws in all of `email` to read a dozen lines, 15 ms of a cold start and most of
what an answer costs. What is read here is held against it in the tests. Of what comes an error says lengths
alone: it may be a secret.
"""

from __future__ import annotations

import io
import os
import select
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from functions.aws.errors import Closed, NoAnswer, TimedOut

MAX_LINE, MAX_HEADERS = 2**16, 100


class Target(NamedTuple):
    """A server."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Target:
        """That of a URL; raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r}; expected http://… or https://… with a host")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls)

    @property
    def authority(self) -> str:
        """What the header `host` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Answer:
    """An answer whose head is read; the body is, as it is asked for."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers, self._connection = status, headers, connection
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._left: float = 0.0  # bytes of this piece
        if not self._chunked and status not in (204, 304):
            self._left = _length(headers)
        self.over = not self._chunked and not self._left

    def read(self, most: int | None = None) -> bytes:
        """The next `most` bytes, fewer at the end, or all; raises NoAnswer, TimedOut."""
        wanted, pieces = float("inf") if most is None else most, list[bytes]()
        while wanted > 0 and not self.over:
            if not self._left:
                self._left = self._connection.chunk()
                self.over = not self._left
                continue
            size = min(wanted, self._left)
            piece = self._connection.read(-1 if size == float("inf") else int(size))
            if len(piece) < size and self._left != float("inf"):
                raise NoAnswer(f"cut short, {self._left - len(piece):.0f} bytes before its end")
            pieces.append(piece)
            wanted, self._left = wanted - len(piece), self._left - len(piece)
            if self._chunked and not self._left:
                self._connection.chunk_ends()
            self.over = len(piece) < size or (not self._chunked and not self._left)
        return b"".join(pieces)

    @property
    def keeps(self) -> bool:
        """Whether another request may go over the connection."""
        stays = self.headers.get("connection", "").lower() != "close"
        return self.over and self._left == 0.0 and stays and not self._connection.old


def _length(headers: Mapping[str, str]) -> float:
    """Bytes of a body that is not in chunks: what is stated, else whatever comes until the end."""
    stated = headers.get("content-length")
    if stated is None:
        return float("inf")
    if not (stated.isascii() and stated.isdecimal()):
        raise NoAnswer(f"content-length: {len(stated)} bytes; expected a number")
    return int(stated)


class Arriving(io.RawIOBase):
    """What comes over a socket until a moment: all pieces together have the time, however small they are.

    What has come by then is still taken when it is over, for as long again at most: the environment may have
    been frozen meanwhile, and who sends faster than it is read is never waited for.
    """

    def __init__(self, wire: socket.socket, time_s: float) -> None:
        self._wire, self._time_s = wire, time_s
        self.begin()

    def begin(self) -> None:
        """The time runs from now."""
        self._ends_s, self._stops_s = time.monotonic() + self._time_s, float("inf")
        self._wire.settimeout(self._time_s)  # sending has as much

    def readable(self) -> bool:
        """What a buffer asks first."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What is there, once there is something; raises OSError."""
        now_s = time.monotonic()
        if now_s >= self._ends_s:
            self._stops_s = min(self._stops_s, now_s + self._time_s)
        self._wire.settimeout(max(self._ends_s - now_s, 0.0))
        try:
            if now_s < self._stops_s:
                return self._wire.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        raise TimeoutError(f"not all of an answer in {self._time_s:g} s")


class Connection:
    """An open connection, for one request after the other."""

    def __init__(self, target: Target, connect_s: float, read_s: float) -> None:
        """`read_s` is the time of a whole answer; raises NoAnswer, TimedOut."""
        self.target, self.old = target, False  # old: the other side speaks HTTP/1.0, and closes
        try:
            self._socket = socket.create_connection((target.host, target.port), connect_s)
        except OSError as error:
            raise failed(error, f"connecting to {target.authority}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if target.tls:
                self._socket = trust().wrap_socket(self._socket, server_hostname=target.host)
        except OSError as error:
            self._socket.close()
            raise failed(error, f"connecting to {target.authority}") from error
        self._read_s = read_s

    @property
    def alive(self) -> bool:
        """Whether nothing has come since the last answer: what would come is the other side's goodbye."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request and read the head of its answer; raises NoAnswer, TimedOut, Closed."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join(lines)
        if len(head.splitlines()) != len(lines):
            raise ValueError(f"{method} {path!r}: a line break in a header or in the path")
        self._arriving = Arriving(self._socket, self._read_s)
        self._file = io.BufferedReader(self._arriving)  # without what came after the last answer's end
        try:
            self._socket.sendall(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            first = self._file.readline(MAX_LINE)
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise Closed(f"{self.target.authority}: {error}") from error
            raise failed(error, self.target.authority) from error
        if not first:
            raise Closed(f"{self.target.authority}: closed without an answer")
        status = self._status(first)
        for _ in range(MAX_HEADERS):
            headers = self._headers()
            if not 100 <= status < 200:  # "go on", which we do anyway
                return Answer(self, status, headers)
            status = self._status(self.line())
        raise NoAnswer(f"{self.target.authority}: {MAX_HEADERS} times told to go on")

    def _status(self, line: bytes) -> int:
        version, _, rest = line.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit() or rest[3:4].isdigit():
            raise NoAnswer(f"{self.target.authority}: {len(line)} bytes; expected a status of HTTP/1.1")
        self.old = version == b"HTTP/1.0"
        return int(rest[:3])

    def _headers(self) -> dict[str, str]:
        """By name in lower case; of two of one name the last."""
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = self.line()
            if line in (b"\r\n", b"\n"):
                return headers
            name, colon, value = line.partition(b":")
            if not colon:
                raise NoAnswer(f"{self.target.authority}: {len(line)} bytes; expected a header")
            headers[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
        raise NoAnswer(f"{self.target.authority}: more than {MAX_HEADERS} headers")

    def go_on(self) -> None:
        """What is left to read of an answer has the whole time again."""
        self._arriving.begin()

    def line(self) -> bytes:
        """The next line, its end included; raises NoAnswer, TimedOut."""
        try:
            line = self._file.readline(MAX_LINE)
        except OSError as error:
            raise failed(error, self.target.authority) from error
        if line[-1:] != b"\n":
            raise NoAnswer(f"{self.target.authority}: {len(line)} bytes; expected a whole line")
        return line

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end; raises NoAnswer, TimedOut."""
        try:
            return self._file.read(size)
        except OSError as error:
            raise failed(error, self.target.authority) from error

    def chunk(self) -> int:
        """The bytes of the next chunk; after the last one, 0, what trails it is read too."""
        line = self.line()
        digits = line.partition(b";")[0].strip()
        try:
            size = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            size = -1
        if size < 0:
            raise NoAnswer(f"{self.target.authority}: {len(line)} bytes; expected a chunk's size")
        if not size:
            self._headers()
        return size

    def chunk_ends(self) -> None:
        """Read the end of a chunk."""
        if (line := self.line()) not in (b"\r\n", b"\n"):
            raise NoAnswer(f"{self.target.authority}: {len(line)} bytes; expected a chunk's end")

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Pool:
    """Kept connections to one server, so many at most. Threads share it; each uses one at a time."""

    def __init__(self, target: Target, connect_s: float, read_s: float, most: int) -> None:
        self.target, self._most, self._limits = target, most, (connect_s, read_s)
        self._idle: list[Connection] = []  # its append and pop are atomic

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Answer, Connection]:
        """The answer's head, and the connection that its body comes over: to give back, or to close."""
        kept = self._kept()
        if kept is not None:
            try:
                return self._ask(kept, method, path, headers, body)
            except Closed:  # while the environment was frozen; the others most likely too
                self._forget_idle()
            except TimedOut:  # perhaps dead without a word, and then the others are too
                self._forget_idle()
                raise
        return self._ask(Connection(self.target, *self._limits), method, path, headers, body)

    def give_back(self, connection: Connection) -> None:
        """Keep it for another request."""
        if len(self._idle) < self._most:
            self._idle.append(connection)
        else:
            connection.close()

    def _forget_idle(self) -> None:
        with suppress(IndexError):  # another thread may take the last
            while True:
                self._idle.pop().close()

    def _ask(self, connection: Connection, *request: Any) -> tuple[Answer, Connection]:
        try:
            return connection.ask(*request), connection
        except BaseException:
            connection.close()
            raise

    def _kept(self) -> Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.alive:
                return connection
            connection.close()


def failed(error: OSError, where: str) -> NoAnswer:
    """An error of the network as ours."""
    kind = TimedOut if isinstance(error, TimeoutError) else NoAnswer
    return kind(f"{where}: {error}")


@cache
def trust() -> ssl.SSLContext:
    """Certificates of the system, or those that botocore's variable names; read when TLS is first spoken."""
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's Python leaves it to OpenSSL's configuration
    return context
