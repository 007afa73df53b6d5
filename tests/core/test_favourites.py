"""What a visitor comes back to, against weights worked out in floating point from the whole history."""

import numpy as np
import pytest

from functions.core.errors import CorruptRow
from functions.core.events import KINDS
from functions.core.favourites import (
    HALF_LIFE,
    MOST,
    OCTAVE,
    PACE,
    PLACES,
    PLUS_ONE,
    PREFIX,
    WEIGHTS,
    Favourites,
    decode_favourites,
    encode_favourites,
    item_prefix,
)
from functions.core.ring import ENTRY_BYTES, RING, pack_entry

PURCHASE, DISMISS = KINDS["purchase"], KINDS["dismiss"]


def key(item: int) -> bytes:
    return (item << 3).to_bytes(PREFIX, "big") + b"\7\0"


def packed(item: int, kind: int) -> bytes:
    """A ring's entry, whose event and value play no part."""
    return pack_entry(bytes(5), key(item), kind, item % 16, 0)


def after(items: list[int], kinds: list[int] | None = None, at_once: int = 10**9) -> Favourites:
    """The favourites after a whole history, folded `at_once` events at a time."""
    entries = b"".join(map(packed, items, kinds or [PURCHASE] * len(items)))
    found = Favourites()
    for first in range(0, len(items), at_once):
        ring = entries[ENTRY_BYTES * max(0, first - RING) : ENTRY_BYTES * first]
        found = found.after(ring, entries[ENTRY_BYTES * first : ENTRY_BYTES * (first + at_once)])
    return found


def weights(found: Favourites) -> dict[int, float]:
    return {int.from_bytes(item, "big") >> 3: weight for item, weight in found.weights(range(8)).items()}


def a_year(seed: int, events: int = 1_500) -> list[int]:
    """A dozen things that are bought again and again, among things that are bought once."""
    rng = np.random.default_rng(seed)
    again = rng.random(events) < 0.4
    return np.where(again, rng.integers(0, 12, events), 1_000 + np.arange(events)).tolist()


def test_nothing_is_remembered_twice_the_ring_has_it() -> None:
    assert after(list(range(RING))) == Favourites()
    assert weights(after(list(range(RING + 2)))) == {0: 1.0, 1: 1.0}


@pytest.mark.parametrize("seed", range(5))
def test_favourites_weigh_what_exponential_decay_says(seed: int) -> None:
    items = a_year(seed)
    left = items[:-RING]
    ages = np.arange(len(left))[::-1]
    exact = {i: float((0.5 ** (ages[np.array(left) == i] / HALF_LIFE)).sum()) for i in range(12)}
    found = weights(after(items))
    assert {i: found[i] for i in range(12)} == pytest.approx(exact, rel=0.15)


def test_things_met_once_do_not_crowd_out_what_is_met_again() -> None:
    items = a_year(7) + [5_000 + n for n in range(100)]
    assert set(range(12)) <= set(weights(after(items)))


def test_the_weakest_makes_room_for_what_comes_back() -> None:
    once = list(range(100, 100 + PLACES))  # the places are taken
    items = [*once, 7, *range(200, 200 + RING - 2), 7]  # 7 leaves the ring, and is in it again
    assert 7 in weights(after([*items, 999]))
    items[-1] = 8
    assert 7 not in weights(after([*items, 999]))


@pytest.mark.parametrize("at_once", [1, 3, 64, 65, 200])
def test_batches_do_not_matter(at_once: int) -> None:
    rng = np.random.default_rng(at_once)
    items, kinds = a_year(3, 400), rng.integers(1, 7, 400).tolist()
    assert encode_favourites(after(items, kinds, at_once)) == encode_favourites(after(items, kinds))


def test_an_event_of_old_loses_half_its_weight_in_a_half_life() -> None:
    assert PACE * OCTAVE == HALF_LIFE
    items = [7, *range(100, 100 + RING), *[200 + n for n in range(HALF_LIFE)]]
    assert weights(after(items))[7] == pytest.approx(0.5)


def test_what_is_all_but_forgotten_is_let_go() -> None:
    items = [7, *([8] * (RING + 2 * HALF_LIFE + PACE))]
    assert weights(after(items)).keys() == {8}


def test_a_dismissal_forgets_and_what_the_ring_still_has_of_it_does_not_come_back() -> None:
    items = [7] * 3 + list(range(100, 100 + RING)) + [7]
    kinds = [PURCHASE] * (len(items) - 1) + [DISMISS]
    assert 7 in weights(after(items[:-1], kinds[:-1]))
    assert 7 not in weights(after(items, kinds))
    still = [7] * 3 + [7] + list(range(100, 100 + RING - 1))  # the dismissal is the ring's oldest
    kinds = [PURCHASE] * 3 + [DISMISS] + [PURCHASE] * (RING - 1)
    assert weights(after(still, kinds)) == {}


def test_weights_are_of_the_event_types_that_are_asked_for() -> None:
    seven, view = item_prefix(key(7)), KINDS["view"]
    found = after([7] * (RING + 3), [PURCHASE, view, view] + [PURCHASE] * RING)
    assert found.weights([PURCHASE]) == {seven: 1.0}
    assert found.weights([view]) == {seven: pytest.approx(2.0, rel=0.02)}
    assert found.weights([PURCHASE, view]) == {seven: pytest.approx(3.0, rel=0.02)}
    assert found.weights([KINDS["cart"]]) == {}


def test_purchases_keep_their_places_where_a_view_is_seen_now_and_then() -> None:
    items = a_year(7)
    kinds = [PURCHASE if item < 12 else KINDS["view"] for item in items]
    found = after(items, kinds).weights([PURCHASE])
    assert {item_prefix(key(item)) for item in range(12)} <= found.keys()


def test_a_dismissal_forgets_an_item_whatever_was_done_with_it() -> None:
    items = [7, 7, *range(100, 100 + RING), 7]
    kinds = [PURCHASE, KINDS["view"], *[PURCHASE] * RING, DISMISS]
    assert 7 in weights(after(items[:-1], kinds[:-1]))
    assert 7 not in weights(after(items, kinds))


def test_one_more_event_is_one_more_in_weight_to_within_a_code() -> None:
    for code in range(1, MOST + 1):
        if WEIGHTS[code] + 1 < WEIGHTS[MOST]:
            assert WEIGHTS[PLUS_ONE[code]] == pytest.approx(WEIGHTS[code] + 1, rel=2 ** (0.51 / OCTAVE) - 1)
    assert PLUS_ONE[MOST] == MOST


@pytest.mark.parametrize("places", [0, 1, 24, PLACES])
def test_a_row_with_less_room_keeps_the_heaviest(places: int) -> None:
    items = a_year(11)
    entries = b"".join(packed(item, PURCHASE) for item in items)
    ring = entries[-ENTRY_BYTES * RING :]
    full = after(items)
    assert len(full.codes) == PLACES
    wider = full.after(ring, packed(1, PURCHASE), places)
    codes = [code for _, code in wider.codes]
    assert len(codes) == places
    kept = sorted((code for _, code in full.after(ring, packed(1, PURCHASE)).codes), reverse=True)
    assert sorted(codes, reverse=True)[: max(places - 1, 0)] == kept[: max(places - 1, 0)]
    one_by_one = full
    for n in range(30):
        rest = (ring + entries[: ENTRY_BYTES * n])[-ENTRY_BYTES * RING :]
        one_by_one = one_by_one.after(rest, entries[ENTRY_BYTES * n : ENTRY_BYTES * (n + 1)], places)
    assert one_by_one == full.after(ring, entries[: ENTRY_BYTES * 30], places)


def test_more_than_there_are_places_for_do_not_stay() -> None:
    """As where another release had more of them."""
    heavy = [(item_prefix(key(9_000 + n)), 200) for n in range(70)]
    many = Favourites.of([*after(a_year(12)).codes, *heavy], 3)
    entries = b"".join(packed(item, PURCHASE) for item in range(RING + 3))
    again = many.after(entries[: ENTRY_BYTES * RING], entries[ENTRY_BYTES * RING :])
    assert len(again.codes) == PLACES and min(code for _, code in again.codes) == 200


def test_it_is_stored_in_five_bytes_an_item_and_read_back() -> None:
    found = after(a_year(1))
    stored = encode_favourites(found)
    assert len(found.codes) == PLACES and len(stored) == 1 + 5 * PLACES
    assert decode_favourites(stored) == found
    assert encode_favourites(Favourites()) == b"" and decode_favourites(b"") == Favourites()


@pytest.mark.parametrize("data", [b"\0\1", b"\0" * 7])
def test_a_torn_attribute_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptRow, match="fav"):
        decode_favourites(data)
