from collections.abc import Iterator
from pathlib import Path

import pytest
from moto import mock_aws

from functions import archive, collect, me, score, update
from functions.aws import clients
from tests.functions.account import Account, set_environment

WARM = (score.scorer, collect.collector, me.eraser, archive.archiver, update.updater, clients.session)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Cold functions in an emulated cloud that is empty."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    set_environment(monkeypatch, temporary)
    for keep in WARM:
        keep.cache_clear()
    with mock_aws():
        yield
        if score.scorer.cache_info().currsize:
            score.scorer().idle(10)
    for keep in WARM:
        keep.cache_clear()


@pytest.fixture
def account(fresh: None) -> Account:
    """A whole account, the tiny bundle in its bucket."""
    return Account()
