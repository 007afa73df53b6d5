"""`python -m export`: a checkpoint → a proven bundle and the pointer to it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from export.bundle import Source, finish, read_source, write_files
from export.handover import HeldOut, read_held_out
from export.levels import table
from export.report import write_report
from export.score import NotFinite
from export.scorers import QUERIES, Chosen, choose
from export.verify import Proof, measured, prove
from functions.core.bundle import verify
from functions.core.engine import cpu
from functions.core.errors import VitrineError
from functions.core.served import open_bundle
from functions.core.slots import DEFAULT_SLOTS, load_slots
from functions.core.user_row import Float16
from train.checkpoint import BadCheckpoint, load
from train.evaluate import user_rows

POINTER = "pointer.json"
MAX_NDCG_LOSS = 0.005


class Unproven(Exception):
    """A bundle that must not be published; every reason is a line."""


def main(arguments: list[str] | None = None) -> int:
    """Build, prove, publish; returns the exit status."""
    options = _options(arguments)
    try:
        report = publish(options.checkpoint, options.out, options.slots, options.max_ndcg_loss)
    except Unproven as failures:
        print(f"error: not published, no pointer written\n{failures}", file=sys.stderr)
        return 1
    except (VitrineError, BadCheckpoint, NotFinite, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder that python -m train wrote")
    parser.add_argument("--out", required=True, type=Path, help="folder of bundles and their pointer")
    parser.add_argument(
        "--slots", type=Path, help="JSON of the shop's slots; the default has home, product, cart"
    )
    parser.add_argument(
        "--max-ndcg-loss",
        type=_share,
        default=MAX_NDCG_LOSS,
        help="share of NDCG@10 that quantization may cost (default %(default)s)",
    )
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a share from 0 to 1")
    return value


def publish(checkpoint: Path, out: Path, slots: Path | None, max_loss: float) -> dict[str, object]:
    """Write `out`/{id}, prove it, point to it; raises Unproven with everything that failed."""
    towers, meta = load(checkpoint)
    source = read_source(checkpoint, towers, meta)
    held = read_held_out(checkpoint, meta.item_ids)
    shown = load_slots(slots) if slots else dict(DEFAULT_SLOTS)
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    try:
        write_files(source, shown, partial)
        finish(source, partial, {})  # openable, so that what is proven is what will be served
        embeddings = np.fromfile(partial / "embeddings.f16", "<f2").reshape(source.items, -1)
        chosen = _choose_scorer(source, partial, embeddings, held)
        served = open_bundle(partial)
        proof = prove(source, served, embeddings, held, max_loss)
        served.close()
        levels = measured(proof, embeddings.shape[1])
        print(table(levels), flush=True)
        if proof.failures:
            raise Unproven("\n".join(f"  {failure}" for failure in proof.failures))
        name = finish(source, partial, proof.quantization, chosen.scorer)
        report = _report(partial, name, proof, chosen)
        write_report(partial, report, levels)
        _move(partial, out / name, name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    (out / f"{name}.report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _write_pointer(out, name)
    return report


def _choose_scorer(source: Source, partial: Path, embeddings: Float16, held: HeldOut) -> Chosen:
    """By the vectors of held-out users; the bundle in `partial` then has the files that the choice needs."""
    opened = open_bundle(partial)
    rows = user_rows(held.log, list(range(min(QUERIES, len(held.targets)))), opened.encoder)
    opened.close()
    vectors = np.stack([row.vector for row in rows]) if rows else embeddings[:0]
    chosen = choose(partial, embeddings[: source.products.showable], vectors)
    finish(source, partial, {}, chosen.scorer)
    return chosen


def _move(partial: Path, place: Path, name: str) -> None:
    """Into place at once; a bundle that is there already has the same bytes, for it has the same name."""
    if place.is_dir():
        verify(place, name)
        return
    partial.chmod(0o755)
    partial.rename(place)


def _write_pointer(out: Path, name: str) -> None:
    pointer = {"champion": name, "challenger": None, "share": 0.0, "salt": ""}
    partial = out / f"{POINTER}.partial"
    partial.write_text(json.dumps(pointer) + "\n", encoding="utf-8")
    os.replace(partial, out / POINTER)


def _report(bundle: Path, name: str, proof: Proof, chosen: Chosen) -> dict[str, object]:
    """What was published; times are no part of the bundle, whose name is a hash."""
    manifest = verify(bundle, name)
    return {
        "id": name,
        "state_space": manifest.state_space,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        **proof.quantization,
        "microseconds": proof.microseconds,
        "scorer": {**chosen.scorer, "microseconds": chosen.microseconds, "recall@10": chosen.recall, **cpu()},
    }


if __name__ == "__main__":
    sys.exit(main())
