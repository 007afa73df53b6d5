import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without the functions' logs and metrics, for this test alone."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
