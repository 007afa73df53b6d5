"""Stages of the demo: each in a process of its own, and not run again while nothing has changed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from functions.core.errors import VitrineError
from local.process import STOP_S, end_with_parent

ROOT = Path(__file__).resolve().parents[1]
Work = Callable[..., "int | None"]


class StageFailed(VitrineError):
    """A stage ended with an error, which it has printed."""


@dataclass(frozen=True)
class Stage:
    """`work(*arguments)` makes the files `makes` out of `sources` (files and folders of the repository).

    A stamp beside what it made holds the hash of its inputs: its arguments, its sources, the stages before.
    """

    name: str
    title: str
    expected_s: int  # on two cores
    work: Work
    arguments: Sequence[Any]
    sources: Sequence[str]
    makes: Sequence[Path]
    after: Sequence[Stage] = ()

    def key(self) -> str:
        """The hash of its inputs."""
        digest = hashlib.sha256(json.dumps([self.name, self.arguments], default=str).encode())
        for stage in self.after:
            digest.update(stage.key().encode())
        for file in _files(self.sources):
            digest.update(str(file.relative_to(ROOT)).encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def _files(sources: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for source in sources:
        path = ROOT / source
        inside = (p for p in path.rglob("*") if p.suffix in (".py", ".toml"))
        found += sorted(inside) if path.is_dir() else [path]
    return found


def heading(number: int, of: int, title: str, expected_s: int) -> None:
    """Say which stage begins and how long it will take."""
    about = f"about {expected_s} s" if expected_s < 100 else f"about {round(expected_s / 60)} min"
    print(f"\n[{number}/{of}] {title} ({about})", flush=True)


def run_stage(stage: Stage, stamps: Path) -> bool:
    """Run it unless its stamp says that all it makes is there; returns whether it ran. Raises StageFailed."""
    stamp, key = stamps / f"{stage.name}.stamp", stage.key()
    if stamp.exists() and stamp.read_text() == key and all(path.exists() for path in stage.makes):
        print("      reused: nothing it depends on has changed", flush=True)
        return False
    stamp.unlink(missing_ok=True)
    started = time.monotonic()
    _in_child(stage.name, stage.work, stage.arguments)
    missing = [str(path) for path in stage.makes if not path.exists()]
    if missing:
        raise StageFailed(f"{stage.name}: {', '.join(missing)} not written; expected it to be")
    stamps.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    print(f"      done in {time.monotonic() - started:.0f} s", flush=True)
    return True


def _in_child(name: str, work: Work, arguments: Sequence[Any]) -> None:
    """Run in a process of its own: its memory is given back, and it ends when this one does."""
    # not a daemon, so that it may have children: training may
    child = multiprocessing.get_context("spawn").Process(
        target=_work, args=(work, tuple(arguments)), name=name
    )
    child.start()
    try:
        child.join()
    finally:
        if child.is_alive():
            child.terminate()
            child.join(STOP_S)
            child.kill()
            child.join()
    if child.exitcode:
        raise StageFailed(f"{name}: ended with status {child.exitcode}")


def _work(work: Work, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        status = work(*arguments)
    except VitrineError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    sys.exit(status or 0)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # through the finalizers, which give back what the system lent
