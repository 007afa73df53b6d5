"""Coming back: how much what a visitor did lately with an item itself says about the next time.

A dot product of two small vectors cannot name one item among a hundred thousand that this visitor buys every
week; the row's ring and favourites can. So a score is the dot product plus a term of the visitor's own events
with the item (the "copy" mode of RepeatNet, Ren et al. 2019, without its parameters). In a grocery it is
positive; where nobody buys a thing twice, validation makes it negative and the history is in effect masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log1p

import numpy as np
from numpy.typing import NDArray

from functions.core.user_row import UserRow

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Own:
    """What a visitor has had to do with, as item rows.

    ring: oldest first, None for what does not count. before: weight by row of what the ring has forgotten, as
    it was when the ring's oldest event came.
    """

    ring: Sequence[int | None] = ()
    before: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Repeats:
    """The term's numbers, chosen on validation: `weight` in units of score, `half_life` in events, and
    `before`: what an event that the ring has forgotten counts against one that it still has.

    `kinds` are the event types that the log had, so that the numbers speak for: what purchases say of coming
    back says nothing of views.
    """

    weight: float = 0.0
    half_life: float = 32.0
    before: float = 1.0
    kinds: tuple[int, ...] = tuple(range(8))

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))  # JSON knows lists only

    def own(self, row: UserRow, rows_of: Callable[[list[bytes]], Sequence[int | None]]) -> Own:
        """What in the user's row counts; `rows_of` finds the item rows of keys or their prefixes."""
        found = rows_of([entry.item for entry in row.ring])
        ring = [item if e.kind in self.kinds else None for e, item in zip(row.ring, found, strict=True)]
        weights = row.favourites.weights(self.kinds)
        items = zip(rows_of(list(weights)), weights.values(), strict=True)
        return Own(ring, {item: weight for item, weight in items if item is not None})

    def bonus(self, own: Own) -> dict[int, float]:
        """Score to add, by item row.

        weight · log(1 + Σ 2^(-age / half_life)), age counted in events after this one; those before the ring
        are all as old as the ring is long, and weigh what their own half-life has left of them.
        """
        faded = self.before * 0.5 ** (len(own.ring) / self.half_life)
        recency = {row: weight * faded for row, weight in own.before.items()}
        for age, row in enumerate(reversed(own.ring)):
            if row is not None:
                recency[row] = recency.get(row, 0.0) + 0.5 ** (age / self.half_life)
        return {row: self.weight * log1p(sum_) for row, sum_ in recency.items()}

    def candidates(
        self,
        best: tuple[NDArray[np.int64], NDArray[np.floating]],
        own: Own,
        score: Callable[[Rows], NDArray[np.floating]],
    ) -> tuple[Rows, Scores]:
        """The `best` rows by dot product and the visitor's own, each once, with the term added, best first.

        `score` gives the dot products of rows [n] → [n]; it is asked for those of `own` that `best` lacks.
        Ties go to the lower row.
        """
        bonus = self.bonus(own) if self.weight else {}
        rows, scores = best[0].astype(np.int64), best[1].astype(np.float64)
        lacking = np.array(sorted(bonus.keys() - set(rows.tolist())), np.int64)
        if lacking.size:
            rows = np.concatenate([rows, lacking])
            scores = np.concatenate([scores, score(lacking).astype(np.float64)])
        scores = scores + np.array([bonus.get(row, 0.0) for row in rows.tolist()])
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]
