"""A shop's behaviour log, read and cleaned: any good row is kept, any bad one is counted and shown.

Files are staged one by one (`train/staging.py`), judged on an engine that need not hold them in memory
(`train/cleaning.py`, `train/engines.py`), and only what is left is brought into memory, as columns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from functions.core.events import KINDS, MAX_VALUE
from train.archive import is_archive, read_archive, write_archived
from train.cleaning import EXPECTED, Cleaning
from train.engines import ENGINES
from train.files import find_files
from train.mapping import CONTEXT_COLUMNS, ITEM_COLUMNS, Mapping, UnusableLog

CODES = ("user_id", "item_id", "type", *CONTEXT_COLUMNS)  # columns held as a dictionary
MOST_NAMES = 255  # devices, and slots, that are told apart; the rarest beyond are unknown


@dataclass(frozen=True, slots=True)
class Interactions:
    """The log as columns, oldest first; `item` indexes `item_ids`, the catalogue first, in its order."""

    user: npt.NDArray[np.int32]  # [n]
    item: npt.NDArray[np.int32]  # [n]
    kind: npt.NDArray[np.int8]  # [n] code of the event type, 1..7
    time_s: npt.NDArray[np.int64]  # [n]
    value: npt.NDArray[np.float32]  # [n] up to MAX_VALUE, nan: none
    user_ids: list[str]
    item_ids: list[str]
    device: npt.NDArray[np.int16] | None = None  # [n] code: place in `devices` + 1, 0 unknown
    slot: npt.NDArray[np.int16] | None = None  # [n] the same in `slots`
    devices: Sequence[str] = ()
    slots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """A clean log. `events` (user_id, item_id, type, time, value; device, slot if the log has any) is sorted
    by time, then by the ties rule; its texts are dictionaries. `items` has what has a title first. `vectors`:
    by column, one a row of `items`, [N, width], zeros where there is none.

    `dropped` counts by reason; `examples` has the first three of each, with their row (1 = the first after
    the header, malformed lines of a CSV not counted) and value; malformed lines have their own number.
    """

    events: pa.Table
    items: pa.Table
    dropped: dict[str, int]
    examples: dict[str, list[str]]
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def summary(self) -> str:
        """What was kept and what was not, for a person."""
        users, sold = (self.events[name].combine_chunks().dictionary for name in ("user_id", "item_id"))
        lines = [
            f"{self.events.num_rows:,} events of {len(users):,} users, "
            f"{self.items.num_rows:,} items in the catalogue"
        ]
        titled = self.items.filter(_titled(self.items))["item_id"].combine_chunks()
        unnamed = len(pc.filter(sold, pc.invert(pc.is_in(sold, value_set=titled))))
        if len(titled) and unnamed:
            lines.append(
                f"  {unnamed:,} of {len(sold):,} items of the log are not shown: no title in the catalogue"
            )
        return "\n".join(lines + _dropped_lines(self.dropped, self.examples))

    def to_arrays(self) -> Interactions:
        """The columns a trainer reads; items that only the log knows come after the catalogue."""
        user, user_ids = _by_appearance(self.events["user_id"])
        place, sold = _by_appearance(self.events["item_id"])
        kind, names = _by_appearance(self.events["type"])
        catalogue = self.items["item_id"].combine_chunks()
        items = pa.concat_arrays([catalogue, pc.filter(sold, pc.invert(pc.is_in(sold, value_set=catalogue)))])
        rows = pc.index_in(sold, value_set=items).to_numpy()  # [items of the log]
        (device, devices), (slot, slots) = (_coded(self.events, name) for name in CONTEXT_COLUMNS)
        kinds = np.array([KINDS[name] for name in names.to_pylist()], np.int8)
        return Interactions(
            user=user,
            item=rows.astype(np.int32)[place],
            kind=kinds[kind],
            time_s=self.events["time"].cast(pa.int64()).to_numpy() // 1_000_000,
            value=self.events["value"].to_numpy().clip(max=MAX_VALUE).astype(np.float32),
            user_ids=user_ids.to_pylist(),
            item_ids=items.to_pylist(),
            device=device,
            slot=slot,
            devices=devices,
            slots=slots,
        )


def read_log(
    events: str | Path,
    items: str | Path | None = None,
    mapping: Mapping | None = None,
    *,
    now_s: float | None = None,
    engine: str = "duckdb",
) -> Log:
    """Reads and cleans a log; `events` and `items` are a file, a folder of files, or an s3:// address.

    `events` may be a folder of the functions' archive with its keys (`train.archive`).

    `engine`: "duckdb", or "spark" for a log that outgrows a machine; they give the same log. Raises
    `MissingColumn` for a column that is neither there nor mapped, `UnusableLog` when no row is left,
    `MissingEngine` where the engine is not installed.
    """
    mapping, now_s = mapping or Mapping(), time.time() if now_s is None else now_s
    with tempfile.TemporaryDirectory() as folder, ENGINES[engine](Path(folder)) as running:
        sources = find_files(_opened(events, Path(folder))), find_files(items) if items else None
        cleaning = Cleaning(running, mapping, now_s)
        kept = cleaning.events(sources[0])
        catalogue = cleaning.items(sources[1]) if sources[1] else cleaning.derived(kept)
        table = running.rows(cleaning.in_order(kept), codes=CODES)
        products = _titled_first(running.rows(catalogue))
    vectors = cleaning.vectors(products)
    if not table.num_rows:
        lost = _dropped_lines(cleaning.dropped, cleaning.examples) or ["  there is no row at all"]
        raise UnusableLog("\n".join([f"no usable event in {events}", *lost]))
    table = table.set_column(3, "time", table["time"].cast(pa.timestamp("us")))
    silent = [name for name in CONTEXT_COLUMNS if table[name].null_count == table.num_rows]
    products = products.select(ITEM_COLUMNS)
    return Log(table.drop_columns(silent), products, cleaning.dropped, cleaning.examples, vectors)


def _opened(events: str | Path, scratch: Path) -> str | Path:
    """The log, an archive's records in a file of their own."""
    if not is_archive(events):
        return events
    path = scratch / "archive.jsonl"
    write_archived(read_archive(Path(events))[0], path)
    return path


def read_catalogue(
    items: str | Path, mapping: Mapping | None = None
) -> tuple[pa.Table, dict[str, npt.NDArray[np.float32]], list[str]]:
    """A catalogue alone, as `read_log` reads it; raises UnusableLog.

    Its products, what has a title first, their vectors by column [N, width], and what was dropped, in lines.
    """
    with tempfile.TemporaryDirectory() as folder, ENGINES["duckdb"](Path(folder)) as running:
        cleaning = Cleaning(running, mapping or Mapping(), time.time())
        products = _titled_first(running.rows(cleaning.items(find_files(items))))
    vectors = cleaning.vectors(products)
    return products.select(ITEM_COLUMNS), vectors, _dropped_lines(cleaning.dropped, cleaning.examples)


def onto(
    log: Interactions, item_ids: Sequence[str], devices: Sequence[str] = (), slots: Sequence[str] = ()
) -> Interactions:
    """The log in the rows of a checkpoint's items, and the codes of its devices and slots.

    Items that the checkpoint lacks come after its own; devices and slots that it lacks are unknown.
    """
    known = {item_id: row for row, item_id in enumerate(item_ids)}
    rows = [known.setdefault(item_id, len(known)) for item_id in log.item_ids]
    return replace(
        log,
        item=np.array(rows, np.int32)[log.item],
        item_ids=list(known),
        device=_recoded(log.device, log.devices, devices),
        slot=_recoded(log.slot, log.slots, slots),
        devices=devices,
        slots=slots,
    )


def _recoded(
    column: npt.NDArray[np.int16] | None, names: Sequence[str], known: Sequence[str]
) -> npt.NDArray[np.int16] | None:
    """A column of codes of `names` in codes of `known`."""
    if column is None:
        return None
    code = {name: at for at, name in enumerate(known, 1)}
    return np.array([0, *(code.get(name, 0) for name in names)], np.int16)[column]


def _by_appearance(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Codes [n] of a dictionary column, and its values, those first that appear first."""
    whole = column.combine_chunks()
    codes, n = whole.indices.to_numpy(), len(column)
    first = np.full(len(whole.dictionary), n)
    first[codes[::-1]] = np.arange(n)[::-1]  # of those written to one place the last one stays
    order = np.argsort(first)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return rank[codes], whole.dictionary.take(pa.array(order))


def _coded(events: pa.Table, name: str) -> tuple[npt.NDArray[np.int16] | None, list[str]]:
    """Codes [n] of a column's names, the most frequent first from 1 on, and the names; None without it."""
    if name not in events.column_names:
        return None, []
    column = events[name].combine_chunks()
    known, place = column.dictionary.to_pylist(), pc.fill_null(column.indices, -1).to_numpy()
    counts = np.bincount(place[place >= 0], minlength=len(known)).tolist()
    order = sorted((at for at, n in enumerate(counts) if n), key=lambda at: (-counts[at], known[at]))
    code = np.zeros(len(known) + 1, np.int16)  # the last one stands for null
    code[order[:MOST_NAMES]] = np.arange(1, min(len(order), MOST_NAMES) + 1)
    return code[place], [known[at] for at in order[:MOST_NAMES]]


def _titled_first(items: pa.Table) -> pa.Table:
    """Only what has a title can be shown; with those in front, what may be proposed is a range of rows."""
    titled = _titled(items)
    return pa.concat_tables([items.filter(titled), items.filter(pc.invert(titled))])


def _titled(items: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.greater(pc.utf8_length(items["title"].cast(pa.string())), 0), False)


def _dropped_lines(dropped: dict[str, int], examples: dict[str, list[str]]) -> list[str]:
    return [
        f"  {reason}: {count:,} (for example {'; '.join(examples.get(reason, []))})"
        + (f"; expected {EXPECTED[reason]}" if reason in EXPECTED else "")
        for reason, count in sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
