"""What new products inherit: sums worked out by hand, any lists against a loop, and files that cannot be."""

from dataclasses import replace

import numpy as np
import pytest

import functions.core.alike as module
from functions.core.alike import Alike, read_alike
from functions.core.errors import CorruptBundle

# items 0 and 1 are known, 2 and 3 new: 2 is like 0 and, less so, 1; 3 is like 1 and, a little, 2
SHOP = Alike(
    np.array([0, 1, 3, 4, 4], np.int32),
    np.array([2, 2, 3, 3], np.int32),
    np.array([1.0, 0.5, 0.75, 0.25], np.float16),
)


def made(seed: int, items: int = 40) -> Alike:
    rng = np.random.default_rng(seed)
    lists = [np.sort(rng.permutation(items)[: rng.integers(0, 6)]) for _ in range(items)]
    bounds = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return Alike(bounds, np.concatenate(lists).astype(np.int32), rng.random(bounds[-1]).astype(np.float16))


def test_a_new_product_inherits_from_each_of_its_like_as_far_as_it_is_like_them() -> None:
    assert SHOP.inherited({0: 2.0, 1: 1.0}) == {2: pytest.approx(2.5), 3: pytest.approx(0.75)}
    assert SHOP.inherited({0: 2.0}) == {2: pytest.approx(2.0)}


def test_one_new_product_gives_to_another_but_what_was_met_inherits_nothing() -> None:
    assert SHOP.inherited({0: 1.0, 2: 4.0}) == {3: pytest.approx(1.0)}


def test_who_met_nothing_or_only_what_nothing_is_like_leaves_nothing() -> None:
    assert SHOP.inherited({}) == SHOP.inherited({3: 1.0}) == Alike().inherited({0: 1.0}) == {}
    assert SHOP.inherits.tolist() == [False, False, True, True]


@pytest.mark.parametrize("seed", range(20))
def test_any_lists_give_what_a_loop_over_them_gives(seed: int) -> None:
    alike, rng = made(seed), np.random.default_rng(seed)
    met = {int(row): float(rng.random()) for row in rng.permutation(40)[:10]}
    expected: dict[int, float] = {}
    for row, weight in met.items():
        for at in range(alike.bounds[row], alike.bounds[row + 1]):
            heir = int(alike.heirs[at])
            if heir not in met:
                expected[heir] = expected.get(heir, 0.0) + weight * float(alike.likeness[at])
    assert alike.inherited(met) == pytest.approx(expected)


def test_only_the_best_become_candidates_and_of_equals_the_lower_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_HEIRS", 2)
    likeness = np.array([0.25, 0.5, 0.5, 0.5], np.float16)
    heirs = Alike(np.array([0, 4, 4, 4, 4, 4], np.int32), np.array([1, 2, 3, 4], np.int32), likeness)
    assert list(heirs.inherited({0: 1.0})) == [2, 3]
    assert list(heirs.inherited({0: 1.0, 2: 1.0})) == [3, 4]  # what was met takes nobody's place


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_again(seed: int) -> None:
    alike = made(seed)
    found = read_alike(np.frombuffer(alike.to_bytes(), np.uint8), 40, 40)
    for name in ("bounds", "heirs", "likeness"):
        assert np.array_equal(getattr(found, name), getattr(alike, name))


BROKEN = {
    "beyond what is shown": (SHOP, 4, 3),
    "of another catalogue": (SHOP, 5, 4),
    "below 0": (replace(SHOP, heirs=np.array([2, 2, -1, 3], np.int32)), 4, 4),
    "falling": (replace(SHOP, bounds=np.array([0, 3, 1, 4, 4], np.int32)), 4, 4),
    "not from 0": (replace(SHOP, bounds=np.array([1, 1, 3, 4, 4], np.int32)), 4, 4),
    "too short": (replace(SHOP, likeness=SHOP.likeness[:-1]), 4, 4),
    "not alike": (replace(SHOP, likeness=np.array([1, 0, 1, 1], np.float16)), 4, 4),
    "no number": (replace(SHOP, likeness=np.array([1, np.nan, 1, 1], np.float16)), 4, 4),
    "more than alike": (replace(SHOP, likeness=np.array([1, 2, 1, 1], np.float16)), 4, 4),
    "empty": (replace(SHOP, bounds=SHOP.bounds[:0], heirs=SHOP.heirs[:0], likeness=SHOP.likeness[:0]), 4, 4),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_is_refused(case: str) -> None:
    alike, items, showable = BROKEN[case]
    with pytest.raises(CorruptBundle, match=r"alike\.bin: .*expected"):
        read_alike(np.frombuffer(alike.to_bytes(), np.uint8), items, showable)
    assert len(read_alike(np.frombuffer(SHOP.to_bytes(), np.uint8), 4, 4).heirs) == 4
