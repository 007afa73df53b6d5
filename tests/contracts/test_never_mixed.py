"""Promise 4: no answer mixes state, item table and ranking of different spaces; rollback is one pointer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions import score, update
from functions.core import fold
from functions.core.events import parse_event
from functions.core.fold import Encoder
from functions.core.served import ServedBundle, open_bundle
from functions.core.user_row import UserRow
from tests.bundles import tiny_bundle
from tests.functions.account import (
    STORED,
    Account,
    Context,
    behaviour,
    credential,
    http,
    key_of,
    stream_record,
)

NOW_S = 1_795_600_000
EVENTS = [behaviour(n, f"sku-{17 * n % 60:03d}", "click") for n in range(8)]
NINTH = behaviour(8, "sku-055", "click")
REPLAY = fold.fold


def champion(folder: Path) -> str:
    return str(json.loads((folder / "pointer.json").read_text())["champion"])


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop's bundle from other weights."""
    return tiny_bundle(tmp_path_factory.mktemp("retrained"), seed=1)


@pytest.fixture
def opened(retrained: Path) -> Iterator[dict[str, ServedBundle]]:
    bundles = [open_bundle(folder / champion(folder)) for folder in (STORED, retrained)]
    yield {bundle.id: bundle for bundle in bundles}
    for bundle in bundles:
        bundle.close()


def point(account: Account, bundle: str) -> None:
    """Swap the pointer and let both functions follow it."""
    account.point(bundle)
    assert score.scorer().bundles.refresh() and update.updater().bundles.refresh()


def stream(numbers: range) -> None:
    records = [stream_record(key_of("ann"), [*EVENTS, NINTH][n], n + 1) for n in numbers]
    assert update.handler({"Records": records}, Context()) == {"batchItemFailures": []}


def ask() -> dict[str, Any]:
    """What Ann is shown in a slot without chance."""
    event = http("POST", "/v1/banners", {"slot": "cart", "k": 6}, credential("ann"))
    answer = score.handler(event, Context())
    assert answer["statusCode"] == 200
    body: dict[str, Any] = json.loads(answer["body"])
    return body


def of_one_space(answer: dict[str, Any], opened: dict[str, ServedBundle]) -> bool:
    """Whether Ann's events alone, replayed in the answering bundle's own space, give these banners."""
    bundle = opened[answer["versions"]["bundle"]]
    events = [parse_event(event, NOW_S) for event in EVENTS]
    (row,), _ = REPLAY([bundle.encoder.empty()], [events], bundle.encoder)
    best = bundle.catalogue.products(bundle.candidates(row)[0][:6].tolist())
    shown = [banner["item_id"] for banner in answer["banners"]]
    return answer["versions"]["state_space"] == bundle.encoder.space and shown == [p.item_id for p in best]


def test_a_rollout_and_a_rollback_are_one_pointer(
    account: Account, retrained: Path, opened: dict[str, ServedBundle]
) -> None:
    old, new = champion(STORED), champion(retrained)
    account.upload(retrained)
    point(account, old)
    stream(range(8))
    before = ask()
    assert (before["tier"], before["versions"]["bundle"]) == ("personal", old)
    assert of_one_space(before, opened)

    point(account, new)
    rolled_out = ask()
    assert (rolled_out["tier"], rolled_out["versions"]["bundle"]) == ("rebuilt", new)
    assert of_one_space(rolled_out, opened)
    stream(range(8, 9))
    assert account.items()[key_of("ann")]["space"]["S"] == opened[new].encoder.space
    assert ask()["tier"] == "personal"

    point(account, old)
    rolled_back = ask()
    assert (rolled_back["tier"], rolled_back["versions"]["bundle"]) == ("rebuilt", old)
    shown = [[banner["item_id"] for banner in answer["banners"]] for answer in (before, rolled_back)]
    assert shown[0] != shown[1]  # the ninth event came under the other bundle and is not lost


def test_a_state_that_is_read_across_spaces_is_found(
    account: Account, retrained: Path, opened: dict[str, ServedBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: a row of another space is taken as it is."""

    def as_it_is(rows: Sequence[UserRow], encoder: Encoder) -> list[UserRow]:
        return [replace(row, space=encoder.space) for row in rows]

    account.upload(retrained)
    point(account, champion(STORED))
    stream(range(8))
    point(account, champion(retrained))
    monkeypatch.setattr(fold, "in_space", as_it_is)
    assert not of_one_space(ask(), opened)
