"""Coming back: how much what a visitor did lately with an item itself says about the next time.

A dot product of two small vectors cannot name one item among a hundred thousand that this visitor buys every
week; the row's ring and favourites can. So a score is the dot product plus a term of the visitor's own events
with the item (the "copy" mode of RepeatNet, Ren et al. 2019, without its parameters). In a grocery it is
positive; where nobody buys a thing twice, validation makes it negative and the history is in effect masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, log1p

import numpy as np
from numpy.typing import NDArray

from functions.core.alike import Alike
from functions.core.events import DISMISS
from functions.core.user_row import UserRow

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
NOBODY = Alike()
SHARP = 32.0  # how soon a companion counts: cosines are small where products are many


@dataclass(frozen=True)
class Own:
    """What a visitor has had to do with, as item rows.

    ring: oldest first, None for what does not count. before: weight by row of what the ring has forgotten, as
    it was when the ring's oldest event came.
    """

    ring: Sequence[int | None] = ()
    before: Mapping[int, float] = field(default_factory=dict)

    def mean(self, table: NDArray[np.floating]) -> NDArray[np.float32]:
        """The mean embedding [d] of all of it, by the embeddings `table` [N, d]; zeros for nothing.

        Every event of the ring counts once, what the ring has forgotten by its weight.
        """
        met = [row for row in self.ring if row is not None]
        rows = np.array([*met, *self.before], np.int64)
        weights = np.array([*[1.0] * len(met), *self.before.values()], np.float32)
        total = weights @ table[rows].astype(np.float32)
        found: NDArray[np.float32] = total / max(weights.sum(), np.float32(1e-6))
        return found


@dataclass(frozen=True)
class Repeats:
    """The term's numbers, chosen on validation: `weight` in units of score, `half_life` in events, and
    `before`: what an event that the ring has forgotten counts against one that it still has.

    `kinds` are the event types that the log had, so that the numbers speak for: what purchases say of coming
    back says nothing of views. `inherited` and `inherited_half_life`: weight and half-life of what a product
    without a history has from its like; `newcomer`: what every such product has added to its score, so that
    it stands where it should among what is known. `companions` and `companions_half_life`: weight and
    half-life of what a known product has from those it is met with.
    """

    weight: float = 0.0
    half_life: float = 32.0
    before: float = 1.0
    kinds: tuple[int, ...] = tuple(range(8))
    inherited: float = 0.0
    inherited_half_life: float = 64.0
    newcomer: float = 0.0
    companions: float = 0.0
    companions_half_life: float = 32.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))  # JSON knows lists only

    def check(self) -> None:
        """Raises ValueError naming the field for what is no finite number, or no half-life above 0."""
        for name, value in vars(self).items():
            if name == "kinds":
                if not all(type(kind) is int for kind in value):
                    raise ValueError(f"kinds {value!r}; expected whole numbers")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise ValueError(f"{name} {value!r}; expected a finite number")
            elif name.endswith("half_life") and value <= 0:
                raise ValueError(f"{name} {value!r}; expected a number above 0")

    def own(self, row: UserRow, rows_of: Callable[[list[bytes]], Sequence[int | None]]) -> Own:
        """What in the user's row counts; `rows_of` finds the item rows of keys or their prefixes.

        A dismissal does not, nor what was done to the item before it.
        """
        found = rows_of([entry.item for entry in row.ring])
        ring = [item if e.kind in self.kinds else None for e, item in zip(row.ring, found, strict=True)]
        for place, entry in enumerate(row.ring):
            if entry.kind == DISMISS:
                ring[: place + 1] = [None if item == found[place] else item for item in ring[: place + 1]]
        weights = row.favourites.weights(self.kinds)
        items = zip(rows_of(list(weights)), weights.values(), strict=True)
        return Own(ring, {item: weight for item, weight in items if item is not None})

    def bonus(self, own: Own) -> dict[int, float]:
        """Score to add, by item row: weight · log(1 + Σ 2^(-age / half_life)), as `recency` has the sums."""
        sums = self.recency(own, self.half_life)
        return {row: self.weight * log1p(sum_) for row, sum_ in sums.items()}

    def recency(self, own: Own, half_life: float) -> dict[int, float]:
        """Σ 2^(-age / half_life), by item row, age counted in events after this one.

        Those before the ring are all as old as the ring is long, and weigh what their own half-life has left
        of them.
        """
        faded = self.before * 0.5 ** (len(own.ring) / half_life)
        sums = {row: weight * faded for row, weight in own.before.items()}
        for age, row in enumerate(reversed(own.ring)):
            if row is not None:
                sums[row] = sums.get(row, 0.0) + 0.5 ** (age / half_life)
        return sums

    def inheritance(self, own: Own, alike: Alike) -> dict[int, float]:
        """Score to add to new products that the visitor has not met, by item row; `newcomer` is not in it."""
        return self._followed(own, alike, self.inherited, self.inherited_half_life)

    def company(self, own: Own, companions: Alike) -> dict[int, float]:
        """Score to add to companions of the visitor's own items that the visitor has not met, by item row."""
        return self._followed(own, companions, self.companions, self.companions_half_life, SHARP)

    def _followed(
        self, own: Own, lists: Alike, weight: float, half_life: float, sharp: float = 1.0
    ) -> dict[int, float]:
        if not weight or not len(lists.heirs):
            return {}
        sums = lists.inherited(self.recency(own, half_life))
        return {row: weight * log1p(sharp * sum_) for row, sum_ in sums.items()}

    def added(self, own: Own, alike: Alike, companions: Alike = NOBODY) -> dict[int, float]:
        """Score to add by item row, to the visitor's own items and to what follows from them."""
        followed = self.company(own, companions) | self.inheritance(own, alike)
        return followed | (self.bonus(own) if self.weight else {})

    def candidates(
        self,
        best: tuple[NDArray[np.int64], NDArray[np.floating]],
        own: Own,
        score: Callable[[Rows], NDArray[np.floating]],
        alike: Alike = NOBODY,
        showable: int | None = None,
        companions: Alike = NOBODY,
    ) -> tuple[Rows, Scores]:
        """The `best` rows by dot product and those with a term of their own, each once, best first.

        `score` gives the dot products of rows [n] → [n]; it is asked for those that `best` lacks. Of what is
        added only the first `showable` rows become candidates. Ties go to the lower row.
        """
        bonus = self.added(own, alike, companions)
        rows, scores = best[0].astype(np.int64), best[1].astype(np.float64)
        lacking = np.array(sorted(bonus.keys() - set(rows.tolist())), np.int64)
        lacking = lacking if showable is None else lacking[lacking < showable]
        if lacking.size:
            rows = np.concatenate([rows, lacking])
            scores = np.concatenate([scores, score(lacking).astype(np.float64)])
        scores = scores + np.array([bonus.get(row, 0.0) for row in rows.tolist()])
        if self.newcomer:
            scores = scores + self.newcomer * self.newcomers(rows, own, alike)
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    def newcomers(self, rows: Rows, own: Own, alike: Alike) -> NDArray[np.bool_]:
        """Which of `rows` are products without a history, unless the visitor has one with them."""
        if not len(alike.heirs):
            return np.zeros(len(rows), np.bool_)
        met = [row for row in (*own.ring, *own.before) if row is not None]
        new: NDArray[np.bool_] = alike.inherits[rows] & ~np.isin(rows, met)
        return new
