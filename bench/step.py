"""What an event costs, on one CPU thread: the exported step in ONNX Runtime, torch's step, the parallel form.

All of it is timed in turns in one run. Beside each figure stands what the matrix products alone would take at
the rate that ONNX Runtime reaches on large matrices on this thread: no step of its in float32 can be faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bench.device import PEAK_SIZE, describe, flops_per_second, interleaved, linear_flops
from export.score import IR_VERSION
from export.towers import export_user_tower
from functions.core.favourites import Favourites, item_and_kind
from functions.core.features import GAP_BUCKETS, VALUE_BUCKETS, Int64
from functions.core.models import OPSET
from functions.core.ring import RING, Ring, RingEntry
from functions.core.runtime import OnnxStep, open_session
from functions.core.user_row import (
    MARKS,
    MAX_BYTES,
    MAX_SEQUENCE,
    RECEIPT_BYTES,
    SEEN,
    Float16,
    UserRow,
    encode,
    event_hash,
    item_key,
    new_row,
    places_for,
)
from train.checkpoint import load
from train.towers import KINDS, Shape, Towers

SIZES = (1, 10, 100, 1000)  # users in one call
TARGETS_US = {1: 25.0, 1000: 1.5}  # microseconds an event
STATE_BYTES = 1024
WINDOW = 200  # events that the parallel form reads at once
WINDOWS = (1, 5)
ITEMS = 3416  # of random towers: as many as ML-1M has
LEAST_CALLS = 30
VERDICTS = {None: "", True: "yes", False: "**no**"}
Name = tuple[str, int]  # a form and its events in one call
PEAK: Name = ("product", 0)
CPU = torch.device("cpu")
KEY_BYTES, NUMBER_BYTES = 22, 21  # of a user key; of the longest DynamoDB Number


@dataclass(frozen=True)
class Timing:
    """Calls of one form with `events` events each; `met` is None where there is no target."""

    form: str
    events: int
    calls: int
    median_us: float
    p99_us: float
    event_us: float
    products_us: float  # an event's matrix products at this thread's measured rate
    target_us: float | None = None
    met: bool | None = None


@dataclass(frozen=True)
class Size:
    """Bytes that are kept of one user."""

    of: str
    bytes: int
    target: int

    @property
    def met(self) -> bool:
        """Whether it is small enough."""
        return self.bytes <= self.target


def main(arguments: list[str]) -> int:
    """Measure, print a table, write `--json`; returns the exit status: 0 whether or not targets are met."""
    options = _arguments(arguments)
    torch.set_num_threads(1)
    report = measure(_towers(options), options.calls)
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(towers: Towers, calls: int) -> dict[str, Any]:
    """The whole report; `calls`: timed calls with one user, larger batches get fewer."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "user_tower.onnx"
        export_user_tower(towers, model)
        nodes = len(onnx.load(str(model)).graph.node)
        step, peak = OnnxStep(model), runtime_product(Path(folder) / "product.onnx")
    spent = interleaved(_cases(towers, step, calls) | {PEAK: (peak, LEAST_CALLS)}, CPU)
    rate = flops_per_second(spent.pop(PEAK))
    flops = linear_flops(towers.user)
    return {
        **describe(CPU),
        "shape": asdict(towers.shape),
        "nodes": nodes,
        "flops_per_event": flops,
        "gigaflops_per_second": round(rate / 1e9, 1),
        "timings": [asdict(_timing(*name, of, flops / rate * 1e6)) for name, of in spent.items()],
        "sizes": [asdict(size) | {"met": size.met} for size in sizes(towers.shape)],
    }


def _cases(towers: Towers, step: OnnxStep, calls: int) -> dict[Name, tuple[Callable[[], object], int]]:
    cases: dict[Name, tuple[Callable[[], object], int]] = {}
    for users in SIZES:
        count = max(LEAST_CALLS, 4 * calls // (users + 3))
        columns = events(towers.shape, users)
        cases["ONNX Runtime, step", users] = partial(step, *columns), count
        cases["torch, step", users] = partial(_torch_step, towers, columns), max(LEAST_CALLS, count // 8)
    for users in WINDOWS:
        call = partial(_parallel, towers, events(towers.shape, users * WINDOW)[1:], users)
        cases[f"torch, parallel over {WINDOW} events", users * WINDOW] = call, LEAST_CALLS
    return cases


def runtime_product(path: Path) -> Callable[[], list[NDArray[np.float32]]]:
    """`bench.device.product` by ONNX Runtime, whose rate may be twice torch's; the model goes to `path`."""
    left, right = np.random.default_rng(0).normal(size=(2, PEAK_SIZE, PEAK_SIZE)).astype(np.float32)
    known, made = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, left.shape) for name in ("left", "made")
    )
    node = helper.make_node("MatMul", ["left", "right"], ["made"])
    graph = helper.make_graph([node], "product", [known], [made], [numpy_helper.from_array(right, "right")])
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), str(path))
    return partial(open_session(path).run, ["made"], {"left": left})


def events(shape: Shape, count: int) -> tuple[Float16, Float16, Int64, Int64, Int64]:
    """Seeded states [n, S], items [n, d] and codes [n] of n users' next events."""
    rng = np.random.default_rng(count)
    state, item = (rng.normal(size=(count, n)).astype(np.float16) for n in (shape.state_width, shape.dim))
    kind, gap, value = (rng.integers(0, n, count) for n in (KINDS, GAP_BUCKETS, VALUE_BUCKETS))
    return state, item, kind, gap, value


@torch.inference_mode()
def _torch_step(towers: Towers, columns: tuple[Float16, Float16, Int64, Int64, Int64]) -> object:
    return towers.user.step(*(torch.from_numpy(column) for column in columns))


@torch.inference_mode()
def _parallel(towers: Towers, columns: tuple[Float16, Int64, Int64, Int64], users: int) -> object:
    """Vectors after every event of windows of WINDOW events."""
    item, *codes = (torch.from_numpy(c).view(users, WINDOW, *c.shape[1:]) for c in columns)
    return towers.user(item.float(), *codes)


def _timing(form: str, events: int, spent: list[float], products_us: float) -> Timing:
    micros = np.array(spent) * 1e6
    median = float(np.median(micros))
    target = TARGETS_US.get(events) if form.startswith("ONNX") else None
    met = None if target is None else median / events <= target
    tail = float(np.quantile(micros, 0.99))
    return Timing(form, events, len(spent), median, tail, median / events, products_us, target, met)


def sizes(shape: Shape) -> list[Size]:
    """What a user's state and fullest row take."""
    attributes = encode(fullest_row(shape.state_width, shape.dim))
    stored = {**attributes, "pk": "k" * KEY_BYTES, "ttl": 2**40}
    return [
        Size("state, float16", 2 * shape.state_width, STATE_BYTES),
        Size("row, every ring full", stored_bytes(stored), MAX_BYTES),
    ]


def fullest_row(state_width: int, dim: int) -> UserRow:
    """A row whose rings are full and whose numbers are as long as they may be."""
    ring = [RingEntry(event_hash(f"e{n}"), item_key(f"i{n}"), 7, 15, 31) for n in range(RING)]
    row = replace(new_row("f" * 16, state_width, dim), ring=Ring.of(ring), last_s=2**32 - 1, version=10**12)
    places = places_for(state_width, dim)
    kept = tuple((item_and_kind(item_key(f"i{n}"), 4), 255) for n in range(places))
    row = replace(row, favourites=Favourites.of(kept, 7), erased=b"\xff" * RECEIPT_BYTES)
    for n in range(SEEN):
        row = row.with_impression(item_key(f"i{n}"), 2**32 - 1)
    for n in range(MARKS):
        row = row.with_mark(f"shardId-{n:012d}", MAX_SEQUENCE)
    return row


def stored_bytes(attributes: dict[str, object]) -> int:
    """DynamoDB's own count: names and values in UTF-8 or raw bytes, a number at its longest."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in attributes.items())


def _value_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else NUMBER_BYTES


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="of `python -m train`; else random weights")
    parser.add_argument("--blocks", type=int, help="of the random towers")
    parser.add_argument("--width", type=int, help="of the random towers")
    parser.add_argument("--calls", type=int, default=3000, help="timed calls with one user")
    parser.add_argument("--json", type=Path, help="where to write the report")
    chosen = parser.parse_args(arguments)
    if chosen.checkpoint and (chosen.blocks or chosen.width):
        parser.error("--blocks and --width are of random towers; a checkpoint has its own")
    return chosen


def _towers(options: argparse.Namespace) -> Towers:
    if options.checkpoint:
        return load(options.checkpoint)[0]
    chosen = {name: getattr(options, name) for name in ("blocks", "width") if getattr(options, name)}
    torch.manual_seed(0)
    return Towers(Shape(items=ITEMS, categories=0, brands=0, **chosen)).eval()


def as_table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        f"{report['device']}, {report['threads']} thread, load {report['load']}; {report['nodes']} nodes, "
        f"{report['flops_per_event']:,} FLOP an event, {report['gigaflops_per_second']} GFLOP/s in products",
        "",
        "| | events | median µs | p99 µs | µs an event | products alone | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for t in report["timings"]:
        target = "" if t["target_us"] is None else f"{t['target_us']}"
        figures = (t["median_us"], t["p99_us"], t["event_us"], t["products_us"])
        shown = " | ".join(f"{figure:,.2f}" for figure in figures)
        lines.append(f"| {t['form']} | {t['events']:,} | {shown} | {target} | {VERDICTS[t['met']]} |")
    lines += ["", "| bytes of a user | | target | met |", "|---|---|---|---|"]
    lines += [f"| {s['of']} | {s['bytes']} | {s['target']} | {VERDICTS[s['met']]} |" for s in report["sizes"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
