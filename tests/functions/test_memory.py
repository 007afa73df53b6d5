"""What lasts as long as the environment is out of the collector's sight, and what requests leave is not."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from functions.aws.memory import YOUNG, settled
from functions.aws.rows import Rows


@pytest.fixture
def unsettled() -> Iterator[None]:
    threshold = gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(700)
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


class Node:
    """Something that only a collector frees."""

    def __init__(self) -> None:
        self.own: Node | None = self


@pytest.mark.usefixtures("unsettled")
def test_what_was_there_is_not_walked_again() -> None:
    made = [Node()]
    assert settled(made) is made
    assert not any(seen is made for seen in gc.get_objects())
    assert gc.get_threshold()[0] == YOUNG


@pytest.mark.usefixtures("unsettled")
def test_what_the_interpreter_froze_itself_is_no_reason_not_to() -> None:
    """Python 3.12, the functions' runtime, begins with 375 objects out of the collector's sight."""
    gc.freeze()
    made = [Node()]
    settled(made)
    assert not any(seen is made for seen in gc.get_objects())


@pytest.mark.usefixtures("unsettled")
def test_garbage_that_comes_later_is_freed() -> None:
    settled(None)
    later = [Node()]
    settled(None)  # another function in the same process: once is enough, and garbage must not be kept by it
    gone = weakref.ref(later.pop())
    gc.collect()
    assert gone() is None


def test_a_corrupt_row_holds_on_to_no_batch() -> None:
    """An exception that is kept holds the frames of all its callers, and they hold it."""
    table = SimpleNamespace(batch_get_item=lambda **_: {"Responses": {"rows": [{"pk": {"S": "ann"}}]}})

    def batch() -> weakref.ref[Node]:
        records = Node()
        records.own = None
        assert Rows(table, "rows").get_many(["ann"]).corrupt.keys() == {"ann"}
        return weakref.ref(records)

    gc.disable()
    try:
        assert batch()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["archive", "collect", "me", "score", "update"])
def test_each_function_settles_when_it_is_made(name: str) -> None:
    made = {
        "archive": "archiver",
        "collect": "collector",
        "me": "eraser",
        "score": "scorer",
        "update": "updater",
    }
    program = f"""
import gc
from functions import {name}
before = gc.get_freeze_count()
{name}.{made[name]}()
print(gc.get_freeze_count() - before, len(gc.get_objects()))
"""
    environment = {
        "VITRINE_TABLE": "rows",
        "VITRINE_KEYS": "keys",
        "VITRINE_STREAM": "events",
        "VITRINE_BUCKET": "bundles",
        "VITRINE_SECRET": "secret",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "PYTHONPATH": ".",
    }
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    frozen, seen = map(int, ran.stdout.splitlines()[-1].split())
    assert frozen > 10_000 > seen
