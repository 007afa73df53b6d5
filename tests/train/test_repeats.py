"""The repeat term is chosen by the lists that would be served."""

import numpy as np
import pytest

from functions.core.repeats import Own, Repeats
from train.evaluate import Candidates, evaluate
from train.repeats import CUT, Field, choose_repeats


def proposals(ring: list[int | None]) -> list[Candidates]:
    table = np.eye(4, dtype=np.float32)
    vector = table[0] * np.float32(0.5)
    return [Candidates((np.arange(4), table @ vector), Own(ring), vector)]


def test_repeats_are_rewarded_where_people_come_back_and_barred_where_they_do_not() -> None:
    table = np.eye(4, dtype=np.float16)
    back = choose_repeats(proposals([3]), [np.array([3])], table)
    away = choose_repeats(proposals([0]), [np.array([1])], table)
    assert back.weight > 0 > away.weight
    assert evaluate(proposals([3]), back, [np.array([3])], table)["mrr@10"] == 1.0


def test_where_repeats_say_nothing_they_weigh_nothing() -> None:
    assert choose_repeats(proposals([None]), [np.array([0])], np.eye(4, dtype=np.float16)).weight == 0


def test_what_is_long_ago_counts_as_much_as_it_says() -> None:
    """The ring names the right item once, the long memory a wrong one three times."""
    table = np.eye(4, dtype=np.float16)
    vector = np.zeros(4, np.float32)
    made = [Candidates((np.arange(4), np.zeros(4, np.float32)), Own([3], {0: 3.0}), vector)]
    assert choose_repeats(made, [np.array([3])], table).before < 1


def test_a_term_is_chosen_by_what_comes_first_and_by_what_comes_at_all() -> None:
    """One user's target is first, and 13th under any term; two users' are behind the 20 without one."""
    items = 60
    table, one, other = (
        np.eye(items, dtype=np.float16),
        np.zeros(items, np.float32),
        np.zeros(items, np.float32),
    )
    one[0], one[1:13] = 5.0, 4.9
    other[40:50], other[20:36] = 1000.0, 10.0
    users = [(one, range(1, 13), [0]), *[(other, range(50, 60), range(50, 60))] * 2]
    made, targets = [], [np.array(wanted) for *_, wanted in users]
    for scores, ring, _ in users:
        best = np.argsort(-scores, kind="stable")[:26]
        made.append(Candidates((best, scores[best]), Own([*ring]), scores))

    def found(repeats: Repeats) -> tuple[float, float]:
        values = evaluate(made, repeats, targets, table)
        return values["ndcg@10"], values["recall@20"]

    assert found(Repeats()) == pytest.approx((1 / 3, 1 / 3))
    assert found(choose_repeats(made, targets, table)) == pytest.approx((0, 1))


TERMS = Repeats(), Repeats(2.0, 4.0), Repeats(-4.0, 32.0, 0.5), Repeats(16.0, 8.0)


@pytest.mark.parametrize("repeats", TERMS)
def test_all_users_at_once_get_the_lists_that_each_would_be_served(repeats: Repeats) -> None:
    rng = np.random.default_rng(3)
    table = rng.integers(-3, 4, (40, 6)).astype(np.float16)  # small integers: many ties
    made = []
    for _ in range(50):
        vector = rng.integers(-2, 3, 6).astype(np.float32)
        scores = table.astype(np.float32) @ vector
        best = np.argsort(-scores, kind="stable")[: rng.integers(1, 30)]
        ring = [None if i == 40 else int(i) for i in rng.integers(0, 41, rng.integers(0, 9))]
        before = {int(i): float(rng.exponential()) for i in rng.integers(0, 40, rng.integers(0, 4))}
        made.append(Candidates((best, scores[best]), Own(ring, before), vector))
    expected = np.stack([each.top(repeats, table.astype(np.float32), CUT) for each in made])
    assert np.array_equal(Field.of(made, table).top(repeats), expected)
