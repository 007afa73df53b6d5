"""Two bundles at once, rollouts and rollbacks: never a state under the wrong encoder; back is never moved."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions import score, update
from functions.aws.rows import from_item
from functions.core import fold as folding
from functions.core.errors import CorruptBundle
from functions.core.events import EVENT_TYPES, Event
from functions.core.fold import Encoder, fold
from functions.core.pointer import CHALLENGER, CHAMPION, Pointer, parse_pointer
from functions.core.served import open_bundle
from functions.core.user_row import UserRow, encode
from tests.bundles import tiny_bundle
from tests.contracts.test_never_mixed import champion
from tests.core.toy_encoder import ToyStep, toy_encoder
from tests.functions.account import (
    BUCKET,
    STORED,
    Account,
    Context,
    behaviour,
    credential,
    http,
    key_of,
    stream_record,
)

HISTORIES, USERS = 5_000, 24
SPACES = ("a" * 16, "b" * 16)
Json = dict[str, Any]


class Branded(ToyStep):
    """A step whose states bear its mark, and that is given no others."""

    def __init__(self, seed: int, brand: float) -> None:
        super().__init__(seed)
        self.brand = np.float16(brand)

    def __call__(self, state: Any, item: Any, kind: Any, gap: Any, value: Any) -> Any:
        wrong = state.any(1) & (state[:, 0] != self.brand)
        assert not wrong.any(), "a state under the wrong encoder"
        new, vector = super().__call__(state, item, kind, gap, value)
        new[:, 0] = self.brand
        return new, vector


def encoders() -> list[Encoder]:
    good = [toy_encoder(seed, space) for seed, space in enumerate(SPACES)]
    return [replace(one, step=Branded(seed, seed + 1.0)) for seed, one in enumerate(good)]


@dataclass
class Count:
    """What the histories came to."""

    moved: int = 0
    wrong: int = 0


def histories(count: int) -> Count:
    """Streams with rollouts and rollbacks in between, ending where they began."""
    old, new = encoders()
    found = Count()
    rng = random.Random(0)
    for seed in range(count):
        events = [
            Event(f"{seed}-{n}", rng.choice(EVENT_TYPES), f"i{rng.randrange(52)}", rng.randrange(10**6))
            for n in range(rng.randint(2, 12))
        ]
        cuts = sorted(rng.sample(range(1, len(events) + 1), min(3, len(events))))
        row, moved = old.empty(), False
        for first, last in zip([0, *cuts], [*cuts, len(events)], strict=True):
            current = rng.choice((old, new))
            moved |= current is new and last > first
            (row,), _ = fold([row], [events[first:last]], current)
        (back,), _ = fold([row], [[]], old)  # rolled back, and written by the next update
        (stayed,), _ = fold([old.empty()], [events], old)
        found.moved += moved
        found.wrong += encode(back) != encode(stayed)
    return found


def test_five_thousand_histories_with_rollouts_and_rollbacks_end_as_if_never_moved() -> None:
    found = histories(HISTORIES)
    assert found.moved > HISTORIES / 2 and found.wrong == 0


def test_a_state_taken_across_spaces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
        return [replace(row, space=encoder.space) for row in rows]

    monkeypatch.setattr(folding, "in_space", as_it_is)
    with pytest.raises(AssertionError, match="wrong encoder"):
        histories(50)


def test_a_share_is_a_share_of_the_users_and_only_grows() -> None:
    keys = [key_of(f"user {n}") for n in range(4_000)]
    arms = []
    for share in (0.0, 0.1, 0.5, 1.0):
        pointer = Pointer("a" * 32, "b" * 32, share, "salt")
        arms.append({key for key in keys if pointer.arm(key) == CHALLENGER})
        assert abs(len(arms[-1]) / len(keys) - share) < 0.03
    assert arms[0] < arms[1] < arms[2] < arms[3] == set(keys)
    other = {key for key in keys if Pointer("a" * 32, "b" * 32, 0.5, "pepper").arm(key) == CHALLENGER}
    assert abs(len(other & arms[2]) / len(keys) - 0.25) < 0.03  # another experiment, other users


@pytest.mark.parametrize(
    "wrong",
    [
        {"champion": None},
        {"champion": "../../x"},
        {"champion": "a" * 32, "challenger": "x"},
        {"champion": "a" * 32, "share": 1.5},
        {"champion": "a" * 32, "share": True},
        {"champion": "a" * 32, "salt": 7},
        {},
        [],
    ],
)
def test_a_pointer_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(CorruptBundle, match="pointer"):
        parse_pointer(json.dumps(wrong).encode(), "pointer.json")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop's bundle from other weights."""
    return tiny_bundle(tmp_path_factory.mktemp("challenger"), seed=1)


def point(account: Account, pointer: Json) -> None:
    account.s3.put_object(Bucket=BUCKET, Key="pointer.json", Body=json.dumps(pointer).encode())
    score.scorer().bundles.refresh()
    update.updater().bundles.refresh()


def ask(user: str) -> Json:
    answer = score.handler(http("POST", "/v1/banners", {"slot": "cart"}, credential(user)), Context())
    body: Json = json.loads(answer["body"])
    return body


def deliver(start: int) -> None:
    records = [
        stream_record(key_of(f"user {n}"), behaviour(start + n, f"sku-{n:03d}", "click"), start + n + 1)
        for n in range(USERS)
    ]
    assert update.handler({"Records": records}, Context()) == {"batchItemFailures": []}


def test_score_and_update_agree_on_every_users_arm_and_a_rollback_rebuilds(
    account: Account, retrained: Path
) -> None:
    account.upload(retrained)
    old, new = champion(STORED), champion(retrained)
    pointer = {"champion": old, "challenger": new, "share": 0.5, "salt": "s"}
    arms = {f"user {n}": Pointer(old, new, 0.5, "s").arm(key_of(f"user {n}")) for n in range(USERS)}
    assert set(arms.values()) == {CHAMPION, CHALLENGER}
    point(account, {**pointer, "challenger": None})
    deliver(0)
    before = account.items()
    point(account, pointer)
    for user, arm in arms.items():
        answer = ask(user)
        assert answer["versions"]["bundle"] == (old if arm == CHAMPION else new)
        assert answer["tier"] == ("personal" if arm == CHAMPION else "rebuilt")
        assert decision(answer)["arm"] == arm
    assert account.items() == before  # what a request rebuilds is not stored
    deliver(100)
    spaces = {bundle: opened_space(folder, bundle) for folder, bundle in ((STORED, old), (retrained, new))}
    for user, arm in arms.items():
        row, answer = from_item(account.items()[key_of(user)]), ask(user)
        assert row.space == answer["versions"]["state_space"] == spaces[old if arm == CHAMPION else new]
        assert answer["tier"] == "personal" and len(row.ring) == 2
    point(account, {**pointer, "share": 0.0})
    assert {ask(user)["versions"]["bundle"] for user in arms} == {old}


def test_a_challenger_that_is_not_sound_leaves_everybody_with_the_champion(
    account: Account, retrained: Path
) -> None:
    account.upload(retrained)
    old, new = champion(STORED), champion(retrained)
    account.s3.put_object(Bucket=BUCKET, Key=f"{new}/codes.u8", Body=b"damaged")
    point(account, {"champion": old, "challenger": new, "share": 1.0, "salt": ""})
    answer = ask("ann")
    assert (answer["versions"]["bundle"], decision(answer)["arm"]) == (old, CHAMPION)


def test_a_challenger_becomes_champion_without_being_opened_again(account: Account, retrained: Path) -> None:
    account.upload(retrained)
    old, new = champion(STORED), champion(retrained)
    point(account, {"champion": old, "challenger": new, "share": 0.5, "salt": ""})
    bundles = score.scorer().bundles
    challenger = bundles._arms.challenger
    point(account, {"champion": new, "challenger": None, "share": 0.0, "salt": ""})
    assert challenger is not None and bundles.current is challenger
    assert not (bundles._root / old).exists() and (bundles._root / new).exists()


def opened_space(folder: Path, bundle: str) -> str:
    opened = open_bundle(folder / bundle)
    opened.close()
    return opened.encoder.space


def decision(answer: Json) -> Json:

    claims = answer["banners"][0]["token"].split(".")[1]
    read: Json = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    return read
