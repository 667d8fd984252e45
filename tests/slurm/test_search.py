"""Searches on a real SLURM cluster: killed and gone on with, and pruned runs whose jobs end."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory
from launchers.__main__ import main as launchers
from launchers.boundary.boundary_file import read_boundaries
from launchers.boundary.boundary_search import trains
from tests.launchers.searches import trials
from tests.programs import Program, run_program, until
from tests.slurm.test_cluster import SLURM, a_cluster, cache, sacct, steps, wait

__all__ = ["a_cluster"]  # a fixture
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
SEARCH = ["hydra/sweeper=optuna", "loss.teacher_temp=interval(0.02,0.06)", "hydra.sweeper.n_jobs=2"]
SMALL = ["experiment=debug", "trainer.batch_size=8", "crops.local_number=1"]
ASHA = ["hydra.sweeper.pruner=asha", "hydra.sweeper.objective=loss", "hydra.sweeper.n_trials=2"]
ASHA += ["hydra.sweeper.sampler=random", "hydra.sweeper.seed=10"]
WORDS = ["train.py", "-m", *SEARCH, *SMALL, *SLURM, "name=search"]


BOUNDARY = ["train.py", "-m", "hydra/sweeper=boundary", *SLURM, "name=boundary", "experiment=debug"]
BOUNDARY += ["loss.teacher_temp=interval(0.02,0.5)", "loss.center_momentum=interval(0,0.9)", "eval.k=null"]
BOUNDARY += ["trainer.batch_size=8", "trainer.epochs=4", "crops.local_number=0"]
BOUNDARY += ["hydra.sweeper.n_runs=4", "hydra.sweeper.n_jobs=2"]


def killed_in_the_middle(command: list[str], folder: Path) -> list[str]:
    """Kill a search while runs are being trained, and return these; their jobs continue."""
    root = folder.parents[1]
    search = Program(*command, folder=root, environment=cache(root))

    def in_the_middle() -> list[str]:
        names = Manifest.load(folder).runs if Manifest.path(folder).exists() else {}
        return [name for name in names if len(steps(RunDirectory(folder / name))) > 4]

    until(lambda: in_the_middle() or search.returncode is not None, "a run is in the middle")
    begun = in_the_middle()
    assert begun, search.output
    search.kill()
    return begun


def assert_one_job_each(folder: Path) -> None:
    """Assert that no run was submitted or started twice."""
    for name, entry in Manifest.load(folder).runs.items():
        assert (len(entry.jobs), len(RunDirectory(folder / name).read_status()["attempts"])) == (1, 1)


def test_a_search_is_killed_and_gone_on_with(tmp_path: Path) -> None:
    command = [*WORDS, "trainer.epochs=2", "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=median"]
    folder = tmp_path / "outputs" / "search"
    begun = killed_in_the_middle(command, folder)
    again = run_program(*command, folder=tmp_path, environment=cache(tmp_path))
    assert again.returncode == 0, again.output
    complete = [trial for trial in trials(folder) if trial.state == TrialState.COMPLETE]
    names = [trial.user_attrs["run"] for trial in complete]
    assert len(names) == len(set(names)) == 3
    assert set(begun) <= set(names)
    assert [list(trial.intermediate_values) for trial in complete] == [[1]] * 3
    for name in names:
        assert steps(RunDirectory(folder / name)) == [0, *range(1, 65)]
    assert_one_job_each(folder)


def test_a_search_for_a_boundary_is_killed_and_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "boundary"
    begun = killed_in_the_middle(BOUNDARY, folder)
    again = run_program(*BOUNDARY, folder=tmp_path, environment=cache(tmp_path))
    (boundary,) = read_boundaries(folder, []).values()
    assert again.returncode == (0 if boundary.lines else 1), again.output
    assert [(tried.batch, tried.problem) for tried in boundary.runs] == [(0, ""), (0, ""), (1, ""), (1, "")]
    names = [tried.run for tried in boundary.runs]
    assert sorted(names) == sorted(Manifest.load(folder).runs)
    assert set(begun) <= set(names[:2])
    for tried in boundary.runs:
        assert tried.verdict == RunDirectory(folder / tried.run).read_summary()["verdict"]
        assert tried.trains is trains(tried.verdict) is not None
    assert_one_job_each(folder)


def test_the_job_of_a_pruned_run_ends_and_stays_away(tmp_path: Path) -> None:
    """The second trial hardly learns, so its loss is above the first one's from the first tenth on."""
    command = ["train.py", "-m", "hydra/sweeper=optuna", "experiment=debug", *SLURM, "name=search"]
    command += ["optimizer.lr=0.008,1e-9", "optimizer.min_lr=0", "trainer.epochs=20", *ASHA]
    folder = tmp_path / "outputs" / "search"
    search = Program(*command, folder=tmp_path, environment=cache(tmp_path))

    def pruned() -> list[str]:
        runs = Manifest.load(folder).runs if Manifest.path(folder).exists() else {}
        return [name for name, entry in runs.items() if entry.pruned]

    until(lambda: pruned() or search.returncode is not None, "a run is pruned")
    (name, *_) = pruned()
    run = RunDirectory(folder / name)
    until(lambda: run.read_status()["state"] == "cancelled", "its job has seen it stop")  # it says preempted
    assert (run.checkpoints / "last.pt").exists()
    search.kill()
    job = Manifest.load(folder).runs[name].job
    assert job
    assert sacct(job) in (["CANCELLED"], ["FAILED"])
    launchers(["cancel", str(folder)])
    assert "1 pruned" in wait(folder) or len(pruned()) > 1
