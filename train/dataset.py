"""A behaviour log as training windows: stretches of one user's events, each with the item that came next."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from functions.core.events import DISMISS, IMPRESSION
from functions.core.features import gap_bucket, value_bucket
from train.context import event_codes
from train.log import Interactions
from train.split import Split, events_of

STEPS_PER_EPOCH = 50  # at least, where a small log would be a handful of full batches
SMALLEST_BATCH = 256  # events
IN_TWO = 0.1  # share of the windows that are cut in two
OTHERWISE = 0.75  # share of the openings that are taken as the other kind
AHEAD = 0.5  # share of the targets that are drawn from what comes within the horizon


@dataclass(frozen=True)
class Batch:
    """R stretches of T events of one user each, padded at the end; target -1: nothing to learn."""

    item: Tensor  # int64 [R, T] rows
    kind: Tensor  # int64 [R, T]
    gap: Tensor  # int64 [R, T] buckets
    value: Tensor  # int64 [R, T] buckets
    target: Tensor  # int64 [R, T] rows, the next event's item
    context: Tensor  # int64 [R, T] codes of the next event's, train.context
    elapsed: Tensor  # int64 [R, T] buckets of the time between event and request

    @property
    def pairs(self) -> int:
        """How many next items there are to learn."""
        return int((self.target >= 0).sum())

    def met(self, stretch: Tensor, place: Tensor) -> Tensor:
        """Rows of the items up to these places of these stretches, [P] each -> [P, T], some repeated."""
        items = self.item[stretch]
        until = torch.arange(items.shape[1], device=items.device) <= place[:, None]
        return torch.where(until, items, items[:, :1])

    def to(self, device: torch.device) -> Batch:
        """The same stretches on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Windows:
    """R stretches of a log that stays as it is, [n] by user; nothing is padded before it is in a batch."""

    columns: Tensor  # int32 [7, n]: item, kind, gap, value, target, context, elapsed
    start: Tensor  # int64 [R]
    length: Tensor  # int64 [R]
    opening: Tensor  # int64 [R]: gap bucket of its first event; 0 where that is taken as a user's first

    def to(self, device: torch.device) -> Windows:
        """The same windows on a device."""
        return Windows(*(t.to(device) for t in (self.columns, self.start, self.length, self.opening)))

    def batch(self, rows: Tensor) -> Batch:
        """The windows `rows`, padded to the longest of them, on the windows' own device."""
        length = self.length[rows]
        place = torch.arange(int(length.max()), device=length.device)[None]  # [1, T]
        inside = place < length[:, None]
        at = torch.where(inside, self.start[rows][:, None] + place, 0)
        item, kind, gap, value, target, *asked = self.columns[:, at].long()
        item, kind, gap, value, context, elapsed = (
            torch.where(inside, column, 0) for column in (item, kind, gap, value, *asked)
        )
        gap[:, 0] = self.opening[rows]
        return Batch(item, kind, gap, value, target.where(inside, -1), context, elapsed)

    def batches(self, events: int, shuffle: torch.Generator) -> list[Tensor]:
        """Every window once, in batches of at most `events` after padding (a longer window goes alone).

        Windows of about one length go together, so that little is padded; which ones and when is shuffled.
        """
        mixed = torch.randperm(len(self.length), generator=shuffle)
        lengths = self.length.cpu()
        order = mixed[torch.argsort(lengths[mixed], stable=True)]
        cuts, first = [0], 0
        for at, length in enumerate(lengths[order].tolist()):
            if at > first and (at - first + 1) * length > events:
                cuts.append(at)
                first = at
        parts = torch.tensor_split(order, cuts[1:])
        return [parts[i] for i in torch.randperm(len(parts), generator=shuffle).tolist()]

    def batch_events(self, most: int) -> int:
        """Events in a batch: `most`, or fewer where an epoch would have too few steps."""
        return min(most, max(SMALLEST_BATCH, int(self.length.sum()) // STEPS_PER_EPOCH))


@dataclass(frozen=True)
class TrainingHistories:
    """Events of U users in order, from which each epoch cuts its windows."""

    columns: Tensor  # int32 [7, n], as of Windows
    first: Tensor  # int64 [U]
    stop: Tensor  # int64 [U]; the last event of a user is not in, for nothing follows it
    moment: Tensor  # int64 [n], on the CPU: when each event was, in seconds as `_moments` counts them
    wait_s: Tensor  # int64 [n], on the CPU: seconds until the user's next event; -1: none
    horizon_s: int

    def to(self, device: torch.device) -> TrainingHistories:
        """The same with its columns on a device; where to cut is decided on the CPU."""
        return replace(self, columns=self.columns.to(device))

    def cut(self, length: int, shuffle: torch.Generator | None = None) -> Windows:
        """Every event in one window of at most `length`, cut from a history's end; one that fits stays whole.

        With `shuffle` it is cut anew. The newest window of a long history has any length up to `length`; a
        tenth of all are cut in two anywhere, and what follows is taken as a new user's; most of the others
        that begin a history are taken as if an event had been before, and most of the rest as if none. Else
        "no event before" would mean "the very first": what people begin with, and nothing to go by where
        somebody is met in the middle.
        """
        history = self.stop - self.first
        newest = torch.full_like(history, length)
        if shuffle is not None:
            newest = torch.randint(1, length + 1, history.shape, generator=shuffle)
        newest = torch.where(history > length, newest, history)
        older = self.stop - newest  # where the newest windows start, [U]
        count = 1 + (older - self.first + length - 1) // length
        user = torch.repeat_interleave(torch.arange(len(history)), count)
        nth = torch.arange(len(user)) - (count.cumsum(0) - count)[user]
        stop = torch.where(nth == 0, self.stop[user], older[user] - (nth - 1) * length)
        start = torch.maximum(self.first[user], older[user] - nth * length)
        gaps = self.columns[2].cpu()
        windows = Windows(self.columns, start, stop - start, gaps[start].long())
        if shuffle is not None:
            windows = replace(windows, columns=self._asked(shuffle))
            windows = _cut_in_two(_met_in_the_middle(windows, gaps, shuffle), shuffle)
        return windows.to(self.columns.device)

    def _asked(self, shuffle: Generator) -> Tensor:
        """The columns with requests drawn, and AHEAD of the targets, with their contexts, from what comes
        within the horizon of the request.

        A request comes with an event, with the next one, or at any moment between: a third each. A list is
        judged by what comes in the days after it was asked for, not by the next event alone (the dense
        all-action loss of PinnerFormer, Pancha et al. 2022, section 3.3.2); and the next event is often of
        the same visit. Where the horizon ends before the next event, that stays the target.
        """
        if not self.horizon_s:
            return self.columns
        asked_s = self._requests(shuffle)
        target = self._targets(asked_s, shuffle).to(self.columns.device)
        elapsed = torch.from_numpy(gap_bucket(torch.where(self.wait_s < 0, -1, asked_s).numpy()))
        return torch.cat([self.columns[:4], self.columns[4:6, target], elapsed[None].to(self.columns)])

    def _requests(self, shuffle: Generator) -> Tensor:
        """Seconds from each event to a request, int64 [n]."""
        between = torch.rand(self.wait_s.shape, generator=shuffle, dtype=torch.float64)
        way = torch.randint(3, self.wait_s.shape, generator=shuffle)
        share = torch.where(way == 0, 0.0, torch.where(way == 1, 1.0, between))
        return (share * self.wait_s.clamp(min=0)).floor().long()

    def _targets(self, asked_s: Tensor, shuffle: Generator) -> Tensor:
        """Places, int64 [n], of the events whose successors are the targets."""
        place = torch.arange(len(asked_s))
        last = torch.searchsorted(self.moment, self.moment + asked_s + self.horizon_s, right=True) - 1
        drawn = torch.rand(place.shape, generator=shuffle, dtype=torch.float64) * (last - place)
        ahead = torch.rand(place.shape, generator=shuffle) < AHEAD
        return place + torch.where(ahead, drawn.long(), 0)


def _met_in_the_middle(windows: Windows, gaps: Tensor, shuffle: Generator) -> Windows:
    """Most openings are taken as the other kind: a drawn gap for none, and none for a gap."""
    changed = torch.rand(len(windows.start), generator=shuffle) < OTHERWISE
    drawn = gaps[torch.randint(len(gaps), windows.start.shape, generator=shuffle)].long()
    other = torch.where(windows.opening == 0, drawn, 0)
    return replace(windows, opening=torch.where(changed, other, windows.opening))


def _cut_in_two(windows: Windows, shuffle: Generator) -> Windows:
    """A share of the windows as two, of which the second begins as a user's history does."""
    share = torch.rand(len(windows.start), generator=shuffle)
    at = 1 + (torch.rand(len(windows.start), generator=shuffle) * (windows.length - 1)).long()
    cut = (share < IN_TWO) & (windows.length > 1)
    return replace(
        windows,
        start=torch.cat([windows.start, (windows.start + at)[cut]]),
        length=torch.cat([torch.where(cut, at, windows.length), (windows.length - at)[cut]]),
        opening=torch.cat([windows.opening, torch.zeros_like(at[cut])]),
    )


@dataclass(frozen=True)
class HeldOut:
    """U users' newest events, a window each, and the rows that each user went on to."""

    windows: Windows
    targets: list[NDArray[np.int64]]


def histories(log: Interactions, horizon_s: int = 0) -> TrainingHistories:
    """What there is to learn from; raises ValueError if no user has two events.

    horizon_s: seconds after a request within which its target may lie; 0: the next event, always.
    """
    columns, user, first, last = _by_user(log)
    some = last - first > 1
    if not some.any():
        raise ValueError(
            f"{events_of(log)} to learn from, no training pair; expected a user with 2 events or more"
        )
    time_s = log.time_s[_order(log)]
    times = _moments(user, time_s, horizon_s), _wait_s(time_s, last)
    begin, end, moment, wait_s = map(torch.from_numpy, (first[some], last[some] - 1, *times))
    return TrainingHistories(columns, begin, end, moment, wait_s, horizon_s)


def held_out(parts: Split, length: int) -> HeldOut:
    """The newest `length` events of each user of the targets; raises ValueError where there is none."""
    log, targets = parts.train, parts.targets
    columns, user, first, last = _by_user(log)
    wanted = np.intersect1d(user[first], np.array(list(targets), np.int64))
    if not wanted.size:
        raise ValueError(
            f"{events_of(log)} to learn from, no user to validate on; expected one with 3 events or more"
        )
    at = np.searchsorted(user[first], wanted)
    start = np.maximum(first[at], last[at] - length)
    sizes = last[at] - start
    new_start = np.cumsum(sizes) - sizes
    kept = np.repeat(start - new_start, sizes) + np.arange(sizes.sum())  # nothing stays of all other events
    some = columns[:, torch.from_numpy(kept)]
    some[5:] = 0  # nothing is known of a request but when it comes
    if parts.asked_s is not None:
        some[6] = torch.from_numpy(gap_bucket((parts.asked_s - log.time_s[_order(log)][kept]).clip(min=0)))
    bounds = torch.from_numpy(new_start), torch.from_numpy(sizes)
    newest = Windows(some, *bounds, some[2][bounds[0]].long())
    return HeldOut(newest, [targets[int(user)] for user in wanted])


def _by_user(log: Interactions) -> tuple[Tensor, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Columns [7, n] sorted by user, the users [n], and where each user's events begin and end."""
    order = _order(log)
    user = log.user[order]
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.zeros(0, np.int64)
    last = np.r_[first[1:], len(user)]
    return _columns(log, order, first, last), user, first, last


def _order(log: Interactions) -> NDArray[np.int64]:
    """Rows of the log by user, oldest first; what was only shown is not among them."""
    order = np.argsort(log.user, kind="stable")
    kept: NDArray[np.int64] = order[log.kind[order] != IMPRESSION]
    return kept


def _moments(user: NDArray[np.int32], time_s: NDArray[np.int64], horizon_s: int) -> NDArray[np.int64]:
    """Seconds, ascending, in which no horizon reaches the next user's first event; by user, [n] -> [n]."""
    since_s = time_s - time_s.min()
    nth = np.cumsum(np.diff(user, prepend=user[:1]) != 0)
    return np.asarray(nth * (since_s.max() + horizon_s + 1) + since_s)


def _wait_s(time_s: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Seconds until the same user's next event, [n]; -1 after the last."""
    wait_s = np.diff(time_s, append=time_s[-1:]).clip(min=0)
    wait_s[last - 1] = -1
    return wait_s


def _columns(
    log: Interactions, order: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> Tensor:
    """item, kind, gap, value, the item that came next (-1: none, or nothing to predict), its context, and 0:
    how long after an event somebody asks is drawn anew for each epoch."""
    time_s = log.time_s[order]
    gap_s = np.diff(time_s, prepend=time_s[:1]).clip(min=0)
    gap_s[first] = -1  # no event before
    item, kind = log.item[order], log.kind[order]
    following = np.roll(np.where(kind == DISMISS, -1, item), -1)
    following[last - 1] = -1
    context = np.roll(event_codes(log)[order], -1)
    buckets = gap_bucket(gap_s), value_bucket(log.value[order])
    columns = (item, kind, *buckets, following, context, np.zeros(len(item)))
    return torch.from_numpy(np.stack([c.astype(np.int32) for c in columns]))
