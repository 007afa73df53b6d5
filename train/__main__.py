"""`python -m train`: a behaviour log and a catalogue → a checkpoint and metrics.json."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import VitrineError
from functions.core.features import ItemFeatures, Vocabulary, item_features
from functions.core.repeats import Repeats
from train.checkpoint import load, write_meta
from train.engines import ENGINES
from train.evaluate import Candidates, candidates, choose_repeats, embed_items, evaluate, evaluate_baselines
from train.fit import fit, process_group
from train.handover import write_held_out, write_popularity, write_products
from train.log import Log, read_log
from train.mapping import load_mapping
from train.options import LOSSES, Options
from train.rules import facts, options_for, shape_for
from train.split import SPLITS, Split, split

VALIDATION_USERS = 1_000
MAX_NAMES = 20_000  # categories, and brands, that get a row of their own; the rarest beyond are unknown


def main(arguments: list[str] | None = None) -> int:
    """Read, train, evaluate, write; returns the exit status."""
    options = _options(arguments)
    started = time.monotonic()
    with process_group() as first:
        return _main(options, started, first)


def _main(options: argparse.Namespace, started: float, first: bool) -> int:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        mapping = load_mapping(options.map) if options.map else None
        log = read_log(options.events, options.items, mapping, engine=options.engine)
        if first:
            print(log.summary(), flush=True)
        report = _run(log, options, first)
    except (VitrineError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not first:
        return 0
    report["seconds"] = round(time.monotonic() - started, 1)
    (options.out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"test": report["test"], "baselines": report["baselines"]}, indent=1))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--events", required=True, help="file, folder or s3:// address of the log")
    parser.add_argument("--items", help="file of the catalogue")
    parser.add_argument("--map", help="TOML file that maps the columns")
    parser.add_argument("--engine", choices=ENGINES, default="duckdb", help="what cleans the log")
    parser.add_argument("--split", choices=SPLITS, default="time")
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint")
    parser.add_argument("--epochs", type=int, help="instead of what the rules say")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--loss", choices=LOSSES, default=Options.loss)
    parser.add_argument("--resume", action="store_true", help="go on with the run that was killed in --out")
    return parser.parse_args(arguments)


def _run(log: Log, options: argparse.Namespace, first: bool) -> dict[str, object]:
    """Train with all processes of the group; evaluate and write with the first, the others return nothing."""
    interactions = log.to_arrays()
    products = log.items.to_pylist()
    vocabulary = Vocabulary(_names(products, "category"), _names(products, "brand"))
    features = item_features(_padded(products, len(interactions.item_ids)), vocabulary)
    parts = split(interactions, options.split, seed=options.seed)
    inner = split(parts.train, options.split, VALIDATION_USERS, options.seed)
    known = facts(inner.train)
    shape = shape_for(known, len(vocabulary.categories), len(vocabulary.brands), bool(products))
    chosen = options_for(known, Options(seed=options.seed, loss=options.loss), options.epochs)
    if first:
        print(f"training on {len(inner.train.user):,} events, at most {chosen.epochs} epochs", flush=True)
    fit(inner, features, vocabulary, shape, chosen, options.out, options.resume)
    if not first:
        return {}
    write_products(options.out, products, interactions.item_ids)
    write_popularity(options.out, interactions)
    write_held_out(options.out, parts, options.seed)
    return {
        **_scores(options.out, features, parts, inner, int(interactions.time_s.max())),
        "data": {
            "users": len(interactions.user_ids),
            "items": len(interactions.item_ids),
            "events": len(interactions.user),
        },
        "dropped": log.dropped,
    }


def _scores(
    out: Path, features: ItemFeatures, parts: Split, inner: Split, watermark_s: int
) -> dict[str, object]:
    """Validation, test and baselines; the repeat term is chosen on validation and kept in the checkpoint."""
    print(f"ranking {len(parts.targets):,} test users through the serving fold", flush=True)
    towers, meta = load(out)
    table = embed_items(towers, features)

    def proposed(of: Split) -> tuple[list[Candidates], list[NDArray[np.int64]]]:
        users = sorted(of.targets)
        return candidates(of.train, users, towers, table), [of.targets[user] for user in users]

    validation, wanted = proposed(inner)
    kinds = np.unique(parts.train.kind).tolist()
    repeats = replace(choose_repeats(validation, wanted, table), kinds=tuple(kinds))
    validated = evaluate(validation, repeats, wanted, table)
    write_meta(out, replace(meta, repeats=repeats, watermark_s=watermark_s, metrics=validated))
    test, wanted = proposed(parts)
    return {
        "test": evaluate(test, repeats, wanted, table),
        "test_without_repeats": evaluate(test, Repeats(), wanted, table),
        "validation": validated,
        "baselines": evaluate_baselines(parts),
        "repeats": asdict(repeats),
    }


def _padded(products: list[dict[str, object]], items: int) -> list[Mapping[str, object]]:
    """The catalogue and an empty product for every item that only the log knows."""
    return [*products, *({} for _ in range(items - len(products)))]


def _names(catalogue: list[dict[str, object]], field: str) -> tuple[str, ...]:
    counts = Counter(str(product[field]) for product in catalogue if product.get(field))
    return tuple(name for name, _ in counts.most_common(MAX_NAMES))


if __name__ == "__main__":
    sys.exit(main())
