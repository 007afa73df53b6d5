"""What the validation decides after training, through the serving path: which parts of a context are heard,
the repeat term, what new products inherit, and whether companions are served.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from functions.core.features import ItemFeatures
from functions.core.repeats import NOBODY, Repeats
from functions.core.user_row import Float16
from train.alike import who_inherits
from train.checkpoint import load, write_meta
from train.companions import choose_companions, find_companions
from train.context import PARTS, ContextTable, Requests, next_event
from train.demand import demand
from train.evaluate import (
    Candidates,
    TowerItems,
    Visitors,
    embed_items,
    evaluate,
    lists,
    merit,
    torch_encoder,
    user_rows,
)
from train.inheritance import choose_inheritance, hold_out
from train.log import Interactions
from train.repeats import choose_repeats
from train.report import Report
from train.served import Exam, Served
from train.split import Split
from train.towers import Towers

USERS = 1_000  # of the validation, at most


@dataclass(frozen=True)
class Validation:
    """Some users of the validation as they stand, and what they went on to."""

    exam: Exam
    visitors: Visitors
    kinds: tuple[int, ...]  # event types that the log has

    @classmethod
    def of(cls, towers: Towers, table: Float16, inner: Split, seed: int) -> Validation:
        """Users of the split `inner`, drawn by `seed`; each folded once, for a context changes no row."""
        exam = Exam.of(inner, USERS, seed)
        items = TowerItems(inner.train.item_ids, table)
        rows = user_rows(exam.train, exam.users, torch_encoder(towers, items))
        kinds = tuple(np.unique(inner.train.kind).tolist())
        return cls(exam, Visitors.of(rows, items, kinds), kinds)

    def proposed(self, context: ContextTable, asked: Requests | None) -> list[Candidates]:
        """What is proposed to each user, by where and when they ask."""
        return self.visitors.proposed(context, asked)

    def repeats(self, proposed: list[Candidates], table: Float16) -> Repeats:
        """The repeat term that ranks best."""
        return replace(choose_repeats(proposed, self.exam.targets, table), kinds=self.kinds)


def choose(
    out: Path, features: ItemFeatures, inner: Split, log: Interactions, watermark_s: int, seed: int
) -> tuple[Report, Served]:
    """Choose all of it on the split `inner` of `log`, and keep it in the checkpoint `out`.

    Returns what metrics.json says of it, and the checkpoint as it answers from now on. Its weights are not
    written: a run that goes on here has to choose among the same once more. watermark_s: the time of the
    newest event of the whole log.
    """
    towers, meta = load(out)
    table = embed_items(towers, features)
    held = Validation.of(towers, table, inner, seed)
    exam = held.exam
    proposed = held.proposed(towers.context, exam.asked)
    repeats = held.repeats(proposed, table)
    if towers.context.heard:
        towers.context.silence(_silent(held, towers.context, repeats, table, log))
        proposed = held.proposed(towers.context, exam.asked)
        repeats = held.repeats(proposed, table)
    known = repeats, table
    trial = hold_out(towers, exam.train, features, exam.users, exam.targets, proposed, known, seed)
    repeats = choose_inheritance(repeats, trial)
    expected = demand(exam.train, features)
    alike = who_inherits(towers, features, repeats, expected)
    proposed = [replace(each, alike=alike) for each in proposed]
    companions = find_companions(exam.train)
    repeats = choose_companions(repeats, proposed, exam.targets, table, companions)
    companions = companions if repeats.companions else NOBODY
    proposed = [replace(each, companions=companions) for each in proposed]
    validated = evaluate(proposed, repeats, exam.targets, table)
    write_meta(out, replace(meta, repeats=repeats, watermark_s=watermark_s, metrics=validated))
    heard = {part: part in towers.context.heard for part in PARTS}
    served = Served(towers, table, repeats, alike, companions, expected)
    return {"validation": validated, "repeats": asdict(repeats), "context": heard}, served


def _silent(
    held: Validation, context: ContextTable, repeats: Repeats, table: Float16, log: Interactions
) -> tuple[str, ...]:
    """The parts of the context without which the validation's lists are as good, asked for where and when
    the next events came.

    Hours and weekdays of a log of a few weeks are mostly chance; and what is heard is in every answer.
    """
    asked = Requests.at_events(log, next_event(log, held.exam.train, held.exam.users))

    def without(silent: tuple[str, ...]) -> float:
        quiet = copy.deepcopy(context)
        quiet.silence(silent)
        return merit(lists(held.proposed(quiet, asked), repeats, table), held.exam.targets)

    silent = context.silent
    best = without(silent)
    for part in context.heard:
        found = without((*silent, part))
        if found >= best:
            silent, best = (*silent, part), found
    return silent
