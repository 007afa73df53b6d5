"""What the softmax over every item costs beside a sampled one, by the number of items: time and memory.

The trainer's own steps on the rules' batch, 24 windows of 400 events, the two losses in turns in one process
for each size. Its largest resident size (ru_maxrss) is read after the first steps of the sampled loss and
again after the full one's: interpreter, torch, tables and both optimisers included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial

import torch

from bench.device import describe, interleaved
from bench.training import full_batch, synthetic_log, trainer_of
from train.fit import freed_memory_kept
from train.options import Options
from train.rules import facts, options_for, shape_for

SIZES = (30_000, 50_000, 100_000)
USERS, MEAN_LENGTH = 600, 300.0
FULL, SAMPLED = "full", "sampled"


def main(arguments: list[str]) -> int:
    """Measure each size in a process of its own, print a table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench softmax", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each loss")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # what the process for a size does
    options = parser.parse_args(arguments)
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.one, options.steps)))
        return 0
    found = [_apart(items, options) for items in options.items]
    print(_table(found))
    return 0


def _apart(items: int, options: argparse.Namespace) -> dict[str, object]:
    asked = {"--one": items, "--steps": options.steps, "--threads": options.threads}
    command = [sys.executable, "-m", "bench", "softmax", *(str(x) for pair in asked.items() for x in pair)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(items: int, steps: int) -> dict[str, object]:
    """Events trained a second and MB at the peak, of both losses at this number of items."""
    log = synthetic_log(USERS, items, MEAN_LENGTH)
    known = replace(facts(log), items=items)
    shape = shape_for(known)
    cases, peaks = {}, {}
    for name, most in ((SAMPLED, 0), (FULL, items)):
        options = options_for(known, Options(full_softmax_items=most))
        trainer = trainer_of("towers", log, shape, options)
        batch = full_batch(log, options).to(trainer.device)
        call = partial(trainer.step, batch, "bench")
        call()
        peaks[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        cases[name] = call, steps
    with freed_memory_kept():
        spent = interleaved(cases, trainer.device, steps)
    ratio = statistics.median(full / own for full, own in zip(spent[FULL], spent[SAMPLED], strict=True))
    return {
        **describe(trainer.device),
        "items": items,
        "dim": shape.dim,
        "events_per_s": {name: round(batch.pairs / statistics.median(of)) for name, of in spent.items()},
        "times_as_long": round(ratio, 2),
        "peak_mb": peaks,
    }


def _table(found: list[dict[str, object]]) -> str:
    lines = [
        f"{found[0]['device']}, {found[0]['threads']} thread(s), load {found[-1]['load']}",
        "",
        "| items | dim | events/s, sampled / full | times as long | MB at the peak, sampled / full |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        rates, peaks = one["events_per_s"], one["peak_mb"]
        assert isinstance(rates, dict) and isinstance(peaks, dict)
        speeds = f"{rates[SAMPLED]:,} / {rates[FULL]:,} | {one['times_as_long']}"
        memory = f"{peaks[SAMPLED]:,} / {peaks[FULL]:,}"
        lines.append(f"| {one['items']:,} | {one['dim']} | {speeds} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
