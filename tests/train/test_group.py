"""How a group of processes says that it goes on."""

from __future__ import annotations

import pytest
import torch

from train.group import command, gathered, highest, of_the_first, speaks_for_its_machine

ALONE = {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
SECOND_OF_TWO = {
    **ALONE,
    **{"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1"},
    **{"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29400"},
}
ARGUMENTS = ["--events", "a log.csv", "--resume"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "python -m train"),
        (ALONE, "torchrun --nproc-per-node 4 -m train"),
        (
            SECOND_OF_TWO,
            "torchrun --nnodes 2 --node-rank 1 --master-addr 10.0.0.7 --master-port 29400 --nproc-per-node 4 "
            "-m train",
        ),
    ],
)
def test_the_command_starts_what_was_started(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECOND_OF_TWO:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command("train", ARGUMENTS) == f"{expected} --events 'a log.csv' --resume"
    assert speaks_for_its_machine() == (environment != ALONE)


def test_one_process_agrees_with_itself() -> None:
    assert highest([3, 0], torch.device("cpu")) == [3, 0]
    assert gathered("a") == ["a"]
    assert of_the_first(lambda: 7) == 7
