"""`dismiss` pushes away, after training on worlds with and without it; what else a dismissal must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from functions.core.events import DISMISS
from functions.core.features import ItemFeatures, Vocabulary
from train import towers as towers_module
from train.checkpoint import load
from train.dismissals import AWAY, pushed, signs
from train.fit import fit
from train.log import Interactions
from train.options import Options
from train.split import split
from train.towers import KINDS, Shape, Towers

ITEMS, VIEW, PURCHASE = 60, 1, 4
SHAPE = Shape(ITEMS, 0, 0, dim=32, width=32, dropout=0.1, id_dropout=0.0)
QUICK = Options(epochs=8, batch=16, window=24, learning_rate=1e-2)


def world(dismissals: float, users: int = 120, length: int = 24) -> Interactions:
    """Users walk round one of six circles of ten items; what they dismiss is of another circle.

    After a purchase comes item 0, whoever it is.
    """
    rng = np.random.default_rng(7)
    kind = rng.choice([VIEW, PURCHASE], (users, length), p=[0.7, 0.3])
    place = rng.integers(0, 10, (users, 1)) + np.arange(length)
    item = np.arange(users)[:, None] % 6 * 10 + place % 10
    item[:, 1:][kind[:, :-1] == PURCHASE] = 0
    away = rng.random((users, length)) < dismissals
    item = np.where(away, (item + 10 * rng.integers(1, 6, item.shape)) % ITEMS, item)
    time_s, user = np.divmod(np.arange(users * length), users)
    return Interactions(
        user.astype(np.int32),
        item.T.ravel().astype(np.int32),
        np.where(away, DISMISS, kind).T.ravel().astype(np.int8),
        time_s * 3600,
        np.full(users * length, np.nan, np.float32),
        [f"u{u}" for u in range(users)],
        [f"i{i}" for i in range(ITEMS)],
    )


def features() -> ItemFeatures:
    none = np.zeros(ITEMS, np.int64)
    return ItemFeatures(none, none, none, np.zeros((ITEMS, 32), np.int64))


@pytest.fixture(scope="module", params=[0.0, 0.08], ids=["never dismissed", "dismissed"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    log, out = world(request.param), tmp_path_factory.mktemp("checkpoint")
    fit(split(log, "leave-one-out"), features(), Vocabulary(), SHAPE, QUICK, out)
    return Trained(load(out)[0], log)


class Trained:
    """A model, its items, and forty users' states as their last event but one left them."""

    def __init__(self, towers: Towers, log: Interactions) -> None:
        self.towers = towers
        none = torch.zeros(ITEMS, dtype=torch.int64)
        with torch.inference_mode():
            text = torch.zeros(ITEMS, 32, dtype=torch.int64)
            self.items = towers.item(torch.arange(1, ITEMS + 1), none, none, none, text).half()
        users = 40
        history = [np.flatnonzero(log.user == u)[:-1] for u in range(users)]
        self.state = torch.zeros(users, SHAPE.state_width).half()
        for rows in zip(*history, strict=True):
            item, kind = torch.from_numpy(log.item[list(rows)]).long(), torch.from_numpy(log.kind[list(rows)])
            self.state, self.vector = self.step(self.state, item, kind.long())

    @torch.inference_mode()
    def step(self, state: Tensor, item: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        hour, none = torch.full_like(item, 13), torch.zeros_like(item)
        return self.towers.user.step(state, self.items[item], kind, hour, none)

    def scores(self, vector: Tensor) -> Tensor:
        """Every item's score against the mean of the others, [..., N]."""
        found = vector.float() @ self.items.float().T
        return found - (found.sum(-1, keepdim=True) - found) / (ITEMS - 1)

    def after_each(self, kind: int) -> tuple[Tensor, Tensor]:
        """States [U, N, S] and scores [U, N, N] after an event of this kind with each of the items."""
        item = torch.arange(ITEMS).repeat(len(self.state))
        state = self.state.repeat_interleave(ITEMS, 0)
        state, vector = self.step(state, item, torch.full_like(item, kind))
        shape = (len(self.state), ITEMS, -1)
        return state.view(*shape), self.scores(vector).view(*shape)

    def fell(self, kind: int) -> Tensor:
        """By how much an item's score fell when an event of this kind came with it, [U, N]."""
        return self.scores(self.vector) - self.after_each(kind)[1].diagonal(dim1=1, dim2=2)


def test_a_dismissed_item_falls(trained: Trained) -> None:
    fell = trained.fell(DISMISS)
    assert float((fell > 0).float().mean()) >= 0.95
    assert float(fell.mean()) > AWAY / 2


def test_what_is_like_it_falls_too_but_less(trained: Trained) -> None:
    _, scores = trained.after_each(DISMISS)
    fell = trained.scores(trained.vector)[:, None] - scores  # [U, dismissed, N]
    circle = torch.arange(ITEMS) // 10
    alike = (circle[:, None] == circle[None]) & ~torch.eye(ITEMS, dtype=torch.bool)
    own = float(fell.diagonal(dim1=1, dim2=2).mean())
    assert own > float(fell[:, alike].mean()) > float(fell[:, circle[:, None] != circle[None]].mean())


def test_a_dismissal_served_as_any_other_event_would_be_found(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: nothing is pushed."""
    monkeypatch.setattr(towers_module, "served", lambda vector, *_: vector.half())
    assert float((trained.fell(DISMISS) > 0).float().mean()) < 0.95


def test_a_purchase_is_not_a_view(trained: Trained) -> None:
    """It moves the state otherwise, and says something else of what comes next."""
    (viewed, view), (bought, purchase) = (trained.after_each(kind) for kind in (VIEW, PURCHASE))
    assert bool((viewed != bought).any(-1).all())
    assert float((purchase[..., 0] > view[..., 0]).float().mean()) > 0.95


def test_a_push_is_exact_and_for_dismissals_alone() -> None:
    g = torch.Generator().manual_seed(0)
    vector, item, centre = (torch.randn(n, 8, generator=g) for n in (5, 5, 1))
    kind = torch.tensor([0, 1, DISMISS, 4, DISMISS])
    vector[4] = item[4] - centre[0]  # above the mean; the other dismissed one is below
    sign = signs(KINDS)[kind]
    moved = pushed(vector, item, sign, centre[0])
    before, after = (((v * (item - centre)).sum(1)) for v in (vector, moved))
    assert before[2] < 0 < before[4]
    expected = torch.where(kind == DISMISS, before.clamp(max=0.0) - AWAY, before)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    turned = torch.where((kind == DISMISS)[:, None], -item, item)
    assert torch.equal(item * sign, turned)


def test_an_item_without_an_embedding_of_its_own_is_no_overflow() -> None:
    item = torch.full((1, 8), 1e-4)
    moved = pushed(torch.zeros(1, 8), item, torch.tensor([[-1.0]]), torch.zeros(8))
    assert float(moved.half().abs().max()) < 1
