"""The repeat term of a log: which numbers rank its validation best."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from functions.core.repeats import Repeats
from functions.core.user_row import Float16
from train.evaluate import CUTS, Candidates, merit

WEIGHTS = (0.0, -16.0, -4.0, -1.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
HALF_LIVES = (8.0, 32.0, 128.0, 512.0, 2048.0)
BEFORE = (1.0, 0.7, 0.5, 0.25)
CUT = CUTS[-1]

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def choose_repeats(proposed: list[Candidates], targets: list[Rows], table: Float16) -> Repeats:
    """The term with the best `merit`; of equals the one with the smallest weight.

    Weight and half-life are looked for together, then what events before the ring count.
    """
    field = Field.of(proposed, table)

    def best(grid: list[Repeats]) -> Repeats:
        def key(repeats: Repeats) -> tuple[float, float]:
            return round(merit(field.top(repeats), targets), 6), -abs(repeats.weight)

        merits = [key(repeats) for repeats in tqdm(grid, desc="repeats", disable=None)]
        return grid[merits.index(max(merits))]

    found = best([Repeats(w, h) for h in HALF_LIVES for w in WEIGHTS if w or h == HALF_LIVES[0]])
    older = any(each.own.before for each in proposed)
    return best([replace(found, before=share) for share in BEFORE]) if older and found.weight else found


@dataclass
class Field:
    """Every user's candidates as matrices, so that a term is tried on all users at once.

    rows: [U, C] item rows, ascending, each once, -1 behind the last; scores: [U, C] dot products, -inf there.
    """

    rows: Rows
    scores: Floats
    proposed: list[Candidates]
    _unit: tuple[Repeats, Floats] | None = None

    @classmethod
    def of(cls, proposed: list[Candidates], table: Float16) -> Field:
        """The candidates with their own items among them; table [N, d]."""
        wide = table.astype(np.float32)
        found = [np.union1d(each.best[0], _own_rows(each)) for each in proposed]
        rows = np.full((len(found), max(map(len, found))), -1, np.int64)
        scores = np.full(rows.shape, -np.inf)
        for u, (some, each) in enumerate(zip(found, proposed, strict=True)):
            rows[u, : len(some)] = some
            scores[u, : len(some)] = _dots(each, some, wide)
        return cls(rows, scores, proposed)

    def top(self, repeats: Repeats) -> Rows:
        """What `Candidates.top` gives each user, [U, CUT]: ties go to the lower row."""
        scores = self.scores + repeats.weight * self._bonus(replace(repeats, weight=1.0))
        if not repeats.weight:  # then the user's own items are no candidates
            scores = np.where(self._proposed(), scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :CUT]
        found = np.where(np.take_along_axis(scores, order, 1) > -np.inf, self._at(order), -1)
        return np.pad(found, ((0, 0), (0, CUT - found.shape[1])), constant_values=-1)

    def _at(self, places: Rows) -> Rows:
        return np.take_along_axis(self.rows, places, 1)

    def _proposed(self) -> NDArray[np.bool_]:
        best = [each.best[0] for each in self.proposed]
        return np.stack([np.isin(some, rows) for some, rows in zip(self.rows, best, strict=True)])

    def _bonus(self, unit: Repeats) -> Floats:
        """The term at weight 1, [U, C]; the last one is kept, for only its weight may change."""
        if self._unit is None or self._unit[0] != unit:
            bonus = np.zeros(self.rows.shape)
            for u, each in enumerate(self.proposed):
                items = unit.bonus(each.own)
                places = np.searchsorted(self.rows[u, : (self.rows[u] >= 0).sum()], list(items))
                bonus[u, places] = list(items.values())
            self._unit = unit, bonus
        return self._unit[1]


def _own_rows(each: Candidates) -> Rows:
    ring = [row for row in each.own.ring if row is not None]
    return np.array([*ring, *each.own.before], np.int64)


def _dots(each: Candidates, rows: Rows, table: NDArray[np.float32]) -> Floats:
    """Dot products as `Repeats.candidates` has them: those of the scan where it has proposed a row."""
    scores = (table[rows] @ each.vector).astype(np.float64)
    places = np.searchsorted(rows, each.best[0])
    scores[places] = each.best[1]
    return scores
