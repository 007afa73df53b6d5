from dataclasses import replace

import numpy as np
import pytest

from functions.core.errors import CorruptRow
from functions.core.favourites import PLACES, Favourites, item_and_kind
from functions.core.ring import RING, RingEntry
from functions.core.user_row import (
    BESIDES,
    MARKS,
    MAX_BYTES,
    MAX_SEQUENCE,
    SEEN,
    UserRow,
    decode,
    encode,
    event_hash,
    item_key,
    new_row,
    places_for,
)


def full_row(state_width: int = 192, dim: int = 128) -> UserRow:
    """A row in which every ring is full and every number is as long as it may be."""
    rng = np.random.default_rng(1)
    row = new_row("f" * 16, state_width, dim)
    row = replace(row, state=rng.normal(size=state_width).astype(np.float16), version=10**12)
    ring = [RingEntry(event_hash(f"e{n}"), item_key(f"i{n}"), 7, 15, 31) for n in range(RING)]
    row = replace(row, ring=tuple(ring), last_s=2**32 - 1)
    kept = tuple((item_and_kind(item_key(f"i{n}"), 4), 255) for n in range(places_for(state_width, dim)))
    row = replace(row, favourites=Favourites.of(kept, 7))
    for n in range(SEEN + 1):
        row = row.with_impression(item_key(f"i{n}"), 2**32 - 1)
    for n in range(MARKS + 1):
        row = row.with_mark(f"shardId-{n:012d}", MAX_SEQUENCE)
    return replace(row, erased=b"\xff" * 8)


def stored_bytes(attributes: dict[str, object]) -> int:
    """DynamoDB's own count: names and values in UTF-8 or raw bytes, a number at its longest 21."""
    return sum(
        len(name) + (len(value) if isinstance(value, bytes | str) else 21)
        for name, value in attributes.items()
    )


def test_the_time_since_the_newest_event_is_known_where_there_is_one() -> None:
    row = replace(new_row("", 0, 0), ring=(RingEntry(b"-----", b"------", 1, 0, 0),), last_s=1_000)
    assert [row.elapsed_s(now_s) for now_s in (1_000, 1_060, 940, None)] == [0, 60, 0, None]
    assert new_row("", 0, 0).elapsed_s(1_000) is None


def test_what_is_decoded_is_what_was_encoded() -> None:
    row = full_row()
    assert encode(decode(encode(row))) == encode(row)
    assert decode(encode(row)).marks == row.marks


@pytest.mark.parametrize(
    ("state_width", "dim", "places"),
    [
        (160, 128, PLACES),
        (193, 128, PLACES),
        (194, 128, PLACES - 1),
        (256, 128, 25),
        (320, 64, 25),
        (318, 128, 0),
    ],
)
def test_the_fullest_row_fits_in_two_kilobytes(state_width: int, dim: int, places: int) -> None:
    """A wider state leaves room for fewer favourites."""
    attributes = {**encode(full_row(state_width, dim)), "pk": "k" * 22, "ttl": 2**40}
    size = stored_bytes(attributes)
    assert places_for(state_width, dim) == places
    assert size == BESIDES + 2 * (state_width + dim) + 5 * places <= MAX_BYTES
    assert size + 5 > MAX_BYTES or places == PLACES


def test_the_rings_drop_the_oldest_one_past_their_bound() -> None:
    row = full_row()
    assert (len(row.ring), len(row.seen), len(row.marks)) == (RING, SEEN, MARKS)
    assert row.remembers("e0")
    assert row.remembers(f"e{RING - 1}")
    assert not row.remembers(f"e{RING}")


def test_a_mark_never_goes_down_and_is_kept_for_each_shard_alone() -> None:
    row = new_row("0" * 16, 4, 2).with_mark("a", 10**55).with_mark("b", 3).with_mark("a", 9)
    assert row.mark("a") == 10**55
    assert row.mark("b") == 3
    assert row.mark("c") == -1


def test_sequence_numbers_are_compared_as_numbers() -> None:
    row = new_row("0" * 16, 4, 2).with_mark("a", 9).with_mark("a", 10)
    assert row.mark("a") == 10


def test_a_value_that_is_not_finite_is_never_stored() -> None:
    row = new_row("0" * 16, 4, 2)
    for bad in (np.nan, np.inf):
        with pytest.raises(CorruptRow, match="not finite"):
            encode(replace(row, state=np.full(4, bad, np.float16)))


@pytest.mark.parametrize("name", ["state", "vector", "ring", "last", "fav", "seen", "marks", "wid", "era"])
def test_a_truncated_attribute_is_named(name: str) -> None:
    attributes = encode(replace(full_row(), wid=b"12345678"))
    attributes[name] = attributes[name][:-1]  # type: ignore[index]
    with pytest.raises(CorruptRow, match=name):
        decode(attributes)
