import json
import random
from pathlib import Path

import pytest

from functions.core.bundle import (
    FILES,
    MANIFEST,
    Manifest,
    bundle_id,
    describe,
    state_space,
    verify,
    write_manifest,
)
from functions.core.errors import CorruptBundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for n, name in enumerate(FILES):
        (tmp_path / name).write_bytes(random.Random(n).randbytes(100 + n))
    write_manifest(tmp_path, Manifest("a" * 16, 64, 256, 3, 3, describe(tmp_path)))
    return tmp_path


def test_a_whole_bundle_is_read_as_it_was_written(bundle: Path) -> None:
    manifest = verify(bundle, bundle_id((bundle / MANIFEST).read_bytes()))
    assert (manifest.state_space, manifest.dim, manifest.items) == ("a" * 16, 64, 3)
    assert manifest.files == describe(bundle)


def test_a_directory_without_a_manifest_was_never_finished(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    with pytest.raises(CorruptBundle, match=MANIFEST):
        verify(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CorruptBundle, match=name):
        verify(bundle)


def test_a_flipped_bit_is_named_with_both_hashes(bundle: Path) -> None:
    stated = describe(bundle)["codes.u8"].sha256
    data = bytearray((bundle / "codes.u8").read_bytes())
    data[7] ^= 1
    (bundle / "codes.u8").write_bytes(data)
    with pytest.raises(CorruptBundle, match=stated) as caught:
        verify(bundle)
    assert "codes.u8" in str(caught.value)
    assert describe(bundle)["codes.u8"].sha256 in str(caught.value)


def test_two_files_swapped_are_refused(bundle: Path) -> None:
    first, second = bundle / FILES[0], bundle / FILES[1]
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    with pytest.raises(CorruptBundle, match=r"(user|item)_tower\.onnx"):
        verify(bundle)


def test_another_bundle_than_the_pointer_names_is_refused(bundle: Path) -> None:
    with pytest.raises(CorruptBundle, match="expected 0000"):
        verify(bundle, "0" * 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 0}, "schema 0"),
        ({"schema": None}, "schema None"),
        ({"files": {}}, "missing or unknown"),
        ({"files": []}, "expected the fields"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(bundle: Path, change: dict[str, object], named: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(CorruptBundle, match=named):
        verify(bundle)


def test_random_corruption_is_never_accepted(bundle: Path) -> None:
    """A byte changed, cut off or added anywhere, under the id that the pointer names: 500 times."""
    rng = random.Random(5)
    expected = bundle_id((bundle / MANIFEST).read_bytes())
    accepted = 0
    for _ in range(500):
        path = bundle / rng.choice([*FILES, MANIFEST])
        whole = path.read_bytes()
        path.write_bytes(corrupted(whole, rng))
        try:
            verify(bundle, expected)
            accepted += 1
        except CorruptBundle:
            path.write_bytes(whole)
    assert accepted == 0
    assert verify(bundle, expected).items == 3


def corrupted(whole: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ rng.randint(1, 255)]) + whole[at + 1 :]
    return rng.choice([flipped, whole[:at], whole + rng.randbytes(1)])


def test_the_state_space_changes_with_either_tower() -> None:
    spaces = {state_space(u, i) for u in (b"u", b"v") for i in (b"i", b"j")}
    assert len(spaces) == 4
