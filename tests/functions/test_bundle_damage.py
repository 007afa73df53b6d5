"""Two thousand random damages to what is published: none is accepted, and the old bundle goes on serving.

And what a swap leaves behind: nothing, in memory, in open files or on the disk, even when that is full.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.aws.bundles import REFUSED_S, Bundles
from functions.aws.errors import Refused
from functions.core.bundle import FILES, SCHEMA, bundle_id, parse_manifest
from functions.core.errors import CorruptBundle
from functions.core.served import open_bundle
from tests.functions.account import STORED

CHAMPION = json.loads((STORED / "pointer.json").read_text())["champion"]
DAMAGES = 2_000
SWAPS = 30
Objects = dict[str, bytes]


class Body(io.BytesIO):
    """As S3 answers."""

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        while chunk := self.read(size):
            yield chunk


class Bucket:
    """An S3 client whose bucket is a dict."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def get_object(self, Bucket: str, Key: str, Range: str = "bytes=0-") -> dict[str, Any]:
        if Key not in self.objects:
            raise Refused("NoSuchKey", 404)
        return {"Body": Body(self.objects[Key][int(Range[6:-1]) :])}


class Clock:
    """Every look comes when nothing is refused from before."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += REFUSED_S + 1
        return self.now_s


def stored(*changes: tuple[str, object]) -> tuple[Objects, str]:
    """The objects of the stored bundle under a manifest with these fields changed, and its name."""
    manifest = json.loads((STORED / CHAMPION / "manifest.json").read_text()) | dict(changes)
    data = json.dumps(manifest, sort_keys=True).encode()
    name = bundle_id(data)
    objects = {f"{name}/{file}": (STORED / CHAMPION / file).read_bytes() for file in FILES}
    objects |= {f"{name}/manifest.json": data, "pointer.json": json.dumps({"champion": name}).encode()}
    return objects, name


SOUND, NEW = stored(("metrics", {"note": "another sound bundle"}))
OLD, _ = stored(("metrics", {"note": "what serves"}))
LIES: list[tuple[str, object]] = [
    *(("schema", schema) for schema in (*range(SCHEMA), SCHEMA + 1, None, str(SCHEMA))),
    *(("items", count) for count in (0, 1, 61, 63, -1, None, "62", 62.0, True, 10**30)),
    *(("showable", count) for count in (0, 59, 61, 62, 63, None, 60.0, True)),
    *(("dim", width) for width in (0, 8, 15, 17, 32, None, "16", 16.0)),
    *(("state_width", width) for width in (0, 16, 33, None, 32.0)),
    *(("state_space", space) for space in ("0" * 16, "", None, 16, [])),
    *(("watermark", mark) for mark in (None, 5)),
    *((name, kind) for name in ("metrics", "quantization") for kind in (None, [], "x")),
    *(("scorer", scorer) for scorer in ({}, {"kind": "magic"}, {"kind": "integer"}, {"kind": "index"})),
    *(
        ("scorer", scorer)
        for scorer in (None, [], "nbits", {"kind": ["nbits"]}, {"kind": "nbits", "rescored": -1})
    ),
    *(("golden", golden) for golden in ({}, None, [], "x", {"histories": [], "vectors": ""})),
    *(
        ("golden", {"histories": rows, "vectors": ""})
        for rows in ([[]], [[[1, 0, 4]]], [[[10**30, 1, 1, 1]]], 5)
    ),
    *(("repeats", repeats) for repeats in (None, [], {"weight": 1.0, "surprise": 1}, {"weight": "x"})),
    *(("repeats", {name: value}) for name in ("half_life", "weight") for value in (float("nan"), None, True)),
    *(("repeats", {"half_life": value}) for value in (0, -1.0)),
    ("repeats", {"kinds": ["view"]}),
    ("files", {}),
    ("surprise", 1),
]
POINTERS = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"champion": null}',
    b'{"champion": "../../x"}',
    b"\xff",
    b'{"champion": "0"}',
    b"[" * 10**5,
)


def damaged(rng: random.Random) -> Objects:
    """The sound bundle with one thing wrong."""
    chance = rng.random()
    if chance < 0.03:
        return SOUND | {
            "pointer.json": rng.choice(
                [*POINTERS, json.dumps({"champion": rng.randbytes(16).hex()}).encode()]
            )
        }
    if chance < 0.06:
        return stored(rng.choice(LIES))[0]
    if chance < 0.08:
        golden = json.loads(SOUND[f"{NEW}/manifest.json"])["golden"]
        return stored(("golden", golden | {"histories": np.roll(golden["histories"], 1, axis=0).tolist()}))[0]
    key = rng.choice([key for key in SOUND if key != "pointer.json"])
    return (
        SOUND | {key: _wrong(rng, key)}
        if rng.random() < 0.95
        else {k: v for k, v in SOUND.items() if k != key}
    )


def _wrong(rng: random.Random, key: str) -> bytes:
    whole = SOUND[key]
    at = rng.randrange(len(whole))
    kind = rng.randrange(6)
    if kind == 0:
        return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    if kind == 1:
        return whole[:at]
    if kind == 2:
        return whole + rng.randbytes(rng.randint(1, 50))
    if kind == 3:
        return rng.choice([value for other, value in SOUND.items() if value != whole])
    if kind == 4:
        return rng.randbytes(len(whole))
    return b"" if rng.random() < 0.5 else bytes(len(whole) + 1)


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    """A reader that serves the old bundle."""
    root = tmp_path / "tmp"
    root.mkdir()
    reader = Bundles(Bucket(OLD), "bucket", root, Clock())
    assert reader.refresh()
    return reader


def answers(bundles: Bundles) -> list[int]:
    assert bundles.current is not None
    vector = np.random.default_rng(1).normal(size=bundles.current.manifest.dim)
    return [int(row) for row in bundles.current.scorer.top(vector, 10)[0]]


def test_of_two_thousand_damages_none_is_accepted(bundles: Bundles) -> None:
    rng = random.Random(11)
    serving, before = bundles.current, answers(bundles)
    accepted = []
    for number in range(DAMAGES):
        bundles._s3.objects = damaged(rng)
        if bundles.refresh() or bundles.current is not serving:
            accepted.append(number)
            break
    assert accepted == []
    assert answers(bundles) == before
    assert [path.name for path in bundles._root.iterdir()] == [serving.id if serving else ""]
    bundles._s3.objects = SOUND
    assert bundles.refresh() and bundles.current is not None and bundles.current.id == NEW


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_manifest_that_lies_is_refused(bundles: Bundles, lie: tuple[str, object]) -> None:
    bundles._s3.objects = stored(lie)[0]
    assert not bundles.refresh()


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_whoever_opens_a_bundle_that_lies_is_told_so(lie: tuple[str, object], tmp_path: Path) -> None:
    """No error of Python's own: commands show what they raise."""
    objects, name = stored(lie)
    for key, data in objects.items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
    with pytest.raises(CorruptBundle, match=name):
        open_bundle(tmp_path / name)


def test_a_damage_that_is_not_looked_for_would_be_seen(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: files are not hashed. Then some damage is accepted, and the test above would fail."""

    def as_stated(directory: Path, expected: str | None = None) -> Any:
        return parse_manifest((directory / "manifest.json").read_bytes(), "manifest")

    monkeypatch.setattr("functions.core.served.verify", as_stated)
    name = next(key for key in SOUND if key.endswith("origins.bin"))
    bundles._s3.objects = SOUND | {name: bytes(len(SOUND[name]))}
    assert bundles.refresh()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    """Mappings of files of a bundle."""
    return sum("embeddings.f16" in line for line in Path("/proc/self/maps").read_text().splitlines())


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def swap(bundles: Bundles, times: int) -> None:
    for turn in range(times):
        bundles._s3.objects = (SOUND, OLD)[turn % 2]
        assert bundles.refresh()
        answers(bundles)


def test_swaps_leave_nothing_behind(bundles: Bundles) -> None:
    swap(bundles, 10)
    files, maps, memory = open_files(), mapped(), resident_kb()
    swap(bundles, SWAPS)
    assert (open_files(), mapped()) == (files, maps)
    assert resident_kb() - memory < 8 * 1024  # a bundle that stays is 1 MB and more: 30 would be seen
    assert len(list(bundles._root.iterdir())) == 1


def test_a_bundle_that_is_held_on_to_would_be_seen(bundles: Bundles) -> None:
    """The planted leak."""
    held = []
    files, maps = open_files(), mapped()
    for turn in range(6):
        held.append(bundles.current)
        swap(bundles, turn % 2 + 1)
    assert open_files() > files and mapped() > maps


def test_whoever_uses_the_old_bundle_during_a_swap_finishes_with_it(bundles: Bundles) -> None:
    old = bundles.current
    assert old is not None
    swap(bundles, 1)
    assert bundles.current is not old
    assert old.catalogue.product(3).item_id == "sku-003"
    assert len(old.scorer.top(np.ones(old.manifest.dim), 5)[0]) == 5


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1_000, 1_000_000])
def test_a_disk_that_fills_up_while_fetching_changes_nothing(bundles: Bundles, size: int) -> None:
    serving, before = bundles.current, answers(bundles)
    bundles._s3.objects = SOUND
    with largest_file(size):
        assert not bundles.refresh()
    assert bundles.current is serving and answers(bundles) == before
    assert [path.name for path in bundles._root.iterdir()] == [serving.id if serving else ""]
    assert bundles.refresh()


def test_a_disk_without_room_is_not_begun_to_be_filled(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundles._s3.objects = SOUND
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        assert not bundles.refresh()
    assert "the disk is too full" in str(caplog.records[-1].__dict__["error"])
    assert bundles.refresh()
