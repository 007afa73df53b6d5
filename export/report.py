"""The proof as people read it, in the bundle's folder `report/`: a table, its numbers, a plot.

Times differ from run to run, and a bundle's name is a hash; so the manifest does not list these files, and
functions do not fetch them. Their own sums stand beside them: `functions.core.bundle.verify` checks them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from export.levels import FP32, Measured, table
from functions.core.bundle import REPORT, SUMS, report_sums


def write_report(bundle: Path, report: Mapping[str, object], measured: Mapping[str, Measured]) -> None:
    """Write `bundle`/report: quantization.json, .md, .png and their sums; `report`: all that was measured."""
    folder = bundle / REPORT
    folder.mkdir(exist_ok=True)
    rows = {name: asdict(row) for name, row in measured.items()}
    whole = json.dumps({**report, "levels": rows}, indent=1) + "\n"
    (folder / "quantization.json").write_text(whole, encoding="utf-8")
    (folder / "quantization.md").write_text(_text(report, measured), encoding="utf-8")
    _plot(measured, folder / "quantization.png")
    (folder / SUMS).write_text(report_sums(folder), encoding="utf-8")


def _text(report: Mapping[str, object], measured: Mapping[str, Measured]) -> str:
    scalars = {name: value for name, value in report.items() if isinstance(value, int | float | str)}
    return "\n".join(
        [
            "# What quantization costs",
            "",
            f"On {report.get('users', 0)} held-out users, one thread of this CPU. NDCG@10 is what",
            "would be served at each level, repeat term included; recall@10 is of the exact ten best.",
            "",
            table(measured),
            "",
            *(f"- {name}: {value}" for name, value in scalars.items()),
            "",
        ]
    )


def _plot(measured: Mapping[str, Measured], path: Path) -> None:
    from matplotlib.figure import Figure  # no pyplot: no display, no state of the process

    names = list(measured)
    base = measured[FP32].ndcg or 1.0
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = {
        "NDCG@10, share of fp32": [row.ndcg / base for row in measured.values()],
        "bytes an item": [row.bytes_per_item for row in measured.values()],
        "µs a query": [row.microseconds for row in measured.values()],
    }
    for place, (title, values) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        bars = axes.barh(names, values, color="#4a6fa5")
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.bar_label(bars, fmt="%.4g", fontsize=8, padding=2)
        axes.margins(x=0.2)
        if place > 1:
            axes.set_yticklabels([])
    figure.savefig(path, dpi=110)
