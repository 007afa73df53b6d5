"""Slots: the places on a shop's pages that show banners, each with its size, its policy and its limits."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from functions.core.errors import CorruptBundle

POLICIES = ("greedy", "epsilon", "softmax")
MAX_K = 100


@dataclass(frozen=True)
class Slot:
    """One place for banners; raises CorruptBundle when a value is out of range.

    `epsilon` is the share of positions that the policy "epsilon" fills at random; `temperature`, in units of
    score, spreads the policy "softmax"; `cap` is the most impressions of an item per user a day (0: no cap).
    """

    name: str
    max_k: int = 12
    default_k: int = 4
    policy: str = "greedy"
    temperature: float = 1.0
    epsilon: float = 0.0
    cap: int = 0
    label: str = "Picked for you"

    def __post_init__(self) -> None:
        self._require(isinstance(self.name, str) and self.name != "", "name", "text that is not empty")
        self._require(
            _is_integer(self.max_k) and 1 <= self.max_k <= MAX_K, "max_k", f"an integer in 1..{MAX_K}"
        )
        self._require(
            _is_integer(self.default_k) and 1 <= self.default_k <= self.max_k,
            "default_k",
            f"an integer in 1..max_k ({self.max_k})",
        )
        self._require(self.policy in POLICIES, "policy", f"one of {', '.join(POLICIES)}")
        self._require(_is_finite(self.temperature) and self.temperature > 0, "temperature", "a number > 0")
        self._require(_is_finite(self.epsilon) and 0 <= self.epsilon <= 1, "epsilon", "a number in [0, 1]")
        self._require(_is_integer(self.cap) and self.cap >= 0, "cap", "an integer >= 0")
        self._require(isinstance(self.label, str), "label", "text")

    def _require(self, holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise CorruptBundle(f"{field} {getattr(self, field)!r}; expected {expected} (slot {self.name!r})")


def parse_slots(text: str, place: str = "slots.json") -> dict[str, Slot]:
    """Slots by name from JSON `{name: {max_k, …}}`; raises CorruptBundle naming the slot and the field."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptBundle(f"not JSON: {error} ({place})") from error
    if not isinstance(data, dict) or not data:
        raise CorruptBundle(f"{type(data).__name__}; expected an object with at least one slot ({place})")
    return {name: _parse_slot(name, definition, place) for name, definition in data.items()}


def load_slots(path: Path) -> dict[str, Slot]:
    """Slots by name from a file; raises CorruptBundle."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptBundle(f"{path}: {error}; expected JSON in UTF-8") from error
    return parse_slots(text, str(path))


def dump_slots(slots: Mapping[str, Slot]) -> str:
    """The JSON that `parse_slots` reads back to the same slots."""
    return json.dumps(
        {
            name: {key: value for key, value in asdict(slot).items() if key != "name"}
            for name, slot in slots.items()
        },
        indent=2,
    )


def _parse_slot(name: str, definition: Any, place: str) -> Slot:
    if not isinstance(definition, dict):
        raise CorruptBundle(f"{definition!r}; expected an object (slot {name!r}, {place})")
    known = {field.name for field in fields(Slot)} - {"name"}
    unknown = sorted(definition.keys() - known)
    if unknown:
        raise CorruptBundle(f"unknown {unknown}; expected some of {sorted(known)} (slot {name!r}, {place})")
    return Slot(name=name, **definition)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


DEFAULT_SLOTS: Mapping[str, Slot] = {
    "home": Slot("home", max_k=12, default_k=6, policy="softmax", temperature=0.1, cap=8),
    "product": Slot("product", default_k=4, policy="epsilon", epsilon=0.05, label="You may also like"),
    "cart": Slot("cart", max_k=6, default_k=3, policy="greedy", label="Goes well with your cart"),
}
