"""Diagonal linear recurrence over a whole window at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def scan(decay: Tensor, drive: Tensor) -> Tensor:
    """All states of `h[t] = decay[t] * h[t - 1] + drive[t]`, `h[-1] = 0`, in log2(T) rounds.

    decay, drive: [B, T, W]; returns [B, T, W]. Every round composes each position's affine map with the one
    `shift` places before it (Hillis & Steele 1986, "Data parallel algorithms").
    """
    if decay.shape != drive.shape or drive.dim() != 3:
        raise ValueError(
            f"decay {tuple(decay.shape)}, drive {tuple(drive.shape)}; expected one shape [B, T, W]"
        )
    shift = 1
    while shift < drive.shape[1]:
        drive = drive + decay * _delay(drive, shift)
        decay = decay * _delay(decay, shift)  # zero before the window: nothing flows in from there
        shift *= 2
    return drive


def scan_loop(decay: Tensor, drive: Tensor) -> Tensor:
    """The same states one after the other: the definition that `scan` is tested against."""
    state = torch.zeros_like(drive[:, 0])
    states = []
    for t in range(drive.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        states.append(state)
    return torch.stack(states, 1)


def _delay(x: Tensor, shift: int) -> Tensor:
    return F.pad(x[:, :-shift], (0, 0, shift, 0))
