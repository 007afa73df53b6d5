"""The processor is named where Linux names it, and nowhere is it an error that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import functions.core.processor as processors


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("processor\t: 0\nmodel name\t: One\n\nprocessor\t: 1\nmodel name\t: Other\n", "One"),
        ("Features\t: asimddp i8mm\nno colon\n", None),  # Arm has no model name
        (None, None),
    ],
)
def test_the_first_processor_is_told_of(
    listed: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if listed is not None:
        path.write_text(listed)
    monkeypatch.setattr(processors, "LISTED", path)
    assert processors.processor().get("model name") == expected
