"""The functions' settings, from the environment that the template gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from functions.core.errors import InvalidSettings

DEADLINE_MS = 40


class Settings(NamedTuple):
    """Names of the shop's resources, and the time that a banner request may take in the handler."""

    table: str
    stream: str
    bucket: str
    secret: str
    deadline_ms: int = DEADLINE_MS
    keys: str = ""  # only where the archive is written or erased from

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read and check them all; raises InvalidSettings naming the variable."""
        names = {name: f"VITRINE_{name.upper()}" for name in ("table", "stream", "bucket", "secret")}
        for variable in names.values():
            if not environment.get(variable):
                raise InvalidSettings(f"{variable} is not set; expected the name of a resource")
        values = {name: environment[variable] for name, variable in names.items()}
        deadline_ms = _milliseconds(environment, "VITRINE_DEADLINE_MS")
        return cls(**values, deadline_ms=deadline_ms, keys=environment.get("VITRINE_KEYS", ""))


def _milliseconds(environment: Mapping[str, str], variable: str) -> int:
    text = environment.get(variable) or str(DEADLINE_MS)
    if not text.isdecimal() or not 1 <= int(text) <= 30_000:
        raise InvalidSettings(f"{variable} {text!r}; expected whole milliseconds from 1 to 30000")
    return int(text)
