"""What a user has met, in the softmax: free (like any other item), masked (no choice), weighed as in a list.

A list's score is a dot product and a term of the user's own events (`functions.core.repeats`). Towers that
are trained without the term learn, badly, what the term says well: two small vectors cannot name the one item
that this user comes back to. With the term in the logits they learn what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.dataset import Batch

HALF_LIFE = 64.0  # events
START, RATE = 6.0, 30.0  # of the term's weight, and how much faster than other numbers it learns


class RepeatTerm(nn.Module):
    """weight · log(1 + Σ 2^(-age / HALF_LIFE)) of a user's events with an item; the weight is learnt.

    Serving has a weight and a half-life of its own, chosen on validation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(START))

    def forward(self, batch: Batch) -> Tensor:
        """For each place t of a stretch, what is added to the item of each place s of it: [R, T, T].

        Only events up to t count; so an item that comes later alone gets 0, and the same item the same term.
        """
        return self.weight * recency(batch.item).log1p()


def recency(item: Tensor) -> Tensor:
    """Σ 2^(-age / HALF_LIFE) over the events up to t with the item of s, [R, T] -> [R, T (t), T (s)]."""
    place = torch.arange(item.shape[1], device=item.device)
    age = place[:, None] - place  # [t, s]
    left = torch.where(age >= 0, 0.5 ** (age.clamp(min=0) / HALF_LIFE), 0.0)
    same = item[:, :, None] == item[:, None]
    with torch.autocast(item.device.type, enabled=False):  # sums of many small numbers
        return left @ same.float()


def first_of_its_item(item: Tensor) -> Tensor:
    """Whether no place before has the same item: bool, [R, T] -> [R, T]."""
    same = item[:, :, None] == item[:, None]
    return ~same.tril(-1).any(2)
