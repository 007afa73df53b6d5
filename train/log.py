"""Reading and cleaning a shop's behaviour log: any good row is kept, any bad one is counted and shown.

Files are read by Ibis on DuckDB into a database on disk, so that a log larger than memory can be cleaned.
Only what is left is brought into memory, as columns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from functions.core.events import EVENT_TYPES
from train import vectors as vector_columns
from train.files import LINES, find_files, open_file, take_rejected
from train.mapping import (
    CONTEXT_COLUMNS,
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    Constant,
    Drop,
    Mapping,
    MissingColumn,
    Source,
    UnusableLog,
)

EARLIEST_S = 631_152_000  # 1990-01-01: before any web shop
BOT_EVENTS_PER_HOUR = 1_000
EXAMPLES = 3
MILLISECONDS_FROM = 1e11  # as seconds this is the year 5138, as milliseconds 1973
DAY_S = 86_400
MOST_NAMES = 255  # devices, and slots, that are told apart; the rarest beyond are unknown
NO_NUMBER = ("nan", "null", "none", "na", "n/a", "-")  # what files write for a number that is not there
# Which staged column shows why a row was dropped.
SHOWN = {
    "missing_user": "user_id",
    "missing_item": "item_id",
    "unknown_type": "type_text",
    "impossible_time": "time_text",
    "negative_value": "value_text",
    "value_not_a_number": "value_text",
    "duplicate": "item_id",
    "bot": "user_id",
    "negative_price": "price_text",
    "price_not_a_number": "price_text",
    "duplicate_item": "item_id",
}


@dataclass(frozen=True, slots=True)
class Interactions:
    """The log as columns, oldest first; `item` indexes `item_ids`, the catalogue first, in its order."""

    user: npt.NDArray[np.int32]  # [n]
    item: npt.NDArray[np.int32]  # [n]
    kind: npt.NDArray[np.int8]  # [n] code of the event type, 1..7
    time_s: npt.NDArray[np.int64]  # [n]
    value: npt.NDArray[np.float32]  # [n] nan: none
    user_ids: list[str]
    item_ids: list[str]
    device: npt.NDArray[np.int16] | None = None  # [n] code: place in `devices` + 1, 0 unknown
    slot: npt.NDArray[np.int16] | None = None  # [n] the same in `slots`
    devices: Sequence[str] = ()
    slots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """A clean log. `events` (user_id, item_id, type, time, value; device, slot if the log has any) is sorted
    by time, then by the ties rule; `items` has what has a title first. `vectors`: by column, one a row of
    `items`, [N, width], zeros where there is none.

    `dropped` counts by reason; `examples` has the first three of each, with their row (1 = the first after
    the header, malformed lines not counted) and value.
    """

    events: pa.Table
    items: pa.Table
    dropped: dict[str, int]
    examples: dict[str, list[str]]
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def summary(self) -> str:
        """What was kept and what was not, for a person."""
        users = pc.count_distinct(self.events["user_id"]).as_py()
        lines = [
            f"{self.events.num_rows:,} events of {users:,} users, "
            f"{self.items.num_rows:,} items in the catalogue"
        ]
        titled = self.items.filter(_titled(self.items))["item_id"].combine_chunks()
        sold = pc.unique(self.events["item_id"])
        unnamed = len(pc.filter(sold, pc.invert(pc.is_in(sold, value_set=titled))))
        if len(titled) and unnamed:
            lines.append(
                f"  {unnamed:,} of {len(sold):,} items of the log are not shown: no title in the catalogue"
            )
        return "\n".join(lines + _dropped_lines(self.dropped, self.examples))

    def to_arrays(self) -> Interactions:
        """The columns a trainer reads; items that only the log knows come after the catalogue."""
        users = self.events["user_id"].combine_chunks().dictionary_encode()
        used = pc.unique(self.events["item_id"])
        catalogue = self.items["item_id"].combine_chunks()
        log_only = pc.filter(used, pc.invert(pc.is_in(used, value_set=catalogue)))
        items = pa.concat_arrays([catalogue, log_only])
        item = pc.index_in(self.events["item_id"], value_set=items)
        kind = pc.index_in(self.events["type"], value_set=pa.array(EVENT_TYPES))
        (device, devices), (slot, slots) = (_coded(self.events, name) for name in CONTEXT_COLUMNS)
        return Interactions(
            user=users.indices.to_numpy().astype(np.int32),
            item=item.to_numpy().astype(np.int32),
            kind=(kind.to_numpy() + 1).astype(np.int8),
            time_s=self.events["time"].cast(pa.int64()).to_numpy() // 1_000_000,
            value=self.events["value"].to_numpy().astype(np.float32),
            user_ids=users.dictionary.to_pylist(),
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
) -> Log:
    """Reads and cleans a log; `events` and `items` are a file, a folder of files, or an s3:// address.

    Raises `MissingColumn` for a column that is neither there nor mapped, `UnusableLog` when no row is left.
    """
    mapping = mapping or Mapping()
    with tempfile.TemporaryDirectory() as folder, _database(Path(folder)) as database:
        reader = _Reader(database, mapping, time.time() if now_s is None else now_s, Path(folder))
        kept = reader.events(find_files(events, Path(folder, "events")))
        catalogue = reader.items(find_files(items, Path(folder, "items"))) if items else reader.derived(kept)
        told = [name for name in CONTEXT_COLUMNS if kept[name].notnull().any().execute()]
        table = kept.order_by(_order(kept, mapping.ties)).select(*EVENT_COLUMNS, *told).to_pyarrow()
        staged = _titled_first(catalogue.to_pyarrow())
        found = reader.vectors(staged)
        log = Log(table, staged.select(ITEM_COLUMNS), reader.dropped, reader.examples, found)
    if not table.num_rows:
        raise UnusableLog("\n".join([f"no usable event in {events}", *_dropped_lines(*reader.counts())]))
    return log


def _coded(events: pa.Table, name: str) -> tuple[npt.NDArray[np.int16] | None, list[str]]:
    """Codes [n] of a column's names, the most frequent first from 1 on, and the names; None without it."""
    if name not in events.column_names:
        return None, []
    counts = [(-c["counts"], c["values"]) for c in pc.value_counts(events[name]).to_pylist() if c["values"]]
    names = [value for _, value in sorted(counts)[:MOST_NAMES]]
    codes = pc.fill_null(pc.index_in(events[name], value_set=pa.array(names, pa.string())), -1)
    return codes.to_numpy().astype(np.int16) + np.int16(1), names


def _titled_first(items: pa.Table) -> pa.Table:
    """Only what has a title can be shown; with those in front, what may be proposed is a range of rows."""
    titled = _titled(items)
    return pa.concat_tables([items.filter(titled), items.filter(pc.invert(titled))])


def _titled(items: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.greater(pc.utf8_length(items["title"].cast(pa.string())), 0), False)


def _dropped_lines(dropped: dict[str, int], examples: dict[str, list[str]]) -> list[str]:
    return [
        f"  {reason}: {count:,} (for example {'; '.join(examples.get(reason, []))})"
        for reason, count in sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


class _Reader:
    """One reading of one log: the staging database, and what was dropped so far."""

    def __init__(self, database: Any, mapping: Mapping, now_s: float, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.mapping = mapping
        self.vector_names = vector_columns.DEFAULT if mapping.vectors is None else mapping.vectors
        self.latest_s = now_s + DAY_S
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def counts(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        return self.dropped, self.examples

    def events(self, files: list[Path]) -> Any:
        """The clean events of the files, as a table in the staging database."""
        staged = self._stage("staged_events", files, self._event_rows)
        judged = self._keep("judged_events", staged.mutate(reason=self._event_reason(staged)))
        good = judged.filter(judged.reason.isnull())
        again = ibis.row_number().over(group_by=EVENT_COLUMNS, order_by=good.seq) > 0
        good = self._keep("good_events", good.mutate(reason=ibis.ifelse(again, "duplicate", ibis.null(str))))
        once = good.filter(good.reason.isnull())
        hours = once.group_by(["user_id", once.time.truncate("h").name("hour")]).aggregate(n=once.count())
        bots = hours.filter(hours.n > BOT_EVENTS_PER_HOUR).select("user_id").distinct()
        self._count(judged)
        self._count(good)
        self._count(once.semi_join(bots, "user_id").mutate(reason=ibis.literal("bot")))
        kept = self._keep("events", once.anti_join(bots, "user_id"))
        self._count_not_numbers(kept, "value")
        return kept

    def items(self, files: list[Path]) -> Any:
        """The clean catalogue of the files, in their order."""
        staged = self._stage("staged_items", files, self._item_rows)
        nameless = staged.item_id.isnull()
        again = ibis.row_number().over(group_by=staged.item_id, order_by=staged.seq) > 0
        reason = ibis.cases((nameless, "missing_item"), (again, "duplicate_item"), else_=ibis.null(str))
        judged = self._keep("judged_items", staged.mutate(reason=reason))
        self._count(judged)
        kept = judged.filter(judged.reason.isnull())
        self._count(kept.filter(kept.price < 0).mutate(reason=ibis.literal("negative_price")))
        self._count_not_numbers(kept, "price")
        kept = kept.mutate(price=(kept.price >= 0).ifelse(kept.price, ibis.null(float)))
        vectors = [column for name in self.vector_names for column in (name, f"{name}_text")]
        return kept.order_by("seq").select(*ITEM_COLUMNS, *vectors, "row", "file")

    def vectors(self, items: pa.Table) -> dict[str, npt.NDArray[np.float32]]:
        """The precomputed vectors of the staged catalogue; a product with a bad one is kept without it."""
        names = self.vector_names if "file" in items.column_names else ()  # else from the events alone
        read = {name: vector_columns.read(items, name) for name in names}
        for column in read.values():
            if column.bad:
                self._add(column.reason, len(column.bad), column.bad[:EXAMPLES])
        return {name: column.values for name, column in read.items() if column.values.size}

    def derived(self, kept: Any) -> Any:
        """The catalogue that the events themselves describe: the first that is not null, item by item."""
        if self.mapping.vectors:
            raise UnusableLog(f"vectors = {list(self.mapping.vectors)}; expected a catalogue that has them")
        if not self.mapping.items:
            return kept.select(**{name: _item_null(name).name(name) for name in ITEM_COLUMNS}).limit(0)
        firsts = {
            name: kept[f"item_{name}"].first(order_by=kept.seq) for name in ITEM_COLUMNS if name != "item_id"
        }
        found = kept.group_by("item_id").aggregate(**firsts, seq=kept.seq.min())
        return found.order_by("seq").select(*ITEM_COLUMNS)

    def _event_rows(self, file: Path) -> Any:
        raw = self._read(file)
        sources = {name: self._source(raw, file, name, "events") for name in EVENT_COLUMNS}
        kind = _text(sources["type"])
        renamed = kind.cases(*self.mapping.types.items(), else_=kind) if self.mapping.types else kind
        described = self._described(raw, file) if self.mapping.items else {}
        rule, shown = _dropped_by(raw, file, self.mapping.drops)
        return raw.select(
            user_id=_identifier(sources["user_id"]),
            item_id=_identifier(sources["item_id"]),
            type=renamed.lower(),
            time=_time(sources["time"], self.latest_s),
            value=_number(sources["value"]),
            device=_text(self._source(raw, file, "device", "events")).lower(),
            slot=_text(self._source(raw, file, "slot", "events")),
            type_text=kind,
            time_text=_text(sources["time"]),
            value_text=_text(sources["value"]),
            rule=_broken(raw, file).ifelse("malformed", rule),
            rule_text=shown,
            **described,
            **_place(file),
        )

    def _described(self, raw: Any, file: Path) -> dict[str, Any]:
        columns = self._item_columns(raw, file, optional=False)
        return {f"item_{name}": column for name, column in columns.items() if name != "item_id"}

    def _item_rows(self, file: Path) -> Any:
        raw = self._read(file)
        columns = self._item_columns(raw, file, optional=True)
        columns["item_id"] = _identifier(self._source(raw, file, "item_id", "items"))
        price = _text(self._source(raw, file, "price", "items"))
        for name in self.mapping.vectors or ():
            if name not in raw.columns:
                raise _missing_column(raw, file, name, 'vectors = ["<its name there>"]')
        vectors = vector_columns.staged(raw, self.vector_names)
        return raw.select(**columns, **vectors, price_text=price, **_place(file))

    def _item_columns(self, raw: Any, file: Path, *, optional: bool) -> dict[str, Any]:
        """The items' columns but the id; without `optional` only what the mapping names is looked at."""
        columns = {}
        for name in ITEM_COLUMNS[1:]:
            known = optional or name in self.mapping.items
            source = self._source(raw, file, name, "items") if known else ibis.null(str)
            columns[name] = _number(source) if name == "price" else _text(source)
        return columns

    def _source(self, raw: Any, file: Path, name: str, section: str) -> Any:
        """The file's column for ours. Only ids, type and time must exist, and what the mapping names."""
        mapped: dict[str, Source] = dict(getattr(self.mapping, section))
        source = mapped.get(name, name)
        if isinstance(source, Constant):
            return ibis.literal(source.value)
        if source in raw.columns:
            return raw[source]
        if name in mapped or name in ("user_id", "item_id", "type", "time"):
            raise _missing_column(raw, file, source, f'[{section}] {name} = "<its name there>"')
        return ibis.null(str)

    def _event_reason(self, staged: Any) -> Any:
        return ibis.cases(
            (staged.rule.notnull(), staged.rule),
            (staged.user_id.isnull(), "missing_user"),
            (staged.item_id.isnull(), "missing_item"),
            (staged.type.isnull() | staged.type.notin(EVENT_TYPES), "unknown_type"),
            (staged.time.isnull(), "impossible_time"),
            (staged.value < 0, "negative_value"),
            else_=ibis.null(str),
        )

    def _read(self, file: Path) -> Any:
        """The file as it is; lines that cannot be parsed are left out and counted."""
        table, left_out = open_file(self.database, file, self.folder)
        self._add_malformed(left_out)
        return table

    def _stage(self, name: str, files: list[Path], rows: Callable[[Path], Any]) -> Any:
        """Writes the files' rows one after the other, numbered; a line of nothing is malformed."""
        for number, file in enumerate(files):
            part = rows(file).mutate(row=ibis.row_number() + 1)
            part = part.mutate(seq=part.row + number * 10**12)
            if number == 0:
                self.database.create_table(name, part)
            else:
                self.database.insert(name, part)
            self._add_malformed(take_rejected(self.database))
        return self.database.table(name)

    def _add_malformed(self, lines: list[str]) -> None:
        if lines:
            self._add("malformed", len(lines), lines)

    def _keep(self, name: str, table: Any) -> Any:
        return self.database.create_table(name, table)

    def _count(self, judged: Any) -> None:
        """Adds the rows that have a reason to the counts, and the first three of each to the examples."""
        bad = judged.filter(judged.reason.notnull())
        for count in bad.group_by("reason").aggregate(n=bad.count()).to_pyarrow().to_pylist():
            self._add(count["reason"], count["n"], [])
        rank = ibis.row_number().over(group_by=bad.reason, order_by=bad.seq)
        first = bad.mutate(rank=rank).filter(ibis._.rank < EXAMPLES).order_by("seq")
        for row in first.to_pyarrow().to_pylist():
            shown = row[SHOWN.get(row["reason"], "rule_text")]
            self._add(row["reason"], 0, [f"row {row['row']}: {shown!r} ({row['file']})"])

    def _count_not_numbers(self, kept: Any, name: str) -> None:
        """Rows that are kept without a number that they have and that is none."""
        text = kept[f"{name}_text"]
        wrong = kept.filter(kept[name].isnull() & text.notnull() & text.lower().notin(NO_NUMBER))
        self._count(wrong.mutate(reason=ibis.literal(f"{name}_not_a_number")))

    def _add(self, reason: str, count: int, examples: list[str]) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.examples[reason] = (self.examples.get(reason, []) + examples)[:EXAMPLES]


@contextmanager
def _database(folder: Path) -> Iterator[Any]:
    database = ibis.duckdb.connect(folder / "staging.duckdb", temp_directory=str(folder / "spill"))
    database.raw_sql("SET TimeZone = 'UTC'")
    try:
        yield database
    finally:
        database.disconnect()


def _missing_column(raw: Any, file: Path, name: str, remedy: str) -> MissingColumn:
    return MissingColumn(
        f"no column {name!r}; found {', '.join(raw.columns)}; map it with {remedy} in a mapping file ({file})"
    )


def _place(file: Path) -> dict[str, Any]:
    return {"file": ibis.literal(file.name)}


def _text(column: Any) -> Any:
    """Trimmed text, null when empty; lists are joined by commas."""
    if column.type().is_json():  # what JSON files write now as a number, now as a string
        column = ibis.coalesce(column.str, column.cast("string").nullif("null"))
    if column.type().is_array():
        return column.cast("array<string>").join(",").nullif("")
    return column.cast("string").strip().nullif("")


def _identifier(column: Any) -> Any:
    """An id as text; whole numbers lose the ".0" that a column with gaps gets from data frames."""
    return _text(column).re_replace(r"^(-?\d+)\.0$", r"\1")


def _number(column: Any) -> Any:
    number = _text(column).try_cast("float64")
    return (number.isnan() | number.isinf()).ifelse(ibis.null(float), number)


def _time(column: Any, latest_s: float) -> Any:
    """Timestamps, ISO text, epoch seconds or milliseconds, as UTC; null when impossible."""
    text = _text(column)
    number = text.try_cast("float64")
    seconds = (number.abs() >= MILLISECONDS_FROM).ifelse(number / 1000, number)
    possible = seconds.between(EARLIEST_S, latest_s).ifelse(seconds, ibis.null(float))
    epoch = (possible * 1000).round().cast("int64").as_timestamp("ms").cast("timestamp(6)")
    stamp = text.try_cast("timestamp('UTC')").cast("timestamp(6)")
    bounds = [datetime.fromtimestamp(bound, UTC).replace(tzinfo=None) for bound in (EARLIEST_S, latest_s)]
    possible_stamp = stamp.between(*bounds).ifelse(stamp, ibis.null("timestamp(6)"))
    return ibis.coalesce(epoch, possible_stamp)


def _dropped_by(raw: Any, file: Path, drops: tuple[Drop, ...]) -> tuple[Any, Any]:
    """The reason of the first rule that a row meets, and the value that met it."""
    for drop in drops:
        if drop.column not in raw.columns:
            raise _missing_column(raw, file, drop.column, "the column of its [[drop]] rule")
    if not drops:
        return ibis.null(str), ibis.null(str)
    hits = [(_meets(_text(raw[drop.column]), drop), drop) for drop in drops]
    reason = ibis.cases(*[(hit, drop.reason) for hit, drop in hits], else_=ibis.null(str))
    shown = ibis.cases(*[(hit, _text(raw[drop.column])) for hit, drop in hits], else_=ibis.null(str))
    return reason, shown


def _meets(text: Any, drop: Drop) -> Any:
    if drop.test == "starts_with":
        return text.startswith(drop.operand)
    if drop.test == "less_than":
        return text.try_cast("float64") < drop.operand
    return text == drop.operand


def _broken(raw: Any, file: Path) -> Any:
    """DuckDB reads a line that is no JSON as a row of nulls."""
    if file.suffix not in LINES:
        return ibis.literal(False)
    return ibis.and_(*[raw[name].isnull() for name in raw.columns])


def _item_null(name: str) -> Any:
    return ibis.null(float if name == "price" else str)


def _order(events: Any, ties: str) -> list[Any]:
    if ties == "log":
        return [events.time, events.seq]
    return [events.time, (events.user_id + "\t" + events.item_id).hexdigest("md5"), events.seq]
