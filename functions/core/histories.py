"""Events of many users as columns, so that a log of millions is folded without an object for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, pairwise
from math import nan

from functions.core.events import Event
from functions.core.user_row import event_hash, item_key

Spans = Sequence[tuple[int, int]]  # [U]: where in a flat list each user's events begin and end


@dataclass(frozen=True)
class Histories:
    """n events of U users, one user's after the other's, each user's in log order."""

    spans: Spans
    event: Sequence[bytes]  # [n] hash of the event's id
    items: Sequence[bytes]  # [M] distinct item keys
    item: Sequence[int]  # [n] which of them
    kind: Sequence[int]  # [n]
    time_s: Sequence[int]  # [n]
    value: Sequence[float]  # [n] NaN: none

    def take(self, wanted: Sequence[bool]) -> Histories:
        """The same users with some of their events, `wanted` [n]."""
        if all(wanted):
            return self
        return Histories(
            spans=spans_within(self.spans, wanted),
            event=list(compress(self.event, wanted)),
            items=self.items,
            item=list(compress(self.item, wanted)),
            kind=list(compress(self.kind, wanted)),
            time_s=list(compress(self.time_s, wanted)),
            value=list(compress(self.value, wanted)),
        )


def histories(events: Sequence[Sequence[Event]]) -> Histories:
    """The columns of each user's events."""
    flat = list(chain.from_iterable(events))
    places: dict[str, int] = {}
    return Histories(
        spans=spans_of(map(len, events)),
        item=[places.setdefault(event.item_id, len(places)) for event in flat],
        items=[item_key(item_id) for item_id in places],
        event=[event_hash(event.event_id) for event in flat],
        kind=[event.kind for event in flat],
        time_s=[event.time_s for event in flat],
        value=[nan if event.value is None else event.value for event in flat],
    )


def spans_of(lengths: Iterable[int]) -> Spans:
    """The spans of U users with so many events each."""
    return list(pairwise(accumulate(lengths, initial=0)))


def spans_within(spans: Spans, wanted: Sequence[bool]) -> Spans:
    """The spans once only the `wanted` events are left."""
    before = list(accumulate(wanted, initial=0))
    return [(before[first], before[end]) for first, end in spans]
