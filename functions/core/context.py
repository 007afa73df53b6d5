"""Where and when somebody asks: device, slot, hour and weekday (UTC), and how long after the last event.

What a visitor did a minute ago says what is wanted now; a week later it says what kind of visitor this is.
So the time since the last event also weighs each number of the user's vector ("Latent Cross", Beutel et al.
2018, section 4.2): query = vector * (1 + factors of that time) + the sum of at most five rows of one table,
of which row 0, the unknown, is zero. Score = query · item, so the scan, the item table and the state know
nothing of it. Hours are UTC's, offline and online: a shop's customers are mostly in one time zone, and a log
says no other. A model without a context has zeros in all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from functions.core.errors import CorruptBundle
from functions.core.features import GAP_BUCKETS, Float32, Int64, Vocabulary, gap_bucket

TABLE = "context.f16"
HOURS, WEEKDAYS = 24, 7
HOUR_AT = 1  # row of the hour from 0:00 UTC
WEEKDAY_AT = HOUR_AT + HOURS  # row of Monday
ELAPSED = GAP_BUCKETS - 1  # buckets of the time since the last event; where none is known, nothing is added
ELAPSED_AT = WEEKDAY_AT + WEEKDAYS  # row of the shortest
NAMES_AT = ELAPSED_AT + ELAPSED  # the devices' rows, and after them the slots'


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
    """The table [R, d] and the factors [GAP_BUCKETS, d], float32, and the rows of the names it knows."""

    table: Float32
    factors: Float32
    devices: Mapping[str, int]
    slots: Mapping[str, int]

    def query(
        self,
        vector: NDArray[np.floating],
        device: str | None = None,
        slot: str | None = None,
        time_s: int | None = None,
        last_s: int | None = None,
    ) -> Float32:
        """A user's vector [d] as the user asks at `time_s`, the last event at `last_s`: seconds since 1970.

        What is not known, or not given, changes nothing.
        """
        rows = [self.devices.get(device or "", 0), self.slots.get(slot or "", 0)]
        if time_s is not None:
            rows += [HOUR_AT - 1 + int(hour_code(time_s)), WEEKDAY_AT - 1 + int(weekday_code(time_s))]
        query: Float32 = self.later(vector, time_s, last_s) + self.table[rows].sum(0)
        return query

    def later(self, vector: NDArray[np.floating], time_s: int | None, last_s: int | None) -> Float32:
        """The same with nothing but the time since the last event; none where one of the two is None."""
        later: Float32 = vector.astype(np.float32)
        if time_s is not None and last_s is not None:
            bucket = int(gap_bucket(max(time_s - last_s, 0)))
            later = later * (1 + self.factors[bucket]) + self.table[ELAPSED_AT - 1 + bucket]
        return later


def read_context(directory: Path, dim: int) -> Context:
    """The context of a bundle, from TABLE and the names in vocabulary.json.

    TABLE, little-endian float16: the table [R, d], then the factors [GAP_BUCKETS, d], whose row 0 is zero.
    Raises CorruptBundle naming the file where they contradict each other or a number is not finite.
    """
    try:
        names = Vocabulary.read(json.loads((directory / "vocabulary.json").read_bytes()))
    except ValueError as error:
        raise CorruptBundle(f"{directory / 'vocabulary.json'}: {error}") from error
    devices = {name: NAMES_AT + n for n, name in enumerate(names.devices)}
    slots = {name: NAMES_AT + len(devices) + n for n, name in enumerate(names.slots)}
    numbers = np.fromfile(directory / TABLE, "<f2")
    rows = table_rows(len(devices), len(slots))
    wanted = (rows + GAP_BUCKETS) * dim
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise CorruptBundle(f"{directory / TABLE}: {len(numbers)} numbers; expected {wanted} finite ones")
    table, factors = np.split(numbers.reshape(-1, dim).astype(np.float32), [rows])
    for name, unknown in (("row 0", table[0]), ("factors 0", factors[0])):
        if unknown.any():
            raise CorruptBundle(f"{directory / TABLE}: {name}: {unknown.tolist()[:4]}…; expected zeros")
    return Context(table, factors, devices, slots)
