"""How to train. What the model is, is in `train.towers.Shape`; where defaults come from, in `train.rules`."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOSSES = ("softmax", "bpr", "squared")
HISTORIES = ("free", "masked", "weighed")
LONGEST_HORIZON_S = 10**10  # three centuries: no log is longer, and no sum of times overflows


@dataclass(frozen=True)
class Options:
    """Everything a run of `fit` may vary. Raises ValueError, naming field and value, on what cannot be."""

    epochs: int = 24
    patience: int = 6  # epochs without a better validation
    batch: int = 24  # windows of full length, or as many events of shorter ones
    window: int = 400  # events
    loss: str = "softmax"
    learning_rate: float = 2e-3
    item_rate: float = 30.0  # times the learning rate, for the items' ids: a row is seldom met
    horizon_s: int = 0  # a part of the targets is drawn from what comes within; 0: what comes next, always
    weight_decay: float = 0.05
    average: float = 1.0  # epochs that the average of the weights looks back; 0: the last weights themselves
    clip: float = 1.0
    history: str = "free"  # what a user has met, in validation and in the softmax over every item: train.met
    full_softmax_items: int = 100_000  # up to so many every item is scored; beyond, a sample of them
    negatives: int = 1024
    from_batch: int = 512
    save_every_s: float = 60.0  # seconds between two states that a killed run goes on from
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "from_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("item_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"options.{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("learning_rate", "horizon_s", "weight_decay", "average", "save_every_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"options.{name} is {getattr(self, name)}; expected a number of at least 0")
        if self.horizon_s > LONGEST_HORIZON_S:
            raise ValueError(f"options.horizon_s is {self.horizon_s}; expected {LONGEST_HORIZON_S} at most")
        if self.window < 2:
            raise ValueError(f"options.window is {self.window}; expected at least 2 events")
        if self.negatives < 1000:
            raise ValueError(f"options.negatives is {self.negatives}; expected at least 1000")
        if self.loss not in LOSSES:
            raise ValueError(f"options.loss is {self.loss!r}; expected one of {list(LOSSES)}")
        if self.history not in HISTORIES:
            raise ValueError(f"options.history is {self.history!r}; expected one of {list(HISTORIES)}")

    def scores_every(self, items: int) -> bool:
        """Whether the loss is a softmax over every one of `items`: the same for all batches of a run."""
        return self.loss == "softmax" and items <= self.full_softmax_items

    def described(self, items: int) -> str:
        """The loss over so many items, for a person."""
        if self.scores_every(items):
            return f"softmax over all {items:,} items"
        sample = f"{self.negatives:,} drawn and {self.from_batch:,} of the batch, of {items:,} items"
        corrected = ", logQ corrected" * (self.loss == "softmax")
        return f"{self.loss} over a sample: {sample}{corrected}"
