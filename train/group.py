"""The processes that torchrun started, if it did: who writes, what they tell each other, how they go on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions take the group that exists when it is imported as their default, and hold it until the
# interpreter ends, where a thread of gloo's aborts. DistributedDataParallel imports it late.
import torch.distributed.nn

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the processes that torchrun started, if it did; whether this is the one that writes."""
    if "RANK" in os.environ:
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield is_first()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def rank() -> int:
    """This process's number in the group; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def highest(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Of each number the largest that any process has, so that all of them do the same."""
    if not dist.is_initialized():
        return list(numbers)
    tensor = torch.tensor(numbers, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [int(number) for number in tensor.tolist()]


def gathered(value: T) -> list[T]:
    """The value of every process, by its number, in all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def of_the_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them: its files need not be on the others' machines."""
    values = [make() if is_first() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[return-value]


def command(module: str, arguments: Sequence[str]) -> str:
    """The command line that starts the processes of this machine as they were started."""
    return f"{_launcher()} -m {module} {shlex.join(arguments)}"


def _launcher() -> str:
    """torchrun as it would be called here, from the variables that it has set."""
    if "RANK" not in os.environ:
        return "python"
    machines, here = os.environ["GROUP_WORLD_SIZE"], f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    if machines == "1":
        return f"torchrun {here}"
    where = f"--master-addr {os.environ['MASTER_ADDR']} --master-port {os.environ['MASTER_PORT']}"
    return f"torchrun --nnodes {machines} --node-rank {os.environ['GROUP_RANK']} {where} {here}"


def speaks_for_its_machine() -> bool:
    """Whether this process is its machine's first."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
