"""What the model has to beat. A baseline is its hyperparameters; `fit` turns a log into scores.

    top(ItemKNN(neighbours=50).fit(log), users, 10)  # [U, 10] rows, best first

Nothing is masked unless asked, and no matrix of all users by all items is ever made.
"""

from __future__ import annotations

from train.baselines.counts import Markov, OwnHistory, Popularity, Random, RecentPopularity
from train.baselines.factors import BPR, IALS, SGD, SVD
from train.baselines.neighbours import ContentKNN, ItemKNN, UserKNN
from train.baselines.perceptron import Perceptron
from train.baselines.ranking import Baseline, Scores, top

# what `python -m train` runs beside the model: seconds, not minutes
DEFAULTS: dict[str, Baseline] = {"popularity": Popularity(), "item_knn": ItemKNN(), "svd": SVD()}

__all__ = [
    "BPR",
    "DEFAULTS",
    "IALS",
    "SGD",
    "SVD",
    "Baseline",
    "ContentKNN",
    "ItemKNN",
    "Markov",
    "OwnHistory",
    "Perceptron",
    "Popularity",
    "Random",
    "RecentPopularity",
    "Scores",
    "UserKNN",
    "top",
]
