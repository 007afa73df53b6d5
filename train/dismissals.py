"""What a dismissal does: it pushes its item away, also under a model whose log never had one.

The item enters the user tower with the opposite sign, and the vector right after the event is moved away from
the item's embedding. That move is no part of training: what is trained would learn to take it back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from functions.core.events import DISMISS

AWAY = 8.0  # units of score below the mean of all items: e^-8 of its odds under a softmax
SHORTEST = 0.25  # squared distance from the mean, below which it falls by less: vectors have to fit float16


def signs(kinds: int) -> Tensor:
    """[kinds, 1]: -1 for a dismissal, else 1; what an event's item enters the user tower with."""
    sign = torch.ones(kinds, 1)
    sign[DISMISS] = -1.0
    return sign


def pushed(vector: Tensor, item: Tensor, sign: Tensor, centre: Tensor) -> Tensor:
    """Vectors [..., d] after events, float32; away from item [..., d] where sign [..., 1] is negative.

    centre [d]: the mean of all items; what an item shares with all others is no reason to dislike it.
    Whatever the tower says, the item's score is then AWAY below the mean's, or lower (by less where the item
    is nearer to the mean than SHORTEST); another falls by what it has in common with it.
    """
    return torch.where(sign < 0, _away(vector, item, centre), vector)


def _away(vector: Tensor, item: Tensor, centre: Tensor) -> Tensor:
    own = item - centre
    square = own.pow(2).sum(-1, keepdim=True).clamp(min=SHORTEST)
    above = (vector * own).sum(-1, keepdim=True).clamp(min=0.0)
    return vector - (AWAY + above) / square * own


def served(vector: Tensor, item: Tensor, sign: Tensor, centre: Tensor) -> Tensor:
    """`pushed`, in float16. The exported graph pushes the dismissals' rows alone, if a batch has any."""
    columns = (vector, item, sign, centre)
    if not torch.compiler.is_exporting():
        return pushed(*columns).half()
    made: Tensor = torch.cond(sign.min() < 0, _some_pushed, lambda v, *_: v.half(), columns)
    return made


def _some_pushed(vector: Tensor, item: Tensor, sign: Tensor, centre: Tensor) -> Tensor:
    rows = (sign.squeeze(-1) < 0).nonzero().squeeze(-1)  # taken as of a table: one Gather in the graph
    moved = _away(F.embedding(rows, vector), F.embedding(rows, item), centre)
    return vector.index_copy(0, rows, moved).half()
