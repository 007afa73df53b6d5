"""Split by time, the test is predicted by towers that learnt from all before it, and never from its events.

A shop that has a new range when the validation begins: only who learns from that knows what the test has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.handover import read_products
from train import inheritance, served, validation
from train import run as pipeline
from train.__main__ import main
from train.card import CARD
from train.checkpoint import FILES, WEIGHTS, BadCheckpoint, load
from train.context import PARTS, ContextTable
from train.demand import Demand, demand
from train.fit import UNFINISHED, fit
from train.handover import read_demand
from train.log import Interactions
from train.refit import without_id
from train.run import WHOLE, Task
from train.split import Split
from train.trainer import Trainer

USERS, LENGTH, OLD, NEW, UNMET = 60, 20, 20, 8, 32
VALIDATION, TEST = 16, 18  # turns
START_S = 1_600_000_000
SMALL = [
    *("--set", "dim=16", "--set", "width=16", "--set", "blocks=1", "--set", "learning_rate=0.02"),
    *("--set", "dropout=0.1", "--set", "horizon_s=0", "--epochs", "4", "--freshness-events", "0"),
]
ELAPSED = "--no-card", "--set", "horizon_s=1"  # so that the time since the last event is learnt


def item(user: int, turn: int) -> str:
    """Everybody goes round in a circle of the old range; then half of them in one of the new range."""
    changed = turn >= VALIDATION and user % 2
    return f"new{(user + turn) % NEW}" if changed else f"old{(user + turn) % OLD}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The log's and the catalogue's files, as arguments; most of the new range is never met."""
    folder = tmp_path_factory.mktemp("shop")
    lines = [
        {"user_id": f"u{user}", "item_id": item(user, turn), "type": "view", "time": START_S + 1200 * turn}
        for turn in range(LENGTH)
        for user in range(USERS)
    ]
    ids = [*(f"old{i}" for i in range(OLD)), *(f"new{i}" for i in range(NEW + UNMET))]
    products = [{"item_id": i, "title": f"thing {i}", "category": i[:3]} for i in ids]
    for name, rows in (("events.jsonl", lines), ("items.jsonl", products)):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return ["--events", str(folder / "events.jsonl"), "--items", str(folder / "items.jsonl")]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, shop: list[str]) -> list[str]:
    """The same log at times that are nobody's rule, so that the time since the last event is learnt."""
    path = tmp_path_factory.mktemp("uneven") / "events.jsonl"
    lines = [json.loads(line) for line in Path(shop[1]).read_text().splitlines()]
    for nth, line in enumerate(lines):
        line["time"] += nth * nth % 1009
    path.write_text("\n".join(map(json.dumps, lines)))
    return ["--events", str(path), *shop[2:]]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, shop: list[str]) -> Path:
    """The folder of a run that went through."""
    out = tmp_path_factory.mktemp("through")
    assert train(shop, out) == 0
    return out


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, shop: list[str]) -> Path:
    """The folder of a run that kept the validation apart."""
    out = tmp_path_factory.mktemp("held")
    assert train(shop, out, "--hold-validation") == 0
    return out


def train(shop: list[str], out: Path, *more: str) -> int:
    return main([*shop, "--out", str(out), *SMALL, *more])


def metrics(out: Path) -> dict[str, Any]:
    report = json.loads((out / "metrics.json").read_text())
    assert isinstance(report, dict)
    return report


def weights(out: Path) -> bytes:
    return (out / WEIGHTS).read_bytes()


def test_it_knows_what_only_the_validation_had(through: Path, held: Path) -> None:
    """Of the new range the first training has met nothing, and places it by its content alone."""
    for out, known in ((held, 0), (through, NEW)):
        by_content = without_id(load(out)[0].item)
        assert by_content.tolist() == [False] * (OLD + known) + [True] * (NEW - known + UNMET)


def test_it_is_as_long_as_was_best_and_the_report_says_so(through: Path, held: Path) -> None:
    training = metrics(through)["training"]
    second = training["then_on_all_before_the_test"]
    assert second["events"] == USERS * TEST and second["epochs"] == training["best_epoch"]
    assert second["seconds"] > 0
    assert "then_on_all_before_the_test" not in metrics(held)["training"]
    assert "then on all before the test: events 1080, epochs" in (through / CARD).read_text()


def test_what_the_validation_chose_and_said_is_kept(through: Path, held: Path) -> None:
    """Both runs' first trainings are the same."""
    one, other = load(through)[1], load(held)[1]
    assert one == other and one.metrics
    assert metrics(through)["validation"] == metrics(held)["validation"]


def test_what_is_left_is_one_checkpoint_that_export_reads(through: Path) -> None:
    towers, meta = load(through)
    assert len(read_products(through, meta).shown) == OLD + NEW + UNMET
    assert not (through / WHOLE).exists() and not (through / UNFINISHED).exists()
    assert towers.user.centre.any()


def test_demand_is_that_of_the_log_that_the_towers_learnt_from(
    shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never of the test's events, and of none of the trial's products."""
    asked: dict[str, list[int]] = {}
    made: list[Demand] = []
    for module in (inheritance, served, validation):

        def noted(log: Interactions, *more: Any, place: str = module.__name__) -> Demand:
            asked.setdefault(place, []).append(len(log.user))
            made.append(demand(log, *more))
            return made[-1]

        monkeypatch.setattr(module, "demand", noted)
    for more, again in ((), {"train.served": [USERS * TEST]}), (("--hold-validation",), {}):
        asked.clear()
        assert train(shop, tmp_path, "--no-card", *more) == 0
        (trial,) = asked.pop("train.inheritance")
        assert 0 < trial < USERS * VALIDATION
        assert asked == {"train.validation": [USERS * VALIDATION], **again}
        assert np.array_equal(read_demand(tmp_path, OLD + NEW + UNMET), made[-1])


def before_the_test(parts: Split, log: Interactions) -> None:
    assert log.time_s.max() < START_S + 1200 * TEST, "trained on the test's events"


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """Every training's log, none of which has an event of the test."""
    learnt: list[Split] = []

    def fitted(parts: Split, *arguments: Any, **named: Any) -> Any:
        before_the_test(parts, parts.train)
        learnt.append(parts)
        return fit(parts, *arguments, **named)

    monkeypatch.setattr(pipeline, "fit", fitted)
    return learnt


def test_no_training_ever_sees_the_test(
    shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = spied(monkeypatch)
    assert train(shop, tmp_path, "--no-card") == 0
    assert [len(parts.train.user) for parts in learnt] == [USERS * VALIDATION, USERS * TEST]
    assert not learnt[1].targets  # nothing to look at, nothing to choose by


def test_that_check_finds_a_second_training_on_everything(
    shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied(monkeypatch)
    learn_all = pipeline._learn_all

    def planted(task: Task, *arguments: Any) -> Any:
        return learn_all(replace(task, parts=replace(task.parts, train=task.log)), *arguments)

    monkeypatch.setattr(pipeline, "_learn_all", planted)
    with pytest.raises(AssertionError, match="trained on the test's events"):
        train(shop, tmp_path, "--no-card")


@pytest.mark.parametrize("at", [0, 3])
def test_interrupted_in_it_a_run_goes_on_to_the_same_weights(
    shop: list[str],
    through: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", ended_in_the_second(at))
        assert train(shop, tmp_path) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert f"interrupted by SIGTERM in second training, epoch 0, step {at}" in told
    assert told.rstrip().endswith("--resume")
    assert (tmp_path / WHOLE / UNFINISHED).exists()
    with pytest.raises(BadCheckpoint):
        read_products(tmp_path, load(tmp_path)[1])
    assert train(shop, tmp_path, "--resume") == 0
    assert weights(tmp_path) == weights(through)
    assert metrics(tmp_path)["test"] == metrics(through)["test"]


@pytest.mark.parametrize("silent", [PARTS, ()])
@pytest.mark.parametrize("held", [["--hold-validation"], []])
def test_what_is_not_heard_of_a_request_is_gone_from_the_weights_that_are_kept(
    uneven: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent: tuple[str, ...],
    held: list[str],
) -> None:
    monkeypatch.setattr(validation, "_silent", lambda *_: silent)
    assert train(uneven, tmp_path, *ELAPSED, *held) == 0
    context = load(tmp_path)[0].context
    assert bool(context.elapsed_factors.any()) == (not silent)
    said = {part: not silent and part != "names" for part in PARTS}  # the log has none
    assert metrics(tmp_path)["context"] == said
    assert {part: part in context.heard for part in PARTS} == said


def test_what_is_heard_is_chosen_again_alike_by_a_run_that_goes_on(
    uneven: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after the choice, it must not find the silence of the run before."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    heard: list[bool] = []

    def choice(_: object, context: ContextTable, *more: object) -> tuple[str, ...]:
        heard.append(bool(context.elapsed_factors.any()))
        return PARTS

    monkeypatch.setattr(validation, "_silent", choice)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "measure", interrupted)
        assert train(uneven, tmp_path, *ELAPSED) == 130
    assert train(uneven, tmp_path, *ELAPSED, "--resume") == 0
    assert heard == [True, True]
    assert not load(tmp_path)[0].context.elapsed_factors.any()


def ended_in_the_second(at: int) -> Callable[..., float]:
    """A training step in which SIGTERM comes, the `at`th of the second training."""
    take, made = Trainer.step, []

    def step(self: Trainer, *arguments: Any) -> float:
        if not made or made[-1] is not self:
            made.append(self)
        if len(made) == 2 and self.done == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *arguments)

    return step


def no_step(*_: object) -> float:
    raise AssertionError("trained again")


def test_an_evaluation_that_is_interrupted_costs_neither_training(
    shop: list[str], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both checkpoints have their content fitted by then; it is not fitted to what it is already."""

    def interrupted(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "measure", interrupted)
        assert train(shop, tmp_path) == 130
    monkeypatch.setattr(Trainer, "step", no_step)
    assert train(shop, tmp_path, "--resume") == 0
    assert weights(tmp_path) == weights(through)
    assert load(tmp_path)[1] == load(through)[1]


def test_a_run_that_ends_while_the_weights_change_places_forgets_the_first_training_before(
    shop: list[str], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a resumed run would choose its repeat term by towers that know the validation."""
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "os", SimpleNamespace(replace=replaced_once()))
        assert train(shop, tmp_path) == 130
    assert weights(tmp_path) == weights(through)  # the first file alone has moved
    assert not (tmp_path / UNFINISHED).exists()
    with pytest.raises(BadCheckpoint):
        read_products(tmp_path, load(tmp_path)[1])
    assert train(shop, tmp_path, "--resume") == 0
    assert load(tmp_path)[1] == load(through)[1]
    assert weights(tmp_path) == weights(through)


def replaced_once() -> Callable[[Path, Path], None]:
    """os.replace, and Ctrl-C after its first call."""
    names = list(FILES)

    def moved(source: Path, target: Path) -> None:
        if source.name != names[0]:
            raise KeyboardInterrupt
        os.replace(source, target)

    return moved


def test_what_other_settings_left_is_not_taken(
    shop: list[str], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", ended_in_the_second(3))
        assert train(shop, tmp_path, "--set", "weight_decay=0.2") == 128 + signal.SIGTERM
    (tmp_path / UNFINISHED).unlink()  # and only the second training's is there
    assert train(shop, tmp_path, "--resume") == 0
    assert weights(tmp_path) == weights(through)


def test_it_does_not_go_on_unasked(
    shop: list[str], through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", ended_in_the_second(3))
        assert train(shop, tmp_path) == 128 + signal.SIGTERM
    learnt = spied(monkeypatch)
    assert train(shop, tmp_path) == 0
    assert len(learnt) == 2 and weights(tmp_path) == weights(through)


def test_a_search_is_followed_by_it(shop: list[str], through: Path, tmp_path: Path) -> None:
    assert train(shop, tmp_path, "--search", "1", "--no-card") == 0
    assert weights(tmp_path) == weights(through)  # the first trial has the rules' settings
    assert not (tmp_path / WHOLE).exists()


def test_where_each_users_last_event_is_left_out_there_is_none(
    shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Split] = []
    monkeypatch.setattr(pipeline, "fit", lambda parts, *a, **n: learnt.append(parts) or fit(parts, *a, **n))
    assert train(shop, tmp_path, "--split", "leave-one-out", "--no-card") == 0
    assert len(learnt) == 1 and "then_on_all_before_the_test" not in metrics(tmp_path)["training"]


def test_a_group_takes_it_together(shop: list[str], tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train")
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    arguments = [*shop, "--out", str(tmp_path), *SMALL, "--no-card"]
    command = [sys.executable, *launcher, *arguments]
    assert subprocess.run(command, env=environment, cwd=root, timeout=300).returncode == 0
    assert metrics(tmp_path)["training"]["then_on_all_before_the_test"]["events"] == USERS * TEST
    assert not (tmp_path / WHOLE).exists() and without_id(load(tmp_path)[0].item).sum() == UNMET
