"""Next-item losses: cross-entropy over every item or over a corrected sample of them, BPR, squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LOGITS = 2**21  # numbers: a slice that stays in a CPU's last cache
LEAST_ROWS = 128  # of a slice: with fewer the products lose more than the cache gains
POPULARITY_POWER = 0.75  # Mikolov et al. 2013: between uniform and proportional to popularity


@dataclass(frozen=True)
class Extra:
    """What is added to some of the logits: `bonus` [P, M] to those of `rows` int64 [P, M]; -inf: no choice.

    A row that stands several times has the same bonus everywhere; `once` [P, M] marks one of them, where the
    bonus is learnt: the gradient goes there.
    """

    rows: Tensor
    bonus: Tensor
    once: Tensor | None = None


def full_softmax(vectors: Tensor, embeddings: Tensor, target: Tensor, extra: Extra | None = None) -> Tensor:
    """Mean cross-entropy over all items; vectors [P, d], embeddings [N, d], target int64 [P] (rows).

    Only LOGITS numbers of the [P, N] logits, or LEAST_ROWS rows, exist at a time: the gradients are taken
    along, slice by slice (Hsu et al. 2024, "Liger kernel", section 3.2). Under autocast the three products
    are in its type.
    """
    added = (extra.rows, extra.bonus, extra.once) if extra else (None, None, None)
    return _FullSoftmax.apply(vectors, embeddings, target, *added)  # type: ignore[no-any-return,no-untyped-call]


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        embeddings: Tensor,
        target: Tensor,
        rows: Tensor | None,
        bonus: Tensor | None,
        once: Tensor | None,
    ) -> Tensor:
        dtype = _product_type(vectors)
        items = embeddings.to(dtype)
        d_vectors = torch.empty_like(vectors)
        d_embeddings = torch.zeros_like(embeddings)
        loss = vectors.new_zeros((), dtype=torch.promote_types(vectors.dtype, torch.float32))
        d_bonus = torch.zeros_like(bonus) if bonus is not None and bonus.requires_grad else None
        count = max(LEAST_ROWS, LOGITS // len(embeddings))
        reused = items.new_empty(min(count, len(vectors)), len(embeddings))
        for first in range(0, len(vectors), count):
            at = slice(first, min(first + count, len(vectors)))
            some, wanted = vectors[at].to(dtype), target[at, None]
            logits = _at_least_float32(torch.mm(some, items.T, out=reused[: len(some)]))
            if rows is not None and bonus is not None:
                logits.scatter_(1, rows[at], logits.gather(1, rows[at]) + bonus[at])
            own, top = logits.gather(1, wanted), logits.amax(1, keepdim=True)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)  # from 1, the largest, to N
            loss += (top + total.log() - own).sum()
            error = logits.scatter_add_(1, wanted, -total)  # times `total`, divided out below
            if rows is not None and once is not None and d_bonus is not None:
                d_bonus[at] = error.gather(1, rows[at]) * once[at] / (total * len(vectors))
            error = error.to(dtype)
            d_vectors[at] = (error @ items) / total
            _add_product(d_embeddings, error.T, (some / total).to(dtype))
        ctx.save_for_backward(d_vectors / len(vectors), d_embeddings / len(vectors), d_bonus)
        return loss / len(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_vectors, d_embeddings, d_bonus = ctx.saved_tensors
        of_bonus = None if d_bonus is None else d_bonus * gradients[0]
        return d_vectors * gradients[0], d_embeddings * gradients[0], None, None, of_bonus, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a matrix between where the types allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _product_type(x: Tensor) -> torch.dtype:
    """What autocast would multiply in; x's own type where it is off, or x is float64."""
    kind = x.device.type
    lowered = torch.is_autocast_enabled(kind) and x.dtype == torch.float32
    return torch.get_autocast_dtype(kind) if lowered else x.dtype


def negative_distribution(counts: Tensor, drawn: Tensor | None = None) -> Tensor:
    """Share of draws per item, [N], proportional to (events + 1) ** 0.75; `drawn` bool [N]: no others are."""
    weight = (counts.double() + 1.0) ** POPULARITY_POWER
    if drawn is not None:
        weight = weight * drawn
    return (weight / weight.sum()).float()


def expected_counts(popularity: Tensor, from_batch: int, drawn_from: Tensor, drawn: int) -> Tensor:
    """How often each item, [N], is expected among `from_batch` positives and `drawn` negatives together."""
    return popularity * from_batch + drawn_from * drawn


def sampled_softmax(
    vectors: Tensor,
    positives: Tensor,
    target: Tensor,
    candidates: Tensor,
    candidate_rows: Tensor,
    log_q: Tensor | None,
) -> Tensor:
    """Mean cross-entropy of each position's positive against shared candidates.

    vectors, positives [P, d]; target int64 [P]; candidates [K, d] of rows int64 [K]; log_q [K] = log of the
    expected count of each candidate in the sample, None for no correction. A candidate that is the position's
    own target is masked. The correction is that of Yi et al. 2019 (RecSys, "Sampling-bias-corrected neural
    modeling"), on the candidates only: the positive is in the sum with certainty, so the sum's expectation is
    the full softmax's partition function.
    """
    own, others = _scores(vectors, positives, candidates)
    if log_q is not None:
        others = others.sub_(log_q)
    others[_collisions(target, candidate_rows)] = float("-inf")
    return F.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(target))


def bpr(vectors: Tensor, positives: Tensor, target: Tensor, candidates: Tensor, rows: Tensor) -> Tensor:
    """Mean of -log sigmoid(positive - negative) over the shared candidates (Rendle et al. 2009, BPR-Opt).

    Shapes as in `sampled_softmax`; a candidate that is the position's own target counts for nothing.
    """
    own, others = _scores(vectors, positives, candidates)
    losses = F.softplus(others - own)
    losses[_collisions(target, rows)] = 0.0
    return losses.mean()


def squared_error(
    vectors: Tensor, positives: Tensor, target: Tensor, candidates: Tensor, rows: Tensor
) -> Tensor:
    """Squared error of scores that should be 1 for the target, else 0 (as Hu et al. 2008, equation 3).

    A target counts as much as all of its negatives together, which is the confidence that it has here. Shapes
    as in `sampled_softmax`.
    """
    own, others = _scores(vectors, positives, candidates)
    others[_collisions(target, rows)] = 0.0
    return ((own - 1.0) ** 2).mean() + (others**2).mean()


def _scores(vectors: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    own = _at_least_float32((vectors * positives).sum(-1, keepdim=True))  # [P, 1]
    return own, _at_least_float32(vectors @ candidates.T)  # [P, K]


def _collisions(target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(position, candidate) of every candidate that is the position's own target, without a [P, K] mask."""
    ordered, where = torch.sort(rows)
    first = torch.searchsorted(ordered, target)
    count = torch.searchsorted(ordered, target, right=True) - first
    position = torch.repeat_interleave(torch.arange(len(target), device=target.device), count)
    nth = torch.arange(len(position), device=target.device) - (count.cumsum(0) - count)[position]
    return position, where[first[position] + nth]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
