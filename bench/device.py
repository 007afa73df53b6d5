"""What a measurement ran on, and how fast that multiplies matrices: the limit that a share is of."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from functions.core.processor import processor

Name = TypeVar("Name")
Clock = Callable[[], float]
ROUNDS = 6
SHORT_S = 1e-3  # calls up to which the wall's clock is read
PEAK_SIZE = 1024  # rows, columns and depth of the products that stand for the limit


def describe(device: torch.device) -> dict[str, object]:
    """Name, threads and load of the device, for a report."""
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "load": load, "torch": torch.__version__}


def _cpu_name() -> str:
    """With its family: a virtual machine may tell no more of the model than "AMD EPYC"."""
    known = processor()
    name = known.get("model name") or platform.processor() or platform.machine()
    family = f" (family {known['cpu family']}, model {known.get('model')})" if "cpu family" in known else ""
    return f"{name}{family}, {torch.backends.cpu.get_cpu_capability()}"


def linear_flops(module: nn.Module) -> int:
    """Floating-point operations of a row that goes once through every nn.Linear inside, forward."""
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    return 2 * sum(weight.numel() for weight in weights)


def clock_for(call: Callable[[], object], device: torch.device) -> Clock:
    """The clock that times such calls, told from one of them, after one that warms up.

    On one CPU thread long calls have the thread's own seconds: what else runs on the machine takes turns with
    it. To read that clock enters the kernel, from which a call of microseconds comes back one of them slower:
    such are timed by the wall's, whose median others' turns do not move.
    """
    call()
    started = time.perf_counter()
    call()
    short = time.perf_counter() - started <= SHORT_S
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone and not short else time.perf_counter


def seconds(call: Callable[[], object], device: torch.device, calls: int, clock: Clock) -> list[float]:
    """Seconds of each of `calls` calls, after one that does not count."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
    call()
    if wait:
        wait()
    spent = []
    for _ in range(calls):
        started = clock()
        call()
        if wait:
            wait()
        spent.append(clock() - started)
    return spent


def interleaved(
    cases: Mapping[Name, tuple[Callable[[], object], int]], device: torch.device, rounds: int = ROUNDS
) -> dict[Name, list[float]]:
    """Seconds of each case's calls, in rounds over all cases, so that a slow minute meets all of them.

    cases: a call and how often it is timed in all.
    """
    spent: dict[Name, list[float]] = {name: [] for name in cases}
    clocks = {name: clock_for(call, device) for name, (call, _) in cases.items()}
    for _ in range(rounds):
        for name, (call, calls) in cases.items():
            spent[name] += seconds(call, device, -(-calls // rounds), clocks[name])
    return spent


def product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A product of two matrices of PEAK_SIZE, to be timed among what is measured."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


def flops_per_second(spent: list[float]) -> float:
    """The rate that the median call of `product` reached."""
    return 2.0 * PEAK_SIZE**3 / statistics.median(spent)
