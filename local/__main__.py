"""`python -m local`: serve a folder of bundles from a cloud on this machine, and play a visit on it.

Beside it `replay`, `erase`, `held` and `keys` work on the cloud that runs, or with --aws on a shop's account.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from functions.core.bundle import verify
from functions.core.errors import CorruptBundle, VitrineError
from functions.core.slots import load_slots
from local.account import read_pointer
from local.cloud import Cloud, CloudSettings
from local.operate import erase, held, keys, replay
from local.visit import Step, Visit, VisitFailed, table

SLOT = "home"
LOGS = Path("build/local")
INTERRUPTED = 130
COMMANDS = {"replay": replay, "erase": erase, "held": held, "keys": keys}


def main(arguments: list[str] | None = None) -> int:
    """Start, play the visit, stay until Ctrl-C; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:])
    options = _options(given)
    settings = CloudSettings(options.bundle, options.logs, options.port)

    def report(steps: list[Step]) -> None:
        if options.report:
            write_report(options.report, {"visit": visit_report(steps)})

    return run(settings, report, once=options.once, must_pass=options.once)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--bundle", required=True, type=Path, help="folder of bundles, with its pointer.json")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one (default 8000)")
    parser.add_argument("--once", action="store_true", help="stop after the visit")
    parser.add_argument("--report", type=Path, help="file for what the visit measured, as JSON")
    parser.add_argument("--logs", type=Path, default=LOGS, help=f"folder for the logs (default {LOGS})")
    return parser.parse_args(arguments)


def run(
    settings: CloudSettings, on_visit: Callable[[list[Step]], None], *, once: bool, must_pass: bool
) -> int:
    """Start the cloud, play the visit, then stay until a signal unless `once`; returns the exit status.

    A visit that fails is told, and ends the run if it must pass; if not, the page stays up to be looked into.
    """
    restore = interrupt_on_signals()
    try:
        with Cloud(settings) as cloud:
            return _visited(cloud, on_visit, once, must_pass)
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return INTERRUPTED if once else 0
    except VitrineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        restore()


def _visited(cloud: Cloud, on_visit: Callable[[list[Step]], None], once: bool, must_pass: bool) -> int:
    settings = cloud.settings
    warn_of_corruption(settings.bundles)
    try:
        steps = Visit(cloud.url, *_slots(settings.bundles)).play()
        on_visit(steps)
        print(table(steps), flush=True)
    except VisitFailed as error:
        print(f"error: the visit failed: {error} (logs: {settings.logs})", file=sys.stderr, flush=True)
        if must_pass:
            return 1
    if not once:
        print(f"\n  {cloud.url}   (logs: {settings.logs}; Ctrl-C ends it)", flush=True)
        cloud.wait()
    return 0


def warn_of_corruption(bundles: Path) -> None:
    """Say so, with the file and the two hashes, when the champion cannot be served."""
    champion = read_pointer(bundles)["champion"]
    try:
        verify(bundles / champion, champion)
    except CorruptBundle as error:
        print(f"warning: bundle {champion} is not served, the house banner is: {error}", file=sys.stderr)


def _slots(bundles: Path) -> tuple[str, str | None]:
    """The slot to show and one without chance in it, as the champion defines them."""
    try:
        slots = load_slots(bundles / read_pointer(bundles)["champion"] / "slots.json")
    except (CorruptBundle, OSError):
        return SLOT, None
    greedy = next((name for name, slot in slots.items() if slot.policy == "greedy"), None)
    return SLOT if SLOT in slots else next(iter(slots)), greedy


def visit_report(steps: list[Step]) -> list[dict[str, object]]:
    """The visit as report.json has it."""
    return [step.report(number) for number, step in enumerate(steps, 1)]


def write_report(path: Path, report: dict[str, object]) -> None:
    """Write a report, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def interrupt_on_signals() -> Callable[[], None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, once; returns what sets the old handlers again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for name in old:
            signal.signal(name, signal.SIG_IGN)  # what ends everything must not be cut short itself
        raise KeyboardInterrupt

    old = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in old:
        signal.signal(name, interrupt)

    def restore() -> None:
        for name, handler in old.items():
            signal.signal(name, handler)

    return restore


if __name__ == "__main__":
    sys.exit(main())
