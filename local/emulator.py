"""AWS on one machine: moto's server, holding tables, stream, bucket and secrets in memory.

One thread serves all requests, one after another: moto loses Kinesis records that are put concurrently.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from local.process import LocalProcess, PartFailed

HOST = "127.0.0.1"
HEALTH_S = 10.0
MAX_BODY_BYTES = 2**31  # one object of a bundle


class Emulator:
    """A running emulator on a free port of this machine; a context manager. Raises PartFailed."""

    def __init__(self, log: Path) -> None:
        self.process = LocalProcess("emulator", serve, log=log)
        self.endpoint = f"http://{HOST}:{self.process.value}"
        try:
            self._check_health()
        except BaseException:
            self.process.stop()
            raise

    def _check_health(self) -> None:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=HEALTH_S):
                return
        except (OSError, urllib.error.URLError) as error:
            raise PartFailed(f"emulator: {error} ({self.endpoint})\n{self.process.tail()}") from error

    def stop(self) -> None:
        """End it, and all it holds."""
        self.process.stop()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(ready: Callable[[int], None]) -> None:
    """Serve until the process ends; tells the port."""
    import waitress
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    server = waitress.create_server(
        DomainDispatcherApplication(create_backend_app),
        host=HOST,
        port=0,
        threads=1,
        max_request_body_size=MAX_BODY_BYTES,
        ident="",
    )
    ready(server.effective_port)
    server.run()
