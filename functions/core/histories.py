"""Events of many users as columns, so that a log of millions is folded without an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

from functions.core.events import Event
from functions.core.features import Int64
from functions.core.user_row import event_hash, item_key


@dataclass(frozen=True)
class Histories:
    """n events of U users, one user's after the other's, each user's in log order."""

    bounds: Int64  # [U + 1]: user u's events are bounds[u] up to bounds[u + 1]
    event: Sequence[bytes]  # [n] hash of the event's id
    items: Sequence[bytes]  # [M] distinct item keys
    item: Int64  # [n] which of them
    kind: Int64  # [n]
    time_s: Int64  # [n]
    value: NDArray[np.float64]  # [n] NaN: none

    @property
    def lengths(self) -> Int64:
        """How many events each user has, [U]."""
        return np.diff(self.bounds)

    def take(self, wanted: NDArray[np.bool_]) -> Histories:
        """The same users with some of their events, `wanted` [n]."""
        if wanted.all():
            return self
        return replace(
            self,
            bounds=bounds_within(self.bounds, wanted),
            event=list(compress(self.event, wanted)),
            item=self.item[wanted],
            kind=self.kind[wanted],
            time_s=self.time_s[wanted],
            value=self.value[wanted],
        )


def histories(events: Sequence[Sequence[Event]]) -> Histories:
    """The columns of each user's events."""
    flat = list(chain.from_iterable(events))
    places: dict[str, int] = {}
    item = [places.setdefault(event.item_id, len(places)) for event in flat]
    return Histories(
        bounds=bounds_of([len(some) for some in events]),
        event=[event_hash(event.event_id) for event in flat],
        items=[item_key(item_id) for item_id in places],
        item=np.array(item, np.int64),
        kind=np.array([event.kind for event in flat], np.int64),
        time_s=np.array([event.time_s for event in flat], np.int64),
        value=np.array([np.nan if event.value is None else event.value for event in flat], np.float64),
    )


def bounds_of(lengths: Sequence[int] | Int64) -> Int64:
    """Where each of U users begins in a flat list, and where the last one ends: [U] → [U + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def bounds_within(bounds: Int64, wanted: NDArray[np.bool_]) -> Int64:
    """The bounds once only the `wanted` events are left."""
    return bounds_of(wanted.astype(np.int64))[bounds]
