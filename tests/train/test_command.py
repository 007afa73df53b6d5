"""`python -m train` on what it cannot use: status 1 and one line that says why, before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.__main__ import main

ROWS = [f"u{n % 3},i{n % 5},view,{1_700_000_000 + n}" for n in range(30)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--events", "{log}", "--out", "{log}"], "events.csv"),
        (["--events", "{log}", "--out", "/proc/none"], "/proc/none"),
        (["--events", "{log}", "--map", "{folder}/none.toml"], "none.toml"),
        (["--events", "{folder}/none.csv"], "none.csv"),
        (["--events", "{log}", "--items", "{folder}/none.csv"], "none.csv"),
        (["--events", "{log}", "--epochs", "0"], "epochs is 0"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "events.csv"
    log.write_text("\n".join(["user_id,item_id,type,time", *ROWS]))
    filled = [argument.format(log=log, folder=tmp_path) for argument in arguments]
    out = [] if "--out" in filled else ["--out", str(tmp_path / "out")]
    assert main([*filled, *out]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and "Traceback" not in told
