"""Coming back: how much what a visitor did lately with an item itself says about the next time.

A dot product of two small vectors cannot name one item among a hundred thousand that this visitor buys every
week; the row's ring can. So a score is the dot product plus a term of the visitor's own recent events with
the item (the "copy" mode of RepeatNet, Ren et al. 2019, without its parameters). In a grocery it is positive;
where nobody buys a thing twice, validation makes it negative and the history is in effect masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log1p

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """The term's two numbers, chosen on validation: `weight` in units of score, `half_life` in events.

    `kinds` are the event types that the log had, so that the numbers speak for: what purchases say of coming
    back says nothing of views.
    """

    weight: float = 0.0
    half_life: float = 32.0
    kinds: tuple[int, ...] = tuple(range(8))

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))  # JSON knows lists only

    def counted(self, kinds: Sequence[int], rows: Sequence[int | None]) -> list[int | None]:
        """The rows, None where an event's type is not one of `kinds`."""
        return [row if kind in self.kinds else None for kind, row in zip(kinds, rows, strict=True)]

    def bonus(self, rows: Sequence[int | None]) -> dict[int, float]:
        """Score to add, by item row, for the ring's items `rows`, oldest first; None is an unknown item.

        weight · log(1 + Σ 2^(-age / half_life)), age counted in events after this one.
        """
        recency: dict[int, float] = {}
        for age, row in enumerate(reversed(rows)):
            if row is not None:
                recency[row] = recency.get(row, 0.0) + 0.5 ** (age / self.half_life)
        return {row: self.weight * log1p(sum_) for row, sum_ in recency.items()}

    def candidates(
        self,
        best: tuple[NDArray[np.int64], NDArray[np.floating]],
        ring: Sequence[int | None],
        score: Callable[[Rows], NDArray[np.floating]],
    ) -> tuple[Rows, Scores]:
        """The `best` rows by dot product and the ring's own, each once, with the term added, best first.

        `score` gives the dot products of rows [n] → [n]; it is asked for those of the ring that `best` lacks.
        Ties go to the lower row.
        """
        bonus = self.bonus(ring) if self.weight else {}
        rows, scores = best[0].astype(np.int64), best[1].astype(np.float64)
        lacking = np.setdiff1d(np.fromiter(bonus, np.int64, len(bonus)), rows)
        if lacking.size:
            rows = np.concatenate([rows, lacking])
            scores = np.concatenate([scores, score(lacking).astype(np.float64)])
        scores = scores + np.array([bonus.get(row, 0.0) for row in rows.tolist()])
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]
