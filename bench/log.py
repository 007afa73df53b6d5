"""A log of ten million rows: rows a second and the peak of memory, from a file to training windows.

Each format is read in a process of its own, whose largest resident size (ru_maxrss) is the peak: interpreter
and torch included. The rows are drawn from a seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

ROWS = 10_000_000
LIMIT_MB = 4_096
FORMATS = ("csv", "parquet")
CHUNK = 1_000_000
USERS, ITEMS = 500_000, 100_000
TYPES = pa.array(["view", "click", "cart", "purchase"])
START_S, LENGTH_S = 1_700_000_000, 2 * 365 * 86_400
WINDOW = 200


def main(arguments: list[str]) -> int:
    """Write the rows, read them in a process for each format; 1 where one took more than 4 GB."""
    parser = argparse.ArgumentParser(prog="python -m bench log", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what the process for a format does
    options = parser.parse_args(arguments)
    if options.read:
        print(json.dumps(read(options.read)))
        return 0
    found = {name: measure(name, options.rows) for name in options.formats}
    print(json.dumps(found, indent=1))
    return int(any(one["peak_mb"] > LIMIT_MB for one in found.values()))


def measure(name: str, rows: int) -> dict[str, float]:
    """Seconds of each stage, rows a second, and MB at the peak and before anything was read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"log.{name}")
        write(path, rows)
        command = [sys.executable, "-m", "bench", "log", "--read", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return {"file_mb": round(path.stat().st_size / 2**20), **found}


def write(path: Path, rows: int) -> None:
    """The log as a file, a chunk at a time."""
    writer = None
    for table in chunks(rows):
        if writer is None:
            opener = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
            writer = opener(str(path), table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def chunks(rows: int) -> Iterator[pa.Table]:
    """Rows by time; users and items as unequal as in a shop (squares of uniform draws)."""
    rng = np.random.default_rng(0)
    for at in range(0, rows, CHUNK):
        n = min(CHUNK, rows - at)
        user = (USERS * rng.random(n) ** 2).astype(np.int64)
        item = (ITEMS * rng.random(n) ** 2).astype(np.int64)
        time_s = START_S + (LENGTH_S * np.sort(at + n * rng.random(n)) / rows).astype(np.int64)
        yield pa.table(
            {
                "user_id": pa.array(np.char.add("user-", user.astype(str))),
                "item_id": pa.array(np.char.add("SKU-", item.astype(str))),
                "type": TYPES.take(pa.array((4 * rng.random(n) ** 3).astype(np.int64))),
                "time": time_s,
                "value": pa.array(np.round(50 * rng.random(n), 2), mask=rng.random(n) < 0.5),
            }
        )


def read(path: Path) -> dict[str, float]:
    """File → clean log → columns → both splits → windows, as `python -m train` does it."""
    from train.dataset import histories
    from train.log import read_log
    from train.split import split

    before, marks = _peak_mb(), [time.monotonic()]
    log = read_log(path)
    marks.append(time.monotonic())
    after = _peak_mb()
    arrays = log.to_arrays()
    marks.append(time.monotonic())
    parts = split(arrays, "time")
    inner = split(parts.train, "time", 1_000)
    marks.append(time.monotonic())
    made = histories(inner.train).cut(WINDOW)
    marks.append(time.monotonic())
    seconds = np.diff(marks).round(1).tolist()
    return {
        **dict(zip(("read_s", "columns_s", "split_s", "windows_s"), seconds, strict=True)),
        "cpu_s": round(time.process_time(), 1),
        "rows": log.events.num_rows,
        "windows": len(made.length),
        "rows_per_s": round(log.events.num_rows / (marks[-1] - marks[0])),
        "before_mb": before,
        "after_reading_mb": after,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
