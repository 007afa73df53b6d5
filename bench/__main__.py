"""`python -m bench WHAT …`: each measurement is a module with a `main` that takes the arguments left."""

from __future__ import annotations

import importlib
import sys

MEASUREMENTS = {
    "calls": "bench.calls",
    "cost": "bench.cost",
    "handler": "bench.handler",
    "init": "bench.init",
    "leave-one-out": "bench.leave_one_out",
    "log": "bench.log",
    "logs": "bench.logs",
    "open": "bench.open",
    "quality": "bench.quality",
    "performance": "bench.performance",
    "scoring": "bench.scoring",
    "step": "bench.step",
    "softmax": "bench.softmax",
    "stream": "bench.stream",
    "swap": "bench.swap",
    "training": "bench.training",
}


def main(arguments: list[str]) -> int:
    """Run the named measurement; 2 where there is no such name."""
    if not arguments or arguments[0] not in MEASUREMENTS:
        print(f"usage: python -m bench {{{','.join(MEASUREMENTS)}}} …", file=sys.stderr)
        return 2
    status: int = importlib.import_module(MEASUREMENTS[arguments[0]]).main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
