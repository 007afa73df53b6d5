"""One log, embedded and distributed: the same rows in the same order, the same counts, the same examples."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from train.cleaning import BOT_EVENTS_PER_HOUR, SHOWN
from train.engines import ENGINES, MissingEngine, spark_session
from train.log import Log, read_log
from train.mapping import Drop, Mapping, MissingColumn, UnusableLog

NOW_S = 1_750_000_000.0
START_S = 1_700_000_000

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install -e '.[spark]'")
if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
    pytest.skip("no java, which Spark needs: apt-get install default-jre-headless", allow_module_level=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Spark for the module; three partitions, so that order has to be kept across files."""
    settings = {
        "spark.master": "local[2]",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.codegen.wholeStage": "false",  # for so few rows, compiling is all the time there is
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    running = spark_session(**settings)
    yield running
    running.stop()


def event(**changes: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i", "type": "view", "time": START_S, "value": 1.0} | changes


def write_csv(path: Path) -> None:
    """Ties, ragged and unclosed lines, bytes that are no text, another case, quotes and line ends in ids."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,type,time,value"]
    for user, item, time_s in rng.integers(0, [20, 30, 9], (300, 3)).tolist():
        lines.append(f"u{user},i{item},{'VIEW' if item % 2 else 'click'},{START_S + time_s},{item / 4 or ''}")
    lines[20] = "u1,i2"
    lines[40] = 'u3,"i3,view,1700000003,1'
    lines += ['"a ""b""","c\nd",view,1700000001,', "用户,🧦,view,2023-11-14T22:13:25Z,2", " u1 ,i1,view,1,"]
    path.write_bytes("\n".join(lines).encode() + b"\nu2,caf\xe9,view,1700000001,1\n")


def write_json(path: Path) -> None:
    """Numbers beside texts, lines that are no objects, every kind of bad value, a robot."""
    bad = [
        {"user_id": None},
        {"item_id": "  "},
        {"item_id": "x" * 129},
        {"type": "teleport"},
        {"time": "yesterday"},
        {"time": 4_102_444_800},
        {"value": -0.5},
        {"value": "cheap"},
        {"value": "1e999"},
    ]
    rows = [event(**{"item_id": n} | change) for change in bad for n in range(4)]
    rows += [event(user_id="robot", item_id=n, time=START_S + n) for n in range(BOT_EVENTS_PER_HOUR + 1)]
    text = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*text[:3], "[1]", '{"user_id": ', *text[3:]]) + "\n")


def write_parquet(path: Path) -> None:
    """Ids that a data frame made floats, times with a zone, values that are not there."""
    n = range(160)
    table = {
        "user_id": [17850.0, 12_345_678.0, None, 3.5] * 40,
        "item_id": [i % 7 if i % 4 == 1 else 10 + i % 3 for i in n],
        "type": ["purchase"] * 160,
        "time": [datetime.fromtimestamp(START_S + i % 5, UTC) for i in n],
        "value": [None, float("nan"), float("inf"), 2.5] * 40,
        "place": ["shop", "web", "C1", "shop"] * 40,
        "name": [None, "Tea", "Rye", "Tea, green"] * 40,
        "cost": [1.5, None, 2.0, -1.0] * 40,
    }
    pyarrow.parquet.write_table(pa.table(table), path)


def same(one: Log, other: Log) -> None:
    assert one.dropped == other.dropped
    assert one.examples == other.examples
    assert one.events.to_pylist() == other.events.to_pylist()
    assert one.items.to_pylist() == other.items.to_pylist()
    assert one.summary() == other.summary()
    first, second = one.to_arrays(), other.to_arrays()
    assert (first.user_ids, first.item_ids) == (second.user_ids, second.item_ids)
    for name in ("user", "item", "kind", "time_s", "value"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_folder_of_all_formats_and_all_faults(tmp_path: Path, session: Any) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    write_csv(folder / "a.csv")
    write_json(folder / "b.jsonl")
    write_parquet(folder / "c.parquet")
    catalogue = [
        "item_id,title,price",
        "i2,Tea,2.5",
        "i1,Rye,-1",
        "i2,again,1",
        ",none,1",
        "i3,,free",
        "z,Z,",
    ]
    (tmp_path / "items.csv").write_text("\n".join(catalogue) + "\n")
    embedded = read_log(folder, tmp_path / "items.csv", now_s=NOW_S)
    distributed = read_log(folder, tmp_path / "items.csv", now_s=NOW_S, engine="spark")
    assert embedded.dropped.keys() == SHOWN.keys() | {"malformed"}
    assert embedded.events.num_rows > 250
    same(embedded, distributed)


def test_a_catalogue_from_the_events_and_ties_that_are_shuffled(tmp_path: Path, session: Any) -> None:
    write_parquet(tmp_path / "e.parquet")
    mapping = Mapping(
        items={"title": "name", "price": "cost"},
        types={"purchase": "cart"},
        drops=(Drop("place", "starts_with", "C", "cancelled"), Drop("cost", "less_than", 0.0, "return")),
        ties="shuffle",
    )
    embedded = read_log(tmp_path / "e.parquet", None, mapping, now_s=NOW_S)
    assert embedded.dropped.keys() == {"cancelled", "return", "duplicate"}
    assert {row["title"] for row in embedded.items.to_pylist()} == {None, "Tea"}
    same(embedded, read_log(tmp_path / "e.parquet", None, mapping, now_s=NOW_S, engine="spark"))


def test_an_error_is_the_same_from_afar(tmp_path: Path, session: Any) -> None:
    (tmp_path / "e.csv").write_text("who,item_id,type,time\nu,i,view,1700000000\n")
    with pytest.raises(MissingColumn, match=r"no column 'user_id'; found who, item_id.*e\.csv"):
        read_log(tmp_path / "e.csv", engine="spark")
    (tmp_path / "e.csv").write_text("user_id,item_id,type,time\n,i,view,1700000000\n")
    with pytest.raises(
        UnusableLog, match=r"no usable event in .*\n  missing_user: 1 \(for example row 1: None"
    ):
        read_log(tmp_path / "e.csv", engine="spark")


def test_an_engine_without_its_java_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MissingEngine, match="no `java` on the PATH"), ENGINES["spark"](tmp_path):
        pass
