"""A sweep from the command line: what is refused, shown, and waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launchers.doubles import (
    ON_SLURM,
    Cluster,
    dino,
    mark,
    submit,
)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ["hydra.launcher.time_limit=soon"],
            "hydra.launcher.time_limit = soon: not a duration; write minutes",
        ),
        (
            ["hydra.launcher.time_limit=1", "hydra.launcher.grace_seconds=60"],
            "grace_seconds = 60: must be shorter",
        ),
        (["hydra.launcher.partitoin=gpu"], "hydra.launcher.partitoin"),
        (["hydra.launcher.nodes=two"], "hydra.launcher.nodes"),
        (["hydra.launcher.nodes=0"], "hydra.launcher.nodes = 0"),
        (
            ["hydra.launcher.runs_per_gpu=2", "hydra.launcher.nodes=2"],
            "runs_per_gpu = 2: runs that share a GPU",
        ),
        (["hydra.launcher.setup=['export WANDB_API_KEY=hunter2']"], "hydra.launcher.setup: has KEY, TOKEN"),
        (["+hydra.launcher.sbatch={export: 'HF_TOKEN=hunter2'}"], "hydra.launcher.sbatch: has KEY, TOKEN"),
        (
            ["+hydra.launcher.sbatch.gpus_per_node=2"],
            "hydra.launcher.sbatch.gpus_per_node: the launcher sets this",
        ),
        (["trainer.seed=5,x"], "trainer.seed = x: must be a whole number"),
        (["loss.teacher_temp=-1"], "loss.teacher_temp = -1"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_created(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], argv: list[str], error: str
) -> None:
    assert dino(*ON_SLURM, "trainer.seed=0,1", *argv) == 2
    told = capsys.readouterr()
    assert error in told.err
    assert told.err.count("\n") == 1
    assert "hunter2" not in told.out + told.err
    assert list(here.iterdir()) == []
    assert cluster.calls("sbatch") == []


def test_a_launcher_needs_multirun(here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert dino(*ON_SLURM[1:]) == 2
    assert capsys.readouterr().err == "hydra/launcher = slurm: works with -m, also for one run; add -m.\n"
    assert list(here.iterdir()) == []


def test_the_slurm_launcher_needs_sbatch(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.without("sbatch")
    assert dino(*ON_SLURM, "trainer.seed=0,1") == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_an_output_root_that_cannot_be_written_is_refused(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    assert dino(*ON_SLURM, "trainer.seed=0,1", "output_root=file/outputs") == 2
    assert "file/outputs/debug_sweep_seed: a part of the path is a file; choose" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["file"]
    assert cluster.calls("sbatch") == []


def test_a_dry_run_shows_the_script_and_creates_nothing(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.without("sbatch", "squeue")  # a dry run also works away from the cluster
    settings = ["hydra.launcher.time_limit=0:30:00", "hydra.launcher.gpus_per_node=4"]
    assert dino(*ON_SLURM, "trainer.seed=0,1,2", "hydra.launcher.dry_run=true", *settings) == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --array=0-2%3\n" in shown
    assert "trainer.seed=1: to be submitted\n" in shown
    assert "3 of 3 runs would be submitted; nothing was." in shown
    assert "At most 6.0 GPU-hours per attempt: 3 jobs x 4 GPUs x 0.5 h" in shown
    assert list(here.iterdir()) == []


def test_runs_in_one_job_that_cannot_share_their_images_are_said(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dino(*ON_SLURM, "trainer.seed=0,1", "hydra.launcher.runs_per_gpu=2") == 0
    assert "\ntrainer.seed differs: these runs do not share images.\n" in capsys.readouterr().out
    assert dino(*ON_SLURM, "trainer.seed=2,3") == 0
    assert "share" not in capsys.readouterr().out


def test_waiting_ends_with_the_runs_and_shows_the_failed_one(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit([0, 1])
    mark(0, state="finished")
    mark(1, state="failed").write_traceback("Traceback\nValueError: a loss of NaN")
    cluster.set(jobs={"100_0": "COMPLETED", "100_1": "FAILED"})
    settings = ["hydra.launcher.detach=false", "hydra.launcher.max_retries=0"]
    assert dino(*ON_SLURM, "trainer.seed=0,1", *settings) == 1
    shown = capsys.readouterr().out
    assert "2 runs: 1 finished, 1 failed" in shown
    assert "ValueError: a loss of NaN" in shown
