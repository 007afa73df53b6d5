"""Precomputed vectors: every spelling of a column, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.log import Log, read_log
from train.mapping import InvalidMapping, Mapping, MissingColumn, UnusableLog, parse_mapping

EVENT = "user_id,item_id,type,time\nu,a,view,1700000000\n"
VECTORS: list[list[float] | None] = [[1.0, 2.0, 2.0], None, [0.5, 0.0, -0.25]]


def read(folder: Path, file: Path, mapping: Mapping | None = None) -> Log:
    (folder / "e.csv").write_text(EVENT)
    return read_log(folder / "e.csv", file, mapping)


def catalogue(folder: Path, kind: str, vectors: list[Any], column: str = "image_vector") -> Path:
    ids = [chr(ord("a") + n) for n in range(len(vectors))]
    path = folder / f"items.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"item_id": ids, "title": ids, column: pa.array(vectors)}), path)
    elif kind == "jsonl":
        rows = [{"item_id": i, "title": i, column: v} for i, v in zip(ids, vectors, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        texts = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in vectors]
        lines = [f'{i},{i},"{t}"' for i, t in zip(ids, texts, strict=True)]
        path.write_text("\n".join([f"item_id,title,{column}", *lines]) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_vectors_are_read_from_every_format(tmp_path: Path, kind: str) -> None:
    log = read(tmp_path, catalogue(tmp_path, kind, VECTORS))
    assert log.dropped == {}
    assert log.vectors["image_vector"].dtype == np.float32
    assert log.vectors["image_vector"].tolist() == [[1, 2, 2], [0, 0, 0], [0.5, 0, -0.25]]
    assert "image_vector" not in log.items.column_names


def test_a_list_of_a_fixed_size_is_a_list(tmp_path: Path) -> None:
    column = pa.array(VECTORS, pa.list_(pa.float32(), 3))
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "text_vector": column}), tmp_path / "i.parquet")
    assert read(tmp_path, tmp_path / "i.parquet").vectors["text_vector"][2].tolist() == [0.5, 0, -0.25]


WRONG_TEXTS = ["[1, 2]", "[1, 2, 3, 4]", "[1, 2, nan]", "[1, 2, 'x']", "3", "[]", "[1, 2"]
WRONG_LISTS: list[list[float | None]] = [[1.0], [1.0, 2.0, None], [1.0, 2.0, np.nan], [0.0, np.inf, 0.0]]


@pytest.mark.parametrize("wrong", WRONG_TEXTS)
def test_a_wrong_vector_is_counted_and_costs_itself_alone(tmp_path: Path, wrong: str) -> None:
    log = read(tmp_path, catalogue(tmp_path, "csv", [*VECTORS, wrong]))
    assert log.dropped == {"image_vector_not_3_numbers": 1}
    assert log.examples["image_vector_not_3_numbers"] == [f"row 4: {wrong!r} (items.csv)"]
    assert log.items.num_rows == 4
    assert log.vectors["image_vector"][3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrong", WRONG_LISTS)
def test_a_wrong_list_is_counted_and_costs_itself_alone(tmp_path: Path, wrong: list[float | None]) -> None:
    log = read(tmp_path, catalogue(tmp_path, "parquet", [*VECTORS, wrong]))
    assert log.dropped == {"image_vector_not_3_numbers": 1}
    assert log.examples["image_vector_not_3_numbers"][0].startswith("row 4: [")


def test_vectors_follow_their_products_where_those_without_a_title_go_last(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text('item_id,title,image_vector\nx,,"[1, 0]"\ny,Tea,"[0, 1]"\n')
    log = read(tmp_path, tmp_path / "i.csv")
    assert log.items["item_id"].to_pylist() == ["y", "x"]
    assert log.vectors["image_vector"].tolist() == [[0, 1], [1, 0]]


def test_a_mapping_names_other_columns(tmp_path: Path) -> None:
    file = catalogue(tmp_path, "jsonl", VECTORS, column="clip")
    assert read(tmp_path, file).vectors == {}
    assert list(read(tmp_path, file, parse_mapping({"vectors": ["clip"]})).vectors) == ["clip"]
    with pytest.raises(MissingColumn, match="no column 'bert'"):
        read(tmp_path, file, Mapping(vectors=("bert",)))
    with pytest.raises(UnusableLog, match="expected a catalogue"):
        read_log(tmp_path / "e.csv", None, Mapping(vectors=("clip",)))
    with pytest.raises(InvalidMapping, match="vectors = 'clip'; expected a list"):
        parse_mapping({"vectors": "clip"})


def test_a_column_without_any_vector_is_none(tmp_path: Path) -> None:
    log = read(tmp_path, catalogue(tmp_path, "csv", ["red", None, "blue"]))
    assert (log.vectors, log.dropped) == ({}, {"image_vector_not_numbers": 2})
