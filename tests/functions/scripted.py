"""A server on the loopback that answers one request after the other as a test says, right or wrong."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import deque
from contextlib import suppress
from typing import NamedTuple


class Said(NamedTuple):
    """One answer: its bytes, whether the connection ends with them, and the seconds before each byte."""

    data: bytes
    ends: bool = False
    apart_s: float = 0.0


class Request(NamedTuple):
    """One request as it came."""

    head: str
    body: bytes
    connection: int

    @property
    def line(self) -> str:
        """Method, path and version."""
        return self.head.split("\r\n")[0]

    @property
    def headers(self) -> dict[str, str]:
        """By name in lower case."""
        pairs = (line.split(": ", 1) for line in self.head.split("\r\n")[1:])
        return {name.lower(): value for name, value in pairs}


SILENCE = Said(b"")  # nothing, for as long as the other side waits
HANG_UP = Said(b"", True)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer of HTTP/1.1."""
    named = {"content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = [f"HTTP/1.1 {status} Because", *(f"{name}: {value}" for name, value in named.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Scripted:
    """The server; a context manager. What comes when there is no answer left is hung up on."""

    def __init__(self, *answers: bytes | Said, tls: ssl.SSLContext | None = None) -> None:
        self._left, self._tls = deque(a if isinstance(a, Said) else Said(a) for a in answers), tls
        self.requests: list[Request] = []
        self.connections = 0
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Scripted:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._over.set()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def drop(self) -> None:
        """End all connections that are open."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def _start(self, act: object, *arguments: object) -> None:
        thread = threading.Thread(target=act, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                self._open.append(connection)
                self._start(self._serve, connection, self.connections)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError, ValueError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            file = connection.makefile("rb")
            while self._answer(file, connection, number):
                pass

    def _answer(self, file: object, connection: socket.socket, number: int) -> bool:
        lines = list(iter(lambda: file.readline().decode().rstrip("\r\n"), ""))  # type: ignore[attr-defined]
        if not lines:
            return False
        request = Request("\r\n".join(lines), b"", number)
        body = file.read(int(request.headers.get("content-length", "0")))  # type: ignore[attr-defined]
        self.requests.append(request._replace(body=body))
        said = self._left.popleft() if self._left else HANG_UP
        self._say(said, connection)
        if said.ends:
            connection.shutdown(socket.SHUT_RDWR)
        return not said.ends

    def _say(self, said: Said, connection: socket.socket) -> None:
        if not said.apart_s:
            connection.sendall(said.data)
            return
        for byte in said.data:
            if self._over.wait(said.apart_s):
                return
            connection.sendall(bytes([byte]))
