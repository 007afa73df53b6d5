"""What opening a bundle costs, in a process of its own: seconds, memory, and what verifying takes of it.

The bundle has as many products as asked for, untrained towers and the exporter's own files; it is kept for
the next run. Times are medians over processes with a warm page cache; `open_cpu_s` is the CPU time of
both threads that hash, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.device import describe
from export.bundle import Source, finish, write_files
from export.handover import Products
from functions.core.bundle import MANIFEST, SCHEMA
from functions.core.catalogue import Product
from functions.core.features import PRICE_BUCKETS, TEXT_BUCKETS, TEXT_SLOTS, ItemFeatures
from functions.core.repeats import Repeats
from functions.core.slots import DEFAULT_SLOTS
from train.checkpoint import Meta
from train.towers import Shape, Towers

TARGETS = {"open_s": 1.5, "resident_mb": 300.0}  # at a million items, d = 64
CATEGORIES = 100
WORDS = 8  # n-grams of a product's title
ONCE = """
import json, sys, time
from pathlib import Path
import numpy, functions.core.engine
from functions.core.bundle import verify
from functions.core.served import open_bundle
def resident_mb(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024
folder = Path(sys.argv[1])
before = resident_mb("VmRSS:")
started, busy = time.perf_counter(), time.process_time()
served = open_bundle(folder)
opened, busy = time.perf_counter(), time.process_time() - busy
vector = numpy.random.default_rng(0).normal(size=served.manifest.dim).astype("float16")
rows, _ = served.scorer.top(vector, 10)
served.catalogue.products(rows.tolist())
answered = time.perf_counter()
held = {kind: resident_mb(kind) for kind in ("VmRSS:", "VmHWM:", "RssAnon:")}
started_verify = time.perf_counter()
verify(folder)
print(json.dumps({"open_s": opened - started, "open_cpu_s": busy, "first_answer_s": answered - opened,
  "verify_s": time.perf_counter() - started_verify, "imports_mb": before, "resident_mb": held["VmRSS:"],
  "peak_mb": held["VmHWM:"], "anonymous_mb": held["RssAnon:"]}))
"""


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`; returns the exit status: 0 whether or not targets are met."""
    parser = argparse.ArgumentParser(prog="python -m bench open", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where bundles are kept")
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    bundle = synthetic_bundle(options.folder, options.items, options.dim)
    report = {
        **describe(torch.device("cpu")),
        "items": options.items,
        "dim": options.dim,
        **measure(bundle, options.runs),
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(bundle: Path, runs: int) -> dict[str, object]:
    """Medians over `runs` processes, and the bundle's bytes by file."""
    command = [sys.executable, "-c", ONCE, str(bundle)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    medians = {name: round(statistics.median(run[name] for run in found), 3) for name in found[0]}
    met = {name: medians[name] <= target for name, target in TARGETS.items()}
    sizes = {path.name: path.stat().st_size for path in sorted(bundle.iterdir()) if path.is_file()}
    return {**medians, "runs": runs, "targets": TARGETS, "met": met, "bytes": sizes}


def synthetic_bundle(folder: Path, items: int, dim: int) -> Path:
    """A bundle of `items` made-up products in `folder`, made unless it is there."""
    out = folder / f"open-{SCHEMA}-{items}-{dim}"
    if (out / MANIFEST).exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    torch.manual_seed(0)
    towers = Towers(Shape(items, CATEGORIES, 0, dim=dim)).eval()
    rng = np.random.default_rng(0)
    ids = tuple(f"sku-{n:08d}" for n in range(items))
    popularity = rng.pareto(1.2, items).astype(np.float32)
    meta = Meta(ids, {}, 0, {}, Repeats())
    source = Source(towers, meta, _products(ids, rng), np.arange(1, items + 1), popularity, popularity)
    write_files(source, DEFAULT_SLOTS, out)
    finish(source, out, proven={})
    print(f"made {out} in {time.perf_counter() - started:.0f} s", flush=True)
    return out


def _products(ids: tuple[str, ...], rng: np.random.Generator) -> Products:
    count = len(ids)
    text = np.zeros((count, TEXT_SLOTS), np.int64)
    text[:, :WORDS] = rng.integers(1, TEXT_BUCKETS + 1, (count, WORDS))
    features = ItemFeatures(
        category=rng.integers(1, CATEGORIES + 1, count),
        brand=np.zeros(count, np.int64),
        price=rng.integers(1, PRICE_BUCKETS, count),
        text=text,
    )
    shown = [
        Product(name, f"A product called {name}", f"category {n % CATEGORIES}", "Brand", n % 997 / 4, "EUR")
        for n, name in enumerate(ids)
    ]
    return Products(shown, features.take, count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
