"""How a shop's own column and event names become ours: a small TOML file, checked when it is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path

from functions.core.errors import VitrineError

EVENT_COLUMNS = ("user_id", "item_id", "type", "time", "value")
CONTEXT_COLUMNS = ("device", "slot")  # of an event, where the log has them
ITEM_COLUMNS = (
    "item_id",
    "title",
    "category",
    "brand",
    "price",
    "currency",
    "image_url",
    "url",
    "tags",
    "text",
)
TESTS = ("starts_with", "less_than", "equals")


class LogError(VitrineError, ValueError):
    """What can be wrong with a behaviour log as a whole; single bad rows are counted, not raised."""


class InvalidMapping(LogError):
    """The mapping file says something we cannot follow."""


class MissingColumn(LogError):
    """A column we need is neither in the file nor mapped."""


class UnusableLog(LogError):
    """Nothing is left to learn from."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A column that the file lacks and that is the same in every row."""

    value: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Rows whose `column` passes the test are no events; they are counted under `reason`."""

    column: str
    test: str
    operand: str | float
    reason: str


Source = str | Constant


@dataclass(frozen=True, slots=True)
class Mapping:
    """Our column → the file's column, our event type ← the file's; the default maps nothing.

    `ties` orders events with the same time: "log" by the row, "shuffle" by a hash of user and item, for
    files whose row order means nothing (a basket sorted by product would teach the order of the products).
    `vectors` are the catalogue's columns of precomputed vectors; None: those of `train.vectors.DEFAULT`.
    """

    events: MappingType[str, Source] = field(default_factory=dict)
    items: MappingType[str, Source] = field(default_factory=dict)
    types: MappingType[str, str] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()
    ties: str = "log"
    vectors: tuple[str, ...] | None = None


def load_mapping(path: str | Path) -> Mapping:
    """Reads a mapping. Raises `InvalidMapping`, naming the key, its value and what was expected."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return parse_mapping(data)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidMapping) as error:
        raise InvalidMapping(f"{error} ({path})") from error


def parse_mapping(data: MappingType[str, object]) -> Mapping:
    """The mapping in a parsed TOML document; unknown keys are errors, for they are most often typos."""
    unknown = sorted(set(data) - {"events", "items", "types", "drop", "ties", "vectors"})
    if unknown:
        known = "events, items, types, drop, ties or vectors"
        raise InvalidMapping(f"unknown key {unknown[0]!r}; expected {known}")
    ties = data.get("ties", "log")
    if ties not in ("log", "shuffle"):
        raise InvalidMapping(f'ties = {ties!r}; expected "log" or "shuffle"')
    return Mapping(
        events=_sources(data, "events", EVENT_COLUMNS + CONTEXT_COLUMNS),
        items=_sources(data, "items", ITEM_COLUMNS),
        types={name: _text(f"types.{name}", value) for name, value in _table(data, "types").items()},
        drops=_drops(data.get("drop", [])),
        ties=str(ties),
        vectors=_columns(data["vectors"]) if "vectors" in data else None,
    )


def _columns(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InvalidMapping(f"vectors = {names!r}; expected a list of the catalogue's columns")
    return tuple(dict.fromkeys(names))


def _table(data: MappingType[str, object], key: str) -> dict[str, object]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise InvalidMapping(f"{key} = {value!r}; expected a table")
    return value


def _sources(data: MappingType[str, object], key: str, columns: tuple[str, ...]) -> dict[str, Source]:
    table = _table(data, key)
    for name in table:
        if name not in columns:
            raise InvalidMapping(f"unknown column {key}.{name}; expected one of {', '.join(columns)}")
    return {name: _source(f"{key}.{name}", value) for name, value in table.items()}


def _source(place: str, value: object) -> Source:
    if isinstance(value, dict) and set(value) == {"constant"}:
        return Constant(str(value["constant"]))
    return _text(place, value, 'a column name or {constant = "..."}')


def _text(place: str, value: object, expected: str = "a string") -> str:
    if not isinstance(value, str):
        raise InvalidMapping(f"{place} = {value!r}; expected {expected}")
    return value


def _drops(rules: object) -> tuple[Drop, ...]:
    if not isinstance(rules, list):
        raise InvalidMapping(f"drop = {rules!r}; expected a list of rules ([[drop]])")
    return tuple(_drop(f"drop[{index}]", rule) for index, rule in enumerate(rules))


def _drop(place: str, rule: object) -> Drop:
    tests = [test for test in TESTS if isinstance(rule, dict) and test in rule]
    if not isinstance(rule, dict) or len(tests) != 1 or set(rule) != {"column", "reason", tests[0]}:
        raise InvalidMapping(f"{place} = {rule!r}; expected column, reason and one of {', '.join(TESTS)}")
    operand = rule[tests[0]]
    if tests[0] == "less_than" and (isinstance(operand, bool) or not isinstance(operand, int | float)):
        raise InvalidMapping(f"{place}.less_than = {operand!r}; expected a number")
    return Drop(
        column=_text(f"{place}.column", rule["column"]),
        test=tests[0],
        operand=float(operand) if tests[0] == "less_than" else str(operand),
        reason=_text(f"{place}.reason", rule["reason"]),
    )
