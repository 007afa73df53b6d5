"""Finding and opening a log's files: CSV, JSON Lines, JSON or Parquet, in a file, a folder or a bucket.

What is opened is a table of an Ibis DuckDB connection, read when it is used; a line that is no row is left
out and remembered, never the good ones beside it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from train.mapping import EVENT_COLUMNS, UnusableLog

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
FORMATS = (*TABLES, *LINES, ".json", ".parquet")
UNCLOSED = 100  # lines with a quote that nothing closes, beyond which a file is refused
CHUNK = 2**20
LONGEST_SHOWN = 200  # characters of a value or line in a message
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
REJECTED = (
    "SELECT any_value(s.file_path), e.line, any_value(e.csv_line), min(e.line_byte_position) "
    "FROM reject_errors e JOIN reject_scans s USING (scan_id, file_id) "
    "GROUP BY e.scan_id, e.file_id, e.line ORDER BY 1, 2"
)


def find_files(source: str | Path) -> list[str]:
    """The supported files of a file, a folder or an s3:// address, by name; raises UnusableLog for none."""
    path = Path(source)
    if str(source).startswith("s3://"):
        found = _objects(str(source))
    elif path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if file.suffix in FORMATS and file.is_file())
    else:
        found = [str(path)] if path.is_file() and path.suffix in FORMATS else []
    if not found:
        raise UnusableLog(f"no log at {source}; expected a file or a folder of {', '.join(FORMATS)}")
    return found


def fetch(address: str, scratch: Path) -> Path:
    """The file at an address, copied into `scratch` if it is in a bucket."""
    if not address.startswith("s3://"):
        return Path(address)
    bucket, _, key = address.removeprefix("s3://").partition("/")
    target = scratch / key.replace("/", "_")
    _s3().download_file(bucket, key, str(target))
    return target


def write_parquet(rows: Any, file: Path, target: Path) -> None:
    """The rows made of an opened file, in its order, as a Parquet file; raises UnusableLog."""
    try:
        rows.to_parquet(target)
    except duckdb.Error as error:  # what is found only when all of it is read
        raise _unreadable(file, error) from error


def open_file(database: Any, file: Path, scratch: Path) -> tuple[Any, list[str]]:
    """The file as a table, its columns named as the file names them, and what had to be left out to read it.

    `scratch`: a folder for the copy of a file that cannot be read as it is. Raises UnusableLog.
    """
    with file.open("rb") as data:
        start = data.read(2)
    if not start:
        header = (
            f"; expected a header line such as {','.join(EVENT_COLUMNS)}" if file.suffix in TABLES else ""
        )
        raise UnusableLog(f"{file} is empty{header}")
    if start in UTF_16:
        raise UnusableLog(f"{file} is UTF-16; expected UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        if file.suffix == ".parquet":
            return database.read_parquet(str(file)), []
        if file.suffix in TABLES:
            return _open_csv(database, file, scratch)
        if file.suffix in LINES:
            return _open_lines(database, file), []
        return database.read_json(str(file), format="auto", records="true", sample_size=-1), []
    except duckdb.Error as error:
        raise _unreadable(file, error) from error


def take_rejected(database: Any) -> list[str]:
    """The lines of the CSV scans so far that could not be split into columns; they are told once."""
    return [f"line {line}: {shown(text)} ({Path(path).name})" for path, line, text, _ in _rejected(database)]


def quoted_lines(file: Path, rows: Sequence[int]) -> list[str]:
    """Rows of JSON Lines, in order from 1 on, as their lines stand in the file; a blank line is no row."""
    told: list[str] = []
    row = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            row += bool(line.strip())
            if len(told) == len(rows):
                break
            if row == rows[len(told)]:
                text = line.decode("utf-8", "backslashreplace").strip()
                told.append(f"line {number}: {shown(text)} ({file.name})")
    return told


def shown(value: str | None) -> str:
    """A value as a message quotes it: whole, unless it is long."""
    if value is None or len(value) <= LONGEST_SHOWN:
        return repr(value)
    return f"{value[:LONGEST_SHOWN]!r}… ({len(value):,} characters)"


def _rejected(database: Any) -> list[tuple[str, int, str, int]]:
    """Path, line, text and first byte: DuckDB keeps what it rejects in a table of its own."""
    if "reject_errors" not in database.raw_sql("SHOW ALL TABLES").df()["name"].tolist():
        return []
    rows: list[tuple[str, int, str, int]] = database.raw_sql(REJECTED).fetchall()
    database.raw_sql("DELETE FROM reject_errors")
    return rows


def _s3() -> Any:
    import boto3  # not needed by who reads local files; honours AWS_ENDPOINT_URL

    return boto3.client("s3")


def _objects(address: str) -> list[str]:
    """The addresses of the supported files at or under an s3:// address, by name."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = (entry["Key"] for page in pages for entry in page.get("Contents", []))
    inside = (key for key in keys if key == prefix or key.startswith(f"{prefix.rstrip('/')}/".lstrip("/")))
    return sorted(f"s3://{bucket}/{key}" for key in inside if Path(key).suffix in FORMATS)


def _unreadable(file: Path, error: Exception) -> UnusableLog:
    reason = str(error).strip().splitlines()[0]
    return UnusableLog(f"{file} is no readable {file.suffix[1:]} file: {reason}")


def _open_csv(database: Any, file: Path, scratch: Path) -> tuple[Any, list[str]]:
    """A CSV as text columns, named by its header; guessing types or dialect would let ragged lines decide."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = lines.readline().rstrip("\r\n")
    delimiter = max(",;\t|", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if not names:
        raise UnusableLog(f"{file} has no header; expected a line such as {','.join(EVENT_COLUMNS)}")
    if not _has_quotes(file):
        return _scan(database, file, names, delimiter), []
    return _without_unclosed(database, file, names, delimiter, scratch)


def _scan(database: Any, file: Path, names: list[str], delimiter: str) -> Any:
    return database.read_csv(
        str(file),
        columns={name: "VARCHAR" for name in _distinct(names)},
        auto_detect=False,
        header=True,
        delim=delimiter,
        quote='"',
        escape='"',
        ignore_errors=True,
        store_rejects=True,
        rejects_limit=0,
    )


def _without_unclosed(
    database: Any, file: Path, names: list[str], delimiter: str, scratch: Path
) -> tuple[Any, list[str]]:
    """Leaves out the lines whose quote nothing closes: each takes all that follow it for one value."""
    left_out: list[str] = []
    source, before = file, _rejected(database)
    assert not before, before  # staging takes what it rejected before the next file is opened
    while True:
        table = _scan(database, source, names, delimiter)
        table.count().execute()
        swallowing = [row for row in _rejected(database) if "\n" in row[2].strip("\r\n")]
        if not swallowing:
            return table, left_out
        if len(left_out) == UNCLOSED:
            raise UnusableLog(f"{file}: more than {UNCLOSED} lines with an unclosed quote; {left_out[-1]}")
        _, line, text, start = swallowing[0]
        left_out.append(f"line {line + len(left_out)}: {shown(text.strip().splitlines()[0])} ({file.name})")
        shorter = scratch / f"{len(left_out) % 2}" / file.name
        shorter.parent.mkdir(exist_ok=True)
        _copy_without_line(source, shorter, start)
        source = shorter


def _copy_without_line(source: Path, target: Path, start: int) -> None:
    """Copies a file but for the line that begins at byte `start`."""
    with source.open("rb") as read, target.open("wb") as write:
        while (left := start - read.tell()) > 0:
            write.write(read.read(min(CHUNK, left)))
        if (skipped := read.readline()) == b"\n":  # the end of the line before, where a line ends with \r\n
            write.write(skipped)
            read.readline()
        while chunk := read.read(CHUNK):
            write.write(chunk)


def _has_quotes(file: Path) -> bool:
    with file.open("rb") as data:
        return any(b'"' in chunk for chunk in iter(lambda: data.read(CHUNK), b""))


def _distinct(names: list[str]) -> list[str]:
    """The header's names, trimmed; a second `x` gets its place for a suffix, an unnamed column `column3`."""
    named = [name.strip() or f"column{index}" for index, name in enumerate(names)]
    return [f"{name}_{index}" if name in named[:index] else name for index, name in enumerate(named)]


def _open_lines(database: Any, file: Path) -> Any:
    """JSON Lines; a line that is no JSON, or no object, is a row of nulls."""
    try:
        return database.read_json(
            str(file), format="newline_delimited", records="true", ignore_errors=True, sample_size=-1
        )
    except duckdb.BinderException:  # some line is JSON, but no object
        return _open_objects(database, file)


def _open_objects(database: Any, file: Path) -> Any:
    path = str(file).replace("'", "''")
    lines = (
        f"read_json('{path}', format='newline_delimited', records='false', ignore_errors=true, "
        "columns={json: 'JSON'})"
    )
    query = f"SELECT DISTINCT unnest(json_keys(json)) AS key FROM {lines} WHERE json_type(json) = 'OBJECT'"
    keys = sorted(key for (key,) in database.raw_sql(query).fetchall())
    if not keys:
        raise UnusableLog(f"{file}: no line is a JSON object; expected one an event or product")
    columns = ", ".join(f"json->{_quoted(_pointer(key), chr(39))} AS {_quoted(key, chr(34))}" for key in keys)
    name = f"objects_{os.urandom(4).hex()}"
    database.raw_sql(f"CREATE TEMP VIEW {name} AS SELECT {columns} FROM {lines}")
    return database.table(name)


def _pointer(key: str) -> str:
    """A key as an RFC 6901 pointer."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, mark * 2) + mark
