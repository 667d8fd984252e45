"""Processes from the environment of a launcher, and their cores, threads and GPUs."""

import os

import pytest
import torch

from dino_exp import machine
from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def test_one_process_unless_a_launcher_says_otherwise() -> None:
    assert (
        Processes.from_environment({})
        == Processes.from_environment({"MASTER_ADDR": "node1", "SLURM_PROCID": "3"})
        == Processes()
    )
    assert Processes.from_environment(TORCHRUN) == Processes(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MASTER_PORT": None, "LOCAL_RANK": ""},
            "has RANK, WORLD_SIZE, MASTER_ADDR but not LOCAL_RANK, MAS",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"RANK": "8"}, "RANK=8, WORLD_SIZE=8"),
    ],
)
def test_an_incomplete_or_contradictory_environment_is_refused(
    changes: dict[str, str | None], message: str
) -> None:
    environment = {name: text for name, text in (TORCHRUN | changes).items() if text is not None}
    with pytest.raises(UserError, match=message):
        Processes.from_environment(environment)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*TORCHRUN, "SLURM_CPUS_PER_TASK", "SLURM_STEP_TASKS_PER_NODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32))
    return monkeypatch


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)


def test_cores_are_shared_among_the_processes_of_a_machine(environment: pytest.MonkeyPatch) -> None:
    assert machine.cores() == 32
    set_all(environment, **TORCHRUN, OMP_NUM_THREADS="1")  # as torchrun does
    assert machine.cores() == 8
    assert machine.choose_workers(None, torch.device("cuda")) == 7
    set_all(environment, SLURM_CPUS_PER_TASK="16")
    assert machine.cores() == 4
    set_all(environment, SLURM_STEP_TASKS_PER_NODE="4(x2)")  # one task per process, with its own cores
    assert machine.cores() == 16


def test_threads_follow_omp_num_threads_and_leave_cores_to_the_loader(
    environment: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    environment.setattr(torch, "set_num_threads", asked.append)
    machine.use_threads(torch.device("cpu"), workers=2)
    machine.use_threads(torch.device("cuda"), workers=2)
    set_all(environment, OMP_NUM_THREADS="3")
    machine.use_threads(torch.device("cpu"), workers=2)
    assert asked == [30, 8, 3]


def test_each_process_uses_its_own_gpu_and_a_missing_one_is_an_error(environment: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    environment.setattr(torch.cuda, "set_device", taken.append)
    set_all(environment, **TORCHRUN)
    assert machine.choose_device("auto") == torch.device("cuda:1") == taken[0]
    assert machine.choose_device("cpu") == torch.device("cpu")
    set_all(environment, LOCAL_RANK="2")
    with pytest.raises(UserError, match="LOCAL_RANK=2 on a machine with 2 GPUs"):
        machine.choose_device("cuda")
    environment.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"trainer\.device = mps: works in one process only"):
        machine.choose_device("mps")
