"""Where and when the next event happens, as far as a log tells: learnt beside the towers, part of the query.

A log without devices, slots and times that mean something trains no context; its weights stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from functions.core.context import (
    ELAPSED,
    ELAPSED_AT,
    HOUR_AT,
    HOURS,
    NAMES_AT,
    WEEKDAY_AT,
    WEEKDAYS,
    hour_code,
    weekday_code,
)
from functions.core.events import DISMISS, IMPRESSION
from functions.core.features import gap_bucket
from functions.core.user_row import UserRow
from train.log import Interactions

# Of what a request says: hour and weekday, device and slot, how long after the last event, and what that
# makes of the general interest.
PARTS = "clock", "names", "elapsed", "interest"
LOUDNESS = 0.1  # of an interest, before it is learnt: embeddings are long beside vectors
DROPPED = 0.2  # share of the events to be predicted whose context is left out: a request may come without


class ContextTable(nn.Module):
    """Table, factors and interests of `functions.core.context`, in training: zero at first, so only evidence
    moves them.

    A time since the last event has the increments of all shorter ones, so that one which training never saw
    means what the one below it means.
    """

    def __init__(self, devices: int, slots: int, dim: int) -> None:
        super().__init__()
        self.devices = devices
        self.clock = nn.Parameter(torch.zeros(ELAPSED_AT, dim))  # row 0 of the table, hours and weekdays
        self.names = nn.Parameter(torch.zeros(devices + slots, dim))
        self.elapsed_added = nn.Parameter(torch.zeros(ELAPSED, dim))
        self.elapsed_factors = nn.Parameter(torch.zeros(ELAPSED, dim))
        self.interests = nn.Parameter(torch.zeros(ELAPSED, dim))

    def train_on(self, log: Interactions, elapsed: bool) -> tuple[str, ...]:
        """Learn what the log tells, and times since the last event, or not; returns which of PARTS."""
        named, clock = np.divmod(event_codes(log), (HOURS + 1) * (WEEKDAYS + 1))
        elapsed = elapsed and not _equally_spaced(log)
        parts = dict(zip(PARTS, (bool(clock.any()), bool(named.any()), elapsed, elapsed), strict=True))
        for part, learnt in parts.items():
            for weights in self._of(part):
                weights.requires_grad_(learnt)
        return tuple(part for part, learnt in parts.items() if learnt)

    def forward(self, vectors: Tensor, mean: Tensor, code: Tensor, elapsed: Tensor) -> Tensor:
        """User vectors [..., d] as the users ask: mean embeddings of what they met [..., d], codes of
        `event_codes`, buckets of the time since the last event, int64 [...], 0 for unknown → [..., d]."""
        if self.training:
            code = code * _kept(code)
            elapsed = elapsed * _kept(elapsed) if self.elapsed_factors.requires_grad else elapsed
        rows = torch.stack([*self._rows(code), torch.where(elapsed > 0, ELAPSED_AT - 1 + elapsed, 0)], -1)
        table, factors, interests = self.tables()
        added = F.embedding_bag(rows.view(-1, rows.shape[-1]), table, mode="sum", padding_idx=0)
        weighed = vectors * (1 + F.embedding(elapsed, factors)) + mean * F.embedding(elapsed, interests)
        return weighed + added.view(*code.shape, -1)

    @property
    def silent(self) -> tuple[str, ...]:
        """The PARTS that change nothing."""
        return tuple(part for part in PARTS if not any(bool(w.any()) for w in self._of(part)))

    @property
    def heard(self) -> tuple[str, ...]:
        """The others of PARTS."""
        return tuple(part for part in PARTS if part not in self.silent)

    @torch.no_grad()
    def silence(self, parts: Sequence[str]) -> None:
        """Let these of PARTS change nothing any more."""
        for weights in (each for part in parts for each in self._of(part)):
            weights.zero_()

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """As they are served: the table [R, d], factors and interests, both [GAP_BUCKETS, d]; their rows 0
        are zero."""
        table = torch.cat([self.clock, self.elapsed_added.cumsum(0), self.names])
        of_buckets = self.elapsed_factors, LOUDNESS * self.interests
        factors, interests = (F.pad(each.cumsum(0), (0, 0, 1, 0)) for each in of_buckets)
        return table, factors, interests

    def _of(self, part: str) -> list[nn.Parameter]:
        elapsed = [self.elapsed_added, self.elapsed_factors]
        of_parts = [self.clock], [self.names], elapsed, [self.interests]
        return dict(zip(PARTS, of_parts, strict=True))[part]

    def _rows(self, code: Tensor) -> list[Tensor]:
        rows = []
        starts = (HOUR_AT, WEEKDAY_AT, NAMES_AT, NAMES_AT + self.devices)
        for start, values in zip(starts, (HOURS, WEEKDAYS, self.devices, None), strict=True):
            own = code if values is None else code % (values + 1)
            rows.append(torch.where(own > 0, start - 1 + own, 0))
            code = code if values is None else code // (values + 1)
        return rows


def mean_so_far(embedded: Tensor, item: Tensor, kind: Tensor) -> Tensor:
    """Means of a stretch's items up to each event, as `Own.mean` has them.

    embedded [R, T, d]: of the item rows [R, T]; kind int64 [R, T] → [R, T, d].
    """
    counts = _counts(item, kind == DISMISS).unsqueeze(-1)
    sums: Tensor = (embedded.float() * counts).cumsum(1)
    return sums / counts.cumsum(1).clamp(min=1)


def _counts(item: Tensor, dismissed: Tensor) -> Tensor:
    """What each event adds to the count of its item: 1, or for a dismissal what takes all before away."""
    counts = (~dismissed).float()
    if not dismissed.any():
        return counts
    earlier = (item[:, :, None] == item[:, None]).tril(-1)  # [R, T, T] events with the item of this one
    before = (earlier & ~dismissed[:, None]).sum(2)
    taken = torch.where(earlier & dismissed[:, None], before[:, None], 0).amax(2)  # by dismissals before
    return torch.where(dismissed, taken - before, counts)


def _kept(code: Tensor) -> Tensor:
    return torch.rand(code.shape, device=code.device) >= DROPPED


def event_codes(log: Interactions) -> NDArray[np.int64]:
    """Each event's hour, weekday, device and slot in one number, [n]; 0: nothing is known.

    Hours, or weekdays, that are the same throughout say nothing and are left out. So are all times where
    every user's events are equally spaced: nobody shops like that, the times are made up.
    """
    real = not _equally_spaced(log)
    hour, weekday = (_telling(code(log.time_s), real) for code in (hour_code, weekday_code))
    none = np.zeros(len(log.user), np.int64)
    device, slot = (none if column is None else column for column in (log.device, log.slot))
    named = device + (len(log.devices) + 1) * slot.astype(np.int64)
    return np.asarray(hour + (HOURS + 1) * (weekday + (WEEKDAYS + 1) * named))


def _telling(code: NDArray[np.int64], real: bool) -> NDArray[np.int64]:
    return code if real and len(code) and (code != code[0]).any() else np.zeros_like(code)


def _equally_spaced(log: Interactions) -> bool:
    order = np.argsort(log.user, kind="stable")
    order = order[log.kind[order] != IMPRESSION]
    user, gap_s = log.user[order], np.diff(log.time_s[order])
    three = user[2:] == user[:-2]  # events of one user
    return not bool((gap_s[1:] != gap_s[:-1])[three].any())


def next_event(log: Interactions, train: Interactions, users: Sequence[int]) -> NDArray[np.int64]:
    """The row of `log` of each user's first event that `train`, the beginning of the log, lacks, [U]."""
    counted = np.flatnonzero(log.kind != IMPRESSION)
    order = counted[np.argsort(log.user[counted], kind="stable")]
    wanted = np.asarray(users, np.int64)
    first = np.searchsorted(log.user[order], wanted)
    known = np.bincount(train.user[train.kind != IMPRESSION], minlength=len(log.user_ids))
    return np.asarray(order[first + known[wanted]])


@dataclass(frozen=True)
class Requests:
    """Where and when U users ask."""

    code: NDArray[np.int64]  # of `event_codes`
    time_s: NDArray[np.int64]  # seconds since 1970

    def __getitem__(self, some: slice | NDArray[np.int64]) -> Requests:
        """Some of them."""
        return Requests(self.code[some], self.time_s[some])

    @classmethod
    def at(cls, time_s: int, users: int) -> Requests:
        """All at one moment, of which nothing is known but how long after their last events it is."""
        return cls(np.zeros(users, np.int64), np.full(users, time_s, np.int64))

    @classmethod
    def at_events(cls, log: Interactions, rows: NDArray[np.int64]) -> Requests:
        """Just before these events of the log, where they happen."""
        return cls(event_codes(log)[rows], log.time_s[rows])

    def elapsed(self, rows: Sequence[UserRow]) -> NDArray[np.int64]:
        """Buckets of the time since each row's last event, [U]; 0 where there is none."""
        elapsed_s = [row.elapsed_s(now_s) for row, now_s in zip(rows, self.time_s.tolist(), strict=True)]
        return gap_bucket(np.array([-1 if each is None else each for each in elapsed_s], np.int64))
