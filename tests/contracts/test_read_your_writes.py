"""Promise 2: who brings the last events sees them at once, and the stream comes to the same, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from functions import score
from functions.core import banners
from functions.core.banners import Selection
from functions.core.user_row import UserRow
from tests.functions.account import Account, Context, behaviour, credential, http, key_of, stream_record
from tests.functions.test_update import deliver, row_of

Json = dict[str, Any]
KINDS = ("view", "click", "cart", "purchase", "dismiss", "impression", "rating")
SEEDS = range(12)


@dataclass(frozen=True)
class Answer:
    """What a request was answered, and the row that it was answered from."""

    body: Json
    row: UserRow

    @property
    def items(self) -> list[str]:
        return [banner["item_id"] for banner in self.body["banners"]]


class Visitor:
    """One visitor with a history, whose stream lags behind."""

    def __init__(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rng = random.Random(seed)
        self.user = f"visitor-{seed}"
        length = self.rng.choice((3, 20, 70, 90))
        self.events = [
            behaviour(n, f"sku-{self.rng.randrange(62):03d}", self.rng.choice(KINDS)) for n in range(length)
        ]
        self.recent = self.events[-self.rng.randint(1, min(20, length)) :]
        late = self.rng.randint(1, len(self.recent))  # of which the stream has not brought so many
        self.there = length - late
        self.rows: list[UserRow] = []
        self._select = banners.select
        monkeypatch.setattr(banners, "select", self._watched)

    def _watched(self, *arguments: Any) -> Selection:
        chosen = self._select(*arguments)
        self.rows.append(chosen.row)
        return chosen

    def deliver(self, first: int, last: int) -> None:
        records = [
            stream_record(key_of(self.user), event, n + 1) for n, event in enumerate(self.events[:last])
        ]
        while first < last:
            size = self.rng.randint(1, 30)
            assert deliver(records[first : first + size]) == []
            first += size

    def ask(self) -> Answer:
        request = {"slot": "cart", "k": 6, "recent_events": self.recent}  # a slot without chance
        answer = score.handler(http("POST", "/v1/banners", request, credential(self.user)), Context())
        assert answer["statusCode"] == 200
        return Answer(json.loads(answer["body"]), self.rows[-1])

    def before_and_after(self) -> tuple[Answer, Answer]:
        self.deliver(0, self.there)
        before = self.ask()
        self.deliver(self.there, len(self.events))
        return before, self.ask()


def unlike(visitor: Visitor) -> list[str]:
    """What the answer ahead of the stream and the one after it do not have in common, and should."""
    before, after = visitor.before_and_after()
    stored = row_of(visitor.user)
    found = [
        name
        for name in ("state", "vector")
        if len({getattr(row, name).tobytes() for row in (before.row, after.row, stored)}) > 1
    ]
    found += ["ring"] if before.row.ring != stored.ring else []
    found += ["banners"] if before.items != after.items else []
    acts = [event for event in visitor.recent if event["type"] != "impression"]
    there = {event["event_id"] for event in visitor.events[: visitor.there]}
    known = [event["event_id"] for event in acts if event["event_id"] in there]
    found += ["already_in_row"] if before.body["already_in_row"] != known else []
    if after.body["already_in_row"] != [event["event_id"] for event in acts] or after.body["folded_ahead"]:
        found.append("what the client may drop")
    found += ["version"] if after.body["versions"]["row"] != stored.version else []
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_answer_ahead_of_the_stream_is_the_one_after_it(
    account: Account, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    visitor = Visitor(seed, monkeypatch)
    assert unlike(visitor) == []


def test_the_answer_says_how_many_were_folded_ahead(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = Visitor(0, monkeypatch)
    visitor.events = [behaviour(n, f"sku-{n:03d}") for n in range(9)]
    visitor.recent, visitor.there = visitor.events[-5:], 6
    before, after = visitor.before_and_after()
    assert (before.body["folded_ahead"], before.body["already_in_row"]) == (3, ["e4", "e5"])
    assert (after.body["folded_ahead"], after.body["already_in_row"]) == (0, ["e4", "e5", "e6", "e7", "e8"])
    assert before.body["versions"]["row"] < after.body["versions"]["row"]


def _not_folded(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda rows, events, encoder: real(rows, [[] for _ in events], encoder)


def _backwards(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda rows, events, encoder: real(rows, [list(e)[::-1] for e in events], encoder)


def _twice(real: Callable[..., Any]) -> Callable[..., Any]:
    def folded(rows: Any, events: Any, encoder: Any) -> Any:
        once, _ = real(rows, [[e for e in own if rows[0].remembers(e.event_id)] for own in events], encoder)
        forgetful = [score_blind(row) for row in once]
        return real(forgetful, events, encoder)

    return folded


def score_blind(row: UserRow) -> UserRow:
    """The row without what it remembers."""
    return replace(row, ring=row.ring[:0])


@pytest.mark.parametrize("bug", [_not_folded, _backwards, _twice])
def test_the_planted_bug_is_found(
    account: Account, monkeypatch: pytest.MonkeyPatch, bug: Callable[..., Any]
) -> None:
    monkeypatch.setattr(banners, "fold", bug(banners.fold))
    assert any(unlike(Visitor(seed, monkeypatch)) for seed in SEEDS)
