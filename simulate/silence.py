"""The functions' logs and metrics, switched off: a million histories would write a billion lines."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from functions import archive, me, update


def nothing(
    counts: Mapping[str, int],
    milliseconds: Mapping[str, float] | None = None,
    dimensions: Mapping[str, str] | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Instead of `functions.aws.telemetry.emit`."""


def silence() -> None:
    """For the rest of this process."""
    logging.disable(logging.CRITICAL)
    setattr(archive, "emit", nothing)  # noqa: B010 - mypy: not exported
    setattr(me, "emit", nothing)  # noqa: B010 - mypy: not exported
    setattr(update, "emit", nothing)  # noqa: B010 - mypy: not exported
