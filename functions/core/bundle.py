"""A bundle: one immutable directory that holds all a model needs to serve, named by its manifest's hash.

`manifest.json` is written last, so a directory without one was never finished. A reader checks every
file's size and SHA-256 before it opens any; what fails is refused whole, and the old bundle goes on.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from functions.core.errors import CorruptBundle

SCHEMA = 6
MANIFEST = "manifest.json"
FILES = (
    "user_tower.onnx",
    "item_tower.onnx",
    "score.onnx",  # a stub: codes and scales are handed to it when it is opened
    "embeddings.f16",  # [N, d] little-endian float16: what the fold is fed and what rescoring reads
    "codes.u8",  # [M, blocks, block] uint8: int8 codes + 128; [d, M] int8 for the scorer "integer"
    "scales.f32",  # [M, blocks] little-endian float32; [1] for "integer"
    "lists.bin",  # functions.core.index.Lists for the scorer "index"; else it says so
    "context.f16",  # [R + 64, d] little-endian float16: functions.core.context
    "catalogue.sqlite",
    "origins.bin",  # 20 bytes a row: what a refresh of the catalogue needs, and functions do not
    "fallback.json",
    "slots.json",
    "vocabulary.json",
)
WHERE_THERE = ("alike.bin", "companions.bin")  # functions.core.alike: only where somebody follows
HASHERS = 2
MAX_MANIFEST_BYTES = 4 * 2**20
REPORT, SUMS = "report", "SHA256SUMS"  # for people: no part of what is fetched and served


@dataclass(frozen=True)
class FileEntry:
    """One file as the manifest states it."""

    sha256: str
    bytes: int


# what a manifest's fields are, `files` apart
KINDS: Mapping[type, tuple[str, tuple[str, ...]]] = {
    int: ("a whole number", ("dim", "state_width", "items", "showable")),
    str: ("text", ("state_space", "watermark")),
    dict: ("an object", ("metrics", "quantization", "golden", "repeats", "scorer")),
}


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. `state_space` is the hash of the encoder: both towers."""

    state_space: str
    dim: int
    state_width: int
    items: int  # N: rows that the fold knows
    showable: int  # M ≤ N: the first M rows are products on sale, the rest only the log knows
    files: Mapping[str, FileEntry]
    watermark: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)
    quantization: Mapping[str, object] = field(default_factory=dict)
    golden: Mapping[str, object] = field(default_factory=dict)
    repeats: Mapping[str, object] = field(default_factory=dict)  # functions.core.repeats.Repeats
    scorer: Mapping[str, object] = field(default_factory=lambda: {"kind": "nbits"})  # functions.core.engine
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """The canonical bytes, whose hash is the bundle's id."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def bundle_id(manifest: bytes) -> str:
    """The bundle's name: the first 32 hex digits of its manifest's SHA-256."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def state_space(user_tower: bytes, item_tower: bytes) -> str:
    """The name of the space that states live in, 16 hex digits: a hash of both towers."""
    return space_of_hashes(*(hashlib.sha256(tower).hexdigest() for tower in (user_tower, item_tower)))


def space_of_hashes(user_tower: str, item_tower: str) -> str:
    """The same of the towers' SHA-256 in hex, which a manifest has."""
    return hashlib.sha256(bytes.fromhex(user_tower + item_tower)).hexdigest()[:16]


def describe(directory: Path, names: tuple[str, ...] = FILES) -> dict[str, FileEntry]:
    """Hash and size of each file; raises CorruptBundle for one of `names` that is missing."""
    there = [name for name in WHERE_THERE if (directory / name).exists()]
    return {name: _entry(directory / name) for name in (*names, *there)}


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write the manifest, last and at once (write, sync, rename), and return the bundle's id."""
    data = manifest.to_json()
    partial = directory / f"{MANIFEST}.partial"
    with partial.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    partial.rename(directory / MANIFEST)
    return bundle_id(data)


def verify(directory: Path, expected_id: str | None = None) -> Manifest:
    """Check every byte of a bundle and return its manifest.

    Raises CorruptBundle naming the file and the two hashes (or sizes) that differ.
    """
    path = directory / MANIFEST
    data = _read_small(path)
    if expected_id is not None and bundle_id(data) != expected_id:
        raise CorruptBundle(f"{path}: id {bundle_id(data)}; expected {expected_id}")
    manifest = parse_manifest(data, str(path))
    with ThreadPoolExecutor(HASHERS) as pool:  # hashing lets other threads run
        by_size = sorted(manifest.files.items(), key=lambda file: -file[1].bytes)
        list(pool.map(lambda file: _check_file(directory / file[0], file[1]), by_size))
    if (directory / REPORT).exists():
        _check_report(directory / REPORT)
    return manifest


def report_sums(folder: Path) -> str:
    """What SUMS says of the files in a bundle's report, in the form of sha256sum."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{_entry(folder / name).sha256}  {name}\n" for name in names)


def _check_report(folder: Path) -> None:
    stated, found = _read_small(folder / SUMS), report_sums(folder)
    if stated != found.encode():
        raise CorruptBundle(f"{folder}: its files have the sums\n{found}; expected those in {SUMS}")


def parse_manifest(data: bytes, place: str) -> Manifest:
    """The manifest in `data`; raises CorruptBundle naming the field and `place`."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptBundle(f"{place}: not JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else raw
        raise CorruptBundle(f"{place}: schema {found!r}; expected {SCHEMA}")
    for kind, (expected, names) in KINDS.items():
        for name in names:
            if type(raw.get(name, kind())) is not kind:
                raise CorruptBundle(f"{place}: {name} {raw[name]!r}; expected {expected}")
    try:
        files = {str(n): FileEntry(str(f["sha256"]), int(f["bytes"])) for n, f in raw["files"].items()}
        manifest = Manifest(**{**raw, "files": files})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptBundle(f"{place}: {error!r}; expected the fields of schema {SCHEMA}") from error
    wrong = sorted((set(files) ^ set(FILES)) - set(WHERE_THERE))
    if wrong:
        raise CorruptBundle(f"{place}: files missing or unknown: {wrong}")
    return manifest


def _read_small(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise CorruptBundle(f"{path}: {path.stat().st_size} bytes; expected {MAX_MANIFEST_BYTES} at most")
        return path.read_bytes()
    except OSError as error:
        raise CorruptBundle(f"{path}: {error.strerror}; expected a finished bundle") from error


def _check_file(path: Path, stated: FileEntry) -> None:
    found = _entry(path, stated.bytes)
    if found != stated:
        raise CorruptBundle(f"{path}: sha256 {found.sha256}; expected {stated.sha256}")


def _entry(path: Path, expected_bytes: int | None = None) -> FileEntry:
    try:
        size = path.stat().st_size
        if expected_bytes is not None and size != expected_bytes:
            raise CorruptBundle(f"{path}: {size} bytes; expected {expected_bytes}")
        with path.open("rb") as data:
            return FileEntry(hashlib.file_digest(data, "sha256").hexdigest(), size)
    except OSError as error:
        raise CorruptBundle(f"{path}: {error.strerror}; expected a file of the bundle") from error
