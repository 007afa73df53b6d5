"""From a user row to banners: the tiers, the choice, and for each banner the token that says why.

personal → rebuilt (a row of another state space, refolded from its ring) → popular → house. Everything here
is a pure function of its arguments: the chance in a choice comes from a seed that is made of what the token
says, so that a decision can be replayed from its token, its row and its bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from functions.core.catalogue import Product
from functions.core.context import Asked
from functions.core.creatives import render
from functions.core.events import DISMISS
from functions.core.fold import fold
from functions.core.pointer import CHAMPION
from functions.core.ranking import Choice, impressions_in_last_day, rank
from functions.core.requests import BannerRequest
from functions.core.served import Candidates, ServedBundle
from functions.core.slots import Slot
from functions.core.times import rfc3339
from functions.core.tokens import Decision
from functions.core.user_row import UserRow

DECISION_LIFETIME_S = 86_400
CREATIVE = "plain"
HOUSE = Product(item_id="house", title="Discover our shop", price=float("nan"), url="/")

Sign = Callable[[Mapping[str, Any]], str]


class Visitor(NamedTuple):
    """Who asks, and the row that was read: None for a new user, or where `reachable` says it wasn't read."""

    key: str
    row: UserRow | None = None
    reachable: bool = True
    arm: str = CHAMPION


class Selection(NamedTuple):
    """What was chosen in which tier, and the row as it is with the recent events folded ahead."""

    tier: str
    choices: Sequence[Choice]
    row: UserRow
    folded_ahead: int
    already_in_row: tuple[str, ...]


def answer(
    bundle: ServedBundle, request: BannerRequest, visitor: Visitor, now_s: int, sign: Sign
) -> dict[str, Any]:
    """The whole answer of `POST /v1/banners`; raises whatever a row or a bundle does that is not sound."""
    chosen = select(bundle, request, visitor, now_s)
    if not chosen.choices:
        return house(request.slot, visitor.key, now_s, sign, bundle)
    version = visitor.row.version if visitor.row else 0
    decisions = [
        (choice.row, choice.position, f"{chosen.tier}/{request.slot.policy}", choice.propensity)
        for choice in chosen.choices
    ]
    products = bundle.catalogue.products([row for row, *_ in decisions])
    banners = []
    for product, (_, position, policy, propensity) in zip(products, decisions, strict=True):
        decision = Decision(
            visitor.key, request.slot.name, product.item_id, CREATIVE, position, visitor.arm, policy,
            propensity, bundle.id, version, now_s + DECISION_LIFETIME_S, request.device or "",
        )  # fmt: skip
        banners.append(render(product, position, request.slot, sign(decision.to_claims())))
    return {
        **_body(banners, chosen.tier, bundle, version),
        "folded_ahead": chosen.folded_ahead,
        "already_in_row": list(chosen.already_in_row),
        "last_event_time": rfc3339(chosen.row.last_s) if chosen.row.ring else None,
    }


def house(
    slot: Slot, user_key: str, now_s: int, sign: Sign, bundle: ServedBundle | None = None
) -> dict[str, Any]:
    """The answer when there is nothing to choose from: one banner, without a price, into the shop."""
    decision = Decision(
        user_key, slot.name, HOUSE.item_id, CREATIVE, 0, CHAMPION, "house", 1.0,
        bundle.id if bundle else "", 0, now_s + DECISION_LIFETIME_S,
    )  # fmt: skip
    banner = render(HOUSE, 0, slot, sign(decision.to_claims()))
    return {
        **_body([banner], "house", bundle, 0),
        "folded_ahead": 0,
        "already_in_row": [],
        "last_event_time": None,
    }


def select(bundle: ServedBundle, request: BannerRequest, visitor: Visitor, now_s: int) -> Selection:
    """Choose at most k products: by the user's vector if there is one, else the popular ones."""
    stored = visitor.row or bundle.encoder.empty()
    already = tuple(event.event_id for event in request.recent if stored.remembers(event.event_id))
    (row,), counts = fold([stored], [request.recent], bundle.encoder)
    expires_s = now_s + DECISION_LIFETIME_S
    rng = generator(visitor.key, request.slot.name, bundle.id, stored.version, expires_s)
    if visitor.reachable and row.vector.any():
        tier = "personal" if stored.space == bundle.encoder.space else "rebuilt"
        asked = Asked(request.device, request.slot.name, now_s, row.elapsed_s(now_s))
        choices = _choose(bundle, request, row, bundle.candidates(row, asked=asked), now_s, rng)
        if choices:
            return Selection(tier, choices, row, counts.folded, already)
    choices = _choose(bundle, request, row, _popular(bundle, row, request.k), now_s, rng)
    if not visitor.reachable:
        return Selection("popular", choices, stored, 0, ())
    return Selection("popular", choices, row, counts.folded, already)


def generator(user_key: str, slot: str, bundle: str, row_version: int, expires_s: int) -> np.random.Generator:
    """The source of chance for one answer, from what its decision tokens say."""
    text = f"{user_key}|{slot}|{bundle}|{row_version}|{expires_s}"
    seed = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))


def _choose(
    bundle: ServedBundle,
    request: BannerRequest,
    row: UserRow,
    candidates: Candidates,
    now_s: int,
    rng: np.random.Generator,
) -> list[Choice]:
    keys = [entry.item for entry in row.ring if entry.kind == DISMISS]
    dismissed = {item for item in bundle.items.rows(keys) if item is not None}
    seen_rows = bundle.items.rows([key for key, _ in row.seen])
    seen = [(item, time_s) for item, (_, time_s) in zip(seen_rows, row.seen, strict=True) if item is not None]
    return rank(
        *candidates,
        request.slot,
        request.k,
        rng,
        dismissed=dismissed,
        seen=impressions_in_last_day(seen, now_s),
    )


def _popular(bundle: ServedBundle, row: UserRow, k: int) -> Candidates:
    """What is popular in the category of the user's last item; in the whole shop where that is too little."""
    known = [item for item in bundle.items.rows([entry.item for entry in row.ring]) if item is not None]
    if known:
        candidates = bundle.popular(bundle.catalogue.product(known[-1]).category)
        if len(candidates[0]) >= 2 * k:
            return candidates
    return bundle.popular()


def _body(
    banners: list[dict[str, Any]], tier: str, bundle: ServedBundle | None, version: int
) -> dict[str, Any]:
    versions = {
        "bundle": bundle.id if bundle else None,
        "state_space": bundle.encoder.space if bundle else None,
        "row": version,
    }
    return {"banners": banners, "tier": tier, "versions": versions}
