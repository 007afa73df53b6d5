"""The bundle in memory: swapped as one, by one pointer, and kept on any doubt."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from functions.aws.bundles import REFUSED_S, Bundles, bundle_client
from functions.core.bundle import bundle_id
from tests.functions.account import BUCKET, STORED, Account, copy_bundles

CHAMPION = json.loads((STORED / "pointer.json").read_text())["champion"]


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def variant(folder: Path) -> tuple[Path, str]:
    """Another sound bundle of the same files: its manifest has other metrics."""
    bundles = copy_bundles(folder)
    old = bundles / CHAMPION
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["metrics"] = {"note": "the same, told apart"}
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    (old / "manifest.json").write_bytes(data)
    name = bundle_id(data)
    old.rename(bundles / name)
    (bundles / "pointer.json").write_text(json.dumps({"champion": name}))
    return bundles, name


@pytest.fixture
def bundles(account: Account, tmp_path: Path) -> Bundles:
    """A reader that has opened the champion, on a clock of its own."""
    reader = Bundles(bundle_client(), BUCKET, tmp_path / "tmp", Clock())
    assert reader.refresh()
    return reader


def current(reader: Bundles) -> str | None:
    return reader.current.id if reader.current else None


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(record.__dict__["error"]) for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_rollout_and_a_rollback_are_one_pointer(account: Account, bundles: Bundles, tmp_path: Path) -> None:
    folder, name = variant(tmp_path)
    account.upload(folder)
    assert bundles.refresh() and current(bundles) == name
    account.point(CHAMPION)
    assert bundles.refresh() and current(bundles) == CHAMPION
    kept = [path.name for path in (tmp_path / "tmp").iterdir()]
    assert kept == [CHAMPION]  # /tmp is small


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


FILES = sorted(path.name for path in (STORED / CHAMPION).iterdir() if path.name != "manifest.json")


@pytest.mark.parametrize("damage", [flip, cut, grow, Path.unlink])
@pytest.mark.parametrize("name", ["codes.u8", "catalogue.sqlite", "user_tower.onnx"])
def test_a_damaged_bundle_leaves_the_old_one_in_place_and_is_told(
    account: Account,
    bundles: Bundles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    name: str,
) -> None:
    folder, broken = variant(tmp_path)
    damage(folder / broken / name)
    account.upload(folder)
    assert not bundles.refresh()
    assert current(bundles) == CHAMPION
    (told,) = errors(caplog)
    assert name in told


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_told_with_both_hashes(
    account: Account, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder, broken = variant(tmp_path)
    path = folder / broken / name
    stated = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path)
    account.upload(folder)
    reader = Bundles(bundle_client(), BUCKET, tmp_path / "tmp", Clock())
    assert not reader.refresh() and reader.current is None
    (told,) = errors(caplog)
    assert name in told and stated in told and hashlib.sha256(path.read_bytes()).hexdigest() in told


def test_a_manifest_that_is_not_the_one_of_its_name_is_refused(
    account: Account, bundles: Bundles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, name = variant(tmp_path)
    flip(folder / name / "manifest.json")
    account.upload(folder)
    assert not bundles.refresh() and current(bundles) == CHAMPION
    assert "manifest.json" in errors(caplog)[0] and name in errors(caplog)[0]


@pytest.mark.parametrize("pointer", [b"", b"[]", b"{}", b'{"champion": 7}', b'{"champion": "../../etc"}'])
def test_a_pointer_that_is_none_changes_nothing(account: Account, bundles: Bundles, pointer: bytes) -> None:
    account.s3.put_object(Bucket=BUCKET, Key="pointer.json", Body=pointer)
    assert not bundles.refresh() and current(bundles) == CHAMPION


def test_a_pointer_to_nothing_changes_nothing(account: Account, bundles: Bundles) -> None:
    account.point("0" * 32)
    assert not bundles.refresh() and current(bundles) == CHAMPION


def test_a_bucket_that_is_gone_changes_nothing(account: Account, bundles: Bundles) -> None:
    bundles._bucket = "no-such-bucket"
    assert not bundles.refresh() and current(bundles) == CHAMPION


def test_what_was_refused_is_not_fetched_again_for_a_while(
    account: Account, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hot loop: a broken bundle costs the pointer's bytes at each look, not its own."""
    folder, name = variant(tmp_path)
    good = (folder / name / "codes.u8").read_bytes()
    flip(folder / name / "codes.u8")
    account.upload(folder)
    asked: list[str] = []
    real = bundles._s3.get_object
    monkeypatch.setattr(
        bundles._s3, "get_object", lambda **wanted: asked.append(wanted["Key"]) or real(**wanted)
    )
    assert not bundles.refresh()
    assert f"{name}/codes.u8" in asked
    asked.clear()
    assert not bundles.refresh()
    assert asked == ["pointer.json"]
    account.s3.put_object(Bucket=BUCKET, Key=f"{name}/codes.u8", Body=good)
    bundles._clock.now_s += REFUSED_S + 1  # type: ignore[attr-defined]
    assert bundles.refresh() and current(bundles) == name


def test_what_lies_in_tmp_is_checked_before_it_is_served(account: Account, tmp_path: Path) -> None:
    """An environment that died half way, or a process before this one, may have left anything there."""
    root = tmp_path / "tmp"
    shutil.copytree(STORED / CHAMPION, root / CHAMPION)
    flip(root / CHAMPION / "embeddings.f16")
    reader = Bundles(bundle_client(), BUCKET, root, Clock())
    assert reader.refresh() and current(reader) == CHAMPION
    assert (root / CHAMPION / "embeddings.f16").read_bytes() == (
        STORED / CHAMPION / "embeddings.f16"
    ).read_bytes()
