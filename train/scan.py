"""Diagonal linear recurrence over a whole window at once, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 16  # events; the walk has CHUNK + T / CHUNK rounds, so about the square root of a window is best


def scan(decay: Tensor, drive: Tensor) -> Tensor:
    """All states of `h[t] = decay[t] * h[t - 1] + drive[t]`, `h[-1] = 0`.

    decay, drive: [B, T, W]; returns [B, T, W]. Raises ValueError on other shapes.

    Chunks are walked side by side, then each takes in what its predecessor ended with (the chunked form of
    Yang et al. 2024, "Gated linear attention", section 4, with one number a channel): twice the work of
    the loop in CHUNK + T / CHUNK rounds instead of T. Its gradient is the same recurrence, run backwards
    (Martin & Cundy 2018, "Parallelizing linear recurrent neural nets over sequence length", appendix A).
    """
    if decay.shape != drive.shape or drive.dim() != 3:
        raise ValueError(
            f"decay {tuple(decay.shape)}, drive {tuple(drive.shape)}; expected one shape [B, T, W]"
        )
    return _Scan.apply(decay, drive)  # type: ignore[no-any-return,no-untyped-call]


def scan_loop(decay: Tensor, drive: Tensor) -> Tensor:
    """The same states one after the other: the definition that `scan` is tested against."""
    state = torch.zeros_like(drive[:, 0])
    states = []
    for t in range(drive.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        states.append(state)
    return torch.stack(states, 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        states = _chunked(decay, drive)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """d drive[t] = gradient[t] + decay[t + 1] * d drive[t + 1]; d decay[t] = h[t - 1] * d drive[t]."""
        decay, states = ctx.saved_tensors
        following = F.pad(decay[:, 1:], (0, 0, 0, 1))
        d_drive = _chunked(following.flip(1), gradients[0].flip(1)).flip(1)
        return F.pad(states[:, :-1], (0, 0, 1, 0)).mul_(d_drive), d_drive


def _chunked(decay: Tensor, drive: Tensor) -> Tensor:
    users, length, width = drive.shape
    chunks = -(-length // CHUNK)
    missing = (0, 0, 0, chunks * CHUNK - length)
    decay = F.pad(decay, missing).view(users, chunks, CHUNK, width)
    states = F.pad(drive, missing).view(users, chunks, CHUNK, width).clone()
    reach = decay.clone()  # what is left, at each place, of the state before the chunk
    for t in range(1, CHUNK):
        states[:, :, t].addcmul_(decay[:, :, t], states[:, :, t - 1])
        reach[:, :, t].mul_(reach[:, :, t - 1])
    for chunk in range(1, chunks):
        states[:, chunk].addcmul_(reach[:, chunk], states[:, chunk - 1, -1:])
    return states.reshape(users, chunks * CHUNK, width)[:, :length]
