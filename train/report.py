"""What is measured after training: the test through the serving path, its slices, few events, freshness.

Everything ranks the whole catalogue. `test` is what would be served, the user's own items and the repeat term
included. `test_masked` is the protocol of the papers on sequential recommendation: the dot product alone, and
nothing of the user's history in the list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from functions.core.events import IMPRESSION
from functions.core.features import ItemFeatures
from functions.core.repeats import Repeats
from train.context import Requests, next_event
from train.evaluate import (
    CUTS,
    USERS_AT_ONCE,
    Candidates,
    TowerItems,
    evaluate,
    evaluate_baselines,
    metrics,
    torch_encoder,
)
from train.log import Interactions
from train.prequential import prequential, summary
from train.served import Exam, Served
from train.slices import Hits, beyond_accuracy, estimate, event_counts, slices, target_kinds
from train.split import Split, start_of_test, take

FEW = (1, 3, 5, 10)  # events that are left of a history
FEW_USERS = 500, 2_000  # at least and at most
FEW_SCORES = 5 * 10**7  # users times items, between these bounds

Rows = NDArray[np.int64]
Report = dict[str, object]


def measure(
    served: Served,
    features: ItemFeatures,
    log: Interactions,
    parts: Split,
    how: str,
    freshness_events: int,
    seed: int,
) -> Report:
    """All that metrics.json says of the test.

    how: the split. freshness_events: how many events of the test part the prequential walk ranks at most, 0
    for none; it needs a split by time.
    """
    test = Exam.of(parts)
    print(f"ranking {len(test.users):,} test users through the serving fold", flush=True)
    proposed = served.proposed(test.train, test.users, test.asked)
    top = served.lists(proposed)
    masked = how == "leave-one-out"
    return {
        "test": metrics(top, test.targets, len(served.table)),
        "test_without_repeats": evaluate(proposed, Repeats(), test.targets, served.table),
        **(_masked(served, test, proposed) if masked else {}),
        **(_in_context(served, test, log) if served.towers.context.heard else {}),
        "baselines": evaluate_baselines(parts),
        "slices": _slices(test, top, log, seed),
        "beyond_accuracy": beyond_accuracy(
            top, test.users, test.train, served.table, features.category.astype(np.int64), seed
        ),
        "few_events": few_events(served, Exam.of(parts, _few_users(served), seed), masked, seed),
        **({} if masked or not freshness_events else _freshness(served, log, parts, freshness_events, seed)),
    }


def _in_context(served: Served, test: Exam, log: Interactions) -> Report:
    """The test as it is when every user asks where and when the next event then came."""
    asked = Requests.at_events(log, next_event(log, test.train, test.users))
    there = served.proposed(test.train, test.users, asked)
    return {"test_in_context": evaluate(there, served.repeats, test.targets, served.table)}


def _masked(served: Served, test: Exam, proposed: list[Candidates]) -> Report:
    items = len(served.table)
    own = test.masked(_scores(served, proposed))
    popular = test.masked(_popular(test))
    return {
        "test_masked": metrics(own, test.targets, items),
        "test_masked_intervals": _estimates(own, test, 0),
        "baselines_masked": {"popularity": metrics(popular, test.targets, items)},
    }


def _scores(served: Served, proposed: list[Candidates]) -> Iterator[Tensor]:
    """Dot products with the whole catalogue, [USERS_AT_ONCE, N] at a time."""
    wide = torch.from_numpy(served.table.astype(np.float32)).T
    vectors = torch.from_numpy(np.stack([each.vector for each in proposed]))
    return (part @ wide for part in torch.split(vectors, USERS_AT_ONCE))


def _popular(test: Exam) -> Iterator[Tensor]:
    counts = torch.from_numpy(event_counts(test.train).astype(np.float32))
    starts = range(0, len(test.users), USERS_AT_ONCE)
    return (counts.repeat(min(USERS_AT_ONCE, len(test.users) - at), 1) for at in starts)


def _slices(test: Exam, top: Rows, log: Interactions, seed: int) -> Report:
    kinds = target_kinds(log, test.users, test.targets)
    devices = _devices(test)
    return dict(slices(top, test.targets, test.users, test.train, kinds=kinds, devices=devices, seed=seed))


def _devices(test: Exam) -> list[str | None] | None:
    """The device of each user's newest event that names one; None where the log has no such column."""
    log = test.train
    if log.device is None:
        return None
    coded = zip(log.user.tolist(), log.device.tolist(), strict=True)
    newest = {user: log.devices[code - 1] for user, code in coded if code}
    return [newest.get(user) for user in test.users]


def few_events(served: Served, test: Exam, masked: bool, seed: int) -> Report:
    """Metrics where only the last 1, 3, 5, 10 events of each history are known, and popularity's beside.

    `over_popularity`: what the lists are better by, paired by user. masked: nothing of the whole history is
    in a list, as in `test_masked`; else what would be served.
    """
    if masked:
        popular = test.masked(_popular(test))
    else:
        best = np.argsort(-event_counts(test.train), kind="stable")[: CUTS[-1]]
        popular = np.tile(best, (len(test.users), 1))
    found: Report = {
        "users": len(test.users),
        "masked": masked,
        "popularity": _estimates(popular, test, seed),
    }
    for k in FEW:
        proposed = served.proposed(newest(test.train, k), test.users, test.asked)
        top = test.masked(_scores(served, proposed)) if masked else served.lists(proposed)
        found[str(k)] = {
            **_estimates(top, test, seed),
            "over_popularity": _estimates(top, test, seed, minus=popular),
        }
    return found


def _few_users(served: Served) -> int:
    """As many as keep the ranking of a large catalogue short."""
    least, most = FEW_USERS
    return min(max(FEW_SCORES // len(served.table), least), most)


def newest(log: Interactions, k: int) -> Interactions:
    """The last k events of each user, impressions left out."""
    counted = np.flatnonzero(log.kind != IMPRESSION)
    order = counted[np.argsort(log.user[counted], kind="stable")]
    stops = np.cumsum(np.bincount(log.user[counted], minlength=len(log.user_ids)))
    kept = np.sort(order[np.arange(len(order)) >= stops[log.user[order]] - k])
    return take(log, kept)


def _estimates(top: Rows, test: Exam, seed: int, minus: Rows | None = None) -> Report:
    """hr@10, ndcg@10 and recall@20 with intervals; less those of the lists `minus`, user by user."""
    items = len(test.train.item_ids)
    _, values = Hits.find(top, test.targets, items).scores()
    if minus is not None:
        _, others = Hits.find(minus, test.targets, items).scores()
        values = {name: each - others[name] for name, each in values.items()}
    return {name: asdict(estimate(each, seed=seed)) for name, each in values.items()}


def _freshness(served: Served, log: Interactions, parts: Split, most_events: int, seed: int) -> Report:
    encoder = torch_encoder(served.towers, TowerItems(log.item_ids, served.table))
    start_s = start_of_test(parts.train)
    follow = served.alike, served.companions, served.towers.context
    walked = prequential(log, start_s, encoder, served.table, served.repeats, most_events, seed, *follow)
    return {"freshness": {"most_events": most_events, **summary(walked, seed)}}
