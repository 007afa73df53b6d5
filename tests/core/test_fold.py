import numpy as np
import pytest

from functions.core.events import Event
from functions.core.fold import Encoder, fold, in_space
from functions.core.ring import RING
from functions.core.user_row import Float16, event_hash
from tests.core.toy_encoder import toy_encoder


def event(n: int, item: str = "i1", kind: str = "view") -> Event:
    return Event(f"e{n}", kind, item, 1000 + 60 * n, None)


def test_an_event_moves_the_vector() -> None:
    encoder = toy_encoder()
    (row,), done = fold([encoder.empty()], [[event(1)]], encoder)
    assert np.abs(row.vector).max() > 0
    assert (done.folded, done.duplicates, done.unknown_items) == (1, 0, 0)


def test_an_unknown_item_is_kept_and_counted_but_not_folded() -> None:
    encoder = toy_encoder()
    (row,), done = fold([encoder.empty()], [[event(1, "nobody")]], encoder)
    assert done.unknown_items == 1
    assert done.folded == 0
    assert row.remembers("e1")
    assert not row.state.any()


def test_an_impression_counts_against_the_cap_and_leaves_the_state_alone() -> None:
    encoder = toy_encoder()
    (row,), done = fold([encoder.empty()], [[event(1, kind="impression")]], encoder)
    assert len(row.seen) == 1
    assert done.folded == 0
    assert not row.state.any()


@pytest.mark.parametrize("batch", [1, 7, RING + 2])
def test_the_ring_forgets_the_oldest_one_past_its_bound_whatever_the_batch(batch: int) -> None:
    encoder = toy_encoder()
    row, events = encoder.empty(), [event(n) for n in range(RING + 2)]
    for at in range(0, len(events), batch):
        (row,), _ = fold([row], [events[at : at + batch]], encoder)
    assert len(row.ring) == RING
    assert [row.remembers(f"e{n}") for n in (0, 1, 2, RING + 1)] == [False, False, True, True]
    (again,), done = fold([row], [[event(2), event(0)]], encoder)
    assert (done.duplicates, again.ring[-1].event) == (1, event_hash("e0"))


def test_a_row_of_another_space_is_rebuilt_from_its_ring() -> None:
    old, new = toy_encoder(1, "1" * 16), toy_encoder(2, "2" * 16)
    events = [event(n, f"i{n}") for n in range(30)]
    (stale,), _ = fold([old.empty()], [events], old)
    (direct,), _ = fold([new.empty()], [events], new)
    (rebuilt,) = in_space([stale], new)
    assert rebuilt.space == new.space
    assert np.array_equal(rebuilt.state, direct.state)
    assert np.array_equal(in_space([rebuilt], old)[0].state, stale.state)  # and back: a rollback


def test_a_row_keeps_the_favourites_that_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, asked = toy_encoder(), []

    def three(state_width: int, dim: int) -> int:
        asked.append((state_width, dim))
        return 3

    monkeypatch.setattr("functions.core.fold.places_for", three)
    (row,), _ = fold([encoder.empty()], [[event(n, f"i{n % 40}") for n in range(200)]], encoder)
    assert asked == [(encoder.state_width, encoder.dim)]
    assert len(row.favourites.codes) == 3


def test_a_step_that_gives_nan_is_refused() -> None:
    good = toy_encoder()

    def poisoned(state: Float16, *inputs: object) -> tuple[Float16, Float16]:
        return np.full_like(state, np.nan), np.zeros((len(state), good.dim), np.float16)

    encoder = Encoder(good.space, good.state_width, good.dim, poisoned, good.items)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="not finite"):
        fold([encoder.empty()], [[event(1)]], encoder)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_item_whose_vector_is_not_finite_is_refused(number: float) -> None:
    encoder = toy_encoder()
    before = encoder.empty()
    for vector in encoder.items.by_key.values():  # type: ignore[attr-defined]
        vector[3] = number
    with pytest.raises(FloatingPointError, match="not finite"):
        fold([before], [[event(1)]], encoder)
    assert not before.state.any() and not before.ring  # what was known of the user is as it was


def test_rows_and_events_must_pair_up() -> None:
    with pytest.raises(ValueError, match="1 rows, 0 lists"):
        fold([toy_encoder().empty()], [], toy_encoder())
