"""Where and when somebody asks, as a vector to be added to the user's: device, slot, hour and weekday (UTC).

One table holds an embedding for each, so a context is the sum of at most four rows; row 0, the unknown, is
zero. Score = (user vector + context vector) · item, so the scan, the item table and the state know nothing
of it. Hours are UTC's, offline and online: a shop's customers are mostly in one time zone, and a log says
no other. A model without a context has zeros in all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import Float32, Int64, Vocabulary

TABLE = "context.f16"
HOURS, WEEKDAYS = 24, 7
HOUR_AT = 1  # row of the hour from 0:00 UTC
WEEKDAY_AT = HOUR_AT + HOURS  # row of Monday
NAMES_AT = WEEKDAY_AT + WEEKDAYS  # the devices' rows, and after them the slots'


def table_rows(devices: int, slots: int) -> int:
    """Rows of a table with so many names."""
    return NAMES_AT + devices + slots


def hour_code(time_s: ArrayLike) -> Int64:
    """1..24 for the hours of the day (UTC), [n]."""
    return np.asarray(1 + np.asarray(time_s, np.int64) // 3600 % HOURS)


def weekday_code(time_s: ArrayLike) -> Int64:
    """1..7 for Monday to Sunday (UTC), [n]; 1970 began on a Thursday."""
    return np.asarray(1 + (np.asarray(time_s, np.int64) // 86_400 + 3) % WEEKDAYS)


class Context(NamedTuple):
    """The table [R, d] float32, and the rows of the names that it knows."""

    table: Float32
    devices: Mapping[str, int]
    slots: Mapping[str, int]

    def vector(
        self, device: str | None = None, slot: str | None = None, time_s: int | None = None
    ) -> NDArray[np.float32]:
        """What to add to a user vector, [d]; what is not known, or not given, adds nothing."""
        rows = [self.devices.get(device or "", 0), self.slots.get(slot or "", 0)]
        if time_s is not None:
            rows += [HOUR_AT - 1 + int(hour_code(time_s)), WEEKDAY_AT - 1 + int(weekday_code(time_s))]
        return np.asarray(self.table[rows].sum(0), np.float32)


def read_context(directory: Path, dim: int) -> Context:
    """The context of a bundle, from TABLE [R, d] little-endian float16 and the names in vocabulary.json.

    Raises CorruptBundle naming the file where they contradict each other or a number is not finite.
    """
    try:
        names = Vocabulary.read(json.loads((directory / "vocabulary.json").read_bytes()))
    except ValueError as error:
        raise CorruptBundle(f"{directory / 'vocabulary.json'}: {error}") from error
    devices = {name: NAMES_AT + n for n, name in enumerate(names.devices)}
    slots = {name: NAMES_AT + len(devices) + n for n, name in enumerate(names.slots)}
    numbers = np.fromfile(directory / TABLE, "<f2")
    wanted = table_rows(len(devices), len(slots)) * dim
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise CorruptBundle(f"{directory / TABLE}: {len(numbers)} numbers; expected {wanted} finite ones")
    table = numbers.reshape(-1, dim).astype(np.float32)
    if table[0].any():
        raise CorruptBundle(f"{directory / TABLE}: row 0 is {table[0].tolist()[:4]}…; expected zeros")
    return Context(table, devices, slots)
