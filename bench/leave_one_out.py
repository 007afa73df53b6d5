"""The protocol of the papers on sequential recommendation, from the committed defaults.

The last item of every user is the test, the one before it the validation; the model learns from neither, its
checkpoint is chosen on validation, and the test history holds the validation item. All items are ranked, once
with the whole history masked and once without; a tie counts against us.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from bench.ranks import estimate, gains, hits, rank_by_dot_product, rank_by_scores
from export.score import quantize
from functions.core.features import Vocabulary, item_features
from functions.core.fold import in_space
from functions.core.scorer import ZERO_POINT
from functions.core.user_row import Float16, UserRow
from train.baselines import Baseline, Markov, Popularity
from train.checkpoint import load
from train.dataset import held_out
from train.evaluate import TowerItems, embed_items, torch_encoder, user_rows
from train.fit import UNFINISHED, CannotResume, fit
from train.log import Interactions, read_log
from train.options import Options
from train.report import newest
from train.rules import facts, options_for, shape_for, softmax_items_for
from train.sequences import is_sequences, write_sequences
from train.split import Split, Targets, rows_by_user, split
from train.stopping import Stopped
from train.towers import Towers

LAGS = 5  # of the Markov floor
LAST = (1, 3, 5, 10)  # events that are left of a history
EVENTS_AT_ONCE = 20_000
OTHER_SPACE = "f" * 16


@dataclass(frozen=True)
class Task:
    """Every user's history and the one item that follows, [U]."""

    log: Interactions
    users: list[int]
    target: NDArray[np.int64]
    history: list[NDArray[np.int64]]


def main(arguments: list[str]) -> int:
    """Train with every seed, evaluate, write `--out`/leave_one_out.json; returns the exit status.

    What has been trained in `--out` is not trained again, so a run that was stopped goes on; after a change
    of the code give another folder.
    """
    options = _arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    log = read_log(_as_log(options.events, options.out)).to_arrays()
    parts = split(log, "leave-one-out", most_users=len(log.user_ids))
    inner = split(parts.train, "leave-one-out", most_users=len(log.user_ids))
    try:
        runs = [_run(inner, parts, options, seed) for seed in dict.fromkeys(options.seeds)]
    except CannotResume as error:
        print(f"{error}; or give another --out", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command goes on", file=sys.stderr)
        return 128 + stopped.number
    task = _task(parts)
    floor, mean = _floors(task), _mean(runs)
    report = {
        "users": len(task.users),
        "items": len(log.item_ids),
        "events": len(log.user),
        "seeds": options.seeds,
        "floor": floor,
        "mean": mean,
        "runs": runs,
    }
    for run in runs:
        del run["ranks"]
    (options.out / "leave_one_out.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(floor | mean, indent=1))
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench leave-one-out", description=__doc__)
    parser.add_argument("--events", required=True, type=Path, help="`user item` lines, or a log of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of what the rules say")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", required=True, type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    return chosen


def _as_log(source: Path, out: Path) -> Path:
    return write_sequences(source, out / "log.parquet") if is_sequences(source) else source


def _run(inner: Split, parts: Split, options: argparse.Namespace, seed: int) -> dict[str, object]:
    """One seed: train, then every way of ranking the test."""
    folder = options.out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    known = facts(inner.train)
    every = softmax_items_for(known, torch.cuda.is_available())
    chosen = options_for(known, Options(seed=seed, full_softmax_items=every), options.epochs)
    vocabulary = Vocabulary()
    features = item_features([{}] * len(inner.train.item_ids), vocabulary)
    shape, resumed = shape_for(known), (folder / UNFINISHED).exists()
    if resumed:
        print(f"seed {seed}: going on from what was trained in {folder}", flush=True)
    started = time.monotonic()
    history = fit(inner, features, vocabulary, shape, chosen, folder, resume=True, keep_state=True)
    seconds = time.monotonic() - started
    towers, _ = load(folder)
    table = embed_items(towers, features)
    found = _all_ranks(towers, table, parts)
    return {
        "seed": seed,
        "seconds": None if resumed else round(seconds, 1),
        "options": asdict(chosen),
        "shape": asdict(towers.shape),
        "best_epoch": history.best,
        "validation": [epoch.metrics["ndcg@10"] for epoch in history.epochs],
        **{name: _metrics(of) for name, of in found.items()},
        "ranks": found,
    }


def _all_ranks(towers: Towers, table: Float16, parts: Split) -> dict[str, NDArray[np.int64]]:
    task = _task(parts)
    items = table.astype(np.float32)
    exact = parallel_vectors(towers, items, task.log, parts.targets)
    encoder = torch_encoder(towers, TowerItems(task.log.item_ids, table))
    rows = user_rows(task.log, task.users, encoder)
    rebuilt = in_space([replace(row, space=OTHER_SPACE) for row in rows], encoder)
    coded = _as_coded(table)
    found = {
        "float32": rank_by_dot_product(exact, items, task.target, task.history),
        "float32, nothing masked": rank_by_dot_product(exact, items, task.target),
        "as served (float16 state, int8 items)": rank_by_dot_product(
            _stacked(rows), coded, task.target, task.history
        ),
        "rebuilt from the ring": rank_by_dot_product(_stacked(rebuilt), coded, task.target, task.history),
    }
    for k in LAST:
        short = user_rows(newest(task.log, k), task.users, encoder)
        found[f"last {k} events"] = rank_by_dot_product(_stacked(short), coded, task.target, task.history)
    return found


def _task(parts: Split) -> Task:
    users = sorted(parts.targets)
    history = [parts.train.item[rows].astype(np.int64) for rows in rows_by_user(parts.train, users)]
    return Task(parts.train, users, np.array([parts.targets[u][0] for u in users]), history)


@torch.inference_mode()
def parallel_vectors(
    towers: Towers, items: NDArray[np.float32], log: Interactions, targets: Targets
) -> NDArray[np.float32]:
    """User vectors after whole histories by the parallel form in float32, [U, d], users ascending."""
    held = held_out(Split(log, targets), max(2, int(np.bincount(log.user).max())))
    table = torch.from_numpy(items)
    length = held.windows.length
    vectors = torch.empty(len(length), towers.shape.dim)
    for part in held.windows.batches(EVENTS_AT_ONCE, torch.Generator().manual_seed(0)):
        batch = held.windows.batch(part)
        after = towers.user(F.embedding(batch.item, table), batch.kind, batch.gap, batch.value)
        vectors[part] = after[torch.arange(len(part)), length[part] - 1]
    return vectors.numpy()


def _stacked(rows: list[UserRow]) -> Float16:
    return np.stack([row.vector for row in rows])


def _as_coded(table: Float16) -> NDArray[np.float32]:
    """What the int8 codes stand for, [N, d]: all scores less by one number."""
    codes, scales = quantize(table)
    wide = (codes.astype(np.float32) - ZERO_POINT) * scales[..., None]
    decoded: NDArray[np.float32] = wide.reshape(len(table), -1)[:, : table.shape[1]]
    return decoded


def _floors(task: Task) -> dict[str, dict[str, str]]:
    """What a model has to beat: popularity, and transitions counted 1 to LAGS events apart."""
    floors: dict[str, Baseline] = {"popularity": Popularity(), "Markov counts": Markov(LAGS)}
    found = {}
    for name, baseline in floors.items():
        scores = baseline.fit(task.log)
        found[name] = rank_by_scores(scores, np.array(task.users, np.int64), task.target, task.history)
    return {name: _shown(of[None]) for name, of in found.items()}


def _metrics(found: NDArray[np.int64]) -> dict[str, float]:
    return {"hr@10": float(hits(found).mean()), "ndcg@10": float(gains(found).mean())}


def _mean(runs: list[dict[str, object]]) -> dict[str, dict[str, str]]:
    """The mean over seeds of every way of ranking, with intervals over users."""
    first = runs[0]["ranks"]
    assert isinstance(first, dict)
    shown = {}
    for name in first:
        stacked = np.stack([run["ranks"][name] for run in runs])  # type: ignore[index]
        shown[name] = _shown(stacked)
    return shown


def _shown(found: NDArray[np.int64]) -> dict[str, str]:
    """Means and intervals of ranks [S, U]."""
    return {"hr@10": str(estimate(hits(found))), "ndcg@10": str(estimate(gains(found)))}
