"""Two processes through the front door, started by torchrun: the same run as one, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dino_exp import checkpoint, distributed
from dino_exp.config.compose import compose
from dino_exp.config.register import CONF
from dino_exp.config.targets import build
from dino_exp.run_directory import RunDirectory, read_metrics
from dino_exp.trainer import Trainer

TRAIN = CONF.parent / "train.py"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
# 20 steps, several epochs, and batch norm in the stem. AdamW would make far more of a rounding error than SGD
# does, and batch norm in the head still more; the test in float64 has them.
RUN = [
    "experiment=debug",
    "trainer.batch_size=64",
    "trainer.epochs=5",
    "optimizer=sgd",
    "optimizer.warmup_epochs=1",
]


def start(folder: Path, *words: str, processes: int = 2, script: Path = TRAIN) -> subprocess.Popen:
    launcher = TORCHRUN if processes == 2 else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *words],
        cwd=folder,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(CONF.parent),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def only_run(folder: Path) -> RunDirectory:
    (path,) = (folder / "outputs" / "debug").iterdir()
    return RunDirectory(path)


def read_until(process: subprocess.Popen, text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"{text!r} was never printed"


def worker(of: subprocess.Popen, rank: int) -> int:
    """The id of a process that torchrun has started."""
    for child in Path(f"/proc/{of.pid}/task/{of.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process with RANK={rank}")


def weights(directory: RunDirectory) -> dict[str, torch.Tensor]:
    state = checkpoint.load(directory.checkpoints / "last.pt")
    parts = {part: state[part] for part in ("student", "teacher", "loss")}
    tensors = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()}
    return {name: tensor for name, tensor in tensors.items() if "running_" not in name}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("one")
    process = start(folder, *RUN, processes=1)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return only_run(folder)


def test_two_processes_make_the_run_of_one(tmp_path: Path, one_process: RunDirectory) -> None:
    process = start(tmp_path, *RUN)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "64 pictures = 2 processes x 32" in output
    assert output.count("step 20/20") == output.count("\nverdict ") == 1
    directory = only_run(tmp_path)
    assert directory.path.name == one_process.path.name
    lines = [read_metrics(run.metrics_file) for run in (one_process, directory)]
    assert [line["step"] for line in lines[1]] == list(range(21))
    machine = {"images_per_second", "data_wait_share", "peak_memory_mib"}
    for expected, line in zip(*lines, strict=True):
        assert line.keys() == expected.keys()
        for name in line.keys() - machine:
            tolerance = 1e-5 if name == "loss" else 1e-4
            value = expected[name]
            close = value if isinstance(value, str) else pytest.approx(value, rel=tolerance, abs=tolerance)
            assert line[name] == close, name
    torch.testing.assert_close(weights(directory), weights(one_process), rtol=1e-5, atol=1e-5)
    summary = directory.read_summary()
    assert summary["knn_top1"] == one_process.read_summary()["knn_top1"]
    assert summary["environment"]["processes"] == 2
    assert {path.name for path in directory.plots.iterdir()} == {"crops.png", "curves.png", "attention.png"}


def test_a_signal_to_one_process_stops_both_and_one_can_go_on(
    tmp_path: Path, one_process: RunDirectory
) -> None:
    process = start(tmp_path, *RUN)
    read_until(process, "step 4/20")
    os.kill(worker(process, rank=1), signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    directory = only_run(tmp_path)
    status = directory.read_status()
    assert status["state"] == "preempted", output
    assert process.returncode != 0
    assert output.count("exitcode  : 143") >= 1, output
    assert 4 <= checkpoint.load(directory.checkpoints / "last.pt")["step"] == status["step"] < 20
    alone = start(tmp_path, *RUN, processes=1)
    assert f"Going on from step {status['step']}" in alone.communicate()[0]
    assert directory.read_status()["state"] == "finished"
    torch.testing.assert_close(weights(directory), weights(one_process), rtol=1e-5, atol=1e-5)


FAILING = """
import sys

from dino_exp import distributed
from dino_exp.cli import main
from dino_exp.trainer import Trainer

train_step = Trainer.train_step


def failing(self, views, observe=False):
    if distributed.rank() == 1 and self.step == 3:
        raise RuntimeError("the GPU has fallen off the bus")
    return train_step(self, views, observe)


Trainer.train_step = failing
sys.exit(main())
"""


def test_an_error_in_one_process_ends_both_and_is_the_one_that_is_kept(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    process = start(tmp_path, *RUN, script=tmp_path / "failing.py")
    began = time.monotonic()
    output = process.communicate(timeout=120)[0]
    assert time.monotonic() - began < 90
    assert process.returncode != 0
    directory = only_run(tmp_path)
    kept = directory.traceback_file.read_text()
    assert kept.startswith(f"process 1 of 2 on {os.uname().nodename}:\nTraceback")
    assert kept.endswith("RuntimeError: the GPU has fallen off the bus\n"), output
    assert directory.read_status()["state"] == "failed"


def test_a_killed_process_takes_the_other_along(tmp_path: Path) -> None:
    process = start(tmp_path, *RUN, "trainer.epochs=50")
    read_until(process, "step 8/200")
    os.kill(worker(process, rank=1), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    directory = only_run(tmp_path)
    assert directory.read_status()["state"] == "failed"
    assert checkpoint.load(directory.checkpoints / "last.pt")["step"] in range(5, 200, 5)


def test_what_is_wrong_is_said_once_and_nothing_is_created(tmp_path: Path) -> None:
    for word, said in (
        ("trainer.epochs=0", "trainer.epochs = 0: must be at least 1"),
        ("trainer.batch_size=63", "trainer.batch_size = 63: not a multiple of 2 processes times"),
    ):
        process = start(tmp_path, *RUN, word)
        output = process.communicate(timeout=60)[0]
        assert output.count(said) == 1, output
        assert output.count("exitcode  : 2 ") == 2, output
        assert 'Traceback (most recent call last):\n  File "' + str(TRAIN) not in output
        assert not (tmp_path / "outputs").exists()


def test_a_sweep_makes_its_runs_one_after_the_other_and_a_refused_one_does_not_end_it(tmp_path: Path) -> None:
    swept = "trainer.max_steps=1,2", "trainer.batch_size=63,64"
    process = start(tmp_path, *RUN, "-m", *swept)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert output.count("trainer.batch_size = 63: not a multiple of 2 processes") == 2, output
    runs = [RunDirectory(path) for path in (tmp_path / "outputs").glob("*/vit_micro_*")]
    assert sorted(run.read_summary()["steps"] for run in runs) == [1, 2]
    assert all(run.read_status()["state"] == "finished" for run in runs)


STEPS = {
    "batch norm in stem and head, AdamW": ["head.use_bn=true"],
    "in parts": ["backbone.stem=patch", "trainer.accumulate=2", "loss.center_init=first_batch"],
    "sinkhorn": ["loss.centering=sinkhorn"],
    "channels last": ["backbone=resnet18_cifar"],
    "parameters without gradient": [],
}


def steps(folder: str, case: str) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """What two steps on this process's part of the same noise report, and the weights after them."""
    cfg = compose(["experiment=debug", f"data.root={folder}", "trainer.batch_size=16", *STEPS[case]])
    trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
    networks = (trainer.student, trainer.teacher)
    if case == "parameters without gradient":
        for network in networks:
            network.backbone.unused = torch.nn.Linear(3, 3)
    for module in (*networks, trainer.dino_loss):
        module.double()
    trainer.join()
    size = 16 // distributed.count()
    here = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    observed = []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        views = [
            torch.randn(number, 16, 3, size, size, generator=generator, dtype=torch.float64)
            for number, size in ((2, cfg.crops.global_size), (cfg.crops.local_number, cfg.crops.local_size))
        ]
        local = [view[:, here].flatten(0, 1) for view in views]
        observed.append(trainer.train_step(local, observe=True)[1])
    return observed, [module.state_dict() for module in (*networks, trainer.dino_loss)]


def steps_of_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({case: steps(folder, case) for case in STEPS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_steps_in_float64_are_those_of_one_process_to_the_last_digits(tmp_path: Path) -> None:
    whole = {case: steps(str(tmp_path), case) for case in STEPS}
    torch.multiprocessing.spawn(steps_of_a_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        parts = torch.load(tmp_path / f"{rank}.pt")
        for case, (observed, weights) in whole.items():
            # ranks and entropies are of float32
            torch.testing.assert_close(parts[case][0], observed, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(parts[case][1], weights, rtol=0, atol=1e-10)
