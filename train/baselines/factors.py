"""Baselines of latent factors: PureSVD, biased matrix factorisation by SGD, iALS and BPR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from train.baselines.counts import Popularity
from train.baselines.ranking import Scores, user_items
from train.log import Interactions

PAIRS_AT_ONCE = 8192


@dataclass(frozen=True)
class SVD:
    """Truncated SVD of the user-item matrix (PureSVD, Cremonesi et al. 2010)."""

    factors: int = 64
    weighting: str = "log"
    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        matrix = user_items(log, self.weighting)
        factors = min(self.factors, min(matrix.shape) - 1)
        if factors < 1:  # one user or one item: there is nothing to factorise
            return Popularity().fit(log)
        with np.errstate(invalid="ignore"):  # shares of a variance of zero, where all users are alike
            model = TruncatedSVD(factors, random_state=self.seed).fit(matrix)
        components = model.components_.astype(np.float32)
        return lambda users: (matrix[users] @ components.T) @ components


@dataclass(frozen=True)
class IALS:
    """Implicit-feedback least squares by turns (Hu et al. 2008); confidence alpha * log(1 + how often)."""

    factors: int = 64
    regularization: float = 0.1
    alpha: float = 10.0
    iterations: int = 15
    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        model = AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            iterations=self.iterations,
            num_threads=torch.get_num_threads(),
            random_state=self.seed,
        )
        with threadpool_limits(1, "blas"):  # its own threads and BLAS's would fight for the cores
            model.fit(user_items(log), show_progress=False)
        return _dot_products(model.user_factors, model.item_factors)


@dataclass(frozen=True)
class BPR:
    """Bayesian personalised ranking (Rendle et al. 2009), with an item bias."""

    factors: int = 64
    learning_rate: float = 0.05
    regularization: float = 0.01
    iterations: int = 100
    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        model = BayesianPersonalizedRanking(
            factors=self.factors,
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=1,  # several would write over each other, and no run would equal another
            random_state=self.seed,
        )
        model.fit(user_items(log), show_progress=False)
        return _dot_products(model.user_factors, model.item_factors)


@dataclass(frozen=True)
class SGD:
    """Biased matrix factorisation by SGD with L2 (Koren et al. 2009, eq. 4 and 5), on implicit feedback.

    What a user met is 1, and for each pair `negatives` items drawn at random are 0; squared loss; l2 times
    the squares of the parameters that a pair touches. Steps are Adagrad's (Duchi et al. 2011), so that one
    learning rate suits items that are met daily and items that are met once.
    """

    factors: int = 64
    l2: float = 0.01
    learning_rate: float = 0.1
    epochs: int = 10
    negatives: int = 4
    seed: int = 0

    def fit(self, log: Interactions) -> Scores:
        met = user_items(log, "binary").tocoo()
        user, item = torch.from_numpy(met.row).long(), torch.from_numpy(met.col).long()
        draw = torch.Generator().manual_seed(self.seed)
        users, items = (self._table(size, draw) for size in met.shape)
        mean = 1 / (1 + self.negatives)
        optimizer = torch.optim.Adagrad([*users.parameters(), *items.parameters()], self.learning_rate)
        for _ in range(self.epochs):
            for part in torch.split(torch.randperm(len(user), generator=draw), PAIRS_AT_ONCE):
                drawn = torch.randint(met.shape[1], (len(part), self.negatives), generator=draw)
                candidates = torch.cat([item[part][:, None], drawn], 1)  # [P, 1 + negatives]
                loss = self._loss(users(user[part]), items(candidates), mean)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return _dot_products(users.weight.detach().numpy(), items.weight.detach().numpy(), bias=True)

    def _table(self, rows: int, draw: torch.Generator) -> nn.Embedding:
        """Factors, and the bias in the last column."""
        start = torch.randn(rows, self.factors + 1, generator=draw) * 0.1
        start[:, -1] = 0.0
        return nn.Embedding(rows, self.factors + 1, _weight=start)

    def _loss(self, user: Tensor, item: Tensor, mean: float) -> Tensor:
        """Summed over the pairs: user [P, f + 1], item [P, C, f + 1], the first of C the one that was met."""
        product = (item[..., :-1] @ user[:, :-1, None]).squeeze(-1)
        error = mean + user[:, -1:] + item[..., -1] + product
        error = torch.cat([error[:, :1] - 1, error[:, 1:]], 1)
        return error.square().sum() + self.l2 * (user.square().sum() * item.shape[1] + item.square().sum())


def _dot_products(users: NDArray[np.float32], items: NDArray[np.float32], bias: bool = False) -> Scores:
    """Scores by users [U, f] and items [N, f]; `bias`: the last column is an item's bias, and no factor."""
    if not bias:
        return lambda wanted: users[wanted] @ items.T
    return lambda wanted: users[wanted, :-1] @ items[:, :-1].T + items[:, -1]
