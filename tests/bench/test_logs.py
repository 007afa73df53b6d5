from pathlib import Path

import numpy as np
import pytest

from bench.logs import main
from functions.core.events import KINDS
from train.log import Interactions, read_log

DAY_S = 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("logs")
    assert main(["--out", str(made), "--share", "0.05"]) == 0
    return made


def read(folder: Path, events: str, items: str | None = None) -> Interactions:
    log = read_log(folder / events, folder / items if items else None)
    assert log.dropped.keys() <= {"duplicate"}
    return log.to_arrays()


def pairs(log: Interactions) -> int:
    return len(np.unique(log.user.astype(np.int64) * len(log.item_ids) + log.item))


def test_reviews_are_few_a_user_over_years_and_of_nothing_twice(folder: Path) -> None:
    log = read(folder, "reviews.csv", "reviews-items.csv")
    assert pairs(log) == len(log.user)
    assert 4 < len(log.user) / len(log.user_ids) < 12
    assert log.time_s.max() - log.time_s.min() > 5 * 365 * DAY_S and not (log.time_s % DAY_S).any()
    assert set(log.value.tolist()) == {1, 2, 3, 4, 5}
    assert {name.rpartition(" ")[0] for name in log.user_ids} >= {"李", "محمد", "Ann Lee", "😀"}


def test_clicks_are_sessions_of_a_few_days(folder: Path) -> None:
    log = read(folder, "clicks.parquet")
    assert set(log.kind.tolist()) == {KINDS[name] for name in ("view", "cart", "purchase")}
    assert log.time_s.max() - log.time_s.min() < 11 * DAY_S
    gaps_s = np.diff(log.time_s[np.argsort(log.user, kind="stable")])
    assert np.median(gaps_s[gaps_s >= 0]) < 60
    assert pairs(log) < 0.8 * len(log.user)


def test_pairs_are_two_events_a_user(folder: Path) -> None:
    log = read(folder, "pairs.jsonl")
    assert set(np.bincount(log.user).tolist()) <= {1, 2}  # whoever did the same twice in a second has one
    assert len(log.user) > 1.99 * len(log.user_ids)


def test_the_same_again(folder: Path, tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--share", "0.05"]) == 0
    for made in folder.iterdir():
        assert (tmp_path / made.name).read_bytes() == made.read_bytes()
