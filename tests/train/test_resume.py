"""A run that was killed, and a run of several processes, end where one that went through ends."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import resumed
from tests.train.resumed import OPTIONS, run
from train.checkpoint import WEIGHTS, load
from train.fit import UNFINISHED, CannotResume

NEVER = -1
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from tests.train import resumed
from train import trainer
from train.group import process_group, rank
from train.trainer import Trainer

out, dropout, die_at = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
if not dropout:
    trainer._half_pays = lambda device: False
take = Trainer.step
def step(self, *arguments):
    if self.done == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *arguments)
Trainer.step = step
with process_group():
    history = resumed.run(out, dropout, log=getattr(resumed, sys.argv[4])())
    losses = [epoch.loss for epoch in history.epochs]
    (out / f"losses{rank()}.json").write_text(json.dumps(losses))
    at_end = out / f"threads{rank()}.json"
at_end.write_text(json.dumps([(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]))
"""
ENDED = """
import json, shutil, sys
from pathlib import Path
from tests.train import resumed
from train.group import is_first, process_group
from train.trainer import Trainer

class Ended(Exception):
    pass

def run(name):
    history = resumed.run(folder / name, dropout=0.2)
    if is_first():
        (folder / name / "losses.json").write_text(json.dumps([epoch.loss for epoch in history.epochs]))

take, folder = Trainer.step, Path(sys.argv[1])
def step(self, *arguments):
    if self.done == 4:
        raise Ended
    return take(self, *arguments)

with process_group():
    run("whole")
    Trainer.step = step
    try:
        run("ended")
    except Ended:
        Trainer.step = take
    if is_first():
        shutil.copytree(folder / "ended", folder / "smaller")
    run("ended")
"""
IN_TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(*launcher: str, out: Path, dropout: float, die_at: int, log: str = "walks") -> int:
    """Run PROGRAM in a process of its own, on a log of `tests.train.resumed`; its exit status."""
    return execute(
        PROGRAM, *launcher, folder=out.parent, arguments=[str(out), str(dropout), str(die_at), log]
    )


def execute(text: str, *launcher: str, folder: Path, arguments: list[str]) -> int:
    program = folder / "program.py"
    program.write_text(text)
    command = [sys.executable, *launcher, str(program), *arguments]
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, cwd=root, timeout=300).returncode


@pytest.mark.parametrize("die_at", [0, 3, 4, 9])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, die_at: int) -> None:
    torch.set_num_threads(1)
    whole = run(tmp_path / "whole", dropout=0.2)
    assert start(out=tmp_path / "killed", dropout=0.2, die_at=die_at) == -signal.SIGKILL
    assert (tmp_path / "killed" / UNFINISHED).exists() == (die_at > 0)
    resumed = run(tmp_path / "killed", dropout=0.2)
    assert resumed == whole
    assert not (tmp_path / "killed" / UNFINISHED).exists()
    whole_weights, weights = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "killed"))
    assert weights == whole_weights


def test_without_the_flag_a_run_starts_anew(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", dropout=0.2)
    assert start(out=tmp_path / "killed", dropout=0.2, die_at=3) == -signal.SIGKILL
    assert run(tmp_path / "killed", dropout=0.2, resume=False) == whole


def test_what_another_run_left_is_refused(tmp_path: Path) -> None:
    assert start(out=tmp_path, dropout=0.2, die_at=3) == -signal.SIGKILL
    with pytest.raises(
        CannotResume, match=r"unfinished\.pt: left by a run on another log, catalogue, shape or options"
    ):
        run(tmp_path, dropout=0.3)
    with pytest.raises(CannotResume):
        run(tmp_path, dropout=0.2, options=dataclasses.replace(OPTIONS, learning_rate=1e-3))
    bought = dataclasses.replace(resumed.walks(), value=np.ones(600, np.float32))
    with pytest.raises(CannotResume):
        run(tmp_path, dropout=0.2, log=bought)
    with pytest.raises(CannotResume):
        run(tmp_path, dropout=0.2, price=3)


@pytest.mark.parametrize("log", ["walks", "dismissals"])  # the second: parts of a batch without a target
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    monkeypatch.setattr("train.trainer._half_pays", lambda device: False)  # sums in bfloat16 differ by split
    one = run(tmp_path / "one", dropout=0.0, log=getattr(resumed, log)())
    assert start(*IN_TWO, out=tmp_path / "two", dropout=0.0, die_at=NEVER, log=log) == 0
    for a, b in zip(
        load(tmp_path / "one")[0].parameters(), load(tmp_path / "two")[0].parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert load(tmp_path / "two")[1].metrics == pytest.approx(dict(one.epochs[one.best].metrics), abs=1e-6)
    losses = [json.loads((tmp_path / "two" / f"losses{rank}.json").read_text()) for rank in range(2)]
    assert losses[0] == losses[1] == pytest.approx([epoch.loss for epoch in one.epochs], rel=1e-4)
    threads = [json.loads((tmp_path / "two" / f"threads{rank}.json").read_text()) for rank in range(2)]
    outlived = [name for of_one in threads for name in of_one if "gloo" in name]
    assert outlived == []  # one that the interpreter's end meets aborts the process


def test_a_group_that_ended_goes_on_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process drops out by random numbers of its own; another number of them goes on, and says so."""
    assert execute(ENDED, *IN_TWO, folder=tmp_path, arguments=[str(tmp_path)]) == 0
    for name in (WEIGHTS, "losses.json"):
        assert (tmp_path / "ended" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(run(tmp_path / "smaller", dropout=0.2).epochs) == OPTIONS.epochs
    assert "left by 2 process(es), going on with 1: the same batches, but other" in capsys.readouterr().out
