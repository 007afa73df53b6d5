"""Any sequence of deliveries, redeliveries, rollouts and refusals: what a row is at every moment."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from local.event_source import Record
from simulate.encoder import CATALOGUE, SPACES
from simulate.reference import marks_of
from simulate.shoppers import key_of
from simulate.table import MAX_BYTES, RING_BYTES, refused
from tests.simulate.calm import CalmStream, record

NOON = "2026-11-24T12:00:00Z"
KINDS = ("view", "click", "purchase", "dismiss", "impression")
EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), st.sampled_from(CATALOGUE), st.sampled_from(KINDS)),
    min_size=1,
    max_size=30,
)


class Rows(RuleBasedStateMachine):
    """The log, and the rows that the function makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = CalmStream()
        self.log: list[Record] = []
        self.versions: dict[str, int] = {}
        self.marks: dict[str, dict[bytes, int]] = {}
        self.refusing = False
        real = self.stream.table.put_item

        def put_item(**arguments: Any) -> dict[str, Any]:
            if self.refusing:
                raise refused("ProvisionedThroughputExceededException", "PutItem")
            return real(**arguments)

        self.stream.table.put_item = put_item  # type: ignore[method-assign]

    @rule(events=EVENTS)
    def deliver(self, events: list[tuple[int, int, str, str]]) -> None:
        first = len(self.log)
        for user, number, item, kind in events:
            event = {"event_id": f"e{number}", "type": kind, "item_id": item, "time": NOON}
            self.log.append(record(len(self.log) + 95, key_of(user), event))
        assert self.stream.deliver(self.log[first:]) == []

    @rule(back=st.integers(1, 60), count=st.integers(1, 60))
    def deliver_again(self, back: int, count: int) -> None:
        before = dict(self.stream.table.items)
        again = self.log[-back:][:count]
        if again:
            assert self.stream.deliver(again) == []
        assert self.stream.table.items == before

    @rule(events=EVENTS)
    def deliver_while_the_table_refuses(self, events: list[tuple[int, int, str, str]]) -> None:
        first, before = len(self.log), dict(self.stream.table.items)
        for user, number, item, _ in events:
            event = {
                "event_id": f"r{number}",
                "type": "view",
                "item_id": item,
                "time": "2026-11-24T12:00:00Z",
            }
            self.log.append(record(len(self.log) + 95, key_of(user), event))
        self.refusing = True
        assert self.stream.deliver(self.log[first:]) == [self.log[first].sequence]
        assert self.stream.table.items == before
        self.refusing = False
        assert self.stream.deliver(self.log[first:]) == []

    @rule()
    def roll_out(self) -> None:
        self.stream.champion = SPACES[1 - SPACES.index(self.stream.champion)]

    @invariant()
    def a_row_is_what_it_may_be(self) -> None:
        assert self.stream.world.violations == []
        for key, item in self.stream.table.items.items():
            moves = [int(move["v"]["N"]) for move in self.stream.table.moves[key]]
            assert moves == list(range(1, len(moves) + 1))
            marks = marks_of(item["marks"]["B"])
            assert all(marks[shard] >= number for shard, number in self.marks.get(key, {}).items())
            self.marks[key] = marks
            assert len(item["ring"]["B"]) <= RING_BYTES
            assert sum(len(name) + _size(value) for name, value in item.items()) <= MAX_BYTES


def _size(value: dict[str, Any]) -> int:
    ((kind, content),) = value.items()
    return 21 if kind == "N" else len(content)


TestRows = Rows.TestCase
TestRows.settings = settings(
    max_examples=500,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
