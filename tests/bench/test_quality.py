import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from implicit.recommender_base import ModelFitError

from bench import quality
from bench.quality_data import Task
from bench.tuning import METHODS, Done, content_space, defaults, tune
from functions.core.features import Vocabulary, item_features
from tests.train.test_evaluate import interactions
from train.baselines import Baseline, ContentKNN, OwnHistory, Popularity, Scores
from train.log import Interactions
from train.split import Split

FEATURES = item_features([{"title": "mug"}], Vocabulary())
SPACES = {**METHODS, "content-KNN": (ContentKNN, content_space(FEATURES))}


@pytest.mark.parametrize("method", SPACES)
def test_every_method_has_the_same_budget_and_starts_from_its_defaults(method: str) -> None:
    kind, space = SPACES[method]
    seen: list[Baseline] = []
    tuned = tune(space, lambda baseline: float(seen.append(baseline) or 0), 7, 0, defaults(kind))
    assert len(seen) == tuned.trials == len(tuned.values) == 7
    first = kind(FEATURES) if method == "content-KNN" else kind()
    assert repr(seen[0]) == repr(first)
    assert all(type(baseline) is kind for baseline in seen)
    again: list[Baseline] = []
    tune(space, lambda baseline: float(again.append(baseline) or 0), 7, 0, defaults(kind))
    assert list(map(repr, again)) == list(map(repr, seen))


def test_tuning_takes_the_best_and_the_first_of_equals() -> None:
    kind, space = METHODS["own history"]
    seen: list[OwnHistory] = []

    def near_ten(baseline: Baseline) -> float:
        assert isinstance(baseline, OwnHistory)
        seen.append(baseline)
        return -abs(baseline.half_life - 10)

    tuned = tune(space, near_ten, 15, 0, defaults(kind))
    assert tuned.baseline == min(seen, key=lambda b: abs(b.half_life - 10)) != seen[0]
    assert tuned.value == max(tuned.values)
    flat = tune(space, lambda baseline: 0.5, 5, 0, defaults(kind))
    assert flat.baseline == OwnHistory()


def test_a_study_that_was_stopped_goes_on_to_the_same_end() -> None:
    kind, space = METHODS["own history"]

    def near_ten(baseline: Baseline) -> float:
        assert isinstance(baseline, OwnHistory)
        return -abs(baseline.half_life - 10)

    whole = tune(space, near_ten, 9, 0, defaults(kind))
    ran: list[Baseline] = []

    def stops(baseline: Baseline) -> float:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(baseline)
        return near_ten(baseline)

    kept: list[int] = []
    done = Done(keep=lambda new: kept.append(len(new.values)))
    with pytest.raises(KeyboardInterrupt):
        tune(space, stops, 9, 0, defaults(kind), done)
    assert kept == [1, 2, 3, 4] and done.seconds > 0
    seconds, rest = 1000 + done.seconds, []
    done = Done(list(done.values), seconds)
    again = tune(
        space, lambda baseline: rest.append(baseline) or near_ten(baseline), 9, 0, defaults(kind), done
    )
    assert len(rest) == 5 and not any(baseline in ran for baseline in rest)
    assert (again.baseline, again.values) == (whole.baseline, whole.values)
    assert seconds < again.seconds < seconds + 100


def test_an_objective_that_is_no_number_counts_as_nothing() -> None:
    kind, space = METHODS["own history"]
    values = iter([0.1, float("nan"), 0.2, float("nan")])
    assert tune(space, lambda baseline: next(values), 4, 0, defaults(kind)).values == [0.1, 0.0, 0.2, 0.0]
    assert tune(space, lambda baseline: float("nan"), 3, 0, defaults(kind)).baseline == OwnHistory()


def test_a_fit_that_ends_in_no_numbers_is_a_trial_that_found_nothing() -> None:
    kind, space = METHODS["own history"]

    def broken_but_once(baseline: Baseline) -> float:
        if baseline != OwnHistory():
            raise ModelFitError("NaN encountered in factors")
        return 0.1

    assert tune(space, broken_but_once, 3, 0, defaults(kind)).values == [0.1, 0.0, 0.0]


def shop() -> Task:
    """User 0 met 0 and 1, user 1 met 2; user 0 goes on to 1 and 3, user 1 to 4. Item 5 is met by nobody."""
    log = interactions([0, 0, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5])
    log.item[5] = 3
    return Task.of(Split(log, {0: np.array([1, 3]), 1: np.array([4])}), masked=False)


def test_repeats_and_what_is_new_to_the_user_are_judged_apart_by_the_same_lists() -> None:
    lists = np.full((2, 20), -1)
    lists[0, :3] = [0, 1, 3]
    lists[1, :1] = [2]
    found = shop().measure_lists(lists)
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert {part: of["users"] for part, of in found.items()} == {"all": 2, "repeat": 1, "new to the user": 2}
    mean = {part: {m: of[m]["mean"] for m in ("hr@10", "ndcg@10", "recall@20")} for part, of in found.items()}  # type: ignore[index]
    assert mean["all"] == pytest.approx(
        {"hr@10": 0.5, "ndcg@10": (second + third) / (1 + second) / 2, "recall@20": 0.5}
    )
    assert mean["repeat"] == pytest.approx({"hr@10": 1.0, "ndcg@10": second, "recall@20": 1.0})
    assert mean["new to the user"] == pytest.approx({"hr@10": 0.5, "ndcg@10": third / 2, "recall@20": 0.5})


def test_new_products_are_ranked_among_themselves() -> None:
    log = interactions([0, 0, 1, 1], [0, 1, 2, 4])
    log.item[3] = 0  # so 3 and 4 are met by nobody
    task = Task.of(Split(log, {0: np.array([1, 4]), 1: np.array([0])}), masked=False).on_new()
    assert task is not None
    assert (task.users, [t.tolist() for t in task.targets]) == ([0], [[4]])
    scores = np.array([[9, 9, 9, 1, 2]], np.float32)
    found = task.measure(lambda users: scores[users])
    assert found["all"]["hr@10"]["mean"] == found["all"]["ndcg@10"]["mean"] == 1.0  # type: ignore[index]
    assert shop().on_new() is None


def test_leave_one_out_is_ranked_masked_and_whole_with_ties_against_the_target() -> None:
    log = interactions([0, 0, 1, 1], [0, 1, 1, 3])
    task = Task.of(Split(log, {0: np.array([2]), 1: np.array([0])}), masked=True)
    scores = np.array([[5, 4, 3, 3], [1, 2, 2, 3]], np.float32)
    found = task.measure(lambda users: scores[users])
    masked, whole = found["masked"], found["nothing masked"]
    # user 0: 3 ties with the target 2, and 0 and 1 are met; user 1: 2 is before 0, and 1 and 3 are met
    assert masked["ndcg@10"]["mean"] == pytest.approx(1 / np.log2(3))  # type: ignore[index]
    assert whole["ndcg@10"]["mean"] == pytest.approx((1 / np.log2(5) + 1 / np.log2(5)) / 2)  # type: ignore[index]
    assert task.objective(lambda users: scores[users]) == pytest.approx(1 / np.log2(3))


def test_the_objective_is_what_is_reported() -> None:
    task = shop()
    scores = Popularity().fit(task.train)
    assert task.objective(scores) == task.measure(scores)["all"]["ndcg@10"]["mean"]  # type: ignore[index]


def retail(path: Path) -> Path:
    """Invoice lines of 40 customers who come back to three things; validation and test get a new one."""
    lines = ["InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID"]
    for day in range(30):
        for customer in range(40):
            new = (98 if day < 27 else 99) if day >= 25 and customer % 2 else None
            code = new or (customer + day) % 3 + 3 * (customer % 4)
            title = f"NEW MUG {code}" if new else f"MUG {['RED', 'BLUE', 'GREEN'][code % 3]} {code}"
            when = f"2011-{1 + day // 28:02}-{1 + day % 28:02} 10:00:{customer:02}"
            lines.append(f"{day}{customer},{code},{title},1,{when},{1 + code},{customer}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    source = retail(tmp_path / "retail.csv")
    return [
        *("--data", "online-retail", "--online-retail", str(source), "--trials", "2"),
        *("--out", str(tmp_path / "out"), "--report", str(tmp_path / "docs" / "quality.md")),
        *("--leave-one-out", str(tmp_path / "leave_one_out.json")),  # not what was measured in this checkout
    ]


def test_the_command_writes_every_method_once_and_uses_results_again(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = quality.train
    monkeypatch.setattr(quality, "train", lambda arguments: train([*arguments, "--epochs", "1"]))
    chosen = [m for m in quality.ALL if m not in ("matrix factorisation, SGD", "perceptron", "BPR")]
    assert quality.main([*command, "--methods", *chosen]) == 0
    report = (tmp_path / "docs" / "quality.md").read_text()
    assert "1,200 events of 40 users, 14 items" in report
    section = report[report.index("## Online Retail") :]
    numbers = json.loads((tmp_path / "docs" / "quality.json").read_text())
    ours = f"Vitrine, {numbers['data']['online-retail']['methods'][quality.OURS]['date']}"
    for method in chosen:
        name = ours if method == quality.OURS else method.removeprefix(quality.NEW)
        assert f"| {name} |" in section
    new = section[section.index("### New products") :]
    assert f"| {ours} | ." in new or f"| {ours} | 1" in new
    assert "### New products" in section and "MovieLens 1M, leave-one-out\n\nNot run" in report
    methods = numbers["data"]["online-retail"]["methods"]
    assert methods.keys() == set(chosen)
    assert {result["trials"] for name, result in methods.items() if name != quality.OURS} == {2}
    assert methods["own history"]["measured"]["all"]["recall@20"]["mean"] > 0.5
    assert "reused" not in capsys.readouterr().out
    before = (tmp_path / "docs" / "quality.md").read_text()
    assert quality.main([*command, "--methods", *chosen]) == 0
    assert capsys.readouterr().out.count("reused") == len(chosen)
    assert (tmp_path / "docs" / "quality.md").read_text() == before


def test_another_budget_log_or_a_wish_makes_a_result_anew(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*command, "--methods", "popularity"]
    for arguments, reused in (
        (again, False),
        (again, True),
        ([*again, "--fresh"], False),
        ([*again, "--trials", "3"], False),
        ([*again, "--trials", "3", "--seed", "1"], False),
    ):
        assert quality.main(arguments) == 0
        assert ("popularity: reused" in capsys.readouterr().out) is reused
    source = tmp_path / "retail.csv"
    source.write_text("\n".join(source.read_text().splitlines()[:-40]))
    assert quality.main([*again, "--trials", "3", "--seed", "1"]) == 0
    assert "reused" not in capsys.readouterr().out


def test_one_method_is_done_anew_and_the_report_keeps_the_others(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the folder of results is gone: the JSON beside the report has them."""
    report = tmp_path / "docs" / "quality.json"
    assert quality.main([*command, "--methods", "popularity", "own history"]) == 0
    before = json.loads(report.read_text())
    shutil.rmtree(tmp_path / "out")
    found = before["data"]["online-retail"]["methods"]
    found["own history"]["date"] = found["popularity"]["date"] = "2001-01-01"
    report.write_text(json.dumps(before | {"leave_one_out": {"seeds": [0], "mean": {}}}))
    assert quality.main([*command, "--methods", "popularity", "--fresh"]) == 0
    assert "reused" not in capsys.readouterr().out
    after = json.loads(report.read_text())
    methods = after["data"]["online-retail"]["methods"]
    assert methods["own history"] == found["own history"]
    assert methods["popularity"]["date"] != "2001-01-01" and after["leave_one_out"] == {
        "seeds": [0],
        "mean": {},
    }


@pytest.mark.parametrize("most", [3, 5])
def test_a_tuning_that_was_stopped_is_not_begun_again(
    most: int, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, or when what was chosen is fitted to be tested."""
    fitted: list[OwnHistory] = []
    fit = OwnHistory.fit

    def stops(self: OwnHistory, log: Interactions) -> Scores:
        if len(fitted) == most:
            raise KeyboardInterrupt
        fitted.append(self)
        return fit(self, log)

    monkeypatch.setattr(OwnHistory, "fit", stops)
    again = [*command, "--methods", "own history", "--trials", "5"]
    with pytest.raises(KeyboardInterrupt):
        quality.main(again)
    most = 100
    assert quality.main(again) == 0
    assert len(fitted) == 5 + 1  # the trials, and the one that is tested
    assert not list((tmp_path / "out").rglob("*.trials"))


def test_an_absent_file_is_named_with_the_option_that_gives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "quality.md"
    arguments = ["--data", "ml-1m", "--ml-1m", str(tmp_path / "none.txt.xz"), "--out", str(tmp_path / "out")]
    assert quality.main([*arguments, "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'none.txt.xz'} is absent; expected the file, or --ml-1m PATH" in said
    assert "Not run: its file was absent." in report.read_text()


def test_leave_one_out_shows_our_report_and_what_was_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source, ours = tmp_path / "sequences.txt", tmp_path / "leave_one_out.json"
    source.write_text("".join(f"{u} {i}\n" for u in range(30) for i in rng.permutation(20)[:8]))
    row = {"hr@10": "0.3315 (0.3200 to 0.3430)", "ndcg@10": "0.1940 (0.1850 to 0.2030)"}
    ours.write_text(json.dumps({"seeds": [0, 1, 2], "mean": {"float32": row}}))
    arguments = ["--data", "ml-1m", "--ml-1m", str(source), "--trials", "1", "--leave-one-out", str(ours)]
    arguments += ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "quality.md")]
    assert quality.main([*arguments, "--methods", "Markov", "own history", "popularity"]) == 0
    report = (tmp_path / "quality.md").read_text()
    assert (
        "| Vitrine, float32, mean of 3 seeds | .3315 [.3200, .3430] | .1940 [.1850, .2030] | - | - | - |"
        in report
    )
    assert "| published: HSTU-large | .3294 | .1893 | - | - | - |" in report
    assert "| Markov | " in report and "| own history |" not in report
    assert "learns from the validation item too" in report


def test_a_checkpoint_of_another_catalogue_is_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, out = quality.train, tmp_path / "out"
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(
            json.dumps({"user_id": u, "item_id": f"x{t % 5}", "type": "view", "time": 1.6e9 + 60 * t + u})
            for t in range(20)
            for u in range(10)
        )
    )
    assert train(["--events", str(other), "--out", str(out), "--epochs", "1"]) == 0
    with pytest.raises(ValueError, match="another catalogue, of 5 items; expected the 14 items of this log"):
        quality.main([*command, "--methods", quality.OURS, "--checkpoint", f"online-retail={out}"])
    with pytest.raises(SystemExit):
        quality.main([*command, "--checkpoint", f"retail={out}"])
