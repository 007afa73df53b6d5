"""A folder and a bucket, held to the same: whole bundles, and a pointer that loses no publication."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from export.__main__ import publish
from export.store import NoPointer, PointerMoved, Store, open_store
from functions.core.bundle import verify
from functions.core.errors import VitrineError
from tests.bundles import tiny_checkpoint

LOOSE = 0.05


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="bundles")
        yield "s3://bundles/shop"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        made = open_store(tmp_path / "bundles")
        made.near()
        return made
    return open_store(str(request.getfixturevalue("bucket")))


def test_a_pointer_that_is_not_there_yet_is_made_once(store: Store) -> None:
    seen = store.seen()
    with pytest.raises(NoPointer):
        _ = seen.champion
    store.point("a" * 32, seen)
    with pytest.raises(PointerMoved, match=f"the champion is {'a' * 32}; it was None"):
        store.point("b" * 32, seen)
    assert store.seen().champion == "a" * 32


def test_of_two_publishers_one_wins_and_the_other_is_told(store: Store) -> None:
    store.point("a" * 32, store.seen())
    one, other = store.seen(), store.seen()
    store.point("b" * 32, one)
    with pytest.raises(PointerMoved, match=f"it was {'a' * 32}"):
        store.point("c" * 32, other)
    assert store.seen().champion == "b" * 32
    store.point("c" * 32, store.seen())
    assert store.seen().champion == "c" * 32


def test_of_many_at_once_exactly_one_wins(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    seen = store.seen()

    def publish_as(number: int) -> bool:
        try:
            store.point(f"{number:032x}", seen)
        except PointerMoved:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(publish_as, range(64)))
    assert won.count(True) == 1
    assert store.seen().champion == f"{won.index(True):032x}"


def test_what_else_the_pointer_says_is_kept(tmp_path: Path) -> None:
    text = '{"champion": "a", "challenger": "x", "share": 0.1, "salt": "s"}'
    (tmp_path / "pointer.json").write_text(text)
    store = open_store(tmp_path)
    store.point("b" * 32, store.seen())
    assert dict(store.seen().pointer) == {"champion": "b" * 32, "challenger": "x", "share": 0.1, "salt": "s"}


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_pointer_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pointer.json").write_text(text)
    with pytest.raises(VitrineError, match=r"pointer\.json"):
        open_store(tmp_path).seen()


def test_a_checkpoint_is_published_into_a_bucket_and_fetched_back(bucket: str, tmp_path: Path) -> None:
    made = publish(tiny_checkpoint(tmp_path / "checkpoint"), bucket, None, LOOSE)
    store = open_store(bucket)
    name = store.seen().champion
    assert name == made["id"]
    assert verify(store.fetch(name, tmp_path / "fetched"), name).items == 62
    listed = boto3.client("s3").list_objects_v2(Bucket="bundles")["Contents"]
    last = sorted(listed, key=lambda entry: entry["LastModified"])[-1]["Key"]
    assert last in ("shop/pointer.json", f"shop/{name}.report.json", f"shop/{name}/manifest.json")
    with pytest.raises(VitrineError, match=f"s3://bundles/shop/{'0' * 32}/manifest.json"):
        store.fetch("0" * 32, tmp_path / "nothing")
