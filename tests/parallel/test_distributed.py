"""`train.py` in two processes: the run of one process, and every way in which it can end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.parallel import distributed
from dino_exp.parallel.processes import RENDEZVOUS, Processes
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from dino_exp.training.trainer import Trainer
from tests.programs import ROOT, Program, in_two_processes, ranks, wait_for_all

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
# 20 steps, several epochs, and batch norm in the stem. With AdamW or batch norm in the head rounding errors
# would grow far more; the test in float64 has both.
RUN = [
    "experiment=debug",
    "data.train_size=64",
    "data.test_size=32",
    "trainer.batch_size=16",
    "trainer.epochs=5",
    "optimizer=sgd",
    "optimizer.warmup_epochs=1",
]


def cache(folder: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(folder / "cache")}


def pair(folder: Path, *words: str, script: str = "train.py") -> list[Program]:
    return ranks(script, *words, folder=folder, environment=cache(folder))


def only_run(folder: Path) -> RunDirectory:
    (path,) = (folder / "outputs" / "debug").iterdir()
    return RunDirectory(path)


def weights(directory: RunDirectory) -> dict[str, torch.Tensor]:
    state = checkpoint.load(directory.checkpoints / "last.pt")
    parts = {part: state[part] for part in ("student", "teacher", "loss")}
    tensors = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()}
    return {name: tensor for name, tensor in tensors.items() if "running_" not in name}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("one")
    program = Program("train.py", *RUN, folder=folder, environment=cache(folder))
    assert program.wait() == 0, program.output
    return only_run(folder)


@pytest.fixture(scope="module")
def rounded_otherwise(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Train the same run with every weight moved to a neighboring number before each step.

    The difference shows how far rounding errors grow; sums in another order may cause as much.
    """
    folder = tmp_path_factory.mktemp("rounded")
    step = Trainer.train_step

    def nudged(self: Trainer, views: list[torch.Tensor], observe: bool = False) -> object:
        generator = torch.Generator().manual_seed(self.step)
        with torch.no_grad():
            for parameter in self.student.parameters():
                up = torch.rand(parameter.shape, generator=generator) < 0.5
                toward = torch.where(up, torch.inf, -torch.inf)
                parameter.copy_(torch.nextafter(parameter, toward))
        return step(self, views, observe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(Trainer, "train_step", nudged)
        train(compose(RUN), folder / "run")
    return RunDirectory(folder / "run")


def difference(
    values: Callable[[RunDirectory], torch.Tensor], one: RunDirectory, other: RunDirectory
) -> float:
    return float((values(one) - values(other)).abs().max())


def losses(directory: RunDirectory) -> torch.Tensor:
    lines = read_metrics(directory.metrics_file)
    return torch.tensor([line["loss"] for line in lines if line["step"]], dtype=torch.float64)


def all_weights(directory: RunDirectory) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in weights(directory).values()])


def assert_same_but_for_rounding(
    found: RunDirectory, expected: RunDirectory, rounded_otherwise: RunDirectory
) -> None:
    """Compare two runs, and allow ten times the difference that rounding causes."""
    for values in (losses, all_weights):
        assert difference(values, found, expected) < 10 * difference(values, rounded_otherwise, expected)


def test_two_processes_make_the_run_of_one(
    tmp_path: Path, one_process: RunDirectory, rounded_otherwise: RunDirectory
) -> None:
    first, second = processes = pair(tmp_path, *RUN)
    assert wait_for_all(processes) == [0, 0], first.output + second.output
    assert "16 images = 2 processes x 8" in first.stdout
    assert first.stdout.count("step 20/20") == first.stdout.count("\nverdict ") == 1
    assert second.output == ""
    directory = only_run(tmp_path)
    assert directory.path.name == one_process.path.name
    lines = [read_metrics(run.metrics_file) for run in (one_process, directory)]
    assert [line["step"] for line in lines[1]] == list(range(21))
    machine = {"images_per_second", "data_wait_share", "peak_memory_mib"}
    for expected, line in zip(*lines, strict=True):
        assert line.keys() == expected.keys()
        for name in line.keys() - machine:
            value = expected[name]
            assert line[name] == (value if isinstance(value, str) else pytest.approx(value, 1e-3, 1e-3)), name
    assert_same_but_for_rounding(directory, one_process, rounded_otherwise)
    assert directory.read_summary()["environment"]["processes"] == 2


def test_a_signal_to_one_process_stops_both_and_one_process_can_resume(
    tmp_path: Path, one_process: RunDirectory, rounded_otherwise: RunDirectory
) -> None:
    met = cache(tmp_path) | {RENDEZVOUS: str(tmp_path / "rendezvous")}  # as our launchers start them
    processes = ranks("train.py", *RUN, folder=tmp_path, environment=met)
    processes[0].until_it_says("step 4/20")
    processes[1].signal(signal.SIGTERM)
    assert wait_for_all(processes) == [143, 143], processes[0].output
    directory = only_run(tmp_path)
    status = directory.read_status()
    assert status["state"] == "preempted"
    assert 4 <= checkpoint.load(directory.checkpoints / "last.pt")["step"] == status["step"] < 20
    alone = Program("train.py", *RUN, folder=tmp_path, environment=cache(tmp_path))
    assert alone.wait() == 0
    assert f"Resuming from step {status['step']}" in alone.stdout
    assert directory.read_status()["state"] == "finished"
    assert_same_but_for_rounding(directory, one_process, rounded_otherwise)


STOPPING = """
import os, signal, sys

from dino_exp.cli import main
from dino_exp.eval import neighbors
from dino_exp.parallel import distributed

predict, calls = neighbors.predict, []


def stopping(*args, **kwargs):
    calls.append(1)
    if distributed.rank() == {rank} and len(calls) == 3:  # of the student at step 20
        os.kill(os.getpid(), signal.SIGTERM)
    return predict(*args, **kwargs)


neighbors.predict = stopping
sys.exit(main())
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_ends_an_evaluation_in_both(
    tmp_path: Path, rank: int, one_process: RunDirectory, rounded_otherwise: RunDirectory
) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING.format(rank=rank))
    words = [*RUN, "eval.every_epochs=100"]
    processes = pair(tmp_path, *words, script=str(tmp_path / "stopping.py"))
    assert wait_for_all(processes) == [143, 143], processes[0].output
    directory = only_run(tmp_path)
    assert (directory.read_status()["state"], directory.read_status()["step"]) == ("preempted", 20)
    assert [line["step"] for line in read_metrics(directory.metrics_file)] == list(range(20))
    alone = Program("train.py", *words, folder=tmp_path, environment=cache(tmp_path))
    assert alone.wait() == 0, alone.output
    assert [line["step"] for line in read_metrics(directory.metrics_file)] == list(range(21))
    assert directory.read_summary()["knn_top1"] is not None
    assert_same_but_for_rounding(directory, one_process, rounded_otherwise)


@pytest.mark.spawn
def test_torchrun_starts_a_run_and_reports_its_exit_code(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, str(ROOT / "train.py"), *RUN, "trainer.epochs=50"],
        cwd=tmp_path,
        env=os.environ | cache(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert any("step 8/200" in line for line in process.stdout)
    os.kill(process_of_rank(process, rank=1), signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode != 0
    assert output.count("exitcode  : 143") >= 1, output
    status = only_run(tmp_path).read_status()
    assert (status["state"], status["attempts"][0]["processes"]) == ("preempted", 2)


def process_of_rank(torchrun: subprocess.Popen[str], rank: int) -> int:
    """Return the id of a process that torchrun has started."""
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process with RANK={rank}")


FAILING = """
import sys

from dino_exp.parallel import distributed
from dino_exp.cli import main
from dino_exp.training.trainer import Trainer

train_step = Trainer.train_step


def failing(self, views, observe=False):
    if distributed.rank() == 1 and self.step == 3:
        raise RuntimeError("the GPU has fallen off the bus")
    return train_step(self, views, observe)


Trainer.train_step = failing
sys.exit(main())
"""


def test_an_error_in_one_process_ends_both_and_is_written_to_the_traceback_file(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    processes = pair(tmp_path, *RUN, script=str(tmp_path / "failing.py"))
    assert 0 not in wait_for_all(processes)
    directory = only_run(tmp_path)
    traceback = directory.traceback_file.read_text()
    assert traceback.startswith(f"process 1 of 2 on {os.uname().nodename}:\nTraceback")
    assert traceback.endswith("RuntimeError: the GPU has fallen off the bus\n"), processes[0].output
    assert directory.read_status()["state"] == "failed"


def test_when_one_process_is_killed_the_other_fails(tmp_path: Path) -> None:
    processes = pair(tmp_path, *RUN, "trainer.epochs=50")
    processes[0].until_it_says("step 8/200")
    processes[1].kill()
    assert 0 not in wait_for_all(processes)
    directory = only_run(tmp_path)
    assert directory.read_status()["state"] == "failed"
    step = checkpoint.load(directory.checkpoints / "last.pt")["step"]
    assert step in range(5, 200, 5) or step in range(4, 200, 4)  # the latter before an evaluation


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.epochs=0", "trainer.epochs = 0: must be at least 1"),
        ("trainer.batch_size=15", "trainer.batch_size = 15: not a multiple of 2 processes times"),
    ],
)
def test_an_error_is_printed_once_and_nothing_is_created(tmp_path: Path, word: str, message: str) -> None:
    first, second = processes = pair(tmp_path, *RUN, word)
    assert wait_for_all(processes) == [2, 2]
    assert first.stderr.startswith(message)
    assert first.stderr.count("\n") == 1
    assert second.output == ""
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_trains_its_runs_in_turn_and_continues_after_a_refused_one(tmp_path: Path) -> None:
    swept = "trainer.max_steps=1,2", "trainer.batch_size=15,16"
    first, second = processes = pair(tmp_path, *RUN, "-m", *swept)
    assert 0 not in wait_for_all(processes)
    assert first.stderr.count("trainer.batch_size = 15: not a multiple of 2 processes") == 2, first.output
    assert second.output == ""
    runs = [RunDirectory(path) for path in (tmp_path / "outputs").glob("*/vit_micro_*")]
    assert sorted(run.read_summary()["steps"] for run in runs) == [1, 2]
    assert all(run.read_status()["state"] == "finished" for run in runs)


VALUES = [None, 3, 0.1, float("inf"), "ä \udcff", [], [[1, 2]], {"a": {"b": [True]}}, "x" * 100_000]


def exchange(rank: int) -> None:
    for value in VALUES:
        assert distributed.from_all([rank, value]) == [[0, value], [1, value]]
        assert distributed.from_main([rank, value]) == [0, value]
    assert distributed.from_all("x" * rank) == ["", "x"]
    assert torch.equal(distributed.gathered(torch.full((rank, 2), 7.0)), torch.full((1, 2), 7.0))
    with pytest.raises(TypeError):
        distributed.from_all(Path("not JSON"))


def test_values_arrive_as_they_were_sent() -> None:
    in_two_processes(exchange)


@pytest.mark.parametrize("local_count", [1, 2])
def test_processes_meet_at_one_address_alone(
    tmp_path: Path, local_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    if local_count == 2:  # on one machine
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    file = tmp_path / "rendezvous"
    store = distributed.meet(file, Processes(0, 2, 0, local_count))
    host, port = file.read_text().split(":")
    assert host == "127.0.0.1"
    other = distributed.meet(file, Processes(1, 2, 1, local_count))
    other.set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)))


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_shares_are_contiguous_and_differ_by_one_item_at_most(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "count", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share_of(range(10)))
    assert [index for share in shares for index in share] == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


STEPS = {
    "batch norm in stem and head, AdamW": ["head.use_bn=true"],
    "micro batches": ["backbone.stem=patch", "trainer.accumulate=2", "loss.center_init=first_batch"],
    "sinkhorn": ["loss.centering=sinkhorn"],
    "channels last": ["backbone=resnet18_cifar", "crops.global_size=16", "crops.local_size=8"],
    "parameters without gradient": [],
    "compiled": ["trainer.compile=true", "trainer.checkpoint_blocks=true", "head.use_bn=true"],
}


def steps(folder: str, case: str) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Make two steps on this process's share of the same noise; return diagnostics, and the weights after."""
    cfg = compose(["experiment=debug", f"data.root={folder}", "trainer.batch_size=8", *STEPS[case]])
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):  # without C++
        trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
    networks = (trainer.student, trainer.teacher)
    if case == "parameters without gradient":
        for network in networks:
            network.backbone.unused = torch.nn.Linear(3, 3)
    for module in (*networks, trainer.dino_loss):
        module.double()
    torch.compiler.reset()  # drops the programs for float32
    trainer.join()
    own = list(distributed.share_of(range(8)))
    observed = []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        views = [
            torch.randn(number, 8, 3, size, size, generator=generator, dtype=torch.float64)
            for number, size in ((2, cfg.crops.global_size), (cfg.crops.local_number, cfg.crops.local_size))
        ]
        local = [view[:, own].flatten(0, 1) for view in views]
        observed.append(trainer.train_step(local, observe=True)[1])
    return observed, [module.state_dict() for module in (*networks, trainer.dino_loss)]


def steps_of_a_process(rank: int, folder: str) -> None:
    torch.save({case: steps(folder, case) for case in STEPS}, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo hides it, which is too late for an error
def test_steps_in_float64_equal_those_of_one_process(tmp_path: Path) -> None:
    one_process = {case: steps(str(tmp_path), case) for case in STEPS}
    in_two_processes(steps_of_a_process, str(tmp_path))
    for rank in range(2):
        parts = torch.load(tmp_path / f"{rank}.pt")
        for case, (observed, weights) in one_process.items():
            # effective ranks and entropies are computed in float32
            torch.testing.assert_close(parts[case][0], observed, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(parts[case][1], weights, rtol=0, atol=1e-10)
