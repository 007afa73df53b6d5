"""Where a log's expressions run: embedded (DuckDB) or distributed (Spark), the same Ibis expressions on both.

Between one expression and the next the rows lie in a folder as Parquet, so neither engine holds a log in
memory. On a cluster that folder (TMPDIR) must be one that every node sees.
"""

from __future__ import annotations

import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ibis
import pyarrow as pa
import pyarrow.parquet

from train.mapping import LogError

MEMORY = "1GB"  # DuckDB's; what needs more is spilled to disk

T = TypeVar("T")
R = TypeVar("R")


class MissingEngine(LogError):
    """The engine that was asked for is not installed."""


class Engine(ABC):
    """A connection of Ibis, and how work over files, intermediate and final rows are carried on it."""

    def __init__(self, connection: Any, folder: Path) -> None:
        self.connection = connection
        self.folder = folder

    @abstractmethod
    def each(self, work: Callable[[T], R], of: Sequence[T]) -> list[R]:
        """`work` done to each, results in order."""

    @abstractmethod
    def write(self, table: Any, target: Path) -> None:
        """The rows of an expression as Parquet files in the folder `target`, named in the rows' order."""

    def read(self, folder: Path) -> Any:
        """The Parquet files of a folder as a table; their order means nothing."""
        return self.connection.read_parquet(str(folder / "*.parquet"))

    def keep(self, name: str, table: Any) -> Any:
        """The rows of an expression that is used more than once, computed now."""
        self.write(table, self.folder / name)
        return self.read(self.folder / name)

    def rows(self, table: Any, codes: Sequence[str] = ()) -> pa.Table:
        """The rows of an expression, in its order, in memory; `codes`: texts to hold as a dictionary."""
        target = self.folder / "rows"
        self.write(table, target)
        files = sorted(target.glob("*.parquet"))
        parts = [
            pyarrow.parquet.read_table(file, read_dictionary=list(codes), partitioning=None) for file in files
        ]
        shutil.rmtree(target)
        return pa.concat_tables(parts).unify_dictionaries()


class DuckDB(Engine):
    """In this process; what does not fit MEMORY goes to disk."""

    def each(self, work: Callable[[T], R], of: Sequence[T]) -> list[R]:
        return [work(one) for one in of]

    def write(self, table: Any, target: Path) -> None:
        target.mkdir()
        table.to_parquet(target / "all.parquet")


class Spark(Engine):
    """On the session that there is (`spark-submit`), or else on all cores of this machine."""

    def each(self, work: Callable[[T], R], of: Sequence[T]) -> list[R]:
        context = self.connection._session.sparkContext
        done: list[R] = context.parallelize(of, max(len(of), 1)).map(work).collect()
        return done

    def write(self, table: Any, target: Path) -> None:
        table.to_parquet_dir(target.as_uri())

    def read(self, folder: Path) -> Any:
        return self.connection.read_parquet(folder.as_uri())


def duckdb_connection(folder: Path) -> Any:
    """A DuckDB in memory that keeps to MEMORY and spills into `folder`; all times are UTC."""
    connection = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=str(folder / "spill"))
    connection.raw_sql("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def _duckdb(folder: Path) -> Any:
    connection = duckdb_connection(folder)
    connection.raw_sql("SET preserve_insertion_order = false")  # every expression says its order
    try:
        yield DuckDB(connection, folder)
    finally:
        connection.disconnect()


def spark_session(**settings: str) -> Any:
    """The session that there is, or one with these settings and executors in this interpreter's environment.

    Raises MissingEngine.
    """
    sessions = _spark_sessions()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return sessions.builder.appName("vitrine").config(map=settings).getOrCreate()


def _spark_sessions() -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingEngine(
            "engine spark: pyspark is not installed; expected pip install -e '.[spark]'"
        ) from error
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise MissingEngine("engine spark: no `java` on the PATH and no JAVA_HOME; expected Java 17 or newer")
    return SparkSession


@contextmanager
def _spark(folder: Path) -> Any:
    found = _spark_sessions().getActiveSession()
    settings = {"spark.ui.showConsoleProgress": "false", "spark.sql.warehouse.dir": str(folder / "warehouse")}
    session = found or spark_session(**settings)
    try:
        yield Spark(ibis.pyspark.connect(session), folder)
    finally:
        if found is None:  # training may take hours, and needs no cluster
            session.stop()


ENGINES: dict[str, Callable[[Path], Any]] = {"duckdb": _duckdb, "spark": _spark}
