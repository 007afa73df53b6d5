"""`python -m train`: a behaviour log and a catalogue → a checkpoint and metrics.json."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from functions.core.errors import VitrineError
from functions.core.features import Vocabulary, item_features
from train.baselines import BASELINES
from train.checkpoint import load
from train.evaluate import SPLITS, evaluate, split
from train.fit import Options, fit
from train.log import Log, read_log
from train.mapping import load_mapping
from train.towers import Shape

MAX_NAMES = 20_000  # categories, and brands, that get a row of their own; the rarest beyond are unknown


def main(arguments: list[str] | None = None) -> int:
    """Read, train, evaluate, write; returns the exit status."""
    options = _options(arguments)
    started = time.monotonic()
    try:
        log = read_log(options.events, options.items, load_mapping(options.map) if options.map else None)
        print(log.summary(), flush=True)
        report = _run(log, options)
    except (VitrineError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report["seconds"] = round(time.monotonic() - started, 1)
    (options.out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"test": report["test"], "baselines": report["baselines"]}, indent=1))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--events", required=True, help="file, folder or s3:// address of the log")
    parser.add_argument("--items", help="file of the catalogue")
    parser.add_argument("--map", help="TOML file that maps the columns")
    parser.add_argument("--split", choices=SPLITS, default="time")
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint")
    parser.add_argument("--epochs", type=int, default=Options.epochs)
    parser.add_argument("--seed", type=int, default=Options.seed)
    return parser.parse_args(arguments)


def _run(log: Log, options: argparse.Namespace) -> dict[str, object]:
    interactions = log.to_arrays()
    catalogue = log.items.to_pylist()
    log_only = len(interactions.item_ids) - len(catalogue)
    vocabulary = Vocabulary(_names(catalogue, "category"), _names(catalogue, "brand"))
    features = item_features([*catalogue, *({} for _ in range(log_only))], vocabulary)
    parts = split(interactions, options.split)
    shape = Shape(len(interactions.item_ids), len(vocabulary.categories), len(vocabulary.brands))
    chosen = Options(epochs=options.epochs, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    history = fit(parts.train, features, vocabulary, shape, chosen, options.out)
    towers, _ = load(options.out)
    scores = evaluate(towers, features, parts)
    return {
        "test": scores["test"],
        "validation": asdict(history.epochs[history.best]),
        "baselines": {name: scores[name] for name in BASELINES},
        "dropped": log.dropped,
    }


def _names(catalogue: list[dict[str, object]], field: str) -> tuple[str, ...]:
    counts = Counter(str(product[field]) for product in catalogue if product.get(field))
    return tuple(name for name, _ in counts.most_common(MAX_NAMES))


if __name__ == "__main__":
    sys.exit(main())
