"""A two-layer perceptron from what a user met to what the user meets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

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
        first, second = self._layers(matrix.shape[1], draw)
        parameters = [*first.parameters(), *second.parameters()]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        with_events = torch.from_numpy(np.flatnonzero(np.diff(matrix.indptr)))
        for _ in range(self.epochs):
            order = torch.randperm(len(with_events), generator=draw)
            for part in torch.split(with_events[order], USERS_IN_A_BATCH):
                met = torch.from_numpy(matrix[part.numpy()].toarray())
                kept = (
                    F.normalize(met)
                    * (torch.rand(met.shape, generator=draw) >= self.dropout)
                    / (1 - self.dropout)
                )
                wanted = F.normalize(met, p=1)
                loss = -(F.log_softmax(second(torch.tanh(first(kept))), 1) * wanted).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return _scores(matrix, first, second)

    def _layers(self, items: int, draw: torch.Generator) -> tuple[nn.Linear, nn.Linear]:
        layers = nn.Linear(items, self.hidden), nn.Linear(self.hidden, items)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=draw)
            nn.init.zeros_(layer.bias)
        return layers


def _scores(matrix: csr_matrix, first: nn.Linear, second: nn.Linear) -> Scores:
    @torch.inference_mode()
    def scores(users: Rows) -> Floats:
        met: Tensor = F.normalize(torch.from_numpy(matrix[users].toarray()))
        return np.asarray(second(torch.tanh(first(met))).numpy())

    return scores
