"""Where and when somebody asks: device, slot, hour and weekday (UTC), and how long after the last event.

What a visitor did a minute ago says what is wanted now; a week later it says what kind of visitor this is.
So the time since the last event weighs each number of the user's vector ("Latent Cross", Beutel et al. 2018,
section 4.2), and of the general interest, the mean of all that the user met (FISM, Kabbur et al. 2013; beside
the current one in STAMP, Liu et al. 2018, section 3.2):

    query = vector * (1 + factors of that time) + mean * interests of that time + at most five rows of a table

of which row 0, the unknown, is zero. Score = query · item, so the scan, the item table and the state know
nothing of it. Hours are UTC's, offline and online: a shop's customers are mostly in one time zone, and a log
says no other. A model without a context has zeros in all rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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


class Asked(NamedTuple):
    """Where and when somebody asks; what is None, or a name that nobody knows, changes nothing."""

    device: str | None = None
    slot: str | None = None
    time_s: int | None = None  # seconds since 1970
    elapsed_s: int | None = None  # seconds since the user's last event


class Context(NamedTuple):
    """The table [R, d], the factors and the interests, both [GAP_BUCKETS, d], all float32, and the rows of
    the names it knows."""

    table: Float32
    factors: Float32
    interests: Float32
    devices: Mapping[str, int]
    slots: Mapping[str, int]

    def query(
        self,
        vector: NDArray[np.floating],
        asked: Asked,
        mean: Callable[[], NDArray[np.floating]],
    ) -> Float32:
        """A user's vector [d] as the user asks; `mean` gives the mean embedding [d] of what the user met, and
        is called where it counts."""
        rows = [self.devices.get(asked.device or "", 0), self.slots.get(asked.slot or "", 0)]
        query: Float32 = vector.astype(np.float32)
        if asked.time_s is not None:
            rows += [
                HOUR_AT - 1 + int(hour_code(asked.time_s)),
                WEEKDAY_AT - 1 + int(weekday_code(asked.time_s)),
            ]
        if asked.elapsed_s is not None:
            bucket = int(gap_bucket(asked.elapsed_s))
            rows.append(ELAPSED_AT - 1 + bucket)
            query = query * (1 + self.factors[bucket])
            if self.interests[bucket].any():
                query = query + self.interests[bucket] * mean()
        query = query + self.table[rows].sum(0)
        return query


def read_context(directory: Path, dim: int) -> Context:
    """The context of a bundle, from TABLE and the names in vocabulary.json.

    TABLE, little-endian float16: the table [R, d], then the factors and the interests, [GAP_BUCKETS, d] each,
    all three with zeros in row 0.
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
    wanted = (rows + 2 * GAP_BUCKETS) * dim
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise CorruptBundle(f"{directory / TABLE}: {len(numbers)} numbers; expected {wanted} finite ones")
    parts = np.split(numbers.reshape(-1, dim).astype(np.float32), [rows, rows + GAP_BUCKETS])
    for name, part in zip(("table", "factors", "interests"), parts, strict=True):
        if part[0].any():
            raise CorruptBundle(
                f"{directory / TABLE}: row 0 of {name}: {part[0].tolist()[:4]}…; expected zeros"
            )
    table, factors, interests = parts
    return Context(table, factors, interests, devices, slots)
