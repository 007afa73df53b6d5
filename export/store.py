"""Where bundles are published: a folder or an s3:// address of one layout, with a pointer to the champion.

A bundle is written whole, its manifest last; then the pointer is swapped, on the condition that it is what
its publisher saw when the work began. Of two publishers at once one wins, and the other is told.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from functions.core.bundle import MANIFEST, parse_manifest, verify
from functions.core.errors import CorruptBundle, VitrineError
from functions.core.pointer import ID, parse_pointer

POINTER = "pointer.json"
NEW: Mapping[str, object] = {"champion": None, "challenger": None, "share": 0.0, "salt": ""}
MISSING = ("NoSuchKey", "404")
MOVED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class PointerMoved(VitrineError):
    """Somebody else published meanwhile."""


class NoPointer(VitrineError):
    """There is nothing published to start from."""


class BadPointer(VitrineError):
    """The pointer that is there is one that the functions refuse."""


@dataclass(frozen=True)
class Seen:
    """A pointer, and what tells it from any other; `version` None: there was none."""

    pointer: Mapping[str, Any]
    version: str | None

    @property
    def champion(self) -> str:
        """The bundle that is served; raises NoPointer."""
        if not isinstance(self.pointer.get("champion"), str):
            raise NoPointer(f"{POINTER}: {str(dict(self.pointer))[:100]}; expected one that names a champion")
        return str(self.pointer["champion"])


class Store(Protocol):
    """Bundles side by side and their pointer."""

    def seen(self, mend: bool = False) -> Seen:
        """The pointer as it is now; raises BadPointer, or with `mend` takes such a one for one that says
        nothing."""
        ...

    def near(self) -> Path | None:
        """The folder to build a bundle in, if it is to be moved into place at once."""
        ...

    def fetch(self, name: str, scratch: Path) -> Path:
        """A folder with the bundle, verified; raises CorruptBundle, for a name that is none too."""
        ...

    def put(self, bundle: Path, name: str) -> None:
        """Store the finished bundle in the folder `bundle`, which may be moved; its manifest comes last."""
        ...

    def note(self, name: str, text: str) -> None:
        """Store a text beside the bundles."""
        ...

    def point(self, champion: str, seen: Seen) -> None:
        """Make a stored bundle the champion, whatever else the pointer says; raises PointerMoved."""
        ...


def open_store(address: Path | str) -> Store:
    """A folder, or s3://bucket[/prefix]."""
    return Bucket(str(address)) if str(address).startswith("s3://") else Folder(Path(address))


class Folder:
    """A folder of bundles on this machine, made when something is put into it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def seen(self, mend: bool = False) -> Seen:
        path = self._root / POINTER
        return _seen(path.read_bytes(), None, str(path), mend) if path.exists() else Seen(NEW, None)

    def near(self) -> Path | None:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root

    def fetch(self, name: str, scratch: Path) -> Path:
        _require_name(name)
        verify(self._root / name, name)
        return self._root / name

    def put(self, bundle: Path, name: str) -> None:
        place = self._root / name
        if place.is_dir():  # of the same name, so of the same bytes
            verify(place, name)
            return
        bundle.chmod(0o755)
        bundle.rename(place)

    def note(self, name: str, text: str) -> None:
        (self._root / name).write_text(text, encoding="utf-8")

    def point(self, champion: str, seen: Seen) -> None:
        body = _pointer(seen, champion)
        folder = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # the condition and the swap are one step
            _require_same(self.seen(mend=True), seen, self._root)
            partial = self._root / f"{POINTER}.partial"
            partial.write_bytes(body)
            os.replace(partial, self._root / POINTER)
        finally:
            os.close(folder)


class Bucket:
    """The same layout in S3; honours AWS_ENDPOINT_URL."""

    def __init__(self, address: str) -> None:
        import boto3  # not needed by who publishes into a folder

        self._bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._s3 = boto3.client("s3")

    def seen(self, mend: bool = False) -> Seen:
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._key(POINTER))
        except self._s3.exceptions.ClientError as error:
            if _code(error) in MISSING:
                return Seen(NEW, None)
            raise VitrineError(f"{self._address(POINTER)}: {error}") from error
        return _seen(answer["Body"].read(), answer["ETag"], self._address(POINTER), mend)

    def near(self) -> Path | None:
        return None

    def fetch(self, name: str, scratch: Path) -> Path:
        _require_name(name)
        folder = scratch / name
        folder.mkdir(parents=True)
        self._download(name, MANIFEST, folder)
        for file in parse_manifest((folder / MANIFEST).read_bytes(), self._address(name)).files:
            self._download(name, file, folder)
        verify(folder, name)
        return folder

    def put(self, bundle: Path, name: str) -> None:
        files = [path for path in bundle.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == MANIFEST):
            inside = f"{name}/{path.relative_to(bundle).as_posix()}"
            self._s3.upload_file(str(path), self._bucket, self._key(inside))

    def note(self, name: str, text: str) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode())

    def point(self, champion: str, seen: Seen) -> None:
        condition = {"IfMatch": seen.version} if seen.version else {"IfNoneMatch": "*"}
        body = _pointer(seen, champion)
        try:
            self._s3.put_object(Bucket=self._bucket, Key=self._key(POINTER), Body=body, **condition)
        except self._s3.exceptions.ClientError as error:
            if _code(error) in (*MOVED, *MISSING):
                raise _moved(self.seen(mend=True), seen, self._address(POINTER)) from error
            raise VitrineError(f"{self._address(POINTER)}: {error}") from error

    def _download(self, name: str, file: str, folder: Path) -> None:
        key = self._key(f"{name}/{file}")
        try:
            self._s3.download_file(self._bucket, key, str(folder / file))
        except self._s3.exceptions.ClientError as error:
            raise VitrineError(f"{self._address(f'{name}/{file}')}: {error}") from error

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _address(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._key(name)}"


def _seen(data: bytes, version: str | None, place: str, mend: bool) -> Seen:
    """What `data` says, by the reader that the functions have."""
    version = version or data.decode("latin-1")  # which any bytes are
    try:
        parse_pointer(data, place)
    except CorruptBundle as error:
        if mend:
            return Seen(NEW, version)
        raise BadPointer(
            f"{error}. The functions refuse it, so nothing is published: mend it by hand, or "
            "`python -m export point ID --mend` writes a new one"
        ) from error
    return Seen({**NEW, **json.loads(data)}, version)


def _pointer(seen: Seen, champion: str) -> bytes:
    """The new pointer; raises CorruptBundle rather than to give one that the functions refuse."""
    data = (json.dumps({**seen.pointer, "champion": champion}) + "\n").encode()
    parse_pointer(data, POINTER)
    return data


def _require_name(name: str) -> None:
    """A name becomes part of a path and of a key."""
    if not ID.fullmatch(name):
        raise CorruptBundle(f"bundle {name[:100]!r}; expected 32 hex digits")


def _require_same(now: Seen, seen: Seen, place: object) -> None:
    if now.version != seen.version:
        raise _moved(now, seen, place)


def _moved(now: Seen, seen: Seen, place: object) -> PointerMoved:
    return PointerMoved(
        f"{place}: the champion is {now.pointer['champion']}; it was {seen.pointer['champion']} when "
        "this began. The new bundle is stored and nothing points to it: `python -m export point` does"
    )


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
