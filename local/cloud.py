"""The local cloud as one thing: emulator, account, front and poller, started in order and ended together."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from local.account import client, create, read_pointer, write_account
from local.archive import deliver
from local.emulator import Emulator
from local.follow import Follower
from local.front import HOST, WEB, PortTaken, serve
from local.poller import poll
from local.process import LocalProcess, Part, PartFailed
from local.template import TEMPLATE, FunctionEntry, Template

CHECKPOINTS, DELIVERED = "checkpoints.json", "delivered.json"
ACCOUNT = "account.json"
ARCHIVE = "archive"
SCRATCH = "tmp"


@dataclass(frozen=True)
class CloudSettings:
    """`bundles` holds pointer.json; `logs` gets one file per process; `port` 0 is any free one."""

    bundles: Path
    logs: Path
    port: int = 8000
    template: Path = TEMPLATE
    web: Path = WEB


class Cloud:
    """A running local cloud; a context manager. Raises VitrineError, before anything is started if it can."""

    def __init__(self, settings: CloudSettings) -> None:
        read_pointer(settings.bundles)
        template = Template(settings.template)
        require_free(settings.port)
        self.settings = settings
        self._stack = ExitStack()
        try:
            self._start(settings, template)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, settings: CloudSettings, template: Template) -> None:
        settings.logs.mkdir(parents=True, exist_ok=True)
        for left in (CHECKPOINTS, DELIVERED):  # of a stream that is gone
            (settings.logs / left).unlink(missing_ok=True)
        shutil.rmtree(settings.logs / ARCHIVE, ignore_errors=True)  # sealed with keys that are gone, too
        emulator = self._stack.enter_context(Emulator(_fresh(settings.logs / "emulator.log")))
        self.endpoint = emulator.endpoint
        follower = Follower(client("s3", emulator.endpoint), settings.bundles)
        self.environment = create(emulator.endpoint, template, settings.bundles)
        behind_routes = [route.function for route in template.routes()]
        self._starts: dict[str, Callable[[], LocalProcess]] = {}
        arguments = (settings.template, settings.bundles, settings.web)
        self.front = self._run("front", behind_routes, serve, settings.port, *arguments)
        port = self.front.value  # the same again after a restart
        self._starts["front"] = lambda: self._run("front", behind_routes, serve, port, *arguments)
        self._updating = template.mapping()[0]
        self.poller = self.run_poller(settings.logs / CHECKPOINTS)
        self._starts["poller"] = lambda: self.run_poller(settings.logs / CHECKPOINTS)
        self.archive = settings.logs / ARCHIVE
        self.processes = [emulator.process, self.front, self.poller, *self._run_delivery(template)]
        write_account(settings.logs / ACCOUNT, self.environment)
        self._stack.callback((settings.logs / ACCOUNT).unlink, missing_ok=True)
        self.url = f"http://{HOST}:{self.front.value}"
        follower.start()
        self._stack.callback(follower.stop)

    def _run(
        self, name: str, functions: Iterable[FunctionEntry], part: Part, *arguments: Any
    ) -> LocalProcess:
        stated = {key: value for function in functions for key, value in function.environment.items()}
        log = _fresh(self.settings.logs / f"{name}.log")
        scratch = self.settings.logs / SCRATCH / name  # an environment of Lambda's has a /tmp of its own
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        environment = {**stated, **self.environment, "TMPDIR": str(scratch.resolve())}
        process = LocalProcess(name, part, *arguments, environment=environment, log=log)
        self._stack.callback(process.stop)
        return process

    def run_poller(self, checkpoints: Path, name: str = "poller") -> LocalProcess:
        """Start a poller that goes on from its checkpoints; one more delivers again what they do not have."""
        return self._run(name, [self._updating], poll, self.settings.template, checkpoints)

    def _run_delivery(self, template: Template) -> list[LocalProcess]:
        entry = template.archiver()
        if entry is None:
            return []
        arguments = (self.settings.template, self.settings.logs / DELIVERED, self.archive)
        self._starts["archive"] = lambda: self._run("archive", [entry], deliver, *arguments)
        return [self._starts["archive"]()]

    def restart(self, name: str) -> None:
        """Start front, poller or archive again, after it was ended or killed."""
        at = next(n for n, process in enumerate(self.processes) if process.name == name)
        self.processes[at].stop()
        self.processes[at] = self._starts[name]()

    def wait(self) -> None:
        """Return never while all is well; raises PartFailed when a process ends by itself."""
        ended = wait([process.sentinel for process in self.processes])
        names = [process for process in self.processes if process.sentinel in ended]
        raise PartFailed(f"{names[0].name}: ended by itself\n{names[0].tail()}")

    def stop(self) -> None:
        """End every process."""
        self._stack.close()

    def __enter__(self) -> Cloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _fresh(log: Path) -> Path:
    log.unlink(missing_ok=True)
    return log


def require_free(port: int) -> None:
    """Raises PortTaken while nothing has been started yet, so that the answer comes at once."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise PortTaken(port, error) from error
