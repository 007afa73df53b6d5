"""Logs as they should not be: each gives a right result, or an error that names the cause."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.core.events import MAX_ID, MAX_VALUE
from train.__main__ import main
from train.log import Log, read_log
from train.mapping import LogError

NOW_S = 1_750_000_000.0
START_S = 1_700_000_000
HEADER = b"user_id,item_id,type,time,value\n"
GOOD = b"u,i,view,1700000000,1\n"

Row = tuple[str, str, int]


def write_csv(path: Path, rows: list[Row], values: list[str] | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "item_id", "type", "time", "value"])
        for (user, item, time_s), value in zip(rows, values or [""] * len(rows), strict=True):
            table.writerow([user, item, "view", time_s, value])
    return path


def train(tmp_path: Path, rows: list[Row], *arguments: str, values: list[str] | None = None) -> int:
    events = write_csv(tmp_path / "log.csv", rows, values)
    return main(["--events", str(events), "--out", str(tmp_path / "out"), "--epochs", "1", *arguments])


def report(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "metrics.json").read_text())
    numbers = [*found["test"].values(), *(n for b in found["baselines"].values() for n in b.values())]
    assert np.isfinite(numbers).all()
    return found


def catalogue(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "out" / "catalogue.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["item_id"] for line in lines if line]


def test_one_user_only(tmp_path: Path) -> None:
    assert train(tmp_path, [("u", f"i{n % 5}", START_S + n) for n in range(40)]) == 0
    found = report(tmp_path)["data"]
    assert (found["users"], found["items"], found["events"]) == (1, 5, 40)


def test_one_item_only(tmp_path: Path) -> None:
    """Whoever has one item to show has it first: nothing else is right."""
    assert train(tmp_path, [(f"u{n % 4}", "i", START_S + n) for n in range(40)]) == 0
    found = report(tmp_path)
    assert found["data"]["items"] == 1
    assert found["test"]["hr@10"] == found["test"]["ndcg@10"] == found["baselines"]["svd"]["hr@10"] == 1.0


def test_one_user_with_one_item(tmp_path: Path) -> None:
    assert train(tmp_path, [("u", "i", START_S + n) for n in range(40)]) == 0
    assert report(tmp_path)["test"]["hr@10"] == 1.0


def test_all_events_in_one_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"u{n % 4}", f"i{n}", START_S) for n in range(40)]
    assert train(tmp_path, rows) == 1
    error = capsys.readouterr().err
    assert "all in one second" in error and "longer time, or --split leave-one-out" in error
    assert "Traceback" not in error
    assert train(tmp_path, rows, "--split", "leave-one-out") == 0
    assert report(tmp_path)["data"]["users"] == 4


@pytest.mark.parametrize("rows", [[("u", "i", START_S)], [(f"u{n}", "i", START_S + n) for n in range(9)]])
def test_too_little_to_learn_from(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, rows) == 1
    assert "no user of the test part has a history" in capsys.readouterr().err
    assert train(tmp_path, rows, "--split", "leave-one-out") == 1
    assert "no user has a history; expected users with 2 events or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["impression"] * 40, "40 events (40 impressions among them); expected events that say what a user"),
        (["dismiss"] * 40, "40 events (40 dismissals among them); expected events that say what a user"),
        (["impression"] * 37 + ["view"] * 3, "(37 impressions among them) to learn from, no training pair"),
    ],
)
@pytest.mark.parametrize("how", ["time", "leave-one-out"])
def test_a_log_of_what_was_shown_names_the_cause(
    tmp_path: Path, kinds: list[str], said: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"u0,i{n % 6},{kind},{START_S + 3600 * n}" for n, kind in enumerate(kinds)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,type,time", *lines]))
    assert main(["--events", str(tmp_path / "log.csv"), "--out", str(tmp_path / "o"), "--split", how]) == 1
    assert said in capsys.readouterr().err


def test_a_catalogue_and_a_log_that_share_no_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,Tea\nb,Rye\n")
    rows = [(f"u{n % 4}", f"i{n % 6}", START_S + n) for n in range(40)]
    assert train(tmp_path, rows, "--items", str(tmp_path / "items.csv")) == 0
    assert "6 of 6 items of the log are not shown: no title in the catalogue" in capsys.readouterr().out
    assert report(tmp_path)["data"]["items"] == 8
    assert sorted(catalogue(tmp_path)) == ["a", "b", *(f"i{n}" for n in range(6))]
    assert catalogue(tmp_path)[:2] == ["a", "b"]


ODD = [
    "مستخدم",
    "用户",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "\u202eabc",
    "\u200b",
    'say "i"',
    "a b",
    "a\nb",
    "a,b",
    "a\u2028b",
    "\x00",
]
VALUES = [
    "1e308",
    "NaN",
    "inf",
    "-5",
    "1e999",
    "0",
    "",
    "1e-300",
    "cheap",
    "9" * 400,
    "2",
    "3",
]  # 12 beside 13 ids


def test_any_script_any_gap_any_value(tmp_path: Path) -> None:
    """Ids come through as they are; gaps of zero and of decades, and numbers no float32 holds, do no harm."""
    times = [START_S, START_S, START_S - 20 * 365 * 86_400, START_S + 1]
    rows = [(f"{odd}{n % 3}", odd, times[n % 4] + n // 4) for n in range(4) for odd in ODD]
    rows += [(f"{odd}{n}", odd, START_S + 100 + n) for n in range(3) for odd in ODD]
    assert train(tmp_path, rows, values=(VALUES * 8)[: len(rows)]) == 0
    assert sorted(catalogue(tmp_path)) == sorted(ODD)
    found = report(tmp_path)
    assert found["dropped"] == {"negative_value": 8, "value_not_a_number": 8 + 8 + 7 + 7}
    assert found["data"]["users"] == 3 * len(ODD)


def read(tmp_path: Path, name: str, data: bytes) -> Log:
    (tmp_path / name).write_bytes(data)
    return read_log(tmp_path / name, now_s=NOW_S)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("e.csv", b"", "is empty; expected a header line such as user_id,item_id"),
        ("e.csv", b"\n\n", "has no header; expected a line such as user_id,item_id"),
        ("e.csv", HEADER, r"no usable event in .*\n  there is no row at all"),
        ("e.csv", HEADER.strip(), r"no usable event in .*\n  there is no row at all"),
        ("e.csv", (HEADER + GOOD).decode().encode("utf-16"), "is UTF-16; expected UTF-8"),
        ("e.csv", b"\x00\x01\x02\x03" * 9, "no column 'user_id'"),
        ("e.jsonl", b"", "is empty"),
        ("e.jsonl", b"\n", "no line is a JSON object"),
        ("e.json", b"[]", "is no readable json file"),
        ("e.parquet", b"", "is empty"),
        ("e.parquet", b"PAR1 and then nothing", "is no readable parquet file"),
        ("e.csv", HEADER + b"u,i,view,0,\nu,i,view,1970-01-01,\n", r"impossible_time: 2 .*row 1: '0'"),
        ("e.csv", HEADER + b"u,i,view,4102444800,\nu,i,view,2100-01-01,\n", r"impossible_time: 2 .*2100-01"),
    ],
)
def test_a_log_of_nothing_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(LogError, match=message) as error:
        read(tmp_path, name, data)
    assert name in str(error.value)
    assert all(len(line) < 500 for line in str(error.value).splitlines())


def test_the_command_ends_with_one_line_where_a_file_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--events", str(tmp_path / "none.csv"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no log at ") and error.count("\n") == 1


def test_a_file_where_the_folder_should_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert train(tmp_path, [("u", f"i{n % 5}", START_S + n) for n in range(40)]) == 1
    error = capsys.readouterr().err
    assert "out: a file; expected a folder" in error and error.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_weights_that_no_row_can_hold_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float32 trains on where float16 has long overflowed: the fold finds it."""
    rows = [(f"u{n % 9}", f"i{n % 7}", START_S + 600 * n) for n in range(200)]
    assert train(tmp_path, rows, "--set", "learning_rate=1e9", "--no-card") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "not finite; a smaller learning_rate may help" in error
    assert "Traceback" not in error and not (tmp_path / "out" / "metrics.json").exists()


def test_two_events_are_not_said_to_be_all_in_one_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, [("u", "i", START_S), ("u", "j", START_S + 9)]) == 1
    error = capsys.readouterr().err
    assert "no user of the test part has a history" in error and "one second" not in error


def test_impossible_times_cost_their_rows_alone(tmp_path: Path) -> None:
    bad = [b"0", b"-1", b"1970-01-01T00:00:00Z", b"4102444800", b"2100-01-01", b"9" * 30, b"1e400", b"NaN"]
    log = read(tmp_path, "e.csv", HEADER + GOOD + b"".join(b"u,i,view," + time + b",\n" for time in bad))
    assert (log.events.num_rows, log.dropped) == (1, {"impossible_time": len(bad)})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("e.csv", b"u,caf\xe9,view,1700000001,1\n"),
        ("e.csv", b'u,"caf\xe9",view,1700000001,1\n'),
        ("e.csv", b"u," + b"x" * 3_000_000 + b",view,1700000001,1\n"),
        ("e.jsonl", b'{"user_id": "u", "item_id": "caf\xe9", "type": "view", "time": 1700000001}\n'),
        ("e.jsonl", b'{"user_id": "u", "item_id": "a\x00b", "type": "view", "time": 1700000001}\n'),
        ("e.jsonl", b'{"user_id": "u", "item_id": "a\\ud800b", "type": "view", "time": 1700000001}\n'),
    ],
)
def test_a_line_that_is_no_text_costs_itself_alone(tmp_path: Path, name: str, line: bytes) -> None:
    json_line = b'{"user_id": "u", "item_id": "i", "type": "view", "time": 1700000000}\n'
    before, after = (HEADER, GOOD) if name == "e.csv" else (b"", json_line)
    log = read(tmp_path, name, before + line + after)
    assert (log.events.num_rows, log.dropped) == (1, {"malformed": 1})
    assert len(log.examples["malformed"][0]) < 300


def test_a_byte_that_is_nothing_is_text_as_any_other(tmp_path: Path) -> None:
    row = {"user_id": "u", "item_id": "a\x00b", "type": "view", "time": START_S}
    assert read(tmp_path, "e.csv", HEADER + b"u,a\x00b,view,1700000000,\n").to_arrays().item_ids == ["a\x00b"]
    assert read(tmp_path, "e.jsonl", json.dumps(row).encode()).to_arrays().item_ids == ["a\x00b"]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, "e.csv", b"\xef\xbb\xbf" + HEADER + GOOD).to_arrays().user_ids == ["u"]
    line = b'{"user_id": "u", "item_id": "i", "type": "view", "time": 1700000000}\n'
    assert read(tmp_path, "e.jsonl", b"\xef\xbb\xbf" + line).to_arrays().user_ids == ["u"]


def test_an_item_whose_events_nobody_could_send_is_left_out(tmp_path: Path) -> None:
    longest, user = "ж" * MAX_ID, "u" * 10_000
    rows = [(user, longest, START_S), (user, longest + "x", START_S), (user, "y" * 100_000, START_S)]
    write_csv(tmp_path / "e.csv", rows)
    (tmp_path / "items.csv").write_text(f"item_id,title\n{longest},A\n{longest}x,B\n")
    log = read_log(tmp_path / "e.csv", tmp_path / "items.csv", now_s=NOW_S)
    arrays = log.to_arrays()
    assert (arrays.user_ids, arrays.item_ids) == ([user], [longest])
    assert log.dropped == {"item_id_too_long": 3}
    assert "(100,000 characters)" in log.summary() and len(log.summary()) < 2_000


def test_a_value_beyond_what_the_api_takes_counts_as_the_largest(tmp_path: Path) -> None:
    values = [b"1e308", b"1e38", b"3", b"1e-300"]
    lines = b"".join(b"u,i,view,%d,%s\n" % (START_S + n, value) for n, value in enumerate(values))
    assert read(tmp_path, "e.csv", HEADER + lines).to_arrays().value.tolist() == [MAX_VALUE, MAX_VALUE, 3, 0]
