"""The reports that measurements leave behind, as other measurements read them."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any


def read_report(path: str | Path) -> dict[str, Any]:
    """What a measurement's `--json` wrote; raises ArgumentTypeError naming the file and what is wrong."""
    expected = "expected a report, as a measurement's --json writes it"
    try:
        read = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"{path}: {error}; {expected}") from error
    if not isinstance(read, dict):
        raise ArgumentTypeError(f"{path}: a JSON {type(read).__name__}; {expected}")
    return read
