"""The model card beside a checkpoint (Mitchell et al. 2019): what it learnt from, how good it is.

Every number comes from the report of a run; a section whose input is absent says so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from functions.core.events import EVENT_TYPES, IMPRESSION
from functions.core.processor import processor
from train import plots
from train.log import Interactions
from train.options import Options
from train.towers import Shape

CARD = "model_card.md"
CURVE, EVENTS_SEEN, FRESHNESS = "learning_curve.png", "events_seen.png", "freshness.png"
FEW_EVENTS = "few_events.png"
ABSENT = "Not recorded in this run."
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "implicit", "ibis-framework", "duckdb")
LIMITS = (
    "It ranks products of this catalogue for this shop's visitors; nothing was measured outside of this log.",
    "Offline metrics reward what visitors did under what they were shown then; they do not measure what a "
    "banner would have changed.",
    "A visitor without events gets what is popular; a product without content and without events is placed "
    "at random.",
    "Events are what a shop sends: bots, shared devices and gifts are in them, beyond what cleaning drops.",
    "No attribute of a person is an input; that groups of visitors are served equally well was not measured.",
)
LICENCE = (
    "The code is under the MIT licence. The weights are derived from the log and the catalogue named above: "
    "their licence, and the consent under which they were collected, decide what the weights may be used for."
)
MASKED = (
    "The protocol of the papers on sequential recommendation: the dot product alone ranks all items that are "
    "not in the user's history."
)

Report = Mapping[str, Any]


def data_facts(log: Interactions, start_s: int | None = None) -> dict[str, object]:
    """Users, items, events by type and dates of a log; `start_s`: where its test part starts, if by time."""
    types = {name: int((log.kind == code).sum()) for code, name in enumerate(EVENT_TYPES, start=1)}
    facts: dict[str, object] = {
        "users": len(log.user_ids),
        "items": len(log.item_ids),
        "events": len(log.user),
        "events_by_type": {name: count for name, count in types.items() if count},
        "items_with_events": len(set(log.item[log.kind != IMPRESSION].tolist())),
        "first": _date(int(log.time_s.min())),
        "last": _date(int(log.time_s.max())),
    }
    return facts if start_s is None else facts | {"test_from": _date(start_s)}


def training_facts(
    shape: Shape, options: Options, epochs: int, best: int, seconds: float
) -> dict[str, object]:
    """How the weights came about, on this machine; `best` is the index of the epoch that was kept."""
    return {
        "shape": asdict(shape),
        "options": asdict(options),
        "epochs": epochs,
        "best_epoch": best + 1,
        "seconds": round(seconds, 1),
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> str:
    """The processor, and the accelerator if there is one."""
    cores = f"{os.cpu_count()} CPU cores ({processor().get('model name') or platform.machine()})"
    return f"{torch.cuda.get_device_name()}, {cores}" if torch.cuda.is_available() else cores


def versions() -> dict[str, str]:
    """Python's and the packages' that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_card(folder: Path, report: Report) -> Path:
    """Write CARD, and its pictures, into the checkpoint's folder; returns its path.

    What `report` may have, each of it optional: `data` (as `data_facts`), `dropped` {cause: rows}, `training`
    (as `training_facts`), `epochs` [(loss, validation NDCG@10)], `test`, `validation` {metric: number},
    `test_masked` (with `test_masked_intervals`), `baselines` and `baselines_masked` {name: {metric: number}},
    `repeats`, `context` {part: whether it is heard}, `search` (as `train.search`), `slices` and
    `beyond_accuracy` (as `train.slices` gives them), `few_events` (as `train.report`), `freshness` (as
    `train.prequential.summary`), `limits` [sentence] and `licence` (of the data).
    """
    sections: list[tuple[str, Callable[[Path, Report], list[str]]]] = [
        ("Data", _data),
        ("Training", _training),
        ("Quality", _quality),
        ("Slices", _slices),
        ("Few events", _few),
        ("Beyond accuracy", _beyond),
        ("Fresh and frozen state", _freshness),
        ("Limits", _limits),
        ("Licence", _licence),
    ]
    lines = ["# Model card", ""]
    for title, section in sections:
        lines += [f"## {title}", "", *(section(folder, report) or [ABSENT]), ""]
    path = folder / CARD
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _data(folder: Path, report: Report) -> list[str]:
    facts = _facts(report.get("data") or {})
    dropped = report.get("dropped")
    if dropped is None:
        return [*facts, "", "Dropped rows: not recorded."] if facts else []
    if not dropped:
        return [*facts, "", "No row was dropped."]
    rows = sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    return [*facts, "", *_table(("cause", "rows dropped or mended"), rows)]


def _training(folder: Path, report: Report) -> list[str]:
    lines = _facts(report.get("training") or {})
    if report.get("repeats"):
        lines += _facts({"repeat term": report["repeats"]})
    if report.get("context"):
        lines += _facts(
            {"heard of a request": [part for part, is_heard in report["context"].items() if is_heard]}
        )
    if report.get("search"):
        lines += _facts({"found by search": report["search"]})
    if report.get("epochs"):
        plots.learning_curve(report["epochs"], folder / CURVE)
        return [*lines, "", f"![Loss and validation NDCG@10 by epoch]({CURVE})"]
    return [*lines, "", "Learning curve: not recorded."] if lines else []


def _quality(folder: Path, report: Report) -> list[str]:
    """Test, validation and baselines side by side; intervals where the slices have them."""
    whole = ((report.get("slices") or {}).get("all") or {}).get("all") or {}
    note = "Means over users; in brackets the 95 % bootstrap interval over users."
    lines = [note if whole else "Means over users; intervals: not recorded.", ""]
    columns = {name: report[name] for name in ("test", "validation") if report.get(name)}
    columns |= report.get("baselines") or {}
    if not columns:
        return []
    lines += _metrics(columns, whole)
    if report.get("test_masked"):
        lines += ["", MASKED, ""]
        columns = {"test": report["test_masked"], **(report.get("baselines_masked") or {})}
        lines += _metrics(columns, report.get("test_masked_intervals") or {})
    return lines if report.get("baselines") else [*lines, "", "Baselines: not recorded."]


def _metrics(columns: Mapping[str, Report], whole: Report) -> list[str]:
    """A row for every metric, a column for every name; `whole`: intervals of the column "test"."""
    metrics = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [
        (m, *(_cell(whole.get(m) if c == "test" else None, v.get(m)) for c, v in columns.items()))
        for m in metrics
    ]
    return _table(("metric", *columns), rows)


def _slices(folder: Path, report: Report) -> list[str]:
    parts = {by: of for by, of in (report.get("slices") or {}).items() if by != "all" and of}
    lines: list[str] = []
    for by, of in parts.items():
        names = [name for name in next(iter(of.values())) if name != "users"]
        rows = [(label, part["users"], *(_cell(part[name]) for name in names)) for label, part in of.items()]
        lines += [
            f"### By {by.replace('_', ' ')}",
            "",
            *_table((by.replace("_", " "), "users", *names), rows),
            "",
        ]
        if by == "item_popularity":
            lines += [
                "Items in order of their events: head are those that begin within the first 20 % of all "
                "events, tail those that begin after 80 %, new those without an event to learn from.",
                "",
            ]
    if parts.get("history_length"):
        plots.by_events_seen(parts["history_length"], folder / EVENTS_SEEN)
        lines += [f"![NDCG@10 by the number of events seen before]({EVENTS_SEEN})"]
    return lines


def _few(folder: Path, report: Report) -> list[str]:
    """How good the lists are where little is known, beside popularity."""
    found = report.get("few_events")
    if not found:
        return []
    plots.few_events(found, folder / FEW_EVENTS)
    names = list(found["popularity"])
    parts = {label: of for label, of in found.items() if label.isdigit()}
    rows = [("popularity", *(_cell(found["popularity"][name]) for name in names), "-")]
    rows += [
        (label, *(_cell(of[name]) for name in names), _cell(of["over_popularity"][plots.NDCG]))
        for label, of in parts.items()
    ]
    shown = "no item of the whole history in a list" if found["masked"] else "as served"
    below = [label for label, of in parts.items() if of["over_popularity"][plots.NDCG]["mean"] < 0]
    return [
        f"{found['users']:,} test users of whom only the last events are known; {shown}.",
        "",
        *_table(("events known", *names, f"over popularity, {plots.NDCG}"), rows),
        "",
        f"Below popularity at {' and '.join(below)} events." if below else "Never below popularity.",
        "",
        f"![NDCG@10 where only the last events are known]({FEW_EVENTS})",
    ]


def _beyond(folder: Path, report: Report) -> list[str]:
    found = report.get("beyond_accuracy")
    if not found:
        return []
    meaning = {
        "coverage": "share of the catalogue that is in anybody's list",
        "intra_list_diversity": "mean 1 - cosine of a list's items",
        "novelty_bits": "mean self-information of a list's items, in bits",
        "calibration_kl": "divergence of the list's categories from the history's, in nats; 0: the same mix",
    }
    rows = [(name, _cell(value), meaning.get(name, "")) for name, value in found.items()]
    return _table(("measure", "value", "meaning"), rows)


def _freshness(folder: Path, report: Report) -> list[str]:
    found = report.get("freshness")
    if not found:
        return []
    plots.freshness(found, folder / FRESHNESS)
    names = list(next(iter(found["states"].values())))
    rows = [
        (
            plots.LABELS[state],
            *(_cell(of[name]) for name in names),
            *(_gain(found, state, name) for name in names),
        )
        for state, of in found["states"].items()
    ]
    lines = [
        f"{found['events']:,} events of {found['users']:,} users, each looked for among the whole catalogue "
        "before any state learnt it. Means over events, intervals over users.",
        "",
        *_table(("state written", *names, *(f"gain of fresh, {name}" for name in names)), rows),
        "",
        f"![NDCG@10 of fresh and of frozen state]({FRESHNESS})",
    ]
    if "reliability" in found:
        lines += ["", f"Expected calibration error of the first item: {found['reliability']['ece']:.4f}."]
    return lines


def _gain(found: Report, state: str, name: str) -> str:
    return _cell(found["gain"][state][name]) if state in found["gain"] else "-"


def _limits(folder: Path, report: Report) -> list[str]:
    return [f"- {limit}" for limit in (*LIMITS, *(report.get("limits") or ()))]


def _licence(folder: Path, report: Report) -> list[str]:
    return [LICENCE, "", f"Licence of the data: {report.get('licence') or 'not recorded'}."]


def _facts(facts: Report) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {_fact(value)}" for name, value in facts.items()]


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return f"{value:,}" if type(value) is int and value >= 10_000 else f"{value}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([_fact(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any, mean: float | None = None) -> str:
    """A number, or a mean with its interval; `mean` where there is no interval."""
    if not isinstance(value, Mapping):
        number = mean if value is None else value
        return "-" if number is None else f"{number:.4f}"
    if value["low"] is None:
        return f"{value['mean']:.4f}"
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _date(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
