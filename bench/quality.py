"""Every baseline, tuned with an equal budget, and our model on the same users: docs/benchmarks/quality.md.

Each result is kept in `--out` as JSON and used again, and what is not there is taken from the JSON beside the
report: `--data NAME --methods NAME --fresh` does one method of one data set anew, and all others stand. A run
that was stopped goes on, in the middle of a tuning too. A data set whose file is absent is said to be.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.quality_data import DATA, NEW, OURS, ROOT, Loaded, Task
from bench.quality_report import write_report
from bench.tuning import METHODS, Done, Space, content_space, defaults, tune
from export.handover import read_products
from train.__main__ import main as train
from train.baselines import Baseline, ContentKNN, Scores
from train.baselines.ranking import Floats, Rows, item_counts
from train.card import hardware, versions
from train.checkpoint import WEIGHTS, load
from train.evaluate import Candidates, embed_items
from train.fit import UNFINISHED
from train.handover import read_companions, read_demand
from train.served import Exam, Served
from train.slices import WIDE_CUT

SHARED = ROOT.parent / "shared" / "data"
SOURCES = {
    "ml-1m": SHARED / "ml-1m" / "ml-1m.txt.xz",
    "online-retail": SHARED / "online_retail.parquet",
    "online-retail-held-out": SHARED / "online_retail.parquet",
    "complete-journey": ROOT,  # in a package, always there
}
CONTENT_KNN = "content-KNN"
RECENCY = ("recent popularity", "own history")
ALL = (*METHODS, NEW + "random", NEW + CONTENT_KNN, OURS)
METRICS, FACTS = "metrics.json", "facts.json"
TRIALS = ".trials"  # of a tuning whose result is not there yet

Result = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run what is not there yet, write the report; returns the exit status."""
    options = _arguments(arguments)
    published = options.report.with_suffix(".json")
    before = _read(published) if published.exists() else {"data": {}, "leave_one_out": None}
    restore(before["data"], options.out)
    for name in options.data:
        source = getattr(options, name.replace("-", "_"))
        if source.exists():
            _run(name, source, options)
        else:
            print(f"{DATA[name].title}: {source} is absent; expected the file, or --{name} PATH", flush=True)
    ours = _read(options.leave_one_out) if options.leave_one_out.exists() else before["leave_one_out"]
    write_report(options.report, collect(options.out), ours)
    print(options.report)
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench quality", description=__doc__)
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name}", type=Path, default=source, metavar="PATH", help=f"[{source}]")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=ALL, default=list(ALL), metavar="NAME", help=str(ALL))
    parser.add_argument("--trials", type=int, default=10, help="of each method's tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="NAME=FOLDER", help="else we train")
    parser.add_argument("--leave-one-out", type=Path, default=ROOT / "build/leave-one-out/leave_one_out.json")
    parser.add_argument("--fresh", action="store_true", help="do the chosen ones anew")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "quality")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "benchmarks" / "quality.md")
    chosen = parser.parse_args(arguments)
    chosen.checkpoint = dict(_pair(text, parser) for text in chosen.checkpoint)
    return chosen


def _pair(text: str, parser: argparse.ArgumentParser) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if name not in DATA or not folder:
        parser.error(f"--checkpoint {text}: expected NAME=FOLDER, NAME one of {', '.join(DATA)}")
    return name, Path(folder)


def _run(name: str, source: Path, options: argparse.Namespace) -> None:
    """All chosen methods on one data set."""
    print(f"{DATA[name].title}: reading {source}", flush=True)
    folder = options.out / name
    loaded = Loaded.read(DATA[name], source, folder / "data", options.seed)
    facts = loaded.facts()
    _write(folder / FACTS, facts)
    bench = Bench(loaded, folder, options.trials, options.seed, str(facts["content"]), options.fresh)
    bench.run([method for method in options.methods if method != OURS])
    # leave-one-out has a measurement of its own, over seeds
    if OURS in options.methods and not DATA[name].masked:
        bench.run_ours(options.checkpoint.get(name))


@dataclass(frozen=True)
class Bench:
    """One data set's methods, and the folder of their results."""

    loaded: Loaded
    folder: Path
    trials: int
    seed: int
    content: str
    fresh: bool = False

    def run(self, methods: list[str]) -> None:
        """Tune and test each of `methods` that can be asked of this data set."""
        for method in methods:
            tasks = self._tasks(method)
            if tasks is not None:
                self._once(method, self._key(), functools.partial(self._tuned, method, *tasks))

    def run_ours(self, checkpoint: Path | None) -> None:
        """Our model with the defaults of `python -m train`, trained unless there is a checkpoint."""
        folder = checkpoint or self.folder / "model"
        unfinished = (folder / UNFINISHED).exists()
        if checkpoint is None and (self.fresh or unfinished or not (folder / METRICS).exists()):
            how = self.loaded.data.how
            arguments = [*self.loaded.files.arguments(how), "--seed", str(self.seed), "--out", str(folder)]
            if train([*arguments, "--resume"] if unfinished else arguments):
                raise RuntimeError(f"python -m train {' '.join(arguments)} failed; expected a checkpoint")
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        key = {**self._key(), "weights": weights}
        self._once(OURS, key, lambda: measure_ours(self.loaded, folder))

    def _tasks(self, method: str) -> tuple[Task, Task] | None:
        """Test and validation; None where the method cannot be asked of this data set."""
        test, validation = self.loaded.test, self.loaded.validation
        if not method.startswith(NEW):
            if self.loaded.data.only_new:
                return None
            return None if self.loaded.data.timeless and method in RECENCY else (test, validation)
        new, new_before = test.on_new(), validation.on_new()
        if new is None or new_before is None or not self.loaded.has_content:
            return None
        return new, new_before

    def _tuned(self, method: str, test: Task, validation: Task) -> Result:
        """Tune on validation, refit on everything before the test, test once."""
        kind, space = self._space(method)

        def objective(baseline: Baseline) -> float:
            return validation.objective(baseline.fit(validation.train))

        trials = self.folder / f"{_slug(method)}{TRIALS}"
        done = Done(
            keep=lambda new: _write(trials, {"key": self._key(), "values": new.values, "cpu_s": new.seconds})
        )
        if trials.exists() and _read(trials)["key"] == self._key():
            done.values, done.seconds = _read(trials)["values"], _read(trials)["cpu_s"]
        tuned = tune(space, objective, self.trials, self.seed, defaults(kind), done)
        started = time.process_time()
        scores = tuned.baseline.fit(test.train)
        fitted = time.process_time()
        measured = test.measure(scores)
        seconds = {"tuning": tuned.seconds, "fit": fitted - started, "test": time.process_time() - fitted}
        return {
            "measured": measured,
            "hyperparameters": _hyperparameters(tuned.baseline),
            "validation": tuned.value,
            "trials": tuned.trials,
            "values": tuned.values,
            "cpu_s": {part: round(of, 2) for part, of in seconds.items()},
        }

    def _space(self, method: str) -> tuple[type, Space]:
        if method == NEW + CONTENT_KNN:
            return ContentKNN, content_space(self.loaded.features)
        return METHODS[method.removeprefix(NEW)]

    def _key(self) -> dict[str, object]:
        return {"trials": self.trials, "seed": self.seed, "content": self.content}

    def _once(self, method: str, key: Mapping[str, object], work: Callable[[], Result]) -> None:
        """Do the work unless its result is there, made under the same key."""
        path = self.folder / f"{_slug(method)}.json"
        if not self.fresh and path.exists() and _read(path)["key"] == key:
            print(f"  {method}: reused", flush=True)
            return
        started = time.monotonic()
        result = {"method": method, "key": key, **work(), **_circumstances()}
        _write(path, result)
        path.with_suffix(TRIALS).unlink(missing_ok=True)
        print(f"  {method}: {time.monotonic() - started:.0f} s", flush=True)


def measure_ours(loaded: Loaded, folder: Path) -> Result:
    """What the checkpoint would serve to the test users, and new products placed by their content alone.

    Raises ValueError where the checkpoint is of another catalogue.
    """
    towers, meta = load(folder)
    if list(meta.item_ids) != loaded.log.item_ids:
        expected = f"expected the {len(loaded.log.item_ids)} items of this log, in their order"
        raise ValueError(f"{folder}: another catalogue, of {len(meta.item_ids)} items; {expected}")
    features, test = read_products(folder, meta).features, loaded.test
    items = len(meta.item_ids)
    kept = read_demand(folder, items), read_companions(folder, meta)
    served = Served.of(towers, features, meta.repeats, *kept)
    exam = Exam.of(loaded.parts)
    found = served.proposed(exam.train, exam.users, exam.asked)
    wide = served.table.astype(np.float32)
    lists = np.stack([each.top(meta.repeats, wide, WIDE_CUT) for each in found])
    result: Result = {"measured": test.measure_lists(lists), "validation": meta.metrics.get("ndcg@10")}
    if (folder / METRICS).exists():
        result["train_s"] = _read(folder / METRICS).get("seconds")
    of_new = test.on_new()
    if of_new is not None and loaded.has_content:
        by_content = embed_items(towers, features, item_counts(test.train) == 0)
        proposed = dict(zip(exam.users, found, strict=True))
        result["new products"] = of_new.measure(new_scores(replace(served, table=by_content), proposed))
    return result


def new_scores(served: Served, proposed: Mapping[int, Candidates]) -> Scores:
    """What is served of products without a history: their dot products, and what they inherit.

    proposed: by user. The shift that all of them have alike decides nothing among themselves.
    """
    wide = served.table.astype(np.float32)

    def scores(users: Rows) -> Floats:
        found: Floats = np.stack([proposed[user].vector for user in users.tolist()]) @ wide.T
        for row, user in zip(found, users.tolist(), strict=True):
            inherited = served.repeats.inheritance(proposed[user].own, served.alike)
            row[list(inherited)] += np.array(list(inherited.values()), np.float32)
        return found

    return scores


def restore(published: Mapping[str, Result], out: Path) -> None:
    """Write what a report's JSON has of each data set, and `out` has not."""
    for name, found in published.items():
        kept = {FACTS: found["facts"]} | {f"{_slug(m)}.json": r for m, r in found["methods"].items()}
        for file, value in kept.items():
            if not (out / name / file).exists():
                _write(out / name / file, value)


def collect(out: Path) -> dict[str, Result]:
    """Whatever results are there, by data set: its facts and its methods'."""
    found = {}
    for name in DATA:
        if (out / name / FACTS).exists():
            facts = _read(out / name / FACTS)
            paths = {method: out / name / f"{_slug(method)}.json" for method in ALL}
            results = {method: _read(path) for method, path in paths.items() if path.exists()}
            current = {m: r for m, r in results.items() if r["key"]["content"] == facts["content"]}
            found[name] = {"facts": facts, "methods": current}
    return found


def _hyperparameters(baseline: Baseline) -> dict[str, object]:
    assert is_dataclass(baseline)
    values = {field.name: getattr(baseline, field.name) for field in fields(baseline)}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def _circumstances() -> dict[str, object]:
    packages = versions() | {"optuna": version("optuna")}
    today = datetime.now(UTC).date().isoformat()
    threads = os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads())
    return {"date": today, "hardware": hardware(), "threads": threads, "versions": packages}


def _slug(method: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def _read(path: Path) -> Result:
    read: Result = json.loads(path.read_text(encoding="utf-8"))
    return read


def _write(path: Path, value: object) -> None:
    """Whole or not at all: a run may be stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
