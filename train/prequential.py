"""What fresh state is worth: `python -m train.prequential CHECKPOINT --events … --out DIR`.

Prequential evaluation (Dawid 1984; for recommenders Vinagre et al. 2014) walks the test part of the log in
time order: every event is first looked for among the whole catalogue, then folded. Four states of the same
user under the same model rank the same events, so their differences are paired:

- fresh: the row after everything that the user did before;
- hour, day: the row as a job would have it that writes all rows anew at every full hour, or day (UTC);
- never: the row as it was at the start of the test part. (There the other three start, too.)

Events of one user in one second are one act, a basket for instance: none of them helps to find another. What
is ranked is what would be served to a request just before the act, where and when that is: dot product and
repeat term of the row in question; popularity before the start for a row without a vector. The weights must
not have seen the test part either: train with `--split time`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from functions.core.alike import Alike
from functions.core.errors import VitrineError
from functions.core.events import DISMISS, IMPRESSION
from functions.core.features import Vocabulary
from functions.core.fold import Encoder, fold
from functions.core.repeats import NOBODY, Own, Repeats
from functions.core.user_row import Float16, UserRow
from train.alike import who_inherits
from train.checkpoint import load
from train.context import ContextTable, Requests
from train.engines import ENGINES
from train.evaluate import TowerItems, Visitors, _event, embed_items, torch_encoder, user_rows
from train.handover import CATALOGUE, popularity, read_companions, read_demand, read_features
from train.log import Interactions, onto, read_log
from train.mapping import load_mapping
from train.plots import freshness
from train.slices import estimate, power_of_two_bucket, reliability
from train.split import split, start_of_test, take

FROZEN_S = {"hour": 3_600, "day": 86_400, "never": 2**62}  # seconds from one writing of the row to the next
STATES = ("fresh", *FROZEN_S)
CUT = 10
MOST_EVENTS = 50_000
USERS_AT_ONCE = 512
SCORES_AT_ONCE = 2**25
REPORT, PICTURE = "prequential.json", "freshness.png"

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """What one user did in one second, and what each of STATES knew of the user before it."""

    events: Rows  # rows of the log, those that are ranked
    states: tuple[UserRow, ...]
    since: tuple[int, ...]  # the user's events that a state has missed
    seen: int  # the user's events before


@dataclass(frozen=True)
class _Frozen:
    row: UserRow
    period: int  # number of the hour or day in which it was written
    learnt: int  # events of the user in it


class Walk:
    """Some users through the test part, each moment looked at before it is learnt.

    log: without impressions, oldest first; its first `start` rows are the history. users [U].
    """

    def __init__(self, log: Interactions, start: int, users: Rows, encoder: Encoder) -> None:
        self.log, self.encoder = log, encoder
        history = take(log, np.arange(len(log.user)) < start)
        self.rows = user_rows(history, users.tolist(), encoder)
        self.learnt = np.bincount(history.user, minlength=len(log.user_ids))[users].tolist()
        self.acts = _acts(log, start, users)
        began_s = int(log.time_s[start])
        self.frozen = [
            {state: _Frozen(row, began_s // period, learnt) for state, period in FROZEN_S.items()}
            for row, learnt in zip(self.rows, self.learnt, strict=True)
        ]

    def moments(self) -> Iterator[Moment]:
        """Every moment of every user, a user's in order."""
        for turn in range(max(map(len, self.acts), default=0)):
            yield from self.step(turn, [u for u, acts in enumerate(self.acts) if turn < len(acts)])

    def step(self, turn: int, users: list[int]) -> list[Moment]:
        """One moment of each of these users: looked at, then learnt."""
        found = [self.look(u, self.acts[u][turn]) for u in users]
        self.learn(turn, users)
        return found

    def look(self, u: int, act: Rows) -> Moment:
        """The states before the events `act`; what is frozen is written anew where its time has come."""
        now_s = int(self.log.time_s[act[0]])
        for state, period in FROZEN_S.items():
            if now_s // period > self.frozen[u][state].period:
                self.frozen[u][state] = _Frozen(self.rows[u], now_s // period, self.learnt[u])
        kept = [self.frozen[u][state] for state in FROZEN_S]
        return Moment(
            act[_ranked(self.log.kind[act])],
            (self.rows[u], *(k.row for k in kept)),
            (0, *(self.learnt[u] - k.learnt for k in kept)),
            self.learnt[u],
        )

    def learn(self, turn: int, users: list[int]) -> None:
        """Fold this turn's events of these users into their rows, as a stream's batch would be."""
        acts = [self.acts[u][turn] for u in users]
        events = [[_event(self.log, row) for row in act.tolist()] for act in acts]
        rows, _ = fold([self.rows[u] for u in users], events, self.encoder)
        for u, row, act in zip(users, rows, acts, strict=True):
            self.rows[u] = row
            self.learnt[u] += len(act)


def _acts(log: Interactions, start: int, users: Rows) -> list[list[Rows]]:
    """The rows of each user's events from `start` on, those of one second together."""
    user, time_s = log.user[start:], log.time_s[start:]
    order = np.argsort(user, kind="stable")
    apart = np.flatnonzero((np.diff(user[order]) != 0) | (np.diff(time_s[order]) != 0)) + 1
    acts = np.split(order + start, apart)
    whose = user[order][np.r_[0, apart]]
    bounds = np.searchsorted(whose, np.stack([users, users + 1], 1))
    return [acts[a:b] for a, b in bounds]


def _ranked(kind: NDArray[np.int8]) -> NDArray[np.bool_]:
    """What a list should have had in it: anything but what was shown, and what was pushed away."""
    wanted: NDArray[np.bool_] = ~np.isin(kind, [IMPRESSION, DISMISS])
    return wanted


class Ranking:
    """The whole catalogue in the order that a row of a user gives it; table [N, d], popularity [N]."""

    def __init__(
        self,
        item_ids: Sequence[str],
        table: Float16,
        repeats: Repeats,
        popular: NDArray[np.float32],
        alike: Alike = NOBODY,
        companions: Alike = NOBODY,
        context: ContextTable | None = None,
    ) -> None:
        self.items = TowerItems(list(item_ids), table)
        self.repeats, self.alike, self.companions = repeats, alike, companions
        self.popular, self.context = torch.from_numpy(popular), context

    def scores(self, rows: Sequence[UserRow], asked: Requests) -> Tensor:
        """What would be served from each row, as its user asks: [R, N] float32."""
        visitors = Visitors.of(rows, self.items, self.repeats.kinds)
        scores = torch.from_numpy(visitors.queries(self.context, asked)) @ self.items.transposed
        for at, row in enumerate(rows):
            if not row.vector.any():
                scores[at] = self.popular
            else:
                self._add(scores[at], visitors.own[at])
        return scores

    def _add(self, scores: Tensor, own: Own) -> None:
        for item, bonus in self.repeats.added(own, self.alike, self.companions).items():
            scores[item] += bonus
        if self.repeats.newcomer:
            new = self.repeats.newcomers(np.arange(len(scores)), own, self.alike)
            scores[torch.from_numpy(new)] += self.repeats.newcomer

    def places(
        self, rows: Sequence[UserRow], asked: Requests, whose: Rows, item: Rows
    ) -> tuple[Rows, Floats, Rows]:
        """Where row whose[p], ascending, puts item[p]: 0 the first, ties to the lower row, [P].

        And for each row the item it puts first, [R], with its probability under a softmax of the scores, nan
        for a row without a vector.
        """
        place = np.empty(len(item), np.int64)
        sure, first = np.empty(len(rows)), np.empty(len(rows), np.int64)
        at_once = max(1, SCORES_AT_ONCE // len(self.popular))
        for a in range(0, len(rows), at_once):
            part = rows[a : a + at_once]
            scores = self.scores(part, asked[a : a + at_once])
            best, firsts = scores.max(1)
            some = slice(a, a + len(part))
            first[some] = firsts.numpy()
            sure[some] = (best - scores.logsumexp(1)).exp().double().clamp(0, 1).numpy()
            sure[some][[not row.vector.any() for row in part]] = np.nan
            pairs = slice(*np.searchsorted(whose, [a, a + len(part)]).tolist())
            place[pairs] = _places(scores, whose[pairs] - a, item[pairs], at_once)
        return place, sure, first


def _places(scores: Tensor, whose: Rows, item: Rows, at_once: int) -> Rows:
    rows = torch.arange(scores.shape[1])
    found = []
    for w, i in zip(*(torch.split(torch.from_numpy(x), at_once) for x in (whose, item)), strict=True):
        mine, wanted = scores[w], scores[w, i][:, None]
        before = (mine > wanted) | ((mine == wanted) & (rows < i[:, None]))
        found.append(before.sum(1))
    return torch.cat(found).numpy()


@dataclass(frozen=True)
class Walked:
    """Every ranked event, [E]; columns [E, 4] are by STATES."""

    event: Rows  # row of the log without impressions
    user: Rows
    place: Rows  # [E, 4] of the event's item, 0 the first; N: not in the catalogue
    since: Rows  # [E, 4] the user's events that the state has missed
    seen: Rows  # the user's events before
    sure: Floats  # probability that the fresh state gives to the item it puts first; nan: not personal
    right: NDArray[np.bool_]  # whether that was it


def prequential(
    log: Interactions,
    start_s: int,
    encoder: Encoder,
    table: Float16,
    repeats: Repeats | None = None,
    most_events: int = MOST_EVENTS,
    seed: int = 0,
    alike: Alike = NOBODY,
    companions: Alike = NOBODY,
    context: ContextTable | None = None,
) -> Walked:
    """Walk the events from `start_s` on; those before are every user's history.

    table [N, d]: embeddings of the first N of `log.item_ids`; an item beyond is never found. encoder: over
    the same table. context: what a request's place and time make of a vector, if anything. If there are more
    than `most_events` to rank, whole users are drawn by `seed`, as many as stay below it, but one at least.
    Raises ValueError for a log that is not oldest first, or has nothing before or after the start.
    """
    log = take(log, log.kind != IMPRESSION)
    if (np.diff(log.time_s) < 0).any():
        raise ValueError("the log's times go backwards; expected the oldest event first")
    start = int(np.searchsorted(log.time_s, start_s))
    if not 0 < start < len(log.user) or not _ranked(log.kind[start:]).any():
        raise ValueError(
            f"{start} events before {_when(start_s)}, {len(log.user) - start} after; expected both"
        )
    popular = popularity(take(log, np.arange(len(log.user)) < start))[: len(table)]
    known = log.item_ids[: len(table)]
    ranking = Ranking(known, table, repeats or Repeats(), popular, alike, companions, context)
    requests = Requests.at_events(log, np.arange(len(log.user)))
    users = _drawn(log, start, most_events, seed)
    parts = [users[a : a + USERS_AT_ONCE] for a in range(0, len(users), USERS_AT_ONCE)]
    with tqdm(total=len(users), desc="prequential", unit="user", disable=None) as bar:
        walked = []
        for part in parts:
            walked.append(_rank(log, requests, Walk(log, start, part, encoder).moments(), ranking))
            bar.update(len(part))
    return Walked(
        *(np.concatenate(columns) for columns in zip(*(vars(w).values() for w in walked), strict=True))
    )


def _drawn(log: Interactions, start: int, most_events: int, seed: int) -> Rows:
    """Users with events to rank, at least one, by their number of events, so that rounds are full."""
    events = np.bincount(log.user[start:][_ranked(log.kind[start:])], minlength=len(log.user_ids))
    users = np.random.default_rng(seed).permutation(np.flatnonzero(events))
    taken = users[: max(1, int(np.searchsorted(np.cumsum(events[users]), most_events, side="right")))]
    return taken[np.argsort(events[taken], kind="stable")]


def _rank(log: Interactions, requests: Requests, moments: Iterator[Moment], ranking: Ranking) -> Walked:
    """Rank the moments' events; a row that several of a moment's states share is scored once."""
    some = [moment for moment in moments if len(moment.events)]
    rows: list[UserRow] = []
    asks: list[int] = []  # the event before which each row is asked
    numbers: list[list[int]] = []
    for moment in some:
        number: dict[int, int] = {}  # by identity: rows are never changed, and all are alive in `some`
        for row in moment.states:
            if number.setdefault(id(row), len(rows)) == len(rows):
                rows.append(row)
                asks.append(int(moment.events[0]))
        numbers.append([number[id(row)] for row in moment.states])
    sizes = [len(moment.events) for moment in some]
    event = np.concatenate([moment.events for moment in some])
    whose = np.repeat(numbers, sizes, 0)  # [E, 4]
    asked = requests[np.array(asks)]
    place, sure, first = _found(ranking, rows, asked, whose, log.item[event].astype(np.int64))
    return Walked(
        event,
        log.user[event].astype(np.int64),
        place,
        np.repeat([moment.since for moment in some], sizes, 0),
        np.repeat([moment.seen for moment in some], sizes),
        sure[whose[:, 0]],
        first[whose[:, 0]] == log.item[event],
    )


def _found(
    ranking: Ranking, rows: list[UserRow], asked: Requests, whose: Rows, item: Rows
) -> tuple[Rows, Floats, Rows]:
    """`Ranking.places` of item [E] under each of whose [E, 4]; equal pairs are looked for once."""
    items = len(ranking.popular)
    known = np.broadcast_to(item[:, None] < items, whose.shape)
    pair, where = np.unique((whose * items + item[:, None])[known], return_inverse=True)
    place = np.full(whose.shape, items, np.int64)
    found, sure, first = ranking.places(rows, asked, pair // items, pair % items)
    place[known] = found[where]
    return place, sure, first


def summary(walked: Walked, seed: int = 0) -> dict[str, object]:
    """Means over events, 95 % intervals over users: each state, what fresh gains on it, by staleness.

    missed: each state beside fresh where the user had done something since it was written.
    """
    _, user = np.unique(walked.user, return_inverse=True)
    hit = walked.place < CUT
    values = {f"hr@{CUT}": hit.astype(np.float64)}
    values[f"ndcg@{CUT}"] = np.where(hit, 1 / np.log2(walked.place + 2.0), 0.0)  # one item is the ideal

    def of(columns: dict[str, Floats], among: NDArray[np.bool_] | slice = slice(None)) -> dict[str, object]:
        return {name: _mean(user[among], column[among], seed) for name, column in columns.items()}

    def state(name: str, minus: str = "") -> dict[str, Floats]:
        at = STATES.index(name)
        return {k: v[:, at] - (v[:, STATES.index(minus)] if minus else 0.0) for k, v in values.items()}

    def part(among: NDArray[np.bool_]) -> dict[str, object]:
        return {"events": int(among.sum()), "users": len(np.unique(user[among]))}

    def compared(name: str, among: NDArray[np.bool_]) -> dict[str, object]:
        both = {"frozen": state(name), "fresh": state("fresh"), "gain": state("fresh", minus=name)}
        return part(among) | {key: of(columns, among) for key, columns in both.items()}

    def stale(name: str) -> dict[str, object]:
        label, names = power_of_two_bucket(walked.since[:, STATES.index(name)])
        masks = {bucket: label == code for code, bucket in enumerate(names) if (label == code).any()}
        return {bucket: compared(name, mask) for bucket, mask in masks.items()}

    label, names = power_of_two_bucket(walked.seen)
    seen = {bucket: label == code for code, bucket in enumerate(names) if (label == code).any()}
    missed = {name: walked.since[:, STATES.index(name)] > 0 for name in FROZEN_S}
    personal = ~np.isnan(walked.sure)
    return {
        "events": len(user),
        "users": int(user.max()) + 1,
        "states": {name: of(state(name)) for name in STATES},
        "gain": {name: of(state("fresh", minus=name)) for name in FROZEN_S},
        "missed": {name: compared(name, among) for name, among in missed.items() if among.any()},
        "staleness": {name: stale(name) for name in FROZEN_S},
        "events_seen": {bucket: part(mask) | of(state("fresh"), mask) for bucket, mask in seen.items()},
        **(
            {"reliability": reliability(walked.sure[personal], walked.right[personal])}
            if personal.any()
            else {}
        ),
    }


def _mean(user: Rows, values: Floats, seed: int) -> dict[str, float | None]:
    sums, counts = (np.asarray(np.bincount(user, each), np.float64) for each in (values, None))
    return asdict(estimate(sums, counts, seed))


def _when(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat()


def evaluate_checkpoint(
    folder: Path, log: Interactions, most_events: int = MOST_EVENTS, seed: int = 0
) -> dict[str, object]:
    """`summary` of a checkpoint on the latest part of the log, as `--split time` left it out of training."""
    towers, meta = load(folder)
    lines = (folder / CATALOGUE).read_text(encoding="utf-8").rstrip("\n").split("\n")
    products = [json.loads(line) for line in lines]
    names = Vocabulary.read(meta.vocabulary)
    features = read_features(folder, products, names)
    expected = read_demand(folder, len(meta.item_ids))
    table, alike = embed_items(towers, features), who_inherits(towers, features, meta.repeats, expected)
    log = onto(log, meta.item_ids, names.devices, names.slots)
    start_s = start_of_test(split(log, "time").train)
    encoder = torch_encoder(towers, TowerItems(list(meta.item_ids), table))
    companions = read_companions(folder, meta)
    options = meta.repeats, most_events, seed, alike, companions, towers.context
    walked = prequential(log, start_s, encoder, table, *options)
    return {"start": _when(start_s), "seed": seed, "most_events": most_events, **summary(walked, seed)}


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, write REPORT and PICTURE; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.prequential", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--events", required=True, help="file, folder or s3:// address of the log")
    parser.add_argument("--items", help="file of the catalogue")
    parser.add_argument("--map", help="TOML file that maps the columns")
    parser.add_argument("--engine", choices=ENGINES, default="duckdb", help="what cleans the log")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report and its picture")
    parser.add_argument("--most-events", type=int, default=MOST_EVENTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        mapping = load_mapping(options.map) if options.map else None
        log = read_log(options.events, options.items, mapping, engine=options.engine)
        report = evaluate_checkpoint(options.checkpoint, log.to_arrays(), options.most_events, options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        freshness(report, options.out / PICTURE)
    except (VitrineError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"states": report["states"], "gain": report["gain"]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
