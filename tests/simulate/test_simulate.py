"""`make simulate` itself: what it finds, that it finds what it must, and that a seed is a history."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local.event_source import Record
from simulate.__main__ import histories
from simulate.bucket import Bucket
from simulate.planted import BUGS, planted
from simulate.stream import Logged
from simulate.verdict import _judge_quarantine
from simulate.world import FAULTS, World

ROOT = Path(__file__).parents[2]
HISTORIES = 10_000


def simulate(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulate", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_no_history_goes_wrong_and_every_planted_bug_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    done = simulate("--histories", str(HISTORIES))
    with capsys.disabled():
        print("", *done.stdout.splitlines()[-len(FAULTS) - 1 :], sep="\n")
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"histories=(\d+) bad=(\d+) planted=(\d+)/(\d+) faults_min=(\d+)", last)
    assert found, f"{done.stdout[-500:]}{done.stderr[-2000:]}"
    ran, bad, killed, bugs, rarest = map(int, found.groups())
    assert done.returncode == 0, done.stdout[:2000]
    assert (ran, bad, killed) == (HISTORIES, 0, bugs)
    assert bugs == len(BUGS) >= 14
    assert rarest >= 1000


def test_the_same_seed_is_the_same_history_byte_for_byte() -> None:
    one, other = (simulate("--trace", "7", hash_seed=hash_seed).stdout for hash_seed in ("1", "2"))
    assert one.count("\n") > 10
    assert one == other


def test_what_is_wrong_is_said_in_the_same_order_in_every_process() -> None:
    """Planted: the order was that of a set, and the failing line another in each run of the seed."""
    world = World(0)
    lost = {
        f"quarantine/{n}": Logged("s", Record(str(n), "u", b"", 0.0), None, None, None, True)
        for n in range(10, 30)
    }
    _judge_quarantine(world, Bucket(world), lost)
    assert len(world.violations) == 20
    assert world.violations == sorted(world.violations)


def test_a_history_that_goes_wrong_is_one_line_and_an_exit_status() -> None:
    with planted("no condition"):
        lines, _ = histories(range(3))
    assert lines and all(line.startswith("seed ") and "\n" not in line for line in lines)
    assert histories(range(3))[0] == []  # and the bug is out again


def test_a_run_that_did_not_meet_every_fault_is_no_success() -> None:
    done = simulate("--histories", "1", "--no-planted")
    assert done.stdout.splitlines()[-1] == "histories=1 bad=0 planted=0/0 faults_min=0"
    assert done.returncode == 1
