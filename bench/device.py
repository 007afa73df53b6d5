"""What a measurement ran on, and how fast that multiplies matrices: the limit that a share is of."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Name = TypeVar("Name")
ROUNDS = 6
RUN_S = 1e-3  # calls that are shorter are timed so long together
PEAK_SIZE = 1024  # rows, columns and depth of the products that stand for the limit


def describe(device: torch.device) -> dict[str, object]:
    """Name, threads and load of the device, for a report."""
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "load": load, "torch": torch.__version__}


def _cpu_name() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def linear_flops(module: nn.Module) -> int:
    """Floating-point operations of a row that goes once through every nn.Linear inside, forward."""
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    return 2 * sum(weight.numel() for weight in weights)


def seconds(call: Callable[[], object], device: torch.device, calls: int) -> list[float]:
    """Seconds of a call, `calls` of them, after one that does not count; of short ones the means of runs.

    On one CPU thread they are the thread's own seconds: what else runs on the machine takes turns with it. To
    read that clock takes microseconds, and what follows is slower for it: hence runs, RUN_S long each.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    call()
    together = min(max(round(RUN_S / _timed(call, device, time.perf_counter)), 1), calls)

    def run() -> None:
        for _ in range(together):
            call()

    return [_timed(run, device, clock) / together for _ in range(-(-calls // together))]


def _timed(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    _wait(device)
    started = clock()
    call()
    _wait(device)
    return clock() - started


def interleaved(
    cases: Mapping[Name, tuple[Callable[[], object], int]], device: torch.device, rounds: int = ROUNDS
) -> dict[Name, list[float]]:
    """Seconds of each case's calls, in rounds over all cases, so that a slow minute meets all of them.

    cases: a call and how often it is timed in all.
    """
    spent: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (call, calls) in cases.items():
            spent[name] += seconds(call, device, -(-calls // rounds))
    return spent


def product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A product of two matrices of PEAK_SIZE, to be timed among what is measured."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


def flops_per_second(spent: list[float]) -> float:
    """The rate that the median call of `product` reached."""
    return 2.0 * PEAK_SIZE**3 / statistics.median(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
