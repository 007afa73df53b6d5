"""Work that must not be in the way of a request: a thread per job, started at most every so often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RETRY_S = 5.0


class Background:
    """One job, run in a thread when `tick` finds it due.

    A frozen environment stops the thread too; it goes on with the next request. So a job must bear an
    interruption at any point, and finish in small steps.
    """

    def __init__(
        self, job: Callable[[], bool], every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`job` never raises, and says whether it succeeded; if not, it is tried again after RETRY_S."""
        self._job, self._every_s, self._clock = job, every_s, clock
        self._thread: threading.Thread | None = None
        self._due_s = -float("inf")

    def tick(self) -> None:
        """Start the job if it is due and not running."""
        if self._clock() >= self._due_s and not self.running:
            self._due_s = float("inf")
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._job.__qualname__)
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the job is at work now."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the job that runs; whether none runs any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.running

    def _run(self) -> None:
        succeeded = False
        try:
            succeeded = self._job()
        finally:
            self._due_s = self._clock() + (self._every_s if succeeded else min(RETRY_S, self._every_s))
