"""For whom and for what the lists are good, and what else they are: covering, diverse, novel, calibrated.

Lists are `top` [U, k] item rows, best first, -1 for no item, as `train.evaluate` makes them; `targets` are
the rows each of the U users wants, distinct, at least one each. An interval is the 95 % percentile bootstrap
over users (Efron & Tibshirani 1993, chapter 13): a user's events are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from functions.core.events import EVENT_TYPES, IMPRESSION
from train.log import Interactions

RESAMPLES = 1_000
RESAMPLED_AT_ONCE = 2**22  # users times resamples in memory
LEVEL = 0.95
HEAD, TAIL = 0.2, 0.8  # shares of the events at which the head ends and the tail begins
POPULARITY = ("head", "mid", "tail", "new")
CUT, WIDE_CUT = 10, 20
NOWHERE = 2**31  # the place of what is not in a list
SMOOTHING = 0.01  # Steck 2018, alpha
USERS_AT_ONCE = 512
BINS = 10

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; `low` and `high` are None where one user alone leaves nothing to resample."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        between = "" if self.low is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.mean:.4f}{between}"


def estimate(sums: Floats, counts: Floats | None = None, seed: int = 0) -> Estimate:
    """Mean over everything that users did: `sums` [U] of each user's values, `counts` [U] of their number.

    Without counts, one value a user. Whole users are resampled, so one user's events stay together. Equal
    numbers of users under one seed are resampled alike. Raises ValueError where there is no user.
    """
    counts = np.ones(len(sums)) if counts is None else np.asarray(counts, np.float64)
    if not counts.any():
        raise ValueError(f"{len(sums)} users with {counts.sum():g} values; expected at least one value")
    sums, counts = sums[counts > 0], counts[counts > 0]
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(mean, None, None)
    found = bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // len(sums)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Estimate(mean, float(low), float(high))


def power_of_two_bucket(count: Rows) -> tuple[Rows, list[str]]:
    """0, 1, 2-3, 4-7, …: the bucket of each count, and the buckets' names up to the largest."""
    count = np.asarray(count, np.int64)
    bucket = np.frexp(count.astype(np.float64))[1].astype(np.int64)  # bits of the count
    lows = [2**b for b in range(int(bucket.max(initial=0)))]
    return bucket, ["0", *(str(low) if low == 1 else f"{low}-{2 * low - 1}" for low in lows)]


def popularity_class(counts: NDArray[np.integer]) -> Rows:
    """Index into POPULARITY of each of N items by its number of events, [N] → [N].

    Items in order of their events, ties by row: the head are those that begin within the first 20 % of all
    events, the tail those that begin after 80 %, mid what is between; new has no event.
    """
    order = np.argsort(-counts, kind="stable")
    sold = counts[order]
    before = (np.cumsum(sold) - sold) / max(int(sold.sum()), 1)  # share of the events of more popular items
    found = np.empty(len(counts), np.int64)
    found[order] = np.where(sold == 0, 3, np.searchsorted([HEAD, TAIL], before, side="right"))
    return found


def event_counts(log: Interactions) -> Rows:
    """Events of every item, impressions not counted, [N]."""
    return np.bincount(log.item[log.kind != IMPRESSION], minlength=len(log.item_ids)).astype(np.int64)


def target_kinds(log: Interactions, users: Sequence[int], targets: Sequence[Rows]) -> list[Rows]:
    """The event type of every target: that of the user's last event with the item in the whole `log`.

    0 for a target that the log does not have.
    """
    counted = np.flatnonzero(log.kind != IMPRESSION)
    width = len(log.item_ids)
    key = log.user[counted].astype(np.int64) * width + log.item[counted]
    known, from_the_end = np.unique(key[::-1], return_index=True)
    kinds = log.kind[counted][::-1][from_the_end].astype(np.int64)
    wanted = np.repeat(np.asarray(users, np.int64), _lengths(targets)) * width + np.concatenate(targets)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = np.where(known[at] == wanted, kinds[at], 0)
    return np.split(found, np.cumsum(_lengths(targets))[:-1])


@dataclass(frozen=True)
class Hits:
    """Every (user, target) pair of the lists, [P]: whose it is, and its place in the list, 0 the first."""

    user: Rows
    item: Rows
    place: Rows
    users: int

    @classmethod
    def find(cls, top: Rows, targets: Sequence[Rows], items: int) -> Hits:
        """Look every target up in its user's list; raises ValueError for a user without one."""
        lengths = _lengths(targets)
        if len(top) != len(targets) or not lengths.all():
            raise ValueError(
                f"{len(top)} lists, targets {lengths.tolist()[:5]}…; expected some for each list"
            )
        user, item = np.repeat(np.arange(len(top)), lengths), np.concatenate(targets).astype(np.int64)
        shown = np.arange(len(top))[:, None] * (items + 1) + top + 1  # -1 takes the number of no item
        order = np.argsort(shown, axis=None, kind="stable")
        keys = shown.ravel()[order]
        wanted = user * (items + 1) + item + 1
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        place = np.where(keys[at] == wanted, order[at] % top.shape[1], NOWHERE)
        return cls(user, item, place, len(top))

    def scores(self, among: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.bool_], dict[str, Floats]]:
        """Which users have a target `among` [P] the pairs, and those users' metrics with these targets alone.

        Other targets keep their places in the list, as any other item does.
        """
        among = np.ones(len(self.user), bool) if among is None else among
        user, place = self.user[among], self.place[among]
        wanted = np.bincount(user, minlength=self.users)
        has = wanted > 0

        def total(values: NDArray[Any]) -> Floats:
            return np.asarray(np.bincount(user, values, self.users)[has], np.float64)

        gain = np.where(place < CUT, 1 / np.log2(place + 2.0), 0.0)
        ideal = np.cumsum(1 / np.log2(np.arange(2, CUT + 2)))[np.minimum(wanted[has], CUT) - 1]
        return has, {
            f"hr@{CUT}": (total(place < CUT) > 0).astype(np.float64),
            f"ndcg@{CUT}": total(gain) / ideal,
            f"recall@{WIDE_CUT}": total(place < WIDE_CUT) / wanted[has],
        }


def slices(
    top: Rows,
    targets: Sequence[Rows],
    users: Sequence[int],
    train: Interactions,
    *,
    kinds: Sequence[Rows] | None = None,
    devices: Sequence[str | None] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, object]]]:
    """Metrics with intervals by `history_length`, `item_popularity`, `repeat_or_new`, and where known
    `event_type`, `device`.

    repeat: the user had done something with the item before; new: not.
    users: row `u` of `top` is user users[u] of `train`, which is what was learnt from: history length and
    popularity are counted there, impressions not. kinds: as `target_kinds`; devices: one a user, None where
    unknown. A slice that nobody is in is left out.
    """
    hits = Hits.find(top, targets, len(train.item_ids))
    histories = np.bincount(train.user[train.kind != IMPRESSION], minlength=len(train.user_ids))
    bucket, names = power_of_two_bucket(histories[np.asarray(users, np.int64)])
    popular = popularity_class(event_counts(train))
    found = {
        "all": _by(hits, np.zeros(len(hits.user), np.int64), ["all"], seed),
        "history_length": _by(hits, bucket[hits.user], names, seed),
        "item_popularity": _by(hits, popular[hits.item], POPULARITY, seed),
        "repeat_or_new": _by(hits, _had_before(hits, users, train), ("new", "repeat"), seed),
    }
    if kinds is not None:
        found["event_type"] = _by(hits, np.concatenate(kinds), ("other", *EVENT_TYPES), seed)
    if devices is not None:
        known = sorted({device for device in devices if device is not None})
        code = np.array([-1 if device is None else known.index(device) for device in devices])
        found["device"] = _by(hits, code[hits.user], known, seed)
    return found


def _had_before(hits: Hits, users: Sequence[int], train: Interactions) -> Rows:
    """1 for every pair whose item is in the user's history, else 0, [P]."""
    width, counted = len(train.item_ids), train.kind != IMPRESSION
    had = train.user[counted].astype(np.int64) * width + train.item[counted]
    pairs = np.asarray(users, np.int64)[hits.user] * width + hits.item
    return np.isin(pairs, had).astype(np.int64)


def _by(hits: Hits, label: Rows, names: Sequence[str], seed: int) -> dict[str, dict[str, object]]:
    """The metrics of every label's pairs, under its name."""
    found: dict[str, dict[str, object]] = {}
    for code, name in enumerate(names):
        has, scores = hits.scores(label == code)
        if has.any():
            values = {metric: asdict(estimate(each, seed=seed)) for metric, each in scores.items()}
            found[name] = {"users": int(has.sum()), **values}
    return found


def beyond_accuracy(
    top: Rows,
    users: Sequence[int],
    train: Interactions,
    embeddings: NDArray[np.floating],
    categories: Rows | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Coverage, and with intervals diversity, novelty and calibration of the first CUT items of each list.

    embeddings [N, d]; categories [N] codes, 0 unknown. What no list has (a list of one item has no diversity)
    is left out.
    """
    top = top[:, :CUT]
    measured = {
        "intra_list_diversity": diversity(top, embeddings),
        "novelty_bits": novelty(top, event_counts(train)),
    }
    if categories is not None:
        measured["calibration_kl"] = calibration(top, users, train, categories)
    known = {name: values[~np.isnan(values)] for name, values in measured.items()}
    estimates = {name: asdict(estimate(values, seed=seed)) for name, values in known.items() if values.size}
    return {"coverage": coverage(top, len(train.item_ids)), **estimates}


def coverage(top: Rows, items: int) -> float:
    """Share of the catalogue that is in anybody's list."""
    return len(np.unique(top[top >= 0])) / items


def diversity(top: Rows, embeddings: NDArray[np.floating]) -> Floats:
    """Mean of 1 - cosine over a list's pairs (Ziegler et al. 2005), [U]; nan for fewer than two items."""
    wide = embeddings.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return _in_parts(lambda part: _diversity(part, unit), top)


def _diversity(top: Rows, unit: Floats) -> Floats:
    there = top >= 0
    vectors = np.where(there[..., None], unit[top], 0.0)  # [U, k, d]
    own = (vectors * vectors).sum((1, 2))  # the cosines of items with themselves
    pairs = there.sum(1) * (there.sum(1) - 1.0)
    cosines = (vectors.sum(1) ** 2).sum(1) - own
    return np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), np.nan)


def novelty(top: Rows, counts: Rows) -> Floats:
    """Mean self-information of a list's items in bits, -log2 p(item) (Vargas & Castells 2011), [U].

    p: the item's share of all events; an item without any counts as one event. nan for an empty list.
    """
    bits = -np.log2(np.maximum(counts, 1) / max(int(counts.sum()), 1))
    there = top >= 0
    return _mean(np.where(there, bits[top], 0.0).sum(1), there.sum(1))


def _mean(sums: Floats, counts: Rows) -> Floats:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def calibration(top: Rows, users: Sequence[int], train: Interactions, categories: Rows) -> Floats:
    """How far the categories of a user's list are from those of the history (Steck 2018, eq. 6), [U].

    Kullback-Leibler divergence in nats. 0: the same mix; -log SMOOTHING = 4.6: nothing in common. nan
    where history or list names no category.
    """
    names = int(categories.max(initial=1)) + 1
    counted = train.kind != IMPRESSION
    order = np.argsort(train.user[counted], kind="stable")
    of_user = train.user[counted][order]
    seen = categories[train.item[counted][order]]
    wanted = np.asarray(users, np.int64)
    bounds = np.searchsorted(of_user, np.stack([wanted, wanted + 1], 1))

    def part(at: Rows) -> Floats:
        histories = [seen[a:b] for a, b in bounds[at]]
        shown = [categories[row[row >= 0]] for row in top[at]]
        return _divergence(_mix(histories, names), _mix(shown, names))

    return _in_parts(part, np.arange(len(wanted)))


def _mix(codes: list[Rows], names: int) -> Floats:
    """Share of every category but the unknown one, [U, names - 1]; nan where there is none."""
    user = np.repeat(np.arange(len(codes)), _lengths(codes))
    flat = np.bincount(user * names + np.concatenate(codes), minlength=len(codes) * names)
    counts = flat.reshape(len(codes), names)[:, 1:].astype(np.float64)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def _divergence(history: Floats, shown: Floats) -> Floats:
    smoothed = (1 - SMOOTHING) * shown + SMOOTHING * history
    ratio = np.where(history > 0, history / np.where(history > 0, smoothed, 1.0), 1.0)
    divergence: Floats = (history * np.log(ratio)).sum(1)
    return divergence


def reliability(probability: Floats, right: NDArray[np.bool_]) -> dict[str, object]:
    """Whether what is proposed with probability p is right in p of the cases: [n] each.

    `ece`: expected calibration error over BINS bins of equal width (Guo et al. 2017, eq. 3), and each bin's
    events, mean probability and share that was right; empty bins are left out. Raises ValueError for none.
    """
    if not len(probability) or not 0 <= probability.min() <= probability.max() <= 1:
        raise ValueError(f"{len(probability)} probabilities; expected some, all from 0 to 1")
    at = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    events = np.bincount(at, minlength=BINS)
    said, came = (_binned(values, at, events) for values in (probability, right))
    some = np.flatnonzero(events)
    return {
        "ece": float((events[some] * np.abs(said[some] - came[some])).sum() / len(probability)),
        "bins": [
            {"events": int(events[b]), "probability": float(said[b]), "right": float(came[b])} for b in some
        ],
    }


def _binned(values: NDArray[Any], at: Rows, events: Rows) -> Floats:
    return _mean(np.asarray(np.bincount(at, values, BINS), np.float64), events)


def _in_parts(measure: Callable[[Rows], Floats], rows: Rows) -> Floats:
    """`measure` of USERS_AT_ONCE users at a time: [U, …] → [U]."""
    starts = range(0, len(rows), USERS_AT_ONCE)
    return np.concatenate([measure(rows[a : a + USERS_AT_ONCE]) for a in starts] or [np.zeros(0)])


def _lengths(parts: Sequence[Rows]) -> Rows:
    return np.array([len(part) for part in parts], np.int64)
