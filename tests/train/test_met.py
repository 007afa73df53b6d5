"""What a user has met: masked where nothing comes twice, weighed where things do, as in a list."""

from __future__ import annotations

from dataclasses import replace
from math import log, log1p

import numpy as np
import pytest
import torch

from tests.train.test_fit import ITEMS, QUICK, SHAPE, circle, features
from train.dataset import Batch, held_out, histories
from train.loss import Extra, full_softmax
from train.met import HALF_LIFE, RATE, RepeatTerm, first_of_its_item, recency
from train.options import Options
from train.split import split
from train.trainer import Trainer

ITEM = torch.tensor([[5, 3, 5, 7], [4, 4, 0, 0]])
TARGET = torch.tensor([[3, 5, 7, -1], [4, 1, -1, -1]])


def batch() -> Batch:
    none = torch.zeros_like(ITEM)
    return Batch(ITEM, none, none, none, TARGET, none, none)


def some_extra(requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Extra]:
    """Vectors of 9 places, 6 items, targets, and bonuses of up to 4 rows, some of which stand twice."""
    torch.manual_seed(0)
    rows = torch.randint(6, (9, 4))
    by_item = torch.randn(9, 6, dtype=torch.float64)
    bonus = by_item.gather(1, rows).requires_grad_(requires_grad)
    vectors, table = (torch.randn(n, 4, dtype=torch.float64, requires_grad=requires_grad) for n in (9, 6))
    return vectors, table, torch.arange(9) % 6, Extra(rows, bonus, first_of_its_item(rows))


def dense(extra: Extra) -> torch.Tensor:
    """The bonuses as a matrix [P, N], from the entry of each row that is marked."""
    out = torch.zeros(len(extra.rows), 6, dtype=extra.bonus.dtype)
    return out.scatter_add(1, extra.rows, extra.bonus.masked_fill(~extra.once, 0.0))


@pytest.mark.parametrize("numbers", [1, 12, 1000])
def test_bonuses_are_added_once_and_learnt_from(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loss.LEAST_ROWS", 1)
    monkeypatch.setattr("train.loss.LOGITS", numbers)
    vectors, table, target, extra = some_extra(requires_grad=True)
    assert (~extra.once).any()
    leaves = vectors, table, extra.bonus
    theirs = torch.nn.functional.cross_entropy(vectors @ table.T + dense(extra), target)
    ours = full_softmax(vectors, table, target, extra)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_an_item_without_end_below_is_no_choice() -> None:
    vectors, table, target, extra = some_extra()
    bonus = torch.full_like(extra.bonus, -torch.inf).masked_fill(extra.rows == target[:, None], 0.0)
    masked = replace(extra, bonus=bonus)
    out = torch.zeros(9, 6, dtype=torch.bool).scatter_(1, extra.rows, True)
    out[torch.arange(9), target] = False
    theirs = torch.nn.functional.cross_entropy((vectors @ table.T).masked_fill(out, -torch.inf), target)
    torch.testing.assert_close(full_softmax(vectors, table, target, masked), theirs)


def test_recency_is_the_sum_over_the_events_so_far_with_the_item() -> None:
    found = recency(ITEM)
    step = 0.5 ** (1 / HALF_LIFE)
    assert found[0, 2].tolist() == pytest.approx([step**2 + 1, step, step**2 + 1, 0.0])  # 7 is yet to come
    assert found[0, 0].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0])
    assert first_of_its_item(ITEM).tolist() == [[True, True, False, True], [True, False, True, False]]


def test_the_term_is_that_of_a_list() -> None:
    term = RepeatTerm()
    found = term(batch())[0, 1]
    weight = term.weight.item()
    assert found[1].item() == pytest.approx(weight * log1p(1.0))
    assert found[0].item() == pytest.approx(weight * log1p(0.5 ** (1 / HALF_LIFE)))


def test_a_user_has_met_the_items_up_to_the_place_and_none_of_the_padding() -> None:
    met = batch().met(*torch.where(TARGET >= 0))
    assert [set(row) for row in met.tolist()] == [{5}, {5, 3}, {5, 3}, {4}, {4}]


def test_where_the_history_is_masked_it_is_not_ranked_in_validation() -> None:
    parts = split(circle(), "leave-one-out")
    held = held_out(parts, 8)
    own = [parts.train.item[parts.train.user == user][-8:] for user in sorted(parts.targets)]
    shares = {}
    for history in ("free", "masked", "weighed"):
        trainer = Trainer(parts.train, features(), SHAPE, replace(QUICK, history=history), 1)
        top = trainer.top(held, ITEMS - 8)
        shares[history] = np.mean([np.isin(some, items).mean() for some, items in zip(top, own, strict=True)])
    assert shares["masked"] == 0 < shares["free"] < shares["weighed"] == 1


def test_with_the_history_masked_nothing_is_spent_on_ruling_it_out() -> None:
    """Untrained: the log of 12 choices, against the mean of the logs of those that are left, 11 to 5."""
    log_, losses = circle(length=8), []
    for history in ("free", "masked"):
        trainer = Trainer(log_, features(), SHAPE, replace(QUICK, history=history), 1)
        losses.append(trainer.loss(histories(log_).cut(8).batch(torch.arange(20))).item())
    left = float(np.log(np.arange(5, 12)).mean())
    assert losses == [pytest.approx(log(12), abs=0.05), pytest.approx(left, abs=0.05)]


def test_the_weight_of_coming_back_falls_where_nobody_comes_back() -> None:
    log_ = circle(length=8)
    options = replace(QUICK, history="weighed", learning_rate=0.01)
    trainer = Trainer(log_, features(), SHAPE, options, 60)
    before = trainer.objective.repeats.weight.item()
    for _ in range(40):
        trainer.step(histories(log_).cut(8).batch(torch.arange(60)), "here")
    assert trainer.objective.repeats.weight.item() < before - 0.6


def test_other_losses_weigh_and_mask_nothing() -> None:
    for loss, history in (("softmax", "weighed"), ("bpr", "free"), ("squared", "free")):
        options = replace(QUICK, history="weighed", loss=loss)
        assert Trainer(circle(), features(), SHAPE, options, 1).objective.history == history


def test_the_terms_weight_has_a_rate_of_its_own_and_hardly_clips_the_towers() -> None:
    log_ = circle(length=8)
    trainer = Trainer(log_, features(), SHAPE, replace(QUICK, history="weighed"), 60)
    (group,) = [
        g for g in trainer.optimiser.param_groups if trainer.objective.repeats.weight in set(g["params"])
    ]
    assert (group["full_rate"], group["weight_decay"]) == (RATE * QUICK.learning_rate, 0.0)
    trainer.loss(histories(log_).cut(8).batch(torch.arange(60))).backward()
    assert abs(trainer.objective.repeats.weight.grad) < 1.5


def test_sums_of_recency_are_whole_where_products_are_halved() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert recency(ITEM).dtype == torch.float32


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match=r"options\.history is 'some'; expected one of"):
        Options(history="some")
