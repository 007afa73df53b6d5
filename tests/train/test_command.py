"""`python -m train` as a whole, in small worlds: what it writes, how it ends, and how it goes on.

On what it cannot use: status 1 and one line that says why, before any training.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.handover import read_products
from train import run as pipeline
from train.__main__ import main
from train.card import CARD
from train.checkpoint import WEIGHTS, BadCheckpoint, load
from train.fit import UNFINISHED, fit
from train.search import RANGES, SEARCH, TRIALS
from train.split import Split
from train.trainer import Trainer

ROWS = [f"u{n % 3},i{n % 5},view,{1_700_000_000 + n}" for n in range(30)]
USERS, ITEMS, LENGTH = 200, 30, 8
SMALL = [
    *("--set", "dim=16", "--set", "width=16", "--set", "blocks=1", "--set", "learning_rate=0.02"),
    *("--set", "dropout=0", "--epochs", "5"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--events", "{log}", "--out", "{log}"], "events.csv"),
        (["--events", "{log}", "--out", "/proc/none"], "/proc/none"),
        (["--events", "{log}", "--map", "{folder}/none.toml"], "none.toml"),
        (["--events", "{folder}/none.csv"], "none.csv"),
        (["--events", "{folder}/none.txt"], "none.txt"),
        (["--events", "{log}", "--items", "{folder}/none.csv"], "none.csv"),
        (["--events", "{log}", "--epochs", "0"], "epochs is 0"),
        (["--events", "{log}", "--set", "drop=1"], "--set drop=1: expected NAME=VALUE"),
        (["--events", "{sequences}", "--split", "time"], "has no times; expected --split leave-one-out"),
        (["--events", "{broken}"], "broken.txt"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "log": "\n".join(["user_id,item_id,type,time", *ROWS]),
        "sequences": "1 1\n1 2\n1 3\n",
        "broken": "1 1\n1 2 3\n",
    }
    names = {"log": "events.csv", "sequences": "sequences.txt", "broken": "broken.txt"}
    for name, text in files.items():
        (tmp_path / names[name]).write_text(text)
    paths = {name: str(tmp_path / file) for name, file in names.items()}
    filled = [argument.format(**paths, folder=tmp_path) for argument in arguments]
    out = [] if "--out" in filled else ["--out", str(tmp_path / "out")]
    assert main([*filled, *out]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and "Traceback" not in told


@pytest.mark.parametrize("trials", ["0", "-3", "some"])
def test_a_search_has_a_budget(trials: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--events", "x.csv", "--out", "y", "--search", trials])
    assert "--search" in capsys.readouterr().err


def pairs() -> list[tuple[int, int]]:
    """Item i is always followed by i + 1; nobody comes back to anything."""
    return [(user, (user * 7 + turn) % ITEMS) for user in range(USERS) for turn in range(LENGTH)]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "world.txt.xz"
    path.write_bytes(lzma.compress("".join(f"{u + 1} {i + 1}\n" for u, i in pairs()).encode()))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sequences: Path) -> Path:
    """The folder of a run that went through."""
    out = tmp_path_factory.mktemp("whole")
    assert train(sequences, out) == 0
    return out


def train(events: Path, out: Path, *more: str) -> int:
    return main(["--events", str(events), "--out", str(out), *SMALL, *more])


def metrics(out: Path) -> dict[str, Any]:
    report = json.loads((out / "metrics.json").read_text())
    assert isinstance(report, dict)
    return report


def test_a_benchmarks_file_is_measured_by_the_papers_protocol_too(whole: Path) -> None:
    report = metrics(whole)
    assert report["split"] == "leave-one-out"
    assert report["data"]["users"] == USERS and report["data"]["events"] == USERS * LENGTH
    assert report["test_masked"]["ndcg@10"] > 0.9 > report["baselines_masked"]["popularity"]["ndcg@10"]
    assert report["test_masked_intervals"]["ndcg@10"]["mean"] == pytest.approx(
        report["test_masked"]["ndcg@10"]
    )
    assert "freshness" not in report  # an hour is nothing in a log without times


def test_every_part_of_the_report_is_there_and_in_the_card(whole: Path) -> None:
    report = metrics(whole)
    everybody = report["slices"]["all"]["all"]
    assert everybody["users"] == USERS
    assert everybody["ndcg@10"]["low"] <= report["test"]["ndcg@10"] <= everybody["ndcg@10"]["high"]
    assert set(report["slices"]) == {
        *("all", "history_length", "item_popularity", "repeat_or_new", "event_type")
    }
    assert list(report["slices"]["repeat_or_new"]) == ["new"]
    assert list(report["slices"]["event_type"]) == ["rating"]
    assert report["beyond_accuracy"].keys() >= {"coverage", "intra_list_diversity", "novelty_bits"}
    few = report["few_events"]
    assert list(few) == ["users", "masked", "popularity", "1", "3", "5", "10"]
    gain = few["1"]["over_popularity"]["ndcg@10"]["mean"]  # one event tells all, in this world
    assert gain == pytest.approx(few["1"]["ndcg@10"]["mean"] - few["popularity"]["ndcg@10"]["mean"])
    assert gain > 0.5
    assert len(report["epochs"]) == 5
    card = (whole / CARD).read_text()
    assert "Never below popularity." in card and f"{report['test_masked']['ndcg@10']:.4f}" in card


def test_what_it_writes_is_a_checkpoint_that_export_reads(whole: Path) -> None:
    _, meta = load(whole)
    assert len(read_products(whole, meta).shown) == ITEMS
    assert not (whole / UNFINISHED).exists()


def test_a_split_by_time_shows_what_fresh_state_is_worth(tmp_path: Path) -> None:
    lines = [
        {"user_id": f"u{u}", "item_id": f"i{(u * 7 + t) % ITEMS}", "type": "view", "time": 1.6e9 + 1_200 * t}
        for t in range(20)
        for u in range(40)
    ]
    events = tmp_path / "log.jsonl"
    events.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    assert train(events, out, "--freshness-events", "30", "--no-card") == 0
    report = metrics(out)
    assert 0 < report["freshness"]["events"] <= 30
    assert report["freshness"]["states"].keys() == {"fresh", "hour", "day", "never"}
    assert "test_masked" not in report and not report["few_events"]["masked"]
    assert "test_from" in report["data"]
    assert not (out / CARD).exists() and not list(out.glob("*.png"))


def test_a_state_that_leaves_a_row_less_room_for_favourites_is_said_to(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for width, said in ((305, ""), (306, "322 numbers: a visitor's row of 2 KB has room for 49 favourites")):
        wide = ("--set", f"width={width}", "--epochs", "1", "--no-card")
        assert train(sequences, tmp_path / f"{width}", *wide) == 0
        out = capsys.readouterr().out
        assert said in out and ("has room for" in out) == bool(said)


def test_a_run_that_diverges_ends_with_one_line_and_leaves_nothing_to_export(
    whole: Path, sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)  # an earlier run's, of the same catalogue
    assert train(sequences, out, "--set", "learning_rate=1e30") == 1
    told = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 1 and "epoch 0, step" in errors[0] and "expected finite numbers" in errors[0]
    assert "Traceback" not in "\n".join(told)
    assert not (out / "metrics.json").exists() and not (out / CARD).exists()
    with pytest.raises(BadCheckpoint):
        read_products(out, load(out)[1])


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as an interactive shell hands it on: it is ignored in what a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_ends_where_one_that_went_through_ends(
    number: signal.Signals,
    whole: Path,
    sequences: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", interrupting(number, at=2))
        assert train(sequences, out) == 128 + number
    told = capsys.readouterr().err
    assert f"interrupted by {number.name} in epoch " in told and "Traceback" not in told
    assert f"go on with: python -m train --events {sequences} --out {out}" in told
    assert told.rstrip().endswith("--resume")
    assert (out / UNFINISHED).exists() and not (out / "metrics.json").exists()
    if number == signal.SIGINT:  # from here on both are alike
        return
    assert train(sequences, out, "--resume") == 0
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(out)["test"] == metrics(whole)["test"]
    assert not (out / UNFINISHED).exists()


def interrupting(number: int, at: int) -> Callable[..., float]:
    """A training step in which the signal comes, the `at`th."""
    take = Trainer.step

    def step(self: Trainer, *arguments: Any) -> float:
        if self.done == at:
            os.kill(os.getpid(), number)
        return take(self, *arguments)

    return step


def test_an_evaluation_that_is_interrupted_does_not_cost_the_training(
    whole: Path, sequences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    def no_step(*_: object) -> float:
        raise AssertionError("trained again")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "measure", interrupted)
        assert train(sequences, out) == 130
    monkeypatch.setattr(Trainer, "step", no_step)
    assert train(sequences, out, "--resume") == 0
    assert metrics(out)["test"] == metrics(whole)["test"]


def test_resume_where_nothing_was_ended_says_so(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(sequences, tmp_path / "out", "--resume") == 0
    assert "this one begins anew" in capsys.readouterr().out


def test_a_search_trains_as_often_as_it_was_told_and_never_sees_the_test(
    sequences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Split] = []

    def spied(parts: Split, *arguments: Any, **named: Any) -> Any:
        learnt.append(parts)
        return fit(parts, *arguments, **named)

    monkeypatch.setattr(pipeline, "fit", spied)
    out = tmp_path / "out"
    assert train(sequences, out, "--search", "2", "--no-card") == 0
    trials = json.loads((out / SEARCH).read_text())["trials"]
    assert len(trials) == len(learnt) == 2
    assert set(trials[0]["settings"]) == set(RANGES) - {
        "dim",
        "width",
        "blocks",
        "learning_rate",
        "dropout",
        "epochs",
    }
    report = metrics(out)
    assert report["search"]["trials"] == 2
    best = out / TRIALS / f"{report['search']['best']:03}"
    assert (out / WEIGHTS).read_bytes() == (best / WEIGHTS).read_bytes()
    last = {user: (user * 7 + LENGTH - 1) % ITEMS for user in range(USERS)}
    for parts in learnt:
        ids = [int(item) - 1 for item in parts.train.item_ids]
        names = [int(user) - 1 for user in parts.train.user_ids]
        seen = {(names[u], ids[i]) for u, i in zip(parts.train.user, parts.train.item, strict=True)}
        aims = {(names[u], ids[i]) for u, rows in parts.targets.items() for i in rows}
        assert not (seen | aims) & set(last.items())
