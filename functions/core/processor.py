"""What the operating system says of the processor."""

from __future__ import annotations

from pathlib import Path

LISTED = Path("/proc/cpuinfo")


def processor() -> dict[str, str]:
    """What Linux says of the first processor, by name; nothing where it does not."""
    if not LISTED.is_file():
        return {}
    lines = [line.split(":", 1) for line in LISTED.read_text("utf-8").splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(lines)}
