"""What is read of HTTP is what the standard library's client reads; what is none is no answer."""

from __future__ import annotations

import errno
import http.client
import io
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.aws.connection import Answer, Connection, Target
from functions.aws.errors import Closed, NoAnswer, TimedOut
from functions.aws.transport import Reply

TARGET = Target("127.0.0.1", 80, False)


class Wire:
    """A socket whose bytes come in pieces, each after so many seconds of a clock that only it moves."""

    def __init__(self, data: bytes, size: int = 16, apart_s: float = 0.0) -> None:
        self._data, self._size, self._apart_s = io.BytesIO(data), size, apart_s
        self.now_s, self._patience_s, self._closed = 7.0, 0.0, False

    def makefile(self, mode: str) -> io.BufferedReader:
        """What the standard library reads from."""
        return io.BufferedReader(self._data)  # type: ignore[arg-type]

    def settimeout(self, patience_s: float) -> None:
        """For what is sent or received next; 0: without waiting."""
        self._patience_s = patience_s

    def sendall(self, data: bytes) -> None:
        """Gone."""

    def recv_into(self, buffer: memoryview) -> int:
        """The next piece, or a timeout."""
        if self._closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.now_s += min(self._apart_s, self._patience_s)
        if self._apart_s > self._patience_s:
            raise TimeoutError("timed out") if self._patience_s else BlockingIOError("would block")
        piece = self._data.read(min(self._size, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Nothing comes any more."""
        self._closed = True

    def connection(self, monkeypatch: pytest.MonkeyPatch, time_s: float) -> Connection:
        """To where the bytes come from, by the wire's own clock."""
        monkeypatch.setattr("functions.aws.connection.time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr("functions.aws.connection.socket.create_connection", lambda *given: self)
        return Connection(TARGET, 1.0, time_s)

    def setsockopt(self, *given: int) -> None:
        """As it likes."""


def asked(data: bytes) -> Answer:
    with pytest.MonkeyPatch.context() as patched:
        connection = Wire(data).connection(patched, 5.0)
    return connection.ask("GET", "/", {})


def theirs(data: bytes) -> tuple[int, dict[str, str], bytes]:
    answer = http.client.HTTPResponse(Wire(data), method="GET")  # type: ignore[arg-type]
    answer.begin()
    body = answer.read()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def in_chunks(body: bytes, sizes: list[int], trailer: bytes) -> bytes:
    data, sent = b"", 0
    for size in sizes:
        piece = body[sent : sent + size]
        if piece:
            data += b"%x%s\r\n%s\r\n" % (len(piece), b";a=b" if size % 2 else b"", piece)
        sent += len(piece)
    rest = body[sent:]
    if rest:
        data += b"%X\r\n%s\r\n" % (len(rest), rest)
    return data + b"0\r\n" + trailer + b"\r\n"


names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in ("content-length", "transfer-encoding", "connection")
)
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@settings(max_examples=400, deadline=None)
@given(
    status=st.sampled_from([200, 206, 204, 301, 304, 400, 403, 404, 500, 503]),
    headers=st.dictionaries(names, values, max_size=6),
    body=st.binary(max_size=400),
    how=st.sampled_from(["length", "chunks", "close"]),
    sizes=st.lists(st.integers(1, 90), max_size=6),
    trailer=st.sampled_from([b"", b"x-sum: 1\r\n"]),
    go_on=st.booleans(),
    pieces=st.lists(st.integers(1, 130), min_size=1, max_size=8),
)
def test_answers_are_read_as_the_standard_library_reads_them(
    status: int,
    headers: dict[str, str],
    body: bytes,
    how: str,
    sizes: list[int],
    trailer: bytes,
    go_on: bool,
    pieces: list[int],
) -> None:
    own = {name.lower(): value for name, value in headers.items()}
    body = b"" if status in (204, 304) else body
    said = body
    if how == "length":
        own["content-length"] = str(len(body))
    elif how == "chunks" and status not in (204, 304):
        own["transfer-encoding"] = "chunked"
        said = in_chunks(body, sizes, trailer)
    lines = [f"HTTP/1.1 {status} Because", *(f"{name}: {value}" for name, value in own.items())]
    data = b"HTTP/1.1 100 Continue\r\n\r\n" if go_on else b""
    data += "\r\n".join(lines).encode() + b"\r\n\r\n" + said
    answer = asked(data)
    read = b""
    while piece := answer.read(pieces[len(read) % len(pieces)]):
        read += piece
    assert (answer.status, answer.headers, read) == theirs(data) == (status, own, body)
    assert answer.over and answer.keeps == (how != "close" or status in (204, 304))
    assert asked(data).read() == body
    if how != "close" and body:
        with pytest.raises(NoAnswer):
            asked(data[:-1] if how == "length" else data[: -len(trailer) - 3]).read()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 2**16 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_what_is_no_answer_is_told(data: bytes) -> None:
    with pytest.raises(NoAnswer) as told:
        asked(data).read()
    assert not isinstance(told.value, Closed | TimedOut)


@pytest.mark.parametrize(
    "data",
    [
        b"hush\r\n",
        b"HTTP/1.1 hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nhush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nhush",
        b"HTTP/1.1 200 OK\r\ncontent-length: hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhush",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhush\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nhush\r\n",
    ],
)
def test_nothing_of_what_comes_is_quoted(data: bytes) -> None:
    with pytest.raises(NoAnswer) as told:
        asked(data).read()
    assert "hush" not in str(told.value)


BODY = bytes(range(256)) * 2
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 512\r\n\r\n" + BODY
DRIPPING = {
    "its head": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90 + b"content-length: 0\r\n\r\n",
    "go on, go on": b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + b"HTTP/1.1 204 None\r\n\r\n",
    "its body": PLAIN,
    "its chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + in_chunks(BODY, [9] * 40, b""),
    "until it closes": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("data", DRIPPING.values(), ids=DRIPPING)
def test_all_pieces_of_an_answer_have_one_time(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes in time, and all together do not: by the deadline it is over, to the moment."""
    for apart_s, time_s in ((0.9, 2.0), (0.25, 2.0), (1.0, 1.5)):
        wire = Wire(data, apart_s=apart_s)
        connection, began_s = wire.connection(monkeypatch, time_s), wire.now_s
        with pytest.raises(TimedOut):
            connection.ask("GET", "/", {}).read()
        assert wire.now_s - began_s == pytest.approx(time_s)
    wire = Wire(data, apart_s=0.25)
    wire.connection(monkeypatch, 60.0).ask("GET", "/", {}).read()


def test_what_came_while_the_environment_was_frozen_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(PLAIN)
    answer = wire.connection(monkeypatch, 2.0).ask("GET", "/", {})
    wire.now_s += 600
    assert answer.read(300) == BODY[:300]
    wire._apart_s = 0.001  # from here on it has not come yet
    with pytest.raises(TimedOut, match="not all of an answer in 2 s"):
        answer.read()


def test_who_sends_faster_than_is_read_is_not_listened_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always something in the socket; taking it is what takes the time."""
    wire = Wire(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 9_000)
    connection, began_s = wire.connection(monkeypatch, 2.0), wire.now_s
    receive = wire.recv_into

    def slowly(buffer: memoryview) -> int:
        wire.now_s += 0.125
        return receive(buffer)

    monkeypatch.setattr(wire, "recv_into", slowly)
    with pytest.raises(TimedOut, match="not all of an answer in 2 s"):
        connection.ask("GET", "/", {}).read()
    assert wire.now_s - began_s == 4.0


def test_each_request_of_a_connection_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    wire = Wire(empty * 9, size=len(empty), apart_s=0.9)
    connection = wire.connection(monkeypatch, 1.0)
    for _ in range(9):
        assert connection.ask("GET", "/", {}).over
        wire.now_s += 60


@pytest.mark.parametrize(
    "read, comes",
    [
        (lambda reply: reply.read(), False),
        (lambda reply: b"".join(iter(lambda: reply.read(32), b"")), False),
        (lambda reply: b"".join(reply.iter_chunks(32)), True),  # of two packets
        (lambda reply: b"".join(reply.iter_chunks(128)), False),
    ],
    ids=["whole", "whole, in parts", "in pieces", "in pieces, each too slow"],
)
def test_pieces_of_a_file_have_the_time_each(
    read: Callable[[Reply], bytes], comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, kept = Wire(PLAIN, apart_s=0.15), list[Connection]()
    connection = wire.connection(monkeypatch, 1.0)
    pool: Any = SimpleNamespace(give_back=kept.append)
    reply = Reply(connection.ask("GET", "/", {}), connection, pool)
    if comes:
        assert read(reply) == BODY and kept == [connection]
    else:
        with pytest.raises(TimedOut):
            read(reply)
        assert kept == []
        with pytest.raises(NoAnswer):  # it is closed
            reply.read()


def test_who_has_given_a_connection_back_does_not_lengthen_the_next_ones_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, kept = Wire(PLAIN * 2, size=len(PLAIN)), list[Connection]()
    connection = wire.connection(monkeypatch, 1.0)
    pool: Any = SimpleNamespace(give_back=kept.append)
    pieces = Reply(connection.ask("GET", "/", {}), connection, pool).iter_chunks(len(BODY))
    assert next(pieces) == BODY and kept == [connection]
    monkeypatch.setattr(connection, "go_on", lambda: pytest.fail("another's time was renewed"))
    assert list(pieces) == []


def test_nothing_at_all_is_told_apart() -> None:
    with pytest.raises(Closed):
        asked(b"")


def test_an_older_server_closes() -> None:
    answer = asked(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert answer.over and not answer.keeps
    assert not asked(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n").keeps


@pytest.mark.parametrize("path, headers", [("/a\r\nb: c", {}), ("/", {"range": "bytes=0-\nx: y"})])
def test_no_line_can_be_smuggled_in(path: str, headers: dict[str, str]) -> None:
    connection = Connection.__new__(Connection)
    connection._socket = Any  # type: ignore[assignment]
    with pytest.raises(ValueError, match="line break"):
        connection.ask("GET", path, headers)


@pytest.mark.parametrize(
    "url, target, authority",
    [
        ("http://127.0.0.1:5000", ("127.0.0.1", 5000, False), "127.0.0.1:5000"),
        ("https://S3.eu-west-1.amazonaws.com/", ("s3.eu-west-1.amazonaws.com", 443, True), None),
        ("https://vpce.example:8443", ("vpce.example", 8443, True), "vpce.example:8443"),
        ("http://[::1]:80/x", ("::1", 80, False), "[::1]"),
    ],
)
def test_a_url_names_a_server(url: str, target: tuple[str, int, bool], authority: str | None) -> None:
    assert Target.of(url) == target
    assert Target.of(url).authority == (authority or target[0])


@pytest.mark.parametrize("url", ["", "ftp://host", "localhost:5000", "http://", "http://host:port"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(ValueError):
        Target.of(url)


def test_small_packets_are_not_held_back_and_dead_peers_are_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=listening.accept, daemon=True).start()
        connection = Connection(Target("127.0.0.1", listening.getsockname()[1], False), 1, 2.5)
        own = connection._socket
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connection.close()


def test_sending_has_the_time_of_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        connection = Connection(Target("127.0.0.1", deaf.getsockname()[1], False), 1, 0.2)
        with pytest.raises(TimedOut):
            connection.ask("PUT", "/", {}, bytes(2**26))
        connection.close()
