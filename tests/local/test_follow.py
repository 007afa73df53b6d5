"""What is published into the folder comes into the bucket, whole and before its pointer."""

import json
from pathlib import Path
from typing import Any

import pytest

from local.follow import Follower


class Bucket:
    """Remembers what was put, in order."""

    def __init__(self) -> None:
        self.put: list[tuple[str, bytes]] = []

    def put_object(self, Key: str, Body: Any, **rest: object) -> None:
        self.put.append((Key, Body.read()))


def publish(bundles: Path, name: str) -> None:
    (bundles / name / "report").mkdir(parents=True, exist_ok=True)
    (bundles / name / "manifest.json").write_text(name)
    (bundles / name / "report" / "q.md").write_text("proof")
    (bundles / "pointer.json").write_text(json.dumps({"champion": name}))


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    publish(tmp_path, "old")
    return tmp_path


def test_a_new_champion_is_uploaded_once_and_its_pointer_last(bundles: Path) -> None:
    bucket = Bucket()
    follower = Follower(bucket, bundles)
    assert not follower.look() and not bucket.put
    publish(bundles, "new")
    assert follower.look() and not follower.look()
    assert [key for key, _ in bucket.put] == ["new/manifest.json", "new/report/q.md", "pointer.json"]
    publish(bundles, "old")  # a rollback: its files are there
    bucket.put.clear()
    assert follower.look()
    assert [key for key, _ in bucket.put] == ["pointer.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"champion": 3}'])
def test_a_pointer_that_is_none_changes_nothing(bundles: Path, text: str | None) -> None:
    bucket = Bucket()
    follower = Follower(bucket, bundles)
    (bundles / "pointer.json").unlink()
    if text is not None:
        (bundles / "pointer.json").write_text(text)
    assert not follower.look() and not bucket.put
    publish(bundles, "new")
    assert follower.look()


def test_what_was_not_uploaded_is_tried_again(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    follower = Follower(bucket, bundles)
    publish(bundles, "new")
    with monkeypatch.context() as broken:
        broken.setattr(bucket, "put_object", lambda **put: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            follower.look()
    assert follower.look()
    assert bucket.put[-1][0] == "pointer.json"


def test_the_thread_ends_when_it_is_told_to(bundles: Path) -> None:
    follower = Follower(Bucket(), bundles, every_s=60.0)
    follower.start()
    follower.stop()
    assert not follower._thread.is_alive()
