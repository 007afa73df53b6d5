"""What `python -m export` publishes into the folder of bundles, carried into the running cloud's bucket."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from functions.core.errors import VitrineError
from local.account import POINTER, put_file, read_pointer

EVERY_S = 1.0


class Follower:
    """A thread that looks at the folder's pointer; the bucket gets a new champion's files, then it."""

    def __init__(self, s3: Any, bundles: Path, every_s: float = EVERY_S) -> None:
        """`bundles` is uploaded as it is now, or later."""
        self._s3, self._bundles, self._every_s = s3, bundles, every_s
        self._seen = (bundles / POINTER).read_bytes()
        self._stored = {str(read_pointer(bundles)["champion"])}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="follow")

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def look(self) -> bool:
        """Whether there was something new, which the bucket has now."""
        try:
            now = (self._bundles / POINTER).read_bytes()
            if now == self._seen:
                return False
            champion = str(read_pointer(self._bundles)["champion"])
        except (OSError, VitrineError):  # gone, or no pointer: the next look may find one
            return False
        if champion not in self._stored:
            for path in sorted(p for p in (self._bundles / champion).rglob("*") if p.is_file()):
                put_file(self._s3, self._bundles, path)
        put_file(self._s3, self._bundles, self._bundles / POINTER)
        self._stored.add(champion)
        self._seen = now
        print(f"bundle {champion} is published; the functions take it within half a minute", flush=True)
        return True

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self.look()
            except Exception as error:  # the cloud goes on with what it has
                print(f"warning: bundles not followed: {error!r}", flush=True)
