"""A shop's log as it would be had a tenth of its products come on sale when the test begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from train.log import Interactions, read_log
from train.mapping import load_mapping
from train.split import split, start_of_test, take

SHARE = 0.1


def write_held_out(source: Path, mapping: Path, folder: Path) -> tuple[Path, Path]:
    """`events.parquet` and `items.parquet` in `folder`: the clean log of `source`, some of it left out."""
    log = read_log(source, mapping=load_mapping(mapping))
    events, items = folder / "events.parquet", folder / "items.parquet"
    pq.write_table(log.events.filter(pa.array(without_past(log.to_arrays()))), events)
    pq.write_table(log.items, items)
    return events, items


def without_past(log: Interactions, share: float = SHARE) -> NDArray[np.bool_]:
    """Which events [n] are left where `share` of the items, drawn by chance, have none before the test.

    What is left out moves the beginning of the test, so it is looked for until it stays where it is.
    """
    items = len(log.item_ids)
    drawn = np.zeros(items, np.bool_)
    drawn[np.random.default_rng(0).permutation(items)[: round(share * items)]] = True
    kept = np.ones(len(log.item), np.bool_)
    while True:
        start_s = start_of_test(split(take(log, kept), "time").train)
        left: NDArray[np.bool_] = ~(drawn[log.item] & (log.time_s < start_s))
        if (left == kept).all():
            return left
        kept = left
