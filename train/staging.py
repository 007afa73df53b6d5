"""One file of a log or catalogue → rows of ours with what they looked like, as one Parquet file.

DuckDB reads files, whichever engine runs what follows: no two engines read a text as a time or a number
alike. On Spark each executor reads whole files with the DuckDB in its own process.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ibis

from train import vectors as vector_columns
from train.engines import duckdb_connection
from train.files import LINES, fetch, open_file, quoted_lines, take_rejected, write_parquet
from train.mapping import (
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    Constant,
    Drop,
    LogError,
    Mapping,
    MissingColumn,
    Source,
)

EARLIEST_S = 631_152_000  # 1990-01-01: before any web shop
EPOCH_UNITS = (
    (1e17, 1e9),
    (1e14, 1e6),
    (1e11, 1e3),
)  # from, in a second: 1e11 s are in the year 5138, ms in 1973
FILE_ROWS = 10**12  # more rows than a file has
EXAMPLES = 3  # shown of what is dropped for one reason


@dataclass(frozen=True, slots=True)
class Staged:
    """What became of a file: how many lines are no rows, the first of them as they are shown, or the error
    that it is."""

    malformed: int = 0
    examples: tuple[str, ...] = ()
    error: LogError | None = None


@dataclass(frozen=True, slots=True)
class Staging:
    """How files become rows: of `section` "events" or "items", times up to `latest_s` possible."""

    section: str
    mapping: Mapping
    latest_s: float
    target: Path

    def __call__(self, file: tuple[int, str]) -> Staged:
        """Write the rows of the file with this number and address into `target`; errors are returned, for
        they may have to travel."""
        number, address = file
        try:
            return self._write(number, address)
        except LogError as error:
            return Staged(error=error)

    def _write(self, number: int, address: str) -> Staged:
        with tempfile.TemporaryDirectory() as scratch:
            database = duckdb_connection(Path(scratch))
            try:
                file = fetch(address, Path(scratch))
                raw, left_out = open_file(database, file, Path(scratch))
                rows = self._event_rows(raw, file) if self.section == "events" else self._item_rows(raw, file)
                rows = rows.mutate(file=ibis.literal(file.name), row=ibis.row_number() + 1)
                rows = rows.mutate(seq=rows.row + number * FILE_ROWS)
                target = self.target / f"{number}.parquet"
                write_parquet(rows, file, target)
                left_out += take_rejected(database)
                broken = database.read_parquet(target).filter(ibis._.broken)
                firsts = broken.order_by("row").limit(EXAMPLES).row.execute().tolist()
                examples = [*left_out[:EXAMPLES], *quoted_lines(file, firsts)]
                return Staged(len(left_out) + broken.count().execute(), tuple(examples))
            finally:
                database.disconnect()

    def _event_rows(self, raw: Any, file: Path) -> Any:
        sources = {name: self._source(raw, file, name) for name in EVENT_COLUMNS}
        kind = _text(sources["type"])
        renamed = kind.cases(*self.mapping.types.items(), else_=kind) if self.mapping.types else kind
        rule, shown = _dropped_by(raw, file, self.mapping.drops)
        return raw.select(
            user_id=_identifier(sources["user_id"]),
            item_id=_identifier(sources["item_id"]),
            type=renamed.lower(),
            time=_time_us(sources["time"], self.latest_s),
            value=_number(sources["value"]),
            device=_text(self._source(raw, file, "device")).lower(),
            slot=_text(self._source(raw, file, "slot")),
            type_text=kind,
            time_text=_text(sources["time"]),
            value_text=_text(sources["value"]),
            rule=rule,
            rule_text=shown,
            broken=_broken(raw, file),
            **self._described(raw, file),
        )

    def _described(self, raw: Any, file: Path) -> dict[str, Any]:
        """What an event says of its item, as far as the mapping names it."""
        if not self.mapping.items:
            return {}
        columns = self._item_columns(raw, file, optional=False)
        return {f"item_{name}": column for name, column in columns.items()}

    def _item_rows(self, raw: Any, file: Path) -> Any:
        for name in self.mapping.vectors or ():
            if name not in raw.columns:
                raise _missing_column(raw, file, name, 'vectors = ["<its name there>"]')
        return raw.select(
            item_id=_identifier(self._source(raw, file, "item_id")),
            price_text=_text(self._source(raw, file, "price")),
            broken=_broken(raw, file),
            **self._item_columns(raw, file, optional=True),
            **vector_columns.staged(raw, vector_columns.names(self.mapping.vectors)),
        )

    def _item_columns(self, raw: Any, file: Path, *, optional: bool) -> dict[str, Any]:
        """The items' columns but the id; without `optional` only what the mapping names is looked at."""
        columns = {}
        for name in ITEM_COLUMNS[1:]:
            known = optional or name in self.mapping.items
            source = self._source(raw, file, name, "items") if known else ibis.null(str)
            columns[name] = _number(source) if name == "price" else _text(source)
        return columns

    def _source(self, raw: Any, file: Path, name: str, section: str = "") -> Any:
        """The file's column for ours. Only ids, type and time must exist, and what the mapping names."""
        section = section or self.section
        mapped: dict[str, Source] = dict(getattr(self.mapping, section))
        source = mapped.get(name, name)
        if isinstance(source, Constant):
            return ibis.literal(source.value)
        if source in raw.columns:
            return raw[source]
        if name in mapped or name in ("user_id", "item_id", "type", "time"):
            alike = ' or {constant = "view"}, were all of one type,' * (name == "type")
            raise _missing_column(raw, file, source, f'[{section}] {name} = "<its name there>"{alike}')
        return ibis.null(str)


def _missing_column(raw: Any, file: Path, name: str, remedy: str) -> MissingColumn:
    return MissingColumn(
        f"no column {name!r}; found {', '.join(raw.columns)}; map it with {remedy} in a mapping file ({file})"
    )


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


def _time_us(column: Any, latest_s: float) -> Any:
    """Timestamps, ISO text, or seconds since 1970, or a thousandth, millionth, billionth of one, as
    microseconds UTC; null when impossible."""
    text = _text(column)
    number = text.try_cast("float64")
    seconds = ibis.cases(
        *[(number.abs() >= least, number / unit) for least, unit in EPOCH_UNITS], else_=number
    )
    possible = seconds.between(EARLIEST_S, latest_s).ifelse(seconds, ibis.null(float))
    epoch = (possible * 1000).round().cast("int64") * 1000
    stamp = text.try_cast("timestamp('UTC')").cast("timestamp(6)")
    bounds = [datetime.fromtimestamp(bound, UTC).replace(tzinfo=None) for bound in (EARLIEST_S, latest_s)]
    possible_stamp = stamp.between(*bounds).ifelse(stamp, ibis.null("timestamp(6)"))
    return ibis.coalesce(epoch, epoch_us(possible_stamp))


@ibis.udf.scalar.builtin(signature=(("timestamp(6)",), "int64"))  # type: ignore[untyped-decorator]
def epoch_us(moment: Any) -> Any:
    """DuckDB's own: microseconds since 1970."""


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
