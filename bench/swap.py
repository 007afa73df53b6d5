"""The worst request while a new bundle is fetched, verified, opened and swapped in, beside the worst without.

One warm environment of `score` in this process, tables and bucket that answer in 0 ms, requests one after
the other; in turns half a second of requests alone, and as many as a refresh in the background takes. Wall
time: what else runs on the machine is in both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.device import describe
from bench.warm import Context, credential, http_event, warm_shop
from functions.core.bundle import MANIFEST, bundle_id, parse_manifest

QUIET_S = 0.5
Request = Callable[[], object]


def main(arguments: list[str]) -> int:
    """Measure, print, write `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench swap", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args(arguments)
    report = measure(options.items, options.swaps)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(items: int, swaps: int) -> dict[str, Any]:
    """The report, of a shop with so many products."""
    with warm_shop(items) as bundles:
        quiet, swapping, taken = _run(bundles, two_bundles(bundles), swaps)
    return {
        **describe(torch.device("cpu")),
        "items": items,
        "swaps": swaps,
        "refresh_s": round(float(np.median(taken)), 3),
        "requests_alone": quantiles(quiet),
        "requests_during_a_swap": quantiles(swapping),
    }


def two_bundles(bundles: Path) -> list[str]:
    """The champion and another bundle of the same files, by name."""
    champion = str(json.loads((bundles / "pointer.json").read_text())["champion"])
    manifest = parse_manifest((bundles / champion / MANIFEST).read_bytes(), MANIFEST)
    data = replace(manifest, metrics={"note": "the other"}).to_json()
    other = bundles / bundle_id(data)
    other.mkdir()
    for name in manifest.files:
        os.link(bundles / champion / name, other / name)
    (other / MANIFEST).write_bytes(data)
    return [champion, other.name]


def _run(bundles: Path, names: list[str], swaps: int) -> tuple[list[float], list[float], list[float]]:
    from functions import score

    own, context = score.scorer(), Context()
    event = http_event("/v1/banners", {"slot": "home", "k": 5}, credential("ann"))
    first = score.handler(event, context)
    if first["statusCode"] != 200 or own.bundles.current is None:
        raise RuntimeError(f"{first}; expected banners of a bundle")

    def request() -> object:
        return score.handler(event, context)

    quiet: list[float] = []
    swapping: list[float] = []
    taken = []
    for turn in range(swaps):
        quiet += timed(request, _for(QUIET_S))
        wanted = names[(turn + 1) % 2]
        (bundles / "pointer.json").write_text(json.dumps({"champion": wanted}))
        refresh = threading.Thread(target=own.bundles.refresh)
        started = time.perf_counter()
        refresh.start()
        swapping += timed(request, refresh.is_alive)
        taken.append(time.perf_counter() - started)
        if own.bundles.current is None or own.bundles.current.id != wanted:
            raise RuntimeError(f"expected bundle {wanted} to be swapped in")
    return quiet, swapping, taken


def _for(seconds: float) -> Callable[[], bool]:
    ends = time.perf_counter() + seconds
    return lambda: time.perf_counter() < ends


def timed(request: Request, goes_on: Callable[[], bool]) -> list[float]:
    """Seconds of each request while it goes on."""
    spent = []
    while goes_on():
        started = time.perf_counter()
        request()
        spent.append(time.perf_counter() - started)
    return spent


def quantiles(spent: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ms = np.array(spent) * 1e3
    p50, p99, worst = np.quantile(ms, [0.5, 0.99, 1.0]).round(2).tolist()
    return {"count": len(spent), "p50_ms": p50, "p99_ms": p99, "worst_ms": worst}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
