"""Which items are shown, in which order, and with which true propensity."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import VitrineError
from functions.core.slots import Slot

DAY_S = 86_400
BLOCK_ROWS = 8_192

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


class Choice(NamedTuple):
    """One item at one position (from 0); `propensity` is its chance there, given the items above it."""

    row: int
    score: float
    position: int
    propensity: float


def rank(
    rows: NDArray[Any],
    scores: NDArray[Any],
    slot: Slot,
    k: int,
    rng: np.random.Generator,
    *,
    dismissed: Collection[int] = (),
    seen: Mapping[int, int] | None = None,
) -> list[Choice]:
    """Choose at most k of the candidates `rows` [N] with `scores` [N], best first unless the policy explores.

    Left out are `dismissed` rows, those with `seen` impressions at the slot's cap, and scores of -inf.
    The product of the propensities is the chance of the whole list.
    Raises VitrineError for NaN, +inf, or shapes that do not fit.
    """
    rows, scores = _checked(rows, scores, k)
    keep = np.isfinite(scores) & _eligible(rows, slot, dismissed, seen or {})
    rows, scores = rows[keep], scores[keep]
    best_first = np.lexsort((rows, -scores))
    rows, scores = rows[best_first], scores[best_first]
    k = min(k, rows.size)
    if slot.policy == "softmax":
        picks, propensities = _plackett_luce(scores / slot.temperature, k, rng)
    else:
        picks, propensities = _epsilon_greedy(rows.size, k, _epsilon(slot), rng)
    return [
        Choice(int(rows[pick]), float(scores[pick]), position, propensity)
        for position, (pick, propensity) in enumerate(zip(picks, propensities, strict=True))
    ]


def impressions_in_last_day(seen: Iterable[tuple[int, int]], now_s: int) -> dict[int, int]:
    """Impressions per row, of (row, time_s) pairs, that are less than a day old."""
    counts: dict[int, int] = {}
    for row, time_s in seen:
        if now_s - time_s < DAY_S:
            counts[row] = counts.get(row, 0) + 1
    return counts


def top_k_numpy(vector: NDArray[Any], embeddings: NDArray[Any], k: int) -> tuple[Rows, Scores]:
    """The k rows of `embeddings` [N, d] with the largest inner product with `vector` [d], ties by lower row.

    Exact: summed in float64, in the same order for every row (a BLAS product may round equal rows apart).
    This is the reference that faster scorers are held against. Raises VitrineError.
    """
    if vector.ndim != 1 or embeddings.ndim != 2 or embeddings.shape[1] != vector.size:
        raise VitrineError(
            f"vector {vector.shape} and embeddings {embeddings.shape}; expected [d] and [N, d] (top k)"
        )
    scores = np.empty(len(embeddings), dtype=np.float64)  # [N]
    query = vector.astype(np.float64)
    for start in range(0, len(embeddings), BLOCK_ROWS):
        block = embeddings[start : start + BLOCK_ROWS].astype(np.float64)
        scores[start : start + BLOCK_ROWS] = np.einsum("nd,d->n", block, query)
    rows, scores = _checked(np.arange(scores.size), scores, k)
    rows = _contenders(scores, min(k, scores.size))
    rows = rows[np.lexsort((rows, -scores[rows]))][:k]
    return rows, scores[rows]


def _contenders(scores: Scores, k: int) -> Rows:
    """All rows that reach the k-th best score, so that a tie at the edge is settled by row, not by chance."""
    if k == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(scores, scores.size - k)[scores.size - k]
    return np.flatnonzero(scores >= threshold).astype(np.int64)


def _checked(rows: NDArray[Any], scores: NDArray[Any], k: int) -> tuple[Rows, Scores]:
    if rows.ndim != 1 or rows.shape != scores.shape:
        raise VitrineError(f"rows {rows.shape}, scores {scores.shape}; expected the same [N] (candidates)")
    if k < 0:
        raise VitrineError(f"k {k}; expected an integer >= 0")
    scores = scores.astype(np.float64)
    bad = np.flatnonzero(np.isnan(scores) | (scores == np.inf))
    if bad.size:
        raise VitrineError(f"score {scores[bad[0]]}; expected a number or -inf (row {rows[bad[0]]})")
    return rows.astype(np.int64), scores


def _eligible(
    rows: Rows, slot: Slot, dismissed: Collection[int], seen: Mapping[int, int]
) -> NDArray[np.bool_]:
    capped = [row for row, count in seen.items() if slot.cap and count >= slot.cap]
    barred = np.array([*dismissed, *capped], dtype=np.int64)
    return ~np.isin(rows, barred)


def _epsilon(slot: Slot) -> float:
    return slot.epsilon if slot.policy == "epsilon" else 0.0


def _epsilon_greedy(
    count: int, k: int, epsilon: float, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """At each position the best that is left or, with chance epsilon, any that is left (the best too)."""
    left = list(range(count))  # best first
    picks, propensities = [], []
    for _ in range(k):
        explore = epsilon > 0 and rng.random() < epsilon
        index = int(rng.integers(len(left))) if explore else 0
        propensities.append(epsilon / len(left) + (1 - epsilon if index == 0 else 0.0))
        picks.append(left.pop(index))
    return picks, propensities


def _plackett_luce(logits: Scores, k: int, rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """Sample k without replacement by Gumbel top-k (Kool et al. 2019, §2), with conditional chances.

    The normalizers are summed from the last pick backwards: subtracting picks from a total would cancel.
    """
    if k == 0:
        return [], []
    order = np.argsort(-(logits + rng.gumbel(size=logits.size)), kind="stable")
    left = np.logaddexp.accumulate(logits[order][::-1])[::-1]  # [N] log-sum of what is left at each position
    chances = np.exp(np.minimum(logits[order[:k]] - left[:k], 0.0))
    return [int(pick) for pick in order[:k]], [float(chance) for chance in chances]
