"""All rows rebuilt from the archive, and compared with the live table bit for bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from functions.aws.rows import from_item
from functions.core.archived import Archived
from functions.core.erasure import is_tombstone
from functions.core.events import parse_event
from functions.core.fold import Encoder, fold
from functions.core.user_row import UserRow, encode

OF_A_SPACE = ("state", "vector")
COMPARED = (*OF_A_SPACE, "ring", "last", "fav", "seen")


@dataclass(frozen=True)
class Verdict:
    """What the comparison came to; the lists name the shard and sequence that a user's records begin at."""

    records: int
    rebuilt: int
    live: int
    equal: int = 0
    moved: int = 0  # of those equal: whose state was made anew of the ring, for the space was another before
    differing: list[str] = field(default_factory=list)
    only_archived: list[str] = field(default_factory=list)
    only_live: list[str] = field(default_factory=list)
    other_space: int = 0  # live rows of no bundle that is at hand: their states were not compared

    @property
    def good(self) -> bool:
        """Whether archive and table say the same."""
        return not (self.differing or self.only_archived or self.only_live)

    def summary(self) -> str:
        """One line to read."""
        return (
            f"records={self.records} rebuilt={self.rebuilt} live={self.live} equal={self.equal} "
            f"moved={self.moved} differing={len(self.differing)} only_archived={len(self.only_archived)} "
            f"only_live={len(self.only_live)} other_space={self.other_space}"
        )


def rebuild(records: Iterable[Archived], encoder: Encoder) -> dict[str, UserRow]:
    """Every user's row from nothing; the records of a user are in log order, each once."""
    users: dict[str, list[Archived]] = defaultdict(list)
    for record in records:
        users[record.user_key].append(record)
    events = [[parse_event(r.event, int(r.arrived_s)) for r in own] for own in users.values()]
    rows, _ = fold([encoder.empty()] * len(users), events, encoder)
    return {key: _marked(row, own) for (key, own), row in zip(users.items(), rows, strict=True)}


def live_rows(items: Iterable[Mapping[str, Any]]) -> dict[str, UserRow]:
    """The table's rows by user key, but for those of who was erased; raises CorruptRow."""
    rows = {str(item["pk"]["S"]): from_item(item) for item in items}
    return {key: row for key, row in rows.items() if not is_tombstone(row)}


def compare(records: list[Archived], live: Mapping[str, UserRow], encoders: Sequence[Encoder]) -> Verdict:
    """The archive against the table, each row under its own space, the champion's (first) or another's.

    A row that has no space of theirs, or is not in the table, is rebuilt under the champion's.
    """
    by_space = {encoder.space: encoder for encoder in encoders}
    arms: dict[str, list[Archived]] = defaultdict(list)
    for record in records:
        row = live.get(record.user_key)
        encoder = by_space.get(row.space, encoders[0]) if row else encoders[0]
        arms[encoder.space].append(record)
    rebuilt: dict[str, UserRow] = {}
    moved: set[str] = set()
    for space, own in arms.items():
        rows = rebuild(own, by_space[space])
        rebuilt |= rows
        moved |= {
            key
            for key, row in rows.items()
            if key in live and not same(row, live[key]) and has_moved(key, own, live[key], by_space[space])
        }
    first = {record.user_key: f"{record.shard}:{record.sequence}" for record in reversed(records)}
    both = rebuilt.keys() & live.keys()
    equal = moved | {key for key in both if same(rebuilt[key], live[key])}
    return Verdict(
        len(records),
        len(rebuilt),
        len(live),
        len(equal),
        len(moved),
        [first[key] for key in sorted(both - equal)],
        sorted(first[key] for key in rebuilt.keys() - live.keys()),
        ["no record in the archive"] * len(live.keys() - rebuilt.keys()),
        sum(row.space not in by_space for row in live.values()),
    )


def has_moved(key: str, records: Iterable[Archived], live: UserRow, encoder: Encoder) -> bool:
    """Whether a user's row is what the records make where the space was another until one of them.

    Nothing says until which: the state is made anew of the ring as it was before each event, and all that
    came of it until then is folded further side by side. One of these must be the live row, bit for bit.
    """
    own = [record for record in records if record.user_key == key]
    row, moved = encoder.empty(), dict[bytes, UserRow]()
    for record in own:
        event = parse_event(record.event, int(record.arrived_s))
        before = [row, row.but(space=""), *moved.values()]
        (row, *after), _ = fold(before, [[event]] * len(before), encoder)
        moved = {
            r.state.tobytes() + r.vector.tobytes(): r for r in after
        }  # few: a state forgets where it began
    return any(same(_marked(r, own), live) for r in moved.values())


def _marked(row: UserRow, records: Iterable[Archived]) -> UserRow:
    for record in records:
        row = row.with_mark(record.shard, record.sequence)
    return row


def same(rebuilt: UserRow, live: UserRow) -> bool:
    """Whether a live row is what its records make, and as far in the log as they are.

    A row of another state space has its own state; what belongs to no space must be the same there too.
    """
    one, other = encode(rebuilt), encode(live)
    names = COMPARED if rebuilt.space == live.space else COMPARED[len(OF_A_SPACE) :]
    marks = dict(live.marks)
    return all(one[n] == other[n] for n in names) and all(marks.get(s) == n for s, n in rebuilt.marks)
