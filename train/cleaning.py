"""Which rows of a staged log are kept, and why the others are not: expressions that any engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from functions.core.events import EVENT_TYPES, MAX_ID
from train import vectors as vector_columns
from train.engines import Engine
from train.files import shown
from train.mapping import CONTEXT_COLUMNS, EVENT_COLUMNS, ITEM_COLUMNS, Mapping, UnusableLog
from train.staging import EXAMPLES, Staging

BOT_EVENTS_PER_HOUR = 1_000
HOURS_OF_A_DATE = 24  # where all of an hour's times are midnight they are dates, and stand for a day
DAY_S = 86_400
HOUR_US = 3.6e9
DAY_US = 86_400_000_000
NO_NUMBER = ("nan", "null", "none", "na", "n/a", "-")  # what files write for a number that is not there
# Which staged column shows why a row was dropped.
SHOWN = {
    "missing_user": "user_id",
    "missing_item": "item_id",
    "item_id_too_long": "item_id",
    "unknown_type": "type_text",
    "impossible_time": "time_text",
    "negative_value": "value_text",
    "value_not_a_number": "value_text",
    "duplicate": "item_id",
    "bot": "user_id",
    "negative_price": "price_text",
    "price_not_a_number": "price_text",
    "duplicate_item": "item_id",
}
# What would have been right, where the name of the reason does not say it.
EXPECTED = {
    "malformed": "as many values as the header has names, or a JSON object with a value",
    "item_id_too_long": f"at most {MAX_ID} characters",
    "unknown_type": f"one of {', '.join(EVENT_TYPES)}, or a name that [types] of a mapping file has",
    "impossible_time": "ISO 8601 or seconds since 1970, from 1990 to tomorrow",
    "negative_value": "a number >= 0",
    "value_not_a_number": "a number or nothing; kept without it",
    "bot": f"at most {BOT_EVENTS_PER_HOUR:,} events of a user in an hour; "
    f"{HOURS_OF_A_DATE * BOT_EVENTS_PER_HOUR:,} on a date without hours",
    "negative_price": "a number >= 0; kept without it",
    "price_not_a_number": "a number or nothing; kept without it",
}


class Cleaning:
    """One reading of one log on an engine, and what was dropped so far."""

    def __init__(self, engine: Engine, mapping: Mapping, now_s: float) -> None:
        self.engine = engine
        self.mapping = mapping
        self.latest_s = now_s + DAY_S
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def events(self, files: Sequence[str]) -> Any:
        """The clean events of the files."""
        staged = self._stage("events", files)
        staged = staged.mutate(reason=_event_reason(staged))
        good = staged.reason.isnull()
        apart = good.ifelse(0, staged.seq)  # bad rows are many and alike: not for one machine to sort
        again = ibis.row_number().over(group_by=[apart, *EVENT_COLUMNS], order_by=staged.seq) > 0
        reason = ibis.cases((~good, staged.reason), (again, "duplicate"), else_=ibis.null(str))
        judged = self.engine.keep("judged_events", staged.mutate(reason=reason))
        once = judged.filter(judged.reason.isnull())
        hour = (once.time / HOUR_US).floor().name("hour")
        latest_us = (once.time % DAY_US).max()
        hours = once.group_by(["user_id", hour]).aggregate(n=once.count(), latest_us=latest_us)
        most = (hours.latest_us > 0).ifelse(1, HOURS_OF_A_DATE) * BOT_EVENTS_PER_HOUR
        bots = hours.filter(hours.n > most).select("user_id").distinct()
        bots = self.engine.keep("bots", bots)
        self._count(judged)
        self._count(once.semi_join(bots, "user_id").mutate(reason=ibis.literal("bot")))
        kept = once.anti_join(bots, "user_id")
        self._count_not_numbers(kept, "value")
        return kept

    def items(self, files: Sequence[str]) -> Any:
        """The clean catalogue of the files, in their order."""
        staged = self._stage("items", files)
        again = ibis.row_number().over(group_by=staged.item_id, order_by=staged.seq) > 0
        reason = ibis.cases(
            (staged.item_id.isnull(), "missing_item"),
            (staged.item_id.length() > MAX_ID, "item_id_too_long"),
            (again, "duplicate_item"),
            else_=ibis.null(str),
        )
        judged = self.engine.keep("judged_items", staged.mutate(reason=reason))
        self._count(judged)
        kept = judged.filter(judged.reason.isnull())
        self._count(kept.filter(kept.price < 0).mutate(reason=ibis.literal("negative_price")))
        self._count_not_numbers(kept, "price")
        kept = kept.mutate(price=(kept.price >= 0).ifelse(kept.price, ibis.null(float)))
        names = vector_columns.names(self.mapping.vectors)
        vectors = [column for name in names for column in (name, f"{name}_text")]
        return kept.order_by("seq").select(*ITEM_COLUMNS, *vectors, "row", "file")

    def vectors(self, items: pa.Table) -> dict[str, npt.NDArray[np.float32]]:
        """The precomputed vectors of the rows of `items`; a product with a bad one is kept without it."""
        told = "file" in items.column_names  # else the events alone describe the items
        names = vector_columns.names(self.mapping.vectors) if told else ()
        read = {name: vector_columns.read(items, name) for name in names}
        for column in read.values():
            if column.bad:
                self._add(column.reason, len(column.bad), column.bad[:EXAMPLES])
        return {name: column.values for name, column in read.items() if column.values.size}

    def derived(self, kept: Any) -> Any:
        """The catalogue that the events themselves describe: the first that is not null, item by item."""
        if self.mapping.vectors:
            raise UnusableLog(f"vectors = {list(self.mapping.vectors)}; expected a catalogue that has them")
        if not self.mapping.items:
            return kept.select(**{name: _item_null(name) for name in ITEM_COLUMNS}).limit(0)
        columns = {name: kept[f"item_{name}"] for name in ITEM_COLUMNS[1:]}
        firsts = {name: column.argmin(kept.seq, where=column.notnull()) for name, column in columns.items()}
        found = kept.group_by("item_id").aggregate(**firsts, seq=kept.seq.min())
        return found.order_by("seq").select(*ITEM_COLUMNS)

    def in_order(self, kept: Any) -> Any:
        """The events sorted by time, then by the ties rule."""
        order = [kept.time, kept.seq]
        if self.mapping.ties == "shuffle":
            order.insert(1, (kept.user_id + "\t" + kept.item_id).hexdigest("md5"))
        return kept.order_by(order).select(*EVENT_COLUMNS, *CONTEXT_COLUMNS)

    def _stage(self, section: str, files: Sequence[str]) -> Any:
        """The files' rows, numbered one file after the other; a line that is no row is malformed."""
        target = self.engine.folder / f"staged_{section}"
        target.mkdir()
        work = Staging(section, self.mapping, self.latest_s, target)
        for staged in self.engine.each(work, list(enumerate(files))):
            if staged.error:
                raise staged.error
            if staged.malformed:
                self._add("malformed", staged.malformed, list(staged.examples))
        read = self.engine.read(target)
        return read.filter(~read.broken)

    def _count(self, judged: Any) -> None:
        """Adds the rows that have a reason to the counts, and the first three of each to the examples."""
        texts = sorted({*SHOWN.values(), "rule_text"} & set(judged.columns))
        bad = judged.filter(judged.reason.notnull()).select("reason", "seq", "row", "file", *texts)
        counts = self.engine.rows(
            bad.group_by("reason").aggregate(n=bad.count()).order_by("reason")
        ).to_pylist()
        for count in counts:
            self._add(count["reason"], count["n"], [])
        # not a window: it would bring all rows of a reason to one machine
        firsts = [bad.filter(bad.reason == c["reason"]).order_by("seq").limit(EXAMPLES) for c in counts]
        for row in self.engine.rows(ibis.union(*firsts).order_by("seq")).to_pylist() if firsts else []:
            value = row[SHOWN.get(row["reason"], "rule_text")]
            self._add(row["reason"], 0, [f"row {row['row']}: {shown(value)} ({row['file']})"])

    def _count_not_numbers(self, kept: Any, name: str) -> None:
        """Rows that are kept without a number that they have and that is none."""
        text = kept[f"{name}_text"]
        wrong = kept.filter(kept[name].isnull() & text.notnull() & text.lower().notin(NO_NUMBER))
        self._count(wrong.mutate(reason=ibis.literal(f"{name}_not_a_number")))

    def _add(self, reason: str, count: int, examples: list[str]) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.examples[reason] = (self.examples.get(reason, []) + examples)[:EXAMPLES]


def _event_reason(staged: Any) -> Any:
    return ibis.cases(
        (staged.rule.notnull(), staged.rule),
        (staged.user_id.isnull(), "missing_user"),
        (staged.item_id.isnull(), "missing_item"),
        (staged.item_id.length() > MAX_ID, "item_id_too_long"),
        (staged.type.isnull() | staged.type.notin(EVENT_TYPES), "unknown_type"),
        (staged.time.isnull(), "impossible_time"),
        (staged.value < 0, "negative_value"),
        else_=ibis.null(str),
    )


def _item_null(name: str) -> Any:
    return ibis.null(float if name == "price" else str)
