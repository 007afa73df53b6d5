"""The model card's pictures, drawn without a screen; the file's ending says which kind (.png, .svg)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

NDCG = "ndcg@10"
COLOURS = {"fresh": "#1b7837", "hour": "#4393c3", "day": "#2166ac", "never": "#762a83"}
LABELS = {"fresh": "fresh", "hour": "hourly", "day": "daily", "never": "never again"}
DPI = 120

Estimates = Mapping[str, Any]  # {"mean", "low", "high"}; low and high are None where unknown


def learning_curve(epochs: Sequence[tuple[float, float]], path: Path) -> Path:
    """(mean loss, validation NDCG@10) of every epoch, in order. Raises ValueError for none."""
    if not epochs:
        raise ValueError("no epochs; expected at least one to draw")
    losses, ndcg = zip(*epochs, strict=True)
    figure, loss_axis = _axes("epoch", "mean training loss")
    numbers = range(1, len(epochs) + 1)
    loss_axis.plot(numbers, losses, color="#b2182b", marker="o", label="loss")
    right = loss_axis.twinx()
    right.plot(numbers, ndcg, color=COLOURS["day"], marker="s", label="validation NDCG@10")
    right.set_ylabel("validation NDCG@10")
    loss_axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = [*loss_axis.get_lines(), *right.get_lines()]
    loss_axis.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    return _save(figure, path)


def by_events_seen(parts: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """NDCG@10 of every bucket of history lengths, as `slices` has them, with intervals."""
    if not parts:
        raise ValueError("no history lengths; expected at least one to draw")
    figure, axes = _axes("events seen before", "NDCG@10")
    _line(axes, list(parts), [part[NDCG] for part in parts.values()], COLOURS["fresh"], "-", "")
    for at, part in enumerate(parts.values()):
        axes.annotate(f"{part['users']:,} users", (at, 0.01), xycoords=("data", "axes fraction"), **SMALL)
    return _save(figure, path)


def few_events(report: Mapping[str, Any], path: Path) -> Path:
    """NDCG@10 by the number of last events that are known, as `train.report.few_events` has it."""
    parts = {label: of for label, of in report.items() if label.isdigit()}
    figure, axes = _axes("last events known", "NDCG@10")
    _line(axes, list(parts), [of[NDCG] for of in parts.values()], COLOURS["fresh"], "-", "both towers")
    popular = report["popularity"][NDCG]
    axes.axhline(popular["mean"], color="grey", linestyle=":", label="popularity")
    if popular["low"] is not None:
        axes.axhspan(popular["low"], popular["high"], color="grey", alpha=0.15)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _save(figure, path)


def freshness(report: Mapping[str, Any], path: Path) -> Path:
    """What `train.prequential.summary` found: NDCG@10 of each state, and where it had missed events."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 2, 3))
    _bars(left, {state: of[NDCG] for state, of in report["states"].items()})
    left.set_title(f"all {report['events']:,} events of {report['users']:,} users", fontsize=9)
    _pairs(middle, report["missed"])
    _by_staleness(right, report["staleness"])
    figure.suptitle("fresh state and state written now and then, 95 % intervals over users")
    return _save(figure, path)


def _pairs(axes: Axes, missed: Mapping[str, Any]) -> None:
    """A state beside the fresh one, on the events before which it had missed something."""
    for at, (state, of) in enumerate(missed.items()):
        for shift, which, colour in ((-0.2, "fresh", COLOURS["fresh"]), (0.2, "frozen", COLOURS[state])):
            estimate = of[which][NDCG]
            axes.bar(at + shift, estimate["mean"], 0.38, color=colour, yerr=_around([estimate]), capsize=4)
    axes.set_xticks(
        range(len(missed)), [f"{LABELS[state]}\n{of['events']:,} events" for state, of in missed.items()]
    )
    axes.set_xlabel("state written, beside fresh")
    axes.set_ylabel("NDCG@10")
    axes.set_title("events before which the state had missed some", fontsize=9)


def _by_staleness(axes: Axes, staleness: Mapping[str, Any]) -> None:
    order = _in_order(staleness.values())
    for state, parts in staleness.items():
        at, colour = [order.index(bucket) for bucket in parts], COLOURS[state]
        _line(axes, at, [part["frozen"][NDCG] for part in parts.values()], colour, "-", LABELS[state])
        _line(axes, at, [part["fresh"][NDCG] for part in parts.values()], colour, ":", "")
    axes.plot([], [], color="grey", linestyle=":", label="fresh, the same events")
    axes.set_xticks(range(len(order)), order, rotation=30, ha="right")
    axes.set_ylim(0, HEADROOM * _highest(staleness.values()) or None)
    axes.set_xlabel("user's events since the state was written")
    axes.set_ylabel("NDCG@10")
    axes.legend(frameon=False, title="state written")


def _highest(parts: Any) -> float:
    """The largest mean that is drawn; the interval of a handful of users would dwarf them all."""
    return float(
        max(of[state][NDCG]["mean"] for by in parts for of in by.values() for state in ("frozen", "fresh"))
    )


HEADROOM = 1.6  # above the means, for intervals
SMALL: dict[str, Any] = {"ha": "center", "fontsize": 7, "color": "grey"}


def _bars(axes: Axes, states: Mapping[str, Estimates]) -> None:
    for at, (state, estimate) in enumerate(states.items()):
        axes.bar(at, estimate["mean"], color=COLOURS[state], yerr=_around([estimate]), capsize=4)
        axes.annotate(f"{estimate['mean']:.4f}", (at, 0.02), xycoords=("data", "axes fraction"), **WHITE)
    axes.set_xticks(range(len(states)), [LABELS[state] for state in states])
    axes.set_xlabel("state written")
    axes.set_ylabel("NDCG@10")


WHITE: dict[str, Any] = {"ha": "center", "color": "white", "fontweight": "bold"}


def _line(
    axes: Axes, x: Sequence[Any], estimates: Sequence[Estimates], colour: str, style: str, label: str
) -> None:
    means = [estimate["mean"] for estimate in estimates]
    bars = _around(estimates) if style == "-" else None
    axes.errorbar(
        x, means, yerr=bars, color=colour, linestyle=style, marker="o", capsize=3, label=label or None
    )


def _around(estimates: Sequence[Estimates]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where an interval is unknown."""
    known = [(e["mean"], e["low"], e["high"]) for e in estimates]
    return [
        [0.0 if low is None else max(mean - low, 0.0) for mean, low, _ in known],
        [0.0 if high is None else max(high - mean, 0.0) for mean, _, high in known],
    ]


def _in_order(parts: Any) -> list[str]:
    """All names of buckets, the lowest first: "0", "1", "2-3", …"""
    return sorted({name for part in parts for name in part}, key=lambda name: int(name.split("-")[0]))


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    """Written by the Agg or SVG canvas that the ending asks for, the same bytes for the same numbers."""
    with matplotlib.rc_context({"svg.hashsalt": "vitrine"}):
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
