"""The ten best of N items for one user vector, or for 32: our scorer beside every peer, one thread.

A bundle answers one request at a time, so ours takes a batch one by one. All methods search the same float16
embeddings, made float32, in turns within one run. Times are the process's CPU seconds, every thread's: what
else runs on the machine takes turns with it. Recall is against products in float64. Bytes are the growth
of the process's anonymous memory, and for an index of ours its mapped files. Not counted are the mapped
embeddings, and mapped codes of which ONNX Runtime has a copy.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.device import describe
from bench.peers import installed, peers, scratch
from export.handover import read_held_out
from export.lists import build_lists
from export.scorers import INDEXED_FROM, NBITS, choose, write_scorer
from functions.core import engine
from functions.core.scorer import Mask, Scorer
from functions.core.user_row import Float16
from train.checkpoint import load
from train.evaluate import TowerItems, embed_items, torch_encoder, user_rows

K = 10
QUERIES = 200
JUDGED = 50  # queries whose recall is taken
ROUNDS = 10
CALLS = {100_000: 200, 10**9: 60}  # timed calls of a method, up to so many items
BATCH_CALLS = 20  # of many vectors
OURS = "vitrine"
INDEX_FILES = ("codes.u8", "scales.f32", "lists.bin")
SERVED_K = 200  # candidates that a request for banners takes
Search = Callable[[NDArray[np.float32]], NDArray[Any]]  # vectors [B, d] → rows [B, k]


@dataclass(frozen=True)
class Row:
    """One method on one table."""

    n: int
    d: int
    k: int
    batch: int
    threads: int
    method: str
    p50_us: float
    p99_us: float
    recall: float
    bytes: int


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json` (the rows) and `--report` (with device, bandwidth and targets)."""
    parser = argparse.ArgumentParser(prog="python -m bench scoring", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--report", type=Path, help="where to write rows, device, versions and targets")
    parser.add_argument("--items", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--graphs", type=Path, help="where graphs are kept, of any size")
    parser.add_argument("--largest", type=int, default=64 * 10**6, help="numbers of a table, at most")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="of `python -m train`")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = [synthetic(n, d) for d in options.dims for n in options.items if n * d <= options.largest]
    sources = [*tables, *(trained(folder) for folder in options.checkpoint)]
    with threadpool_limits(1):  # numpy's product too; the others are told by their own means (`bench.peers`)
        report = measure(sources, options.batches, options.graphs)
    print(as_table(report))
    for path, written in ((options.json, report["rows"]), (options.report, report)):
        if path:
            path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


Source = Callable[[], tuple[str, Float16, Float16]]


def measure(sources: list[Source], batches: list[int], graphs: Path | None = None) -> dict[str, Any]:
    """Rows of all tables; of each table what the scorer chose and how far it is from its targets."""
    bandwidth = read_bandwidth()
    rows, chosen = [], []
    for source in sources:
        name, table, vectors = source()
        found, kind = measure_table(table, vectors, batches, graphs)
        rows += found
        chosen.append({"table": name, "n": len(table), "d": table.shape[1], **kind})
        print(f"{name}: {len(table):,} x {table.shape[1]} measured", file=sys.stderr, flush=True)
    return {
        **describe(torch.device("cpu")),
        **engine.cpu(),
        "versions": installed(),
        "read_gigabytes_per_second": round(bandwidth / 1e9, 1),
        "chosen": chosen,
        "rows": [asdict(row) for row in rows],
        "targets": targets([asdict(row) for row in rows], bandwidth),
    }


def synthetic(n: int, d: int) -> Source:
    """Items around √n / 2 centres with lengths that vary, users near the same centres."""

    def made() -> tuple[str, Float16, Float16]:
        rng = np.random.default_rng(n + d)
        centres = rng.normal(size=(max(8, int(n**0.5) // 2), d)).astype(np.float32)

        def near(count: int) -> NDArray[np.float32]:
            drawn = rng.integers(0, len(centres), count)
            return centres[drawn] + 0.5 * rng.standard_normal((count, d), np.float32)

        lengths = rng.lognormal(0, 0.2, (n, 1)).astype(np.float32) / np.float32(d**0.5)
        return "clustered", (near(n) * lengths).astype(np.float16), near(QUERIES).astype(np.float16)

    return made


def trained(checkpoint: Path) -> Source:
    """Items and held-out users of a trained model."""

    def made() -> tuple[str, Float16, Float16]:
        from export.handover import read_products

        towers, meta = load(checkpoint)
        products = read_products(checkpoint, meta)
        items = embed_items(towers, products.features)
        held = read_held_out(checkpoint, meta.item_ids)
        users = list(range(min(QUERIES, len(held.targets))))
        rows = user_rows(held.log, users, torch_encoder(towers, TowerItems(list(meta.item_ids), items)))
        return f"trained ({checkpoint.name})", items, np.stack([row.vector for row in rows])

    return made


def measure_table(
    table: Float16, vectors: Float16, batches: list[int], graphs: Path | None = None
) -> tuple[list[Row], dict[str, Any]]:
    """Every method on one table [N, d], with vectors [Q, d] of users."""
    wide, queries = table.astype(np.float32), vectors.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        searches, held, shown, chosen = _ours(Path(folder), table, vectors)
        for name, make in peers(len(table), graphs):
            before = anonymous_bytes()
            searches[name] = make(wide, K)
            held[name] = max(anonymous_bytes() - before, 0)
            if name == "numpy fp32":
                held[name] = wide.nbytes
        exact = exact_scores(wide, queries[:JUDGED])
        recall = {
            name: recall_of(search, queries, exact, depth(name), shown.get(name))
            for name, search in searches.items()
        }
        calls = next(calls for n, calls in CALLS.items() if len(table) <= n)
        spent = {
            batch: in_turns(searches, queries, calls if batch == 1 else BATCH_CALLS, batch)
            for batch in batches
        }
    n, d = table.shape
    rows = [
        Row(n, d, depth(name), batch, 1, name, *_quantiles(times), recall[name], held[name])
        for batch, methods in spent.items()
        for name, times in methods.items()
    ]
    return rows, chosen


def _one_by_one(scorer: Scorer, k: int, mask: Mask | None = None) -> Search:
    def search(vectors: NDArray[np.float32]) -> NDArray[Any]:
        found = [scorer.top(vector, k, mask)[0] for vector in vectors]
        return found[0][None] if len(found) == 1 else np.stack(found)

    return search


def depth(method: str) -> int:
    """How many rows a method is asked for."""
    return SERVED_K if "200" in method else K


def _ours(
    folder: Path, table: Float16, vectors: Float16
) -> tuple[dict[str, Search], dict[str, int], dict[str, NDArray[np.bool_]], dict[str, Any]]:
    """What a bundle would use, as `vitrine`; every kind by name; masks, and a request's candidates."""
    rows = len(table)
    kinds: list[dict[str, object]] = [NBITS, {"kind": "integer"}]
    searches: dict[str, Search] = {}
    held: dict[str, int] = {}
    shown: dict[str, NDArray[np.bool_]] = {}

    def opened(place: Path, named: Mapping[str, object], name: str) -> Scorer:
        before = anonymous_bytes()
        scorer = engine.open_scorer(place, named, table, rows)
        scorer.top(vectors[0], K)
        searches[name] = _one_by_one(scorer, K)
        held[name] = max(anonymous_bytes() - before, 0)
        if named["kind"] == "index":  # which reads its files where they are mapped
            held[name] += sum((place / name).stat().st_size for name in INDEX_FILES)
        return scorer

    place = scratch(folder, OURS)
    write_scorer(place, table, NBITS)
    chosen = choose(place, table, vectors)
    ours = opened(place, chosen.scorer, OURS)
    for share in (10, 50, 90):
        name = f"{OURS}, {share} % eligible"
        shown[name] = np.asarray(np.random.default_rng(share).random(rows) < share / 100)
        searches[name] = _one_by_one(ours, K, ours.mask(shown[name]))
    searches[f"{OURS}, 200 candidates"] = _one_by_one(ours, SERVED_K)
    for named in kinds:
        place = scratch(folder, str(named["kind"]))
        write_scorer(place, table, named)
        opened(place, named, f"{OURS} {named['kind']}")
    if rows >= INDEXED_FROM // 4:
        place, lists = scratch(folder, "index"), build_lists(table)
        count = len(lists.centroids)
        named = {"kind": "index", "lists": count, "probes": chosen.scorer.get("probes", max(count // 64, 1))}
        write_scorer(place, table, named, lists)
        opened(place, named, f"{OURS} index")
    held |= {name: held[OURS] for name in searches if name not in held}
    return (
        searches,
        held,
        shown,
        {**chosen.scorer, "microseconds": chosen.microseconds, "recall": chosen.recall},
    )


def exact_scores(table: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """[Q, N] in float64."""
    scores = np.empty((len(queries), len(table)))
    for start in range(0, len(table), 65_536):
        part = table[start : start + 65_536].astype(np.float64)
        scores[:, start : start + len(part)] = queries.astype(np.float64) @ part.T
    return scores


def recall_of(
    search: Search,
    queries: NDArray[np.float32],
    scores: NDArray[np.float64],
    k: int,
    shown: NDArray[np.bool_] | None = None,
) -> float:
    """Of the exact k best (of what is shown), the share found; what ties with the last is as right as it."""
    shares = []
    for query, exact in zip(queries, scores, strict=False):
        among = exact if shown is None else exact[shown]
        edge = np.partition(among, len(among) - k)[len(among) - k]
        found = np.unique(np.asarray(search(query[None])[0]).astype(np.int64))[-k:]
        shares.append(float((exact[found[found >= 0]] >= edge).sum()) / k)
    return round(float(np.mean(shares)), 5)


def in_turns(
    searches: dict[str, Search], queries: NDArray[np.float32], calls: int, batch: int = 1
) -> dict[str, list[float]]:
    """CPU seconds of `calls` calls of each with `batch` vectors, in rounds over all of them.

    Each round has another order: who comes after one that reads the same codes finds them in the caches.
    """
    spent: dict[str, list[float]] = {name: [] for name in searches}
    order, rng = list(searches), np.random.default_rng(0)
    for turn in range(ROUNDS):
        rng.shuffle(order)
        for name in order:
            search = searches[name]
            search(queries[:batch])
            for call in range(calls // ROUNDS):
                asked = queries[(turn * 31 + call + np.arange(batch)) % len(queries)]
                started = time.process_time()
                search(asked)
                spent[name].append(time.process_time() - started)
    return spent


def _quantiles(times: list[float]) -> tuple[float, float]:
    micros = np.array(times) * 1e6
    return round(float(np.median(micros)), 1), round(float(np.quantile(micros, 0.99)), 1)


def read_bandwidth() -> float:
    """Bytes a second that one core reads from memory: a dot product of half a gigabyte with itself."""
    data = np.ones(2**27, np.float32)
    best = float("inf")
    for _ in range(8):
        started = time.process_time()
        data.dot(data)
        best = min(best, time.process_time() - started)
    return data.nbytes / best


def anonymous_bytes() -> int:
    """The process's memory without mapped files, after what is free is given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


RIVALS = (
    "FAISS SQfp16",
    "FAISS SQ8",
    "FAISS SQ8_direct_signed",
    "ScaNN int8 brute force",
    "usearch exact int8",
)
FASTER = {  # times, than each method, by items
    100_000: {"numpy fp32": 6.0, "FAISS Flat": 2.3, **dict.fromkeys(RIVALS, 1.0)},
    1_000_000: {"numpy fp32": 5.0},
}
JUDGED_DIM = 64


def targets(rows: list[dict[str, Any]], bandwidth: float) -> list[dict[str, Any]]:
    """What was promised of the clustered tables, beside what this run has."""
    found: list[dict[str, Any]] = []
    for n in FASTER:
        of = {r["method"]: r for r in rows if (r["n"], r["d"], r["batch"]) == (n, JUDGED_DIM, 1)}
        if OURS in of:
            found += [{"n": n, "d": JUDGED_DIM, **target} for target in _targets_of(n, of, bandwidth)]
    return found


def _targets_of(n: int, of: dict[str, dict[str, Any]], bandwidth: float) -> list[dict[str, Any]]:
    ours = of[OURS]
    found = [_target("recall@10, at least", ours["recall"], 0.999, least=True)]
    for method, times in FASTER[n].items():
        if method in of:
            ratio = of[method]["p50_us"] / ours["p50_us"]
            found.append(_target(f"times faster than {method}, at least", ratio, times, least=True))
    if n == 1_000_000:
        wall = 1e6 * n * (JUDGED_DIM + 4) / bandwidth
        ratio = of[f"{OURS} nbits"]["p50_us"] / wall
        found.append(_target("p99 in ms", ours["p99_us"] / 1000, 10.0))
        found.append(_target("int8 scan, times the time to read its bytes", ratio, 2.5))
    for share in (10, 50, 90):
        ratio = of[f"{OURS}, {share} % eligible"]["p50_us"] / ours["p50_us"]
        found.append(_target(f"{share} % eligible, times no mask", ratio, 1.15))
    found.append(_target("bytes an item and dimension", ours["bytes"] / n / JUDGED_DIM, 1.3))
    return found


def _target(what: str, value: float, bound: float, least: bool = False) -> dict[str, Any]:
    met = value >= bound if least else value <= bound
    return {"what": what, "value": round(value, 4), "bound": bound, "met": met}


def as_table(report: dict[str, Any]) -> str:
    """For a person, in Markdown."""
    lines = []
    for n, d, batch in dict.fromkeys((row["n"], row["d"], row["batch"]) for row in report["rows"]):
        many = "" if batch == 1 else f", {batch} vectors a call"
        lines += [
            "",
            f"N = {n:,}, d = {d}{many}",
            "",
            "| method | k | p50 µs | p99 µs | recall | bytes an item |",
        ]
        lines += ["|---|---|---|---|---|---|"]
        for row in sorted(report["rows"], key=lambda row: row["p50_us"]):
            if (row["n"], row["d"], row["batch"]) == (n, d, batch):
                cells = f"{row['p50_us']:,.0f} | {row['p99_us']:,.0f} | {row['recall']:.4f}"
                lines.append(f"| {row['method']} | {row['k']} | {cells} | {row['bytes'] / n:,.0f} |")
    lines += ["", "| table | target | bound | measured | met |", "|---|---|---|---|---|"]
    for t in report["targets"]:
        verdict = "yes" if t["met"] else "**no**"
        lines.append(f"| {t['n']:,} x {t['d']} | {t['what']} | {t['bound']} | {t['value']:.4g} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
