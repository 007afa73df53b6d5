"""What a dismissal does: it pushes its item away, also under a model whose log never had one.

The item enters the user tower with the opposite sign, and the vector right after the event is moved away from
the item's embedding. That move is no part of training: what is trained would learn to take it back.
"""

from __future__ import annotations

from torch import Tensor

from functions.core.events import DISMISS

AWAY = 8.0  # units of score below the mean of all items: e^-8 of its odds under a softmax
SHORTEST = 0.25  # squared distance from the mean, below which it falls by less: vectors have to fit float16


def signed(item: Tensor, kind: Tensor) -> Tensor:
    """Embeddings [..., d] as the user tower takes them, those of dismissed items (kind [...]) negated."""
    return item * (1.0 - 2.0 * _dismissed(kind, item))


def pushed(vector: Tensor, item: Tensor, kind: Tensor, centre: Tensor) -> Tensor:
    """Vectors [..., d] after events; away from item [..., d] where it was dismissed.

    centre [d]: the mean of all items; what an item shares with all others is no reason to dislike it.
    Whatever the tower says, the item's score is then AWAY below the mean's, or lower; another falls by what
    it has in common with it.
    """
    own = item - centre
    square = own.pow(2).sum(-1, keepdim=True).clamp(min=SHORTEST)
    above = (vector * own).sum(-1, keepdim=True).clamp(min=0.0)
    return vector - ((AWAY + above) * _dismissed(kind, item) / square) * own


def _dismissed(kind: Tensor, like: Tensor) -> Tensor:
    return (kind == DISMISS).unsqueeze(-1).to(like.dtype)  # [..., 1]
