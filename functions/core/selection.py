"""The largest of many scores, exactly and without sorting them all: first the maxima of blocks.

Blocks are strided (block j has the scores j, j + width, j + 2 width …), so their maxima are elementwise
maxima of long rows, which take as long as reading the scores. The `count` blocks with the largest maxima have
at least `count` scores that reach the smallest of these; what does not reach it is not among the best.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from functions.core.errors import VitrineError

Rows = NDArray[np.int64]
Scores = NDArray[np.float32] | NDArray[np.int32]
Score = np.float32 | np.int32
ScoreType = type[np.float32] | type[np.int32]
LARGEST_BLOCK = 512  # scores; what a buffer must have room for behind its last score
# a block's maximum takes as long to rank as four to twelve scores take to compare, by the processor
MAXIMUM_COST = 4


class Extremes(NamedTuple):
    """What is never among the best, the least score that is, and what no score exceeds."""

    never: Score
    least: Score
    most: Score


EXTREMES = {
    np.dtype(np.float32): Extremes(np.float32(-np.inf), np.finfo(np.float32).min, np.float32(np.inf)),
    np.dtype(np.int32): Extremes(np.int32(-(2**31)), np.int32(1 - 2**31), np.int32(2**31 - 1)),
}


def buffer(rows: int, dtype: ScoreType = np.float32) -> Any:
    """Room for `rows` scores and, behind them, what is never among the best as far as a block may reach."""
    return np.full(rows + LARGEST_BLOCK, EXTREMES[np.dtype(dtype)].never, dtype)


def ceiling(eligible: NDArray[np.bool_], dtype: ScoreType = np.float32) -> Scores:
    """A mask for `lower`: what no score exceeds where eligible, elsewhere what is never among the best."""
    extremes = EXTREMES[np.dtype(dtype)]
    limits: Scores = np.where(eligible, extremes.most, extremes.never)
    return limits


def lower(scores: Scores, mask: Scores) -> None:
    """Leave the scores of what is eligible as they are, in place, and take the rest out of the choice.

    Raises VitrineError for a mask of another type or length: it is another scorer's.
    """
    if mask.dtype != scores.dtype or mask.shape != scores.shape:
        raise VitrineError(
            f"mask {mask.shape} {mask.dtype}; expected {scores.shape} {scores.dtype}, this scorer's"
        )
    np.minimum(scores, mask, out=scores)


def best_rows(scores: Scores, rows: int, count: int) -> Rows:
    """Places, in no order, of the `count` largest of the first `rows` of `scores`; ties to the lower place.

    scores: a `buffer`, of finite numbers or what is never among the best: there may be fewer than `count`.
    """
    if count <= 0 or rows <= 0:
        return np.zeros(0, np.int64)
    size = _block_size(rows, count)
    width = -(-rows // size)
    if count >= width:
        found = np.flatnonzero(scores[:rows] >= EXTREMES[scores.dtype].least)
    else:
        found = _in_best_blocks(scores[: size * width].reshape(size, width), count)
    return _largest(found, scores[found], count)


def _block_size(rows: int, count: int) -> int:
    best = (MAXIMUM_COST * rows / count) ** 0.5
    return min(LARGEST_BLOCK, 1 << max(4, int(best).bit_length() - 1))


def _in_best_blocks(table: Scores, count: int) -> Rows:
    """Places of all scores that reach the count-th largest block maximum; table [size, width]."""
    width = table.shape[1]
    tops = table.max(0)
    edge = max(np.partition(tops, width - count)[width - count], EXTREMES[table.dtype].least)
    near = np.flatnonzero(tops >= edge)
    offset, column = np.divmod(np.flatnonzero(table.take(near, 1) >= edge), max(len(near), 1))
    places: Rows = offset * width + near[column]
    return places


def _largest(found: Rows, scores: Scores, count: int) -> Rows:
    if len(found) <= count:
        return found
    edge = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = found[scores > edge]
    level = np.sort(found[scores == edge])
    return np.concatenate([above, level[: count - len(above)]])
