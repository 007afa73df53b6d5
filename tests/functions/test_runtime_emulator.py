"""The built artifact under Lambda's runtime emulator: every function starts, answers, and is timed.

The emulator is the binary inside aws-sam-cli (`.venv-sam`), the runtime's client awslambdaric in a Python
3.12 (`.venv-lambda`); `make test` installs both. One request at a time: concurrent ones crash the emulator.
`VITRINE_EMULATOR_REPORT` names a file for the times.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functions.account import ENVIRONMENT, Account, behaviour, credential, http, key_of, stream_record
from tests.functions.conftest import empty
from tests.functions.test_artifact import artifact

__all__ = ["artifact"]  # the fixture
ROOT = Path(__file__).parents[2]
EMULATOR = next(
    ROOT.glob(".venv-sam/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64"), None
)
CLIENT = next(ROOT.glob(".venv-lambda/lib/python3.12/site-packages/awslambdaric"), None)
MEMORY = {"score": "1769", "update": "1769", "collect": "512"}  # the template's
WARM = 5  # requests after the first
SLOWEST_S = 60
pytestmark = pytest.mark.skipif(
    EMULATOR is None or CLIENT is None, reason="no runtime emulator, or no awslambdaric on a Python 3.12"
)


@pytest.fixture(scope="module")
def account(cloud: str) -> Iterator[Account]:
    """An account for processes other than this one."""
    empty(cloud)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        patched.setenv("AWS_ENDPOINT_URL", cloud)
        yield Account()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Emulated:
    """One function of the artifact in an emulator of its own."""

    def __init__(self, artifact: Path, name: str, folder: Path) -> None:
        assert EMULATOR is not None and CLIENT is not None
        self._port, self._log = free_port(), folder / "log.txt"
        EMULATOR.chmod(0o755)
        addresses = ("--runtime-interface-emulator-address", f"127.0.0.1:{self._port}")
        more = ("--runtime-api-address", f"127.0.0.1:{free_port()}")
        runtime = (str(CLIENT.parents[3] / "bin" / "python"), "-m", "awslambdaric")
        environment = {
            **os.environ,
            "PYTHONPATH": f"{artifact}:{CLIENT.parent}",
            "LAMBDA_TASK_ROOT": str(artifact),
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": MEMORY[name],
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(SLOWEST_S),
            "TMPDIR": str(folder),
        }
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(EMULATOR), *addresses, *more, *runtime, f"functions.{name}.handler"],
                cwd=artifact,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """The handler's answer; the first call waits until the emulator listens."""
        url = f"http://127.0.0.1:{self._port}/2015-03-31/functions/function/invocations"
        request = urllib.request.Request(url, json.dumps(event).encode())
        for _ in range(10_000):
            try:
                with urllib.request.urlopen(request, timeout=SLOWEST_S) as answer:
                    return dict(json.loads(answer.read()))
            except ConnectionRefusedError:
                continue
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
        raise AssertionError(f"the emulator does not listen\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def times_ms(self) -> dict[str, list[float]]:
        """`init` of the INIT REPORT lines, `duration` of the invocations' REPORT lines.

        The emulator starts a function when it is first called, so the first duration has the init in it.
        """
        found = {"init": r"INIT REPORT\(durationMs: ([\d.]+)\)", "duration": r"\tDuration: ([\d.]+) ms"}
        return {
            name: [float(ms) for ms in re.findall(pattern, self.log())] for name, pattern in found.items()
        }

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


def event_of(name: str, number: int) -> dict[str, Any]:
    event = behaviour(number)
    if name == "score":
        return http("POST", "/v1/banners", {"slot": "cart"}, credential("ann"))
    if name == "collect":
        return http("POST", "/v1/events", event, credential("ann"))
    return {"Records": [stream_record(key_of("ann"), event, number)]}


def check(name: str, answer: dict[str, Any]) -> None:
    assert "errorType" not in answer, answer  # a handler's exception comes back as a 200
    if name == "update":
        assert answer == {"batchItemFailures": []}
        return
    assert answer["statusCode"] == {"score": 200, "collect": 202}[name], answer
    if name == "score":
        body = json.loads(answer["body"])
        assert len(body["banners"]) == 3 and body["tier"] in ("popular", "personal")


@pytest.mark.parametrize("name", ["collect", "update", "score"])
def test_a_function_starts_and_answers(name: str, artifact: Path, account: Account, tmp_path: Path) -> None:
    function = Emulated(artifact, name, tmp_path)
    try:
        for number in range(1, 2 + WARM):
            check(name, function.invoke(event_of(name, number)))
        took = function.times_ms()
        assert len(took["duration"]) == 1 + WARM and len(took["init"]) == 1, function.log()[-3000:]
        warm = sorted(took["duration"][1:])[WARM // 2]
        said = {"init_ms": took["init"][0], "first_with_init_ms": took["duration"][0], "warm_ms": warm}
        said["load"] = round(os.getloadavg()[0], 1)  # of the machine: these are wall times
        print(f"{name}: {said}")
        assert "environment starts" in function.log() or name == "collect"  # with the CPU's flags, once
        assert function.log().count("environment starts") == (name != "collect")
    finally:
        function.close()
    if report := os.environ.get("VITRINE_EMULATOR_REPORT"):
        path = Path(report)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {name: said}, indent=1) + "\n")
