"""One history's world: its chance, its clock, its faults, and who is at work in it right now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

START_S = 1_795_521_600.0  # 2026-11-24
DAY_S = 86_400
# Faults that come by chance whenever a service is called or a batch delivered, and how often, of 1,000.
CALL_FAULTS = {
    "throttle": 30,
    "lost request": 20,
    "lost answer": 30,
    "slow call": 20,
    "crash before call": 15,
}
WRITE_FAULTS = {
    "late write": 50,
    "sdk retry": 50,
    "crash before write": 40,
    "crash after write": 40,
}
READ_FAULTS = {"unprocessed keys": 60}
QUARANTINE_FAULTS = {"quarantine refuses": 200, "quarantine answer lost": 150}
LOG_FAULTS = {"log throttle": 10, "log lost request": 10, "log lost answer": 15, "log late record": 20}
DELIVERY_FAULTS = {"short of time": 30, "crash after answer": 30}
POINTER_FAULTS = {"pointer unread": 60}
CHALLENGER_FAULTS = {"challenger unread": 350}
# Of the archive: its table of keys, and Firehose.
KEY_FAULTS = {"key refused": 90}
KEY_WRITE_FAULTS = {"key answer lost": 90, "key write late": 90, "key sdk retry": 90}
ARCHIVE_FAULTS = {"archive lines lost": 260, "archive lines twice": 220}
# Faults that a history's plan brings.
PLANNED_FAULTS = (
    "checkpoint rewind",
    "poller takeover",
    "duplicate",
    "split",
    "merge",
    "update shard count",
    "empty shard",
    "deploy",
    "rollback",
    "challenger",
    "challenger withdrawn",
    "cold start",
    "table outage",
    "slow table",
    "stalled mapping",
    "record too old",
    "erasure",
    "erasure in between",
    "erasure interrupted",
    "erasure repeated",
    "archive interrupted",
    "poison",
    "oversize",
    "parallel invocation",
    "clock skew of an hour",
    "clock skew of a day",
    "clock at 1970",
    "clock at 2100",
)
# What the mapping does of itself because of the others.
CONSEQUENCES = ("partial failure", "bisect", "redelivery")
CHANCES = (
    CALL_FAULTS
    | WRITE_FAULTS
    | READ_FAULTS
    | QUARANTINE_FAULTS
    | LOG_FAULTS
    | DELIVERY_FAULTS
    | POINTER_FAULTS
    | CHALLENGER_FAULTS
    | KEY_FAULTS
    | KEY_WRITE_FAULTS
    | ARCHIVE_FAULTS
)
FAULTS = (*CHANCES, *PLANNED_FAULTS, *CONSEQUENCES)


class Crash(BaseException):
    """The environment is gone in the middle of what it did; nothing of it goes on."""


@dataclass
class Invocation:
    """One call of the function: until when it may run, and what the table has told it."""

    ends_s: float
    space: Callable[[str], str | None] = lambda key: None  # of the bundle that it works with for a user
    told: dict[str, int] = field(default_factory=dict)  # the version of each row, 0 for none
    skew_s: float = 0.0
    crashed: bool = False


@dataclass
class World:
    """What the simulated services share. In `calm` nothing goes wrong any more."""

    seed: int
    rng: Random = field(init=False)
    now_s: float = START_S
    calm: bool = False
    outage_ends_s: float = 0.0
    slow_until_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    trace: list[tuple[object, ...]] = field(default_factory=list)
    invocations: list[Invocation] = field(default_factory=list)
    elsewhere: Callable[[], None] = lambda: None  # something else's turn, in the middle of a call
    asked: Callable[[], None] | None = None  # the same, while a client's request is at work and no function
    _beside: bool = False
    _sent: int = 0
    _late: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _weather: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self._weather = {
            name: rate * self.rng.choice((0, 0.5, 1, 3)) / 1000 for name, rate in CHANCES.items()
        }

    def wrong(self, what: str) -> None:
        """Something is as it must never be."""
        self.violations.append(what)

    def note(self, *what: object) -> None:
        """One line more of this history, which is the same for the same seed."""
        self.trace.append((round(self.now_s - START_S, 3), *what))

    def happened(self, fault: str) -> None:
        """Count a fault."""
        self.counts[fault] += 1
        self.note("fault", fault)

    def fault(self, *kinds: dict[str, int]) -> str | None:
        """Which fault of these kinds strikes now, if any; one draw decides."""
        if self.calm:
            return None
        drawn = self.rng.random()
        for kind in kinds:
            for name in kind:
                drawn -= self._weather[name]
                if drawn < 0:
                    self.happened(name)
                    return name
        return None

    def pause(self) -> None:
        """A point where the function waits: time passes, late writes land, others have their turn."""
        self.now_s += 0.001 + 0.02 * self.rng.random()
        self.land()
        chance = 0.09 if self.invocations else 0.15 if self.asked else 0.0
        if chance and not self.calm and not self._beside and self.rng.random() < chance:
            self._run_beside()
        self.require_alive()

    @contextmanager
    def asking(self, meanwhile: Callable[[], None]) -> Iterator[None]:
        """A request is at work, beside which these others have their turns."""
        before, self.asked = self.asked, meanwhile
        try:
            yield
        finally:
            self.asked = before

    def _run_beside(self) -> None:
        """Another's turn. It runs beside, not before: whoever waits here loses no time by it."""
        waiting, before_s = self.invocations, self.now_s
        self._beside, self.invocations = True, []
        (self.elsewhere if waiting or self.asked is None else self.asked)()
        self._beside, self.invocations = False, waiting
        for invocation in waiting:
            invocation.ends_s += self.now_s - before_s

    def require_alive(self) -> None:
        """Raises Crash where the environment at work has none left to run in."""
        if not self.invocations:
            return
        own = self.invocations[-1]
        if not own.crashed and self.now_s > own.ends_s:
            self.wrong("the function ran past its time")
            own.crashed = True
        if own.crashed:
            raise Crash

    def crash(self) -> None:
        """End the environment at work; raises Crash."""
        if self.invocations:
            self.invocations[-1].crashed = True
        raise Crash

    def sleep(self, seconds: float) -> None:
        """The function waits of its own will."""
        self.now_s += seconds
        self.require_alive()

    def later(self, act: Callable[[], None], within_s: float = 60.0) -> None:
        """A request that its sender has given up, on its way still."""
        due_s = self.now_s + within_s * self.rng.choice((0.001, 0.01, 0.1, 1.0))
        self._sent += 1
        heappush(self._late, (due_s, self._sent, act))

    def land(self) -> None:
        """Let arrive what is due by now."""
        while self._late and self._late[0][0] <= self.now_s:
            heappop(self._late)[2]()

    def land_all(self) -> None:
        """Let arrive all that is on its way."""
        if self._late:
            self.now_s = max(self.now_s, max(due_s for due_s, _, _ in self._late))
            self.land()
