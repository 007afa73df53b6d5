import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.moto_server.werkzeug_app import MotoRequestHandler
from moto.server import ThreadedMotoServer

from functions import archive, collect, me, score, update
from functions.aws import clients
from tests.functions.account import Account, set_environment

WARM = (score.scorer, collect.collector, me.eraser, archive.archiver, update.updater, clients.session)


@pytest.fixture(scope="session")
def cloud() -> Iterator[str]:
    """The URL of an emulated AWS on the loopback, which keeps connections as the real one does."""
    MotoRequestHandler.protocol_version = "HTTP/1.1"
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def empty(cloud: str) -> None:
    """Forget all that is in it: moto's servers in one process share what they hold."""
    urllib.request.urlopen(urllib.request.Request(f"{cloud}/moto-api/reset", method="POST")).close()


@pytest.fixture
def fresh(cloud: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Cold functions in an emulated cloud that is empty."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    set_environment(monkeypatch, temporary)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud)
    empty(cloud)
    for keep in WARM:
        keep.cache_clear()
    yield
    if score.scorer.cache_info().currsize:
        score.scorer().idle(10)
    for keep in WARM:
        keep.cache_clear()


@pytest.fixture
def account(fresh: None) -> Account:
    """A whole account, the tiny bundle in its bucket."""
    return Account()
