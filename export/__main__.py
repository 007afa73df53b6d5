"""`python -m export`: a checkpoint → a proven bundle and the pointer to it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from collections.abc import Mapping as MappingType
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from export.bundle import Source, finish, read_source, write_files
from export.handover import HeldOut, read_held_out
from export.levels import SERVED, table
from export.prune import BadPruning, Prune, stages
from export.refresh import MAX_REMOVED, refresh
from export.report import write_report
from export.score import NotFinite
from export.scorers import QUERIES, Chosen, choose
from export.store import Store, open_store
from export.verify import Proof, Stage, prove
from functions.core.bundle import verify
from functions.core.engine import cpu
from functions.core.errors import VitrineError
from functions.core.served import open_bundle
from functions.core.slots import DEFAULT_SLOTS, Slot, load_slots
from functions.core.user_row import Float16
from train.checkpoint import BadCheckpoint, load
from train.evaluate import user_rows
from train.mapping import Mapping, load_mapping

MAX_NDCG_LOSS = 0.005
BUNDLES = "build/bundles"
Commands = MappingType[str, Callable[[list[str]], dict[str, object]]]


class Unproven(Exception):
    """A bundle that must not be published; every reason is a line."""


def main(arguments: list[str] | None = None) -> int:
    """Build, prove, publish; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    command = COMMANDS.get(given[0], _export) if given else _export
    try:
        print(json.dumps(command(given)))
    except Unproven as failures:
        print(f"error: not published, no pointer written\n{failures}", file=sys.stderr)
        return 1
    except (VitrineError, BadCheckpoint, BadPruning, NotFinite, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _export(arguments: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog="Other commands: python -m export refresh --help, python -m export point --help",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder that python -m train wrote")
    parser.add_argument("--out", required=True, help="folder or s3:// address of bundles and their pointer")
    parser.add_argument(
        "--slots", type=Path, help="JSON of the shop's slots; the default has home, product, cart"
    )
    parser.add_argument(
        "--max-ndcg-loss",
        type=_share,
        default=MAX_NDCG_LOSS,
        help="share of NDCG@10 that quantization and pruning may cost (default %(default)s)",
    )
    parser.add_argument(
        "--prune-items",
        type=_count,
        default=0.0,
        metavar="EVENTS",
        help="propose no product of fewer events, one of a month ago counting half (default: none is pruned)",
    )
    parser.add_argument(
        "--prune-width",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="of the channels of the visitor's state that go (default: none)",
    )
    options = parser.parse_args(arguments)
    wish = Prune(options.prune_items, options.prune_width)
    return publish(options.checkpoint, options.out, options.slots, options.max_ndcg_loss, wish)


def _refresh(arguments: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        prog="python -m export refresh",
        description="Publish the champion with another catalogue, without training: it becomes the champion.",
    )
    parser.add_argument("--items", required=True, help="the whole catalogue, as train takes it")
    parser.add_argument("--bundles", default=BUNDLES, help="folder or s3:// address (default %(default)s)")
    parser.add_argument("--map", type=Path, help="TOML mapping that the catalogue was trained with")
    parser.add_argument(
        "--max-removed",
        type=_share,
        default=MAX_REMOVED,
        metavar="SHARE",
        help="of the products on sale that the new catalogue may lack, 1 for all (default %(default)s)",
    )
    options = parser.parse_args(arguments[1:])
    mapping = load_mapping(options.map) if options.map else None
    return publish_refresh(options.bundles, options.items, mapping, options.max_removed)


def _point(arguments: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        prog="python -m export point", description="Make a stored bundle the champion: a rollback, say."
    )
    parser.add_argument("id", help="the bundle's name, 32 hex digits")
    parser.add_argument("--bundles", default=BUNDLES, help="folder or s3:// address (default %(default)s)")
    parser.add_argument(
        "--mend",
        action="store_true",
        help="where the pointer is one that the functions refuse, write a new one, without a challenger",
    )
    options = parser.parse_args(arguments[1:])
    store = open_store(options.bundles)
    seen = store.seen(options.mend)
    with tempfile.TemporaryDirectory() as scratch:
        open_bundle(store.fetch(options.id, Path(scratch)), options.id).close()
    store.point(options.id, seen)
    return {"id": options.id, "before": seen.pointer["champion"]}


COMMANDS: Commands = {"refresh": _refresh, "point": _point}


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a share from 0 to 1")
    return value


def _count(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of events, 0 or more")
    return value


def publish(
    checkpoint: Path, out: Path | str, slots: Path | None, max_loss: float, wish: Prune | None = None
) -> dict[str, object]:
    """Write `out`/{id}, prove it, point to it; `out` is a folder or an s3:// address.

    Raises Unproven with everything that failed, BadPruning, BadPointer, PointerMoved.
    """
    store = open_store(out)
    seen = store.seen()
    towers, meta = load(checkpoint)
    read = read_source(checkpoint, towers, meta), read_held_out(checkpoint, meta.item_ids)
    *earlier, (_, source, held) = stages(*read, wish or Prune())
    shown = load_slots(slots) if slots else dict(DEFAULT_SLOTS)
    with _partial(store) as partial, ExitStack() as opened:
        chosen = _build(source, held, shown, partial)
        before = [
            opened.enter_context(_stage(f"{SERVED}, {name}", unpruned, users, shown, store))
            for name, unpruned, users in earlier
        ]
        embeddings = np.fromfile(partial / "embeddings.f16", "<f2").reshape(source.items, -1)
        served = open_bundle(partial)
        proof = prove(Stage(SERVED, source, served, held), embeddings, max_loss, before)
        served.close()
        print(table(proof.levels), flush=True)
        if proof.failures:
            raise Unproven("\n".join(f"  {failure}" for failure in proof.failures))
        name = finish(source, partial, chosen.scorer, proof.quantization)
        open_bundle(partial, name).close()  # as a function does
        report = _report(partial, name, proof, chosen)
        write_report(partial, report, proof.levels)
        store.put(partial, name)
    store.note(f"{name}.report.json", json.dumps(report, indent=1) + "\n")
    store.point(name, seen)
    return report


def publish_refresh(
    bundles: Path | str, items: Path | str, mapping: Mapping | None, max_removed: float = MAX_REMOVED
) -> dict[str, object]:
    """The champion with another catalogue becomes the champion.

    Raises BadRefresh, BadPointer, PointerMoved.
    """
    store = open_store(bundles)
    seen = store.seen()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, _partial(store) as partial:
        old = store.fetch(seen.champion, Path(scratch))
        name, counts = refresh(old, items, mapping, partial, max_removed)
        store.put(partial, name)
    if name != seen.champion:
        store.point(name, seen)
    took_s = round(time.perf_counter() - started, 1)
    return {"id": name, "before": seen.champion, **asdict(counts), "seconds": took_s}


@contextmanager
def _partial(store: Store) -> Iterator[Path]:
    """A folder for a bundle in the making, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=store.near()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stage(
    name: str, source: Source, held: HeldOut, slots: MappingType[str, Slot], store: Store
) -> Iterator[Stage]:
    """What would be published of a source, for as long as it is held against what is."""
    with _partial(store) as folder:
        _build(source, held, slots, folder)
        served = open_bundle(folder)
        try:
            yield Stage(name, source, served, held)
        finally:
            served.close()


def _build(source: Source, held: HeldOut, slots: MappingType[str, Slot], out: Path) -> Chosen:
    """All files of a bundle into the empty folder `out`, openable: what is proven is what will be served."""
    write_files(source, slots, out)
    finish(source, out)
    embeddings = np.fromfile(out / "embeddings.f16", "<f2").reshape(source.items, -1)
    return _choose_scorer(source, out, embeddings, held)


def _choose_scorer(source: Source, partial: Path, embeddings: Float16, held: HeldOut) -> Chosen:
    """By the vectors of held-out users; the bundle in `partial` then has the files that the choice needs."""
    opened = open_bundle(partial)
    rows = user_rows(held.log, list(range(min(QUERIES, len(held.targets)))), opened.encoder)
    vectors = held.queries(opened, rows, [*map(opened.own, rows)])
    opened.close()
    chosen = choose(partial, embeddings[: source.products.showable], vectors)
    finish(source, partial, chosen.scorer)
    return chosen


def _report(bundle: Path, name: str, proof: Proof, chosen: Chosen) -> dict[str, object]:
    """What was published; times are no part of the bundle, whose name is a hash."""
    manifest = verify(bundle, name)
    return {
        "id": name,
        "state_space": manifest.state_space,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        **proof.quantization,
        **({"pruned": manifest.quantization["pruned"]} if "pruned" in manifest.quantization else {}),
        "microseconds": proof.microseconds,
        "scorer": {**chosen.scorer, "microseconds": chosen.microseconds, "recall@10": chosen.recall, **cpu()},
    }


if __name__ == "__main__":
    sys.exit(main())
