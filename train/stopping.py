"""Ending a run on purpose: Ctrl-C and SIGTERM wait for the end of a step, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ended the run between two steps; its state is saved."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"{signal.Signals(number).name} in {where}")
        self.number = number


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Hold SIGINT and SIGTERM back; the number of the one that came, 0 so far none.

    A second one raises KeyboardInterrupt at once. What the process ignores stays ignored; outside of the main
    thread, where Python takes no signals, nothing is held back.
    """
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = number

    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS if mine}
    held = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in held:
            signal.signal(number, note)
        yield lambda: came
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
