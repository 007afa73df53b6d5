"""A folder and a bucket, held to the same: whole bundles, and a pointer that loses no publication."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from export.__main__ import main, publish
from export.store import BadPointer, NoPointer, PointerMoved, Store, open_store
from functions.core.bundle import verify
from functions.core.errors import CorruptBundle, VitrineError
from functions.core.pointer import parse_pointer
from tests.bundles import STORED, tiny_checkpoint

LOOSE = 0.05
CHAMPION = parse_pointer((STORED / "pointer.json").read_bytes(), "stored").champion
CHALLENGER = "c" * 32
REFUSED = [
    "",
    "{",
    "[]",
    "{}",
    '{"champion": null}',
    f'{{"champion": "../{CHAMPION}"}}',
    f'{{"champion": "../evil/{CHAMPION}"}}',
    f'{{"champion": "{CHAMPION}", "challenger": "../x"}}',
    f'{{"champion": "{CHAMPION}", "share": 7}}',
    f'{{"champion": "{CHAMPION}", "share": NaN}}',
    f'{{"champion": "{CHAMPION}", "salt": 1}}',
]


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
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return str(request.getfixturevalue("bucket"))
    (tmp_path / "bundles").mkdir()
    return str(tmp_path / "bundles")


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


def put(address: str, name: str, data: bytes) -> None:
    """A file as anybody with the rights can write it."""
    if address.startswith("s3://"):
        boto3.client("s3").put_object(Bucket="bundles", Key=f"shop/{name}", Body=data)
    else:
        (Path(address) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(address) / name).write_bytes(data)


def put_bundle(address: str, name: str) -> None:
    for path in (STORED / CHAMPION).iterdir():
        put(address, f"{name}/{path.name}", path.read_bytes())


def stored(address: str) -> dict[str, bytes]:
    """All that lies there, by name."""
    if not address.startswith("s3://"):
        files = (path for path in Path(address).rglob("*") if path.is_file())
        return {str(path.relative_to(address)): path.read_bytes() for path in files}
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="bundles").get("Contents", [])]
    return {key: client.get_object(Bucket="bundles", Key=key)["Body"].read() for key in keys}


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


def test_what_else_the_pointer_says_is_kept(store: Store, address: str) -> None:
    said = {"challenger": CHALLENGER, "share": 0.1, "salt": "s", "why": "a test"}
    put(address, "pointer.json", json.dumps({"champion": "a" * 32, **said}).encode())
    store.point("b" * 32, store.seen())
    assert dict(store.seen().pointer) == {"champion": "b" * 32, **said}


@pytest.mark.parametrize("text", REFUSED)
@pytest.mark.parametrize(
    "command",
    [
        ["refresh", "--items", "nothing.csv", "--bundles"],
        ["point", CHAMPION, "--bundles"],
        ["--checkpoint", "nothing", "--out"],
    ],
)
def test_a_pointer_that_the_functions_refuse_ends_a_command_before_its_work(
    address: str, text: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put(address, "pointer.json", text.encode())
    before = stored(address)
    assert main([*command, address]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {address}/pointer.json: ") and told.count("\n") == 1
    assert "; expected " in told and "`python -m export point ID --mend`" in told
    assert stored(address) == before


@pytest.mark.parametrize("text", REFUSED)
def test_a_refused_pointer_is_mended_where_that_is_asked_for(
    address: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bundle(address, CHAMPION)
    put(address, "pointer.json", text.encode())
    assert main(["point", CHAMPION, "--bundles", address, "--mend"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": CHAMPION, "before": None}
    seen = open_store(address).seen()
    assert dict(seen.pointer) == {"champion": CHAMPION, "challenger": None, "share": 0.0, "salt": ""}


def test_to_mend_a_sound_pointer_loses_nothing_of_it(address: str) -> None:
    put_bundle(address, CHAMPION)
    said = {"challenger": CHALLENGER, "share": 0.1, "salt": "s"}
    put(address, "pointer.json", json.dumps({"champion": "a" * 32, **said}).encode())
    assert main(["point", CHAMPION, "--bundles", address, "--mend"]) == 0
    assert dict(open_store(address).seen().pointer) == {"champion": CHAMPION, **said}


def test_who_mends_a_pointer_overwrites_nobody_who_was_faster(store: Store, address: str) -> None:
    put(address, "pointer.json", b"\xff{")
    seen = store.seen(mend=True)
    put(address, "pointer.json", b"\xfe{")
    with pytest.raises(PointerMoved):
        store.point("a" * 32, seen)
    store.point("b" * 32, store.seen(mend=True))
    with pytest.raises(PointerMoved, match=f"the champion is {'b' * 32}"):
        store.point("a" * 32, seen)
    assert store.seen().champion == "b" * 32


@pytest.mark.parametrize("name", [f"../evil/{CHAMPION}", "..", "", "A" * 32, "a" * 31, "a" * 33])
def test_a_name_that_is_none_leads_nowhere(store: Store, address: str, name: str, tmp_path: Path) -> None:
    """Not out of the scratch folder, be there a bundle or not, and not into the pointer."""
    if name:
        put_bundle(address, name)
    scratch = tmp_path / "scratch" / "own"
    scratch.mkdir(parents=True)
    before = stored(address)
    with pytest.raises(CorruptBundle, match="expected 32 hex digits"):
        store.fetch(name, scratch)
    with pytest.raises(CorruptBundle, match="expected 32 hex digits"):
        store.point(name, store.seen())
    assert [path.name for path in (tmp_path / "scratch").rglob("*")] == ["own"]
    assert stored(address) == before


def test_a_command_takes_no_name_that_is_none(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bundle(address, f"../evil/{CHAMPION}")
    assert main(["point", f"../evil/{CHAMPION}", "--bundles", address]) == 1
    assert f"bundle '../evil/{CHAMPION}'; expected 32 hex digits" in capsys.readouterr().err
    with pytest.raises(NoPointer):
        _ = open_store(address).seen().champion


def test_a_pointer_to_nowhere_is_refused_by_name(store: Store, address: str) -> None:
    put(address, "pointer.json", REFUSED[6].encode())
    with pytest.raises(BadPointer, match=rf"pointer\.json: bundle '\.\./evil/{CHAMPION}'"):
        store.seen()


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
