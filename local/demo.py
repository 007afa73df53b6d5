"""`python -m local.demo`: real shop data → trained model → verified bundle → a running cloud → a visit."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from functions.core.bundle import MANIFEST
from functions.core.errors import VitrineError
from local.__main__ import interrupt_on_signals, run, visit_report, write_report
from local.account import read_pointer
from local.cloud import CloudSettings, require_free
from local.stages import Stage, heading, run_stage
from local.visit import Step

BUILD = Path("build/demo")
DATA, MODEL, BUNDLES = BUILD / "data", BUILD / "model", BUILD / "bundles"
REPORT = BUILD / "report.json"
STAGES = 6

# what `python -m train` and `python -m export` are called with
TRAIN = [
    *("--events", str(DATA / "events.parquet"), "--items", str(DATA / "items.parquet")),
    *("--map", "train/maps/complete_journey.toml", "--split", "time", "--epochs", "2", "--out", str(MODEL)),
    *("--freshness-events", "1000"),
    # a demo has minutes: no softmax over 92,348 items, and no second training (docs/experiments.md)
    *("--set", "full_softmax_items=0", "--hold-validation"),
]
EXPORT = ["--checkpoint", str(MODEL), "--out", str(BUNDLES)]
BASELINES = ("popularity", "item_knn", "svd")
MEASURE = "ndcg@10"
INTERRUPTED = 130


class NotBetter(VitrineError):
    """The model does not beat a baseline: nothing to put on a page."""


def write_data(out: str) -> None:
    """The Complete Journey as the files a shop would export."""
    from train.complete_journey import write_files

    events, items, _ = write_files(Path(out))
    print(
        f"      {events}: {events.stat().st_size / 2**20:.0f} MB, {items}: {items.stat().st_size // 1024} kB"
    )


def train(*arguments: str) -> int:
    """`python -m train`."""
    from train.__main__ import main as train_main

    return train_main(list(arguments))


def export(*arguments: str) -> int:
    """`python -m export`."""
    from export.__main__ import main as export_main

    return int(export_main(list(arguments)) or 0)


DATA_STAGE = Stage(
    "data",
    "Read the Complete Journey: a year of a supermarket's baskets",
    10,
    write_data,
    [str(DATA)],
    ["train/complete_journey.py", "pyproject.toml"],
    [DATA / "events.parquet", DATA / "items.parquet"],
)
TRAIN_STAGE = Stage(
    "train",
    "Clean the log, train both towers, evaluate against the baselines",
    200,
    train,
    TRAIN,
    ["train", "functions/core", "pyproject.toml"],
    [MODEL / "metrics.json", MODEL / "weights.safetensors"],
    [DATA_STAGE],
)
EXPORT_STAGE = Stage(
    "export",
    "Export to ONNX, quantize to int8, verify the bundle",
    30,
    export,
    EXPORT,
    ["export", "train", "functions/core", "pyproject.toml"],
    [BUNDLES / "pointer.json"],
    [TRAIN_STAGE],
)


def main(arguments: list[str] | None = None) -> int:
    """All stages; returns the exit status, which is not 0 when any of them failed."""
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the visit")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one (default 8000)")
    options = parser.parse_args(arguments)
    settings = CloudSettings(BUNDLES, BUILD / "logs", options.port)
    restore = interrupt_on_signals()
    try:
        require_free(options.port)
        measured = build()
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return INTERRUPTED
    except VitrineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        restore()
    heading(5, STAGES, "Start the cloud: table, stream, bucket, functions", 5)
    return run(settings, lambda steps: _finish(measured, steps), once=options.once, must_pass=True)


def build() -> dict[str, Any]:
    """Stages 1 to 4; returns the report but for the visit. Raises VitrineError."""
    REPORT.unlink(missing_ok=True)
    _stage(1, DATA_STAGE)
    _stage(2, TRAIN_STAGE)
    metrics = json.loads((MODEL / "metrics.json").read_text())
    heading(3, STAGES, "Compare with the baselines", 1)
    print(comparison(metrics), flush=True)
    require_better(metrics)
    _stage(4, EXPORT_STAGE)
    return {**model_report(metrics), "bundle": bundle_report(BUNDLES)}


def _stage(number: int, stage: Stage) -> None:
    heading(number, STAGES, stage.title, stage.expected_s)
    run_stage(stage, BUILD / "stamps")


def _finish(measured: dict[str, Any], steps: list[Step]) -> None:
    write_report(REPORT, {**measured, "visit": visit_report(steps)})
    heading(6, STAGES, f"A visit, measured; all numbers are in {REPORT}", 5)


def require_better(metrics: dict[str, Any]) -> None:
    """Raises NotBetter, naming the baselines that rank the test period as well as the model or better."""
    own = float(metrics["test"][MEASURE])
    ahead = [name for name in BASELINES if not own > float(metrics["baselines"][name][MEASURE])]
    if ahead:
        beaten_by = ", ".join(f"{name} {metrics['baselines'][name][MEASURE]:.4f}" for name in ahead)
        raise NotBetter(f"{MEASURE} {own:.4f}; expected more than {beaten_by}: the model is not better")


def comparison(metrics: dict[str, Any]) -> str:
    """The model and the baselines to read, best last."""
    rows = {"both towers": metrics["test"], **metrics["baselines"]}
    ranked = sorted(rows.items(), key=lambda row: float(row[1][MEASURE]))
    lines = [f"      {'':14}{'recall@10':>10}{MEASURE:>10}"]
    lines += [f"      {name:14}{row['recall@10']:>10.4f}{row[MEASURE]:>10.4f}" for name, row in ranked]
    return "\n".join(lines)


def model_report(metrics: dict[str, Any]) -> dict[str, Any]:
    """`data` and `model` as report.json has them."""
    test = metrics["test"]
    return {
        "data": {**metrics["data"], "dropped": metrics["dropped"]},
        "model": {
            "recall@10": test["recall@10"],
            MEASURE: test[MEASURE],
            "baselines": {name: metrics["baselines"][name] for name in BASELINES},
        },
    }


def bundle_report(bundles: Path) -> dict[str, Any]:
    """`bundle` as report.json has it, read from the champion's manifest."""
    champion = read_pointer(bundles)["champion"]
    manifest = json.loads((bundles / champion / MANIFEST).read_text())
    return {
        "id": champion,
        "state_space": manifest["state_space"],
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "int8_ndcg_ratio": manifest["quantization"]["int8_ndcg_ratio"],
    }


if __name__ == "__main__":
    sys.exit(main())
