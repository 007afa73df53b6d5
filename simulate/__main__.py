"""`python -m simulate --histories N`: a line per failing seed, the planted bugs, the faults by kind.

The last line reads `histories=N bad=B planted=K/M faults_min=F`: histories run and how many went wrong,
planted bugs found and how many there are, and how often the rarest fault happened.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from simulate.history import as_json, run
from simulate.planted import BUGS, killed_by
from simulate.world import FAULTS

CHUNK = 250
SEEDS = 2_000  # within which a planted bug must be found


def main(arguments: list[str]) -> int:
    """Run what is asked for; 0 only if all is well, every planted bug found and every fault met."""
    options = _arguments(arguments)
    logging.disable()
    if options.trace is not None:
        return _trace(options.trace)
    seeds = range(options.first_seed, options.first_seed + options.histories)
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    counts: Counter[str] = Counter()
    bad = 0
    with ProcessPoolExecutor(options.processes, initializer=logging.disable) as pool:
        bugs = list(BUGS) if options.planted else []
        found = {name: pool.submit(killed_by, name, SEEDS) for name in bugs}
        for lines, met in _ordered(pool, chunks, options.processes):
            bad += len(lines)
            counts += met
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)
        killed = {name: future.result() for name, future in found.items()}
    for name in bugs:
        seed = killed[name]
        print(f"planted: {name}: " + ("SURVIVED" if seed is None else f"found by seed {seed}"))
    for fault in FAULTS:
        print(f"fault: {fault}: {counts[fault]:,}")
    survivors = sum(seed is None for seed in killed.values())
    rarest = min(counts[fault] for fault in FAULTS)
    print(f"histories={len(seeds)} bad={bad} planted={len(bugs) - survivors}/{len(bugs)} faults_min={rarest}")
    return int(bool(bad or survivors or not rarest))


def histories(seeds: range) -> tuple[list[str], Counter[str]]:
    """Run some seeds: a line for each that went wrong, and the faults that they met."""
    lines, counts = [], Counter[str]()
    for seed in seeds:
        world = run(seed).world
        counts += world.counts
        if world.violations:
            lines.append(f"seed {seed}: {world.violations[0]}")
    return lines, counts


def _ordered(
    pool: ProcessPoolExecutor, chunks: list[range], processes: int
) -> Iterator[tuple[list[str], Counter[str]]]:
    """What the chunks gave, in order, not more of them waiting than the processes need."""
    left: Iterable[range] = iter(chunks)
    waiting = [pool.submit(histories, chunk) for chunk in islice(left, 4 * processes)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(histories, chunk) for chunk in islice(left, 1)]


def _trace(seed: int) -> int:
    history = run(seed)
    print(as_json(history))
    for violation in history.world.violations:
        print(f"seed {seed}: {violation}")
    return int(bool(history.world.violations))


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulate", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-planted", dest="planted", action="store_false", help="without the planted bugs")
    parser.add_argument("--trace", type=int, help="print one seed's history and what is wrong with it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
