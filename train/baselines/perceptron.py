"""A two-layer perceptron from what a user met to what the user meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from train.baselines.ranking import Floats, Rows, Scores, user_items
from train.log import Interactions

USERS_IN_A_BATCH = 128


@dataclass(frozen=True)
class Perceptron:
    """The user's row, a hidden tanh layer, a score for every item; softmax cross-entropy over the items met.

    The denoising autoencoder of Liang et al. (2018, section 2.3): the row has length 1, and each of its items
    is dropped with probability `dropout` in training.
    """

    hidden: int = 128
    dropout: float = 0.5
    learning_rate: float = 1e-3
    epochs: int = 15
    weight_decay: float = 0.0
    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        matrix = user_items(log)
        draw = torch.Generator().manual_seed(self.seed)
        layers = _Layers(matrix.shape[1], self.hidden, draw)
        optimizer = torch.optim.AdamW(
            layers.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        with_events = np.flatnonzero(np.diff(matrix.indptr))
        for _ in range(self.epochs):
            order = torch.randperm(len(with_events), generator=draw)
            for part in torch.split(order, USERS_IN_A_BATCH):
                met = _Met.of(matrix[with_events[part.numpy()]])
                keep = torch.rand(met.weight.shape, generator=draw) >= self.dropout
                logits = layers(met, met.weight * keep / (1 - self.dropout))
                likelihood = logits[met.user, met.item] - logits.logsumexp(1)[met.user]
                loss = -(met.share * likelihood).sum() / len(part)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return _scores(matrix, layers)


class _Met(NamedTuple):
    """The n items that B users met: most met less than a hundredth of all, too few for dense rows."""

    user: Tensor  # [n] of the batch
    item: Tensor  # [n]
    begin: Tensor  # [B] where each user's begin
    weight: Tensor  # [n] float32, of length 1 a user
    share: Tensor  # [n] float32, of sum 1 a user

    @classmethod
    def of(cls, rows: csr_matrix) -> _Met:
        user = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        lengths = np.sqrt(np.bincount(user, rows.data**2, rows.shape[0]))
        sums = np.bincount(user, rows.data, rows.shape[0])
        columns = user, rows.indices.astype(np.int64), rows.indptr[:-1].astype(np.int64)
        values = rows.data / lengths[user], rows.data / sums[user]
        return cls(
            *(torch.from_numpy(column) for column in columns),
            *(torch.from_numpy(value.astype(np.float32)) for value in values),
        )


class _Layers(nn.Module):
    def __init__(self, items: int, hidden: int, draw: torch.Generator) -> None:
        super().__init__()
        self.first, self.bias = nn.EmbeddingBag(items, hidden, mode="sum"), nn.Parameter(torch.zeros(hidden))
        self.second = nn.Linear(hidden, items)
        nn.init.xavier_uniform_(self.first.weight, generator=draw)
        nn.init.xavier_uniform_(self.second.weight, generator=draw)
        nn.init.zeros_(self.second.bias)

    def forward(self, met: _Met, weight: Tensor) -> Tensor:
        """Logits [B, items] of rows whose entries weigh `weight` [n]."""
        hidden = self.first(met.item, met.begin, per_sample_weights=weight) + self.bias
        return self.second(torch.tanh(hidden))  # type: ignore[no-any-return]


def _scores(matrix: csr_matrix, layers: _Layers) -> Scores:
    @torch.inference_mode()
    def scores(users: Rows) -> Floats:
        met = _Met.of(matrix[users])
        return np.asarray(layers(met, met.weight).numpy())

    return scores
