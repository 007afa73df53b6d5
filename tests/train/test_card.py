"""The model card says what was measured, and says so where nothing was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_evaluate import interactions
from tests.train.test_prequential import many_users, walked
from train import plots
from train.card import (
    ABSENT,
    CARD,
    CURVE,
    EVENTS_SEEN,
    FEW_EVENTS,
    FRESHNESS,
    data_facts,
    training_facts,
    write_card,
)
from train.evaluate import metrics
from train.options import Options
from train.prequential import STATES, summary
from train.slices import beyond_accuracy, slices
from train.towers import Shape

PICTURES = (CURVE, EVENTS_SEEN, FEW_EVENTS, FRESHNESS)
PNG = b"\x89PNG"


def report() -> dict[str, Any]:
    """What a whole run would report, measured on a small log."""
    log = interactions([u for u in range(8) for _ in range(u + 1)], [i % 12 for i in range(36)])
    users, top = list(range(8)), np.arange(8)[:, None] + np.arange(4)[None]
    targets = [np.array([u + u % 3]) for u in users]
    return {
        "data": data_facts(log, 35),
        "dropped": {"bot": 3, "duplicate": 12_345},
        "training": training_facts(Shape(12, 1, 1), Options(seed=7), epochs=3, best=1, seconds=61.24),
        "epochs": [(2.0, 0.1), (1.5, 0.3), (1.2, 0.2)],
        "context": {"clock": False, "names": True, "elapsed": True, "interest": False},
        "test": metrics(top, targets, 12),
        "baselines": {"popularity": {"ndcg@10": 0.0421}},
        "slices": slices(top, targets, users, log),
        "beyond_accuracy": beyond_accuracy(top, users, log, np.eye(12)),
        "few_events": few(),
        "freshness": summary(walked(many_users())),
        "limits": ["Only one winter is in it."],
        "licence": "CC0",
    }


def few(gain: float = 0.05) -> dict[str, Any]:
    """As `train.report.few_events` has it; at 3 events the lists are better than popularity by `gain`."""

    def of(value: float) -> dict[str, Any]:
        return {"ndcg@10": {"mean": value, "low": value - 0.01, "high": value + 0.01}}

    one, three = (of(0.1 + g) | {"over_popularity": of(g)} for g in (0.02, gain))
    return {"users": 8, "masked": False, "popularity": of(0.1), "1": one, "3": three}


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.M | re.S)
    assert found, title
    return found[1]


def test_a_card_without_any_input_says_so_and_has_no_number(tmp_path: Path) -> None:
    card = write_card(tmp_path, {}).read_text()
    for title in (
        "Data",
        "Training",
        "Quality",
        "Slices",
        "Few events",
        "Beyond accuracy",
        "Fresh and frozen state",
    ):
        assert section(card, title).strip() == ABSENT
    assert not re.search(r"\d", card)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_card_has_every_section_and_every_picture(tmp_path: Path) -> None:
    card = write_card(tmp_path, report()).read_text()
    assert ABSENT not in card and "not recorded" not in card
    assert sorted(re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)) == sorted(PICTURES)
    for name in PICTURES:
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("key", "title", "said"),
    [
        ("dropped", "Data", "Dropped rows: not recorded."),
        ("epochs", "Training", "Learning curve: not recorded."),
        ("baselines", "Quality", "Baselines: not recorded."),
        ("slices", "Quality", "intervals: not recorded"),
        ("slices", "Slices", ABSENT),
        ("beyond_accuracy", "Beyond accuracy", ABSENT),
        ("few_events", "Few events", ABSENT),
        ("freshness", "Fresh and frozen state", ABSENT),
        ("licence", "Licence", "Licence of the data: not recorded."),
    ],
)
def test_what_is_absent_is_named_in_its_section(key: str, title: str, said: str, tmp_path: Path) -> None:
    whole = report()
    assert said not in section(write_card(tmp_path, whole).read_text(), title)
    del whole[key]
    assert said in section(write_card(tmp_path, whole).read_text(), title)


def test_the_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    given = report()
    card = write_card(tmp_path, given).read_text()
    assert "- users: 8" in card and "- events: 36" in card and "- first: 1970-01-01 00:00 UTC" in card
    assert "| duplicate | 12,345 |\n| bot | 3 |" in card
    assert "- heard of a request: names, elapsed" in card
    assert "seed 7" in card and "- best epoch: 2" in card and "- seconds: 61.2" in card
    whole = given["slices"]["all"]["all"]["ndcg@10"]
    assert whole["mean"] == pytest.approx(given["test"]["ndcg@10"])
    interval = f"{whole['mean']:.4f} [{whole['low']:.4f}, {whole['high']:.4f}]"
    assert f"| ndcg@10 | {interval} | 0.0421 |" in card
    assert f"| mrr@10 | {given['test']['mrr@10']:.4f} | - |" in card
    states = {row.split(" | ")[0]: row for row in section(card, "Fresh and frozen state").splitlines()}
    for state in STATES:
        value = given["freshness"]["states"][state]["ndcg@10"]["mean"]
        assert f"{value:.4f}" in states[f"| {plots.LABELS[state]}"]
    assert "- Only one winter is in it." in card


def test_lists_below_popularity_are_named(tmp_path: Path) -> None:
    given = report()
    assert "Never below popularity." in section(write_card(tmp_path, given).read_text(), "Few events")
    below = section(write_card(tmp_path, given | {"few_events": few(-0.01)}).read_text(), "Few events")
    assert "Below popularity at 3 events." in below and "Never" not in below
    assert "| 3 | 0.0900 [0.0800, 0.1000] | -0.0100 [-0.0200, 0.0000] |" in below


def test_masked_figures_stand_beside_those_as_served(tmp_path: Path) -> None:
    masked = {
        "test_masked": {"ndcg@10": 0.1234},
        "baselines_masked": {"popularity": {"ndcg@10": 0.0321}},
    }
    quality = section(write_card(tmp_path, report() | masked).read_text(), "Quality")
    assert quality.count("| ndcg@10 |") == 2
    assert "| metric | test | popularity |\n| --- | --- | --- |\n| ndcg@10 | 0.1234 | 0.0321 |" in quality


def test_a_log_that_lost_nothing_says_so(tmp_path: Path) -> None:
    assert "No row was dropped." in write_card(tmp_path, {"dropped": {}}).read_text()


def test_a_name_with_a_bar_does_not_break_its_table(tmp_path: Path) -> None:
    card = write_card(tmp_path, {"dropped": {"a|b": 1}}).read_text()
    assert "| a\\|b | 1 |" in card


def test_data_facts_count_types_and_items_with_events() -> None:
    facts = data_facts(interactions([0, 1, 1], [0, 2, 2]))
    assert facts["events_by_type"] == {"view": 3}
    assert (facts["items"], facts["items_with_events"]) == (3, 2)
    assert "test_from" not in facts


def test_pictures_are_written_as_their_ending_says_and_the_same_again(tmp_path: Path) -> None:
    found = report()["freshness"]
    first = plots.freshness(found, tmp_path / "a.svg").read_bytes()
    assert b"<svg" in first
    assert first == plots.freshness(found, tmp_path / "b.svg").read_bytes()
    assert plots.freshness(found, tmp_path / "c.png").read_bytes().startswith(PNG)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no epochs"):
        plots.learning_curve([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no history lengths"):
        plots.by_events_seen({}, tmp_path / "a.png")
