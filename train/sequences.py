"""A research benchmark's sequence file as a log of ours: `python -m train.sequences SOURCE OUT`.

The files that papers on sequential recommendation share have one `user item` pair a line, a user's oldest
first, and no times. Each user's events are put an hour apart, so that all gaps are alike.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

HOUR_S = 3600
FIRST_S = 946_684_800  # 2000-01-01
OPENERS: dict[str, Callable[..., Any]] = {".txt": open, ".txt.xz": lzma.open, ".txt.gz": gzip.open}


def is_sequences(source: str | Path) -> bool:
    """Whether it is named as such files are: a log of ours never is."""
    return str(source).endswith(tuple(OPENERS))


def write_sequences(source: Path, target: Path) -> Path:
    """Write `source` (text, or text under xz or gzip) as a Parquet log; returns `target`.

    Raises ValueError where a line is no pair of ids.
    """
    opener = next((opener for ending, opener in OPENERS.items() if source.name.endswith(ending)), open)
    with opener(source, "rb") as lines:
        try:
            pairs = pyarrow.csv.read_csv(
                lines,
                pyarrow.csv.ReadOptions(column_names=["user_id", "item_id"]),
                pyarrow.csv.ParseOptions(delimiter=" "),
                pyarrow.csv.ConvertOptions(column_types={"user_id": pa.string(), "item_id": pa.string()}),
            )
        except (pa.ArrowInvalid, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{source}: {error}; expected `user item`, one pair a line") from error
    user = pairs["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    time_s = pa.array(FIRST_S + HOUR_S * _place_in_history(user))
    kind = pa.array(["rating"] * len(user))
    target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pairs.append_column("type", kind).append_column("time", time_s), target)
    return target


def _place_in_history(user: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many events of the same user come before each."""
    order = np.argsort(user, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(user))][user[order]]
    place = np.empty(len(user), np.int64)
    place[order] = np.arange(len(user)) - starts
    return place


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m train.sequences", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    print(write_sequences(arguments.source, arguments.target))
    sys.exit(0)
