"""What a dismissal does: it pushes its item away, also under a model whose log never had one.

The item enters the user tower with the opposite sign, and the vector right after the event is moved away from
the item's embedding. That move is no part of training: what is trained would learn to take it back. Where the
log has hardly any dismissal, training puts some of random items between the events; nothing follows from
them, so the state learns to pass them by.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from functions.core.events import IMPRESSION
from train.dataset import DISMISS, Batch
from train.log import Interactions

AWAY = 6.0  # units of score that the item falls by against the mean: its odds under a softmax, 400 times less
SHORTEST = 0.25  # squared distance from the mean below which it falls by less: the vector has to fit float16
NEXT = ("kind", "gap", "value", "target", "context")
ENOUGH = 0.01  # share of the events; a log with fewer dismissals is given more


def signed(item: Tensor, kind: Tensor) -> Tensor:
    """Embeddings [..., d] as the user tower takes them, those of dismissed items (kind [...]) negated."""
    return item * (1.0 - 2.0 * _dismissed(kind, item))


def pushed(vector: Tensor, item: Tensor, kind: Tensor, centre: Tensor) -> Tensor:
    """Vectors [..., d] after events; away from item [..., d] where it was dismissed.

    centre [d]: the mean of all items; what an item shares with all others is no reason to dislike it. Against
    that mean the item's own score falls by AWAY, that of another by AWAY times what it has in common.
    """
    own = item - centre
    square = own.pow(2).sum(-1, keepdim=True).clamp(min=SHORTEST)
    return vector - (AWAY * _dismissed(kind, item) / square) * own


def _dismissed(kind: Tensor, like: Tensor) -> Tensor:
    return (kind == DISMISS).unsqueeze(-1).to(like.dtype)  # [..., 1]


def missing_share(log: Interactions) -> float:
    """Dismissals to be put among the log's events, as a share of them."""
    counted = log.kind[log.kind != IMPRESSION]
    return max(0.0, ENOUGH - float((counted == DISMISS).mean())) if len(counted) else 0.0


def with_random(batch: Batch, share: float, items: int) -> Batch:
    """The batch with a dismissal of one of `items` rows put into some windows, for the oldest event there.

    What is to be learnt after it is what was to be learnt before it. At most one a window, so that on average
    a `share` of the events, or less where windows are longer than 1 / share.
    """
    rows, length = batch.item.shape
    device = batch.item.device
    real = (batch.target >= 0).sum(1)  # [R]; a window's events are in front
    at = (torch.rand(rows, device=device) * real).long()
    at = torch.where(torch.rand(rows, device=device) < share * real, at, -1)[:, None]
    place = torch.arange(length, device=device)[None]  # [1, T]
    source = torch.where(place < at, place + 1, place)  # what was before it moves up by one
    here = place == at
    shifted = {name: getattr(batch, name).gather(1, source) for name in NEXT}
    dismissed = torch.randint(items, (rows, length), device=device)
    item = torch.where(here, dismissed, batch.item.gather(1, source))
    kind = torch.where(here, DISMISS, shifted["kind"])
    value = torch.where(here, 0, shifted["value"])
    return replace(batch, **shifted | {"item": item, "kind": kind, "value": value})
