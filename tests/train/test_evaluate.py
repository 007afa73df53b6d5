import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train.evaluate
from functions.core.events import EVENT_TYPES, KINDS
from functions.core.fold import fold
from tests.core.toy_encoder import toy_encoder
from train.__main__ import main
from train.evaluate import _event, metrics, user_rows
from train.log import Interactions
from train.split import split


def interactions(users: list[int], items: list[int]) -> Interactions:
    n = len(users)
    return Interactions(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.ones(n, np.int8),
        np.arange(n, dtype=np.int64),
        np.full(n, np.nan, np.float32),
        [f"u{u}" for u in range(max(users) + 1)],
        [f"i{i}" for i in range(max(items) + 1)],
    )


def test_metrics_are_the_fractions_worked_out_by_hand() -> None:
    top = np.arange(20)[None]
    found = metrics(top, [np.array([0, 2, 15, 99])], 100)
    gain, ideal = 1 + 1 / math.log2(4), 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert found["ndcg@10"] == pytest.approx(gain / ideal)
    assert found["ndcg@20"] == pytest.approx((gain + 1 / math.log2(17)) / ideal)
    assert (found["recall@10"], found["recall@20"]) == (2 / 4, 3 / 4)
    assert (found["hr@10"], found["mrr@10"], found["coverage@10"]) == (1.0, 1.0, 0.1)


def test_leave_one_out_takes_each_users_last_event_and_no_other() -> None:
    parts = split(interactions([0, 1, 0, 1, 0], [0, 1, 2, 3, 4]), "leave-one-out")
    assert {u: t.tolist() for u, t in parts.targets.items()} == {0: [4], 1: [3]}
    assert parts.train.item.tolist() == [0, 1, 2]


def test_a_split_by_time_learns_nothing_from_the_test_part() -> None:
    parts = split(interactions([0, 1] * 10, list(range(20))), "time")
    assert parts.train.time_s.max() < 18
    assert {u: t.tolist() for u, t in parts.targets.items()} == {0: [18], 1: [19]}


@pytest.mark.parametrize("how", ["time", "leave-one-out"])
def test_what_is_dismissed_is_nothing_to_be_found(how: str) -> None:
    """Nor is it learnt from, where it came after what has to be found."""
    log = interactions([0, 1] * 10, list(range(20)))
    kind = log.kind.copy()
    kind[[16, 19]] = KINDS["dismiss"]
    parts = split(replace(log, kind=kind), how)
    expected = {"time": {0: [18]}, "leave-one-out": {0: [18], 1: [17]}}[how]
    assert {u: t.tolist() for u, t in parts.targets.items()} == expected
    assert 16 in parts.train.item and not {18, 19} & set(parts.train.item.tolist())


def test_a_user_without_a_history_is_not_tested() -> None:
    assert split(interactions([0, 0, 1], [0, 1, 2]), "leave-one-out").targets.keys() == {0}


def test_at_most_the_asked_number_of_users_is_tested() -> None:
    log = interactions([0, 1, 2] * 10, list(range(30)))
    few = split(log, "leave-one-out", most_users=2, seed=3)
    assert len(few.targets) == 2
    assert few.train.item.tolist() == list(range(27))


def test_an_item_done_twice_in_the_test_part_is_one_target() -> None:
    log = interactions([0] * 40, [*range(36), 7, 7, 5, 7])
    assert {u: t.tolist() for u, t in split(log, "time").targets.items()} == {0: [5, 7]}


def test_the_command_learns_a_world_whose_right_answer_is_known(tmp_path: Path) -> None:
    """Item i is always followed by i + 1; popularity can't know that."""
    lines = [
        json.dumps(
            {"user_id": f"u{u}", "item_id": f"i{(u + t) % 12}", "type": "view", "time": 1.6e9 + 60 * t}
        )
        for t in range(14)
        for u in range(60)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    arguments = ["--events", str(tmp_path / "log.jsonl"), "--split", "leave-one-out", "--out", str(out)]
    assert main([*arguments, "--epochs", "40", "--no-card"]) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert {name: report["data"][name] for name in ("users", "items", "events")} == {
        "users": 60,
        "items": 12,
        "events": 840,
    }
    assert report["baselines"].keys() == {"popularity", "item_knn", "svd"}
    assert report["test"]["mrr@10"] > 0.9 > max(b["mrr@10"] for b in report["baselines"].values())


def test_the_command_says_why_a_log_is_unusable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,type,time\n,i1,view,2026-01-01T00:00:00Z\n")
    assert main(["--events", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")]) == 1
    assert "missing_user" in capsys.readouterr().err


def test_a_log_of_columns_is_folded_as_its_events_one_list_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, encoder = np.random.default_rng(0), toy_encoder()
    n = 1_500
    log = replace(
        interactions(rng.integers(0, 30, n).tolist(), rng.integers(0, 60, n).tolist()),
        kind=rng.integers(1, len(EVENT_TYPES) + 1, n).astype(np.int8),
        time_s=np.sort(rng.integers(-50, 10**7, n)),
        value=np.where(rng.random(n) < 0.5, np.nan, rng.exponential(20, n)).astype(np.float32),
    )
    users = [29, *range(28)]  # asked for in another order than the log's
    monkeypatch.setattr(train.evaluate, "FOLDED_AT_ONCE", 7)
    events = [[_event(log, row) for row in np.flatnonzero(log.user == u).tolist()] for u in users]
    expected, _ = fold([encoder.empty()] * len(users), events, encoder)
    found = user_rows(log, users, encoder)
    for a, b in zip(found, expected, strict=True):
        assert a.state.tobytes() == b.state.tobytes() and a.vector.tobytes() == b.vector.tobytes()
        assert (a.ring, a.last_s, a.seen, a.favourites) == (b.ring, b.last_s, b.seen, b.favourites)
    assert sum(len(row.ring) for row in found) > 500 and any(row.seen for row in found)
