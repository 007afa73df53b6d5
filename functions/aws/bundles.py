"""The bundle in memory: fetched from the bucket, verified, swapped in; on any doubt the old one goes on."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import functions.aws.blas  # noqa: F401  # before what draws in numpy
from functions.aws.clients import client, error_code, unavailable
from functions.aws.errors import Failure
from functions.aws.telemetry import logger
from functions.core.bundle import MANIFEST, MAX_MANIFEST_BYTES, bundle_id, parse_manifest
from functions.core.engine import cpu
from functions.core.errors import CorruptBundle, Unavailable
from functions.core.pointer import CHALLENGER, CHAMPION, ID, Pointer, parse_pointer
from functions.core.served import ServedBundle, open_bundle

POINTER = "pointer.json"
REFRESH_S = 30.0
REFUSED_S = 300.0  # a bundle that was refused is not fetched again for so long
CHUNK = 2**18  # of a file, lost where it is broken off
SPARE_BYTES = 16 * 2**20  # of /tmp, left free


def bundle_client() -> Any:
    """For files of up to some hundred MB, read in pieces."""
    return client("s3", connect_s=1.0, read_s=3.0, attempts=3)


class Arms(NamedTuple):
    """What is in memory at one moment."""

    champion: ServedBundle | None
    challenger: ServedBundle | None = None
    pointer: Pointer | None = None

    @property
    def bundles(self) -> list[ServedBundle]:
        """One or two, or none yet."""
        return [bundle for bundle in (self.champion, self.challenger) if bundle is not None]

    def of(self, user_key: str) -> tuple[ServedBundle | None, str]:
        """The bundle of a user, and the arm that it is."""
        if self.pointer and self.challenger and self.pointer.arm(user_key) == CHALLENGER:
            return self.challenger, CHALLENGER
        return self.champion, CHAMPION


class Bundles:
    """The bundle that the pointer names, or the last one that was sound; None before there was one."""

    def __init__(
        self,
        s3: Any,
        bucket: str,
        root: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._s3, self._bucket, self._clock = s3, bucket, clock
        self._root = root or Path(tempfile.gettempdir())
        self._refused: dict[str, float] = {}
        self._partial: Path | None = None
        self._lock = threading.Lock()
        self._arms = Arms(None)
        logger.info("environment starts", extra=cpu())  # once: what it scores with depends on it

    @property
    def current(self) -> ServedBundle | None:
        """The champion in memory."""
        return self._arms.champion

    @current.setter
    def current(self, bundle: ServedBundle | None) -> None:
        self._arms = Arms(bundle)

    def of(self, user_key: str) -> tuple[ServedBundle | None, str]:
        """The bundle that a user is served from, and the user's arm. Read once a request: arms may move."""
        return self._arms.of(user_key)

    def refresh(self) -> bool:
        """Follow the pointer; whether the bundles that it names are those in memory. Never raises.

        Where the challenger cannot be had all users are the champion's.
        """
        with self._lock:
            try:
                pointer = parse_pointer(self._read(POINTER, MAX_MANIFEST_BYTES), POINTER)
            except Exception as error:
                self._keep("unknown", error)
                return False
            champion = self._wanted(pointer.champion)
            if champion is None:
                return False
            wanted = pointer.challenger if pointer.share else None
            challenger = self._wanted(wanted) if wanted else None
            self._swap(Arms(champion, challenger, pointer))
            return wanted is None or challenger is not None

    def _wanted(self, name: str) -> ServedBundle | None:
        """The bundle of this name, from memory, disk or bucket; None, and a line in the log, without it."""
        for bundle in self._arms.bundles:
            if bundle.id == name:
                return bundle
        if self._clock() < self._refused.get(name, -float("inf")):
            return None
        try:
            return self._load(name)
        except Unavailable as error:  # what was fetched is kept: the next try goes on from there
            self._keep(name, error)
        except Exception as error:  # whatever is wrong with the new bundle, the old one is not
            self._discard(name)
            self._keep(name, error)
        return None

    def _load(self, wanted: str) -> ServedBundle:
        directory = self._root / wanted
        if directory.exists():  # left by a process before this one
            try:
                return open_bundle(directory, wanted)
            except Exception as error:
                logger.warning("a bundle on disk is not sound", extra={"error": str(error)})
                shutil.rmtree(directory, ignore_errors=True)
        self._fetch(wanted, directory)
        return open_bundle(directory, wanted)

    def _swap(self, new: Arms) -> None:
        old, self._arms = self._arms, new
        kept, before = {bundle.id for bundle in new.bundles}, {bundle.id for bundle in old.bundles}
        if kept != before:
            logger.info("bundle opened", extra={"bundles": sorted(kept), "before": sorted(before)})
        if old.champion is not new.champion:
            self._refused.clear()
        for name in before - kept:  # whoever still uses it has its files open
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _keep(self, wanted: str, error: Exception) -> None:
        serving = self.current.id if self.current else None
        logger.error(
            "bundle refused", extra={"bundle": wanted, "serving": serving, "error": f"{error}"[:1000]}
        )

    def _discard(self, wanted: str) -> None:
        self._refused[wanted] = self._clock() + REFUSED_S
        for path in (self._partial, self._root / wanted if ID.fullmatch(wanted) else None):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
        self._partial = None

    def _fetch(self, wanted: str, directory: Path) -> None:
        """Fetch a bundle's files beside `directory` and rename; a file begun earlier is gone on with."""
        partial = self._begun(wanted)
        data = self._read(f"{wanted}/{MANIFEST}", MAX_MANIFEST_BYTES)
        if bundle_id(data) != wanted:
            raise CorruptBundle(f"{wanted}/{MANIFEST}: sha256 gives {bundle_id(data)}; expected {wanted}")
        files = parse_manifest(data, f"{wanted}/{MANIFEST}").files
        self._require_space(sum(f.bytes for f in files.values()) - _size(partial))
        for name, stated in files.items():
            self._fetch_file(f"{wanted}/{name}", partial / name, stated.bytes)
        (partial / MANIFEST).write_bytes(data)
        if directory.exists():  # another process was faster
            shutil.rmtree(partial)
        else:
            partial.rename(directory)
        self._partial = None

    def _begun(self, wanted: str) -> Path:
        prefix = f"{wanted}.partial."
        if self._partial is None or not self._partial.name.startswith(prefix):
            if self._partial is not None:
                shutil.rmtree(self._partial, ignore_errors=True)
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, dir=self._root))
        return self._partial

    def _require_space(self, wanted: int) -> None:
        free = shutil.disk_usage(self._root).free
        if wanted + SPARE_BYTES > free:
            raise CorruptBundle(f"{wanted} bytes to fetch, {free} free in {self._root}; the disk is too full")

    def _fetch_file(self, key: str, path: Path, size: int) -> None:
        have = path.stat().st_size if path.exists() else 0
        if have >= size and path.exists():
            return
        begin = {"Range": f"bytes={have}-"} if have else {}
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=key, **begin)
            with path.open("ab") as out:
                for chunk in answer["Body"].iter_chunks(CHUNK):
                    out.write(chunk)
                    if out.tell() > size:
                        raise CorruptBundle(f"{key}: more than the {size} bytes of the manifest")
        except Failure as error:
            raise self._failure(error, key) from error

    def _read(self, key: str, most: int) -> bytes:
        try:
            data: bytes = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read(most + 1)
        except Failure as error:
            raise self._failure(error, key) from error
        if len(data) > most:
            raise CorruptBundle(f"{key}: more than {most} bytes")
        return data

    def _failure(self, error: Exception, key: str) -> Exception:
        """What is not in the bucket will not be there the next second either: that is the bundle's fault."""
        if error_code(error) in ("NoSuchKey", "404", "InvalidRange"):
            return CorruptBundle(f"{key}: not in {self._bucket} ({error_code(error)})")
        return unavailable(error, f"{key} from {self._bucket}")


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
