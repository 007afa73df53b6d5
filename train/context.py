"""Where and when the next event happens, as far as a log tells: learnt beside the towers, added to the score.

A log without devices, slots and times that mean something trains no context; its weights stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from functions.core.context import (
    HOUR_AT,
    HOURS,
    NAMES_AT,
    WEEKDAY_AT,
    WEEKDAYS,
    hour_code,
    table_rows,
    weekday_code,
)
from functions.core.events import IMPRESSION
from train.log import Interactions

DROPPED = 0.2  # share of the events to be predicted whose context is left out: a request may come without


class ContextTable(nn.Module):
    """The table of `functions.core.context`, in training: zero at first, so that only evidence moves it."""

    def __init__(self, devices: int, slots: int, dim: int) -> None:
        super().__init__()
        self.devices = devices
        self.table = nn.Parameter(torch.zeros(table_rows(devices, slots), dim))

    def forward(self, code: Tensor) -> Tensor:
        """Codes of `event_codes`, int64 [...] → what to add to the user vectors, [..., d]."""
        if self.training:
            code = code * (torch.rand(code.shape, device=code.device) >= DROPPED)
        rows = torch.stack(self._rows(code), -1)  # [..., 4]
        summed = F.embedding_bag(rows.view(-1, rows.shape[-1]), self.table, mode="sum", padding_idx=0)
        return summed.view(*code.shape, -1)

    def _rows(self, code: Tensor) -> list[Tensor]:
        rows = []
        starts = (HOUR_AT, WEEKDAY_AT, NAMES_AT, NAMES_AT + self.devices)
        for start, values in zip(starts, (HOURS, WEEKDAYS, self.devices, None), strict=True):
            own = code if values is None else code % (values + 1)
            rows.append(torch.where(own > 0, start - 1 + own, 0))
            code = code if values is None else code // (values + 1)
        return rows


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


def has_context(log: Interactions) -> bool:
    """Whether there is any context to learn from."""
    return bool(event_codes(log).any())


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


@torch.inference_mode()
def request_vectors(
    table: ContextTable, log: Interactions, train: Interactions, users: Sequence[int]
) -> NDArray[np.float32]:
    """The context vectors of the users' next events, [U, d]: what a request at that moment would add."""
    codes = event_codes(log)[next_event(log, train, users)]
    vectors: NDArray[np.float32] = table(torch.from_numpy(codes)).numpy()
    return vectors
