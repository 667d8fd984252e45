"""Images of a sweep: seen where it is submitted, or only where its jobs are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.config import data_content
from dino_exp.config.stored import read_config
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.attempt import Outcome, attempt
from tests.data.stored import as_files, encoded
from tests.launchers.doubles import (
    ON_SLURM,
    SWEEP,
    Cluster,
    by_seed,
    dino,
    the_sweep,
)

STORED = (*ON_SLURM, "data=image_folder", "data.root=train", "data.val_root=null", "trainer.batch_size=8")


def stored(seed: int) -> RunDirectory:
    manifest = the_sweep()
    return manifest.directory(by_seed(manifest)[seed])


def job(directory: RunDirectory) -> Outcome:
    """Train a run as its job does, in a process that knows its directory alone."""
    data_content.forget()
    return attempt(read_config(directory), directory.path, None)


def test_runs_whose_images_are_only_where_the_job_is_are_named_by_the_path(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dino(*STORED, "trainer.seed=0,1") == 0
    assert capsys.readouterr().err == (
        "warning: data.root = train: no such folder or file. The runs are named by this path; each job "
        "records the images that it finds there.\n"
    )
    first = stored(0)
    assert read_config(first).data_content is None
    as_files(Path("train"), encoded(32), ["cat", "dog"])
    assert job(first).state == "finished"
    assert read_config(first).data_content is not None
    assert first.data_file.exists()
    # where the images are, and where they are not, the same command finds the same runs
    for root in ("train", "elsewhere"):
        capsys.readouterr()
        assert dino(*STORED, "trainer.seed=0,1") == 0
        said = capsys.readouterr().out
        assert "submitted 0 runs" in said
        assert "Skipped: 1 finished." in said
        assert "Skipped: 1 pending." in said
        if root == "train":
            Path("train").rename("elsewhere")
    assert len(the_sweep().runs) == 2


def test_a_job_refuses_other_images_than_those_of_its_submission(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(Path("train"), encoded(32), ["cat", "dog"])
    assert dino(*STORED, "trainer.seed=0,1") == 0
    assert read_config(stored(0)).data_content is not None
    Path("train/cat/000000.jpg").unlink()
    refused = job(stored(0))
    assert (refused.state, refused.exit_code) == ("failed", 2)
    assert "the images have changed since this run was submitted" in refused.message
    as_files(Path("train"), encoded(32), ["cat", "dog"])
    assert job(stored(0)).state == "finished"


def test_a_sweep_over_changed_images_is_not_begun_beside_its_unfinished_runs(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(Path("train"), encoded(32), ["cat", "dog"])
    assert dino(*STORED, "trainer.seed=0,1") == 0
    assert job(stored(1)).state == "finished"
    run = stored(1)
    run.mark(state="preempted")
    run.summary_file.unlink()
    Path("train/cat/000000.jpg").unlink()
    before = sorted(SWEEP.iterdir())
    capsys.readouterr()
    assert dino(*STORED, "trainer.seed=0,1") == 2
    assert (
        f"{run.path}: the images have changed since this run began: 1 image removed"
        in capsys.readouterr().err
    )
    assert sorted(SWEEP.iterdir()) == before
    assert dino(*STORED, "trainer.seed=0,1", "resume=never") == 0
    assert len(the_sweep().runs) == 4
