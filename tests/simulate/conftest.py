import logging
from collections.abc import Iterator

import pytest

from functions import update
from simulate.silence import nothing


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the functions' logs and metrics, for this test alone."""
    monkeypatch.setattr(update, "emit", nothing)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
