"""A process of its own for each part of the local cloud, that never outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from functions.core.errors import VitrineError

START_S = 60.0
STOP_S = 5.0
LOG_TAIL_LINES = 15

# what a part runs: it calls the first argument once it can be used, and does not return
Part = Callable[..., None]


class PartFailed(VitrineError):
    """A part of the local cloud did not start, or ended by itself; says why, from its log."""


class LocalProcess:
    """One part, started at once; `log` gets all that it prints. Raises PartFailed when it does not come up.

    `part(ready, *arguments)` is importable by name and calls `ready(value)`; that value is `.value` here.
    `environment` holds the variables it sets before it imports anything else (None: unset).
    """

    def __init__(
        self,
        name: str,
        part: Part,
        *arguments: Any,
        environment: Mapping[str, str | None] | None = None,
        log: Path,
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        # spawn: a fork would copy threads' locks and a half-used connection pool
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run,
            args=(part, arguments, dict(environment or {}), str(log), sender),
            name=name,
            daemon=True,
        )
        self._process.start()
        sender.close()
        self.value = self._started(receiver)

    def _started(self, receiver: Connection) -> Any:
        with receiver:
            try:
                if not receiver.poll(START_S):
                    self.stop()
                    raise PartFailed(f"{self.name}: not up after {START_S:.0f} s\n{self.tail()}")
                failed, value = receiver.recv()
            except EOFError:
                self._process.join(STOP_S)
                raise PartFailed(f"{self.name}: ended while starting\n{self.tail()}") from None
        if failed:
            self._process.join(STOP_S)
            raise PartFailed(f"{self.name}: {value}")
        return value

    @property
    def sentinel(self) -> int:
        """What becomes ready, for `multiprocessing.connection.wait`, when the process ends."""
        return self._process.sentinel

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([*lines[-LOG_TAIL_LINES:], f"(log: {self.log})"])

    def stop(self) -> None:
        """End it: asked first, then killed. Safe to call twice."""
        self._process.terminate()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(STOP_S)


def _run(
    part: Part,
    arguments: tuple[Any, ...],
    environment: dict[str, str | None],
    log: str,
    sender: Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _write_to(log)
    _set(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        part(lambda value=None: sender.send((False, value)), *arguments)
    except (VitrineError, OSError) as error:
        sender.send((True, str(error)))
        raise


def _write_to(log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # whole lines, at once
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def end_with_parent() -> None:
    """End at once when the parent is gone, be it killed: its end of the pipe closes with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
