"""SLURM: the scripts that it gets, the commands that are called, and how their output is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dino_exp.config.launcher_settings import minutes, with_changes
from dino_exp.errors import UserError
from launchers import slurm
from launchers.children import ROOT
from tests.launchers.doubles import HERE, SWEEP, Cluster, submit

SCRIPTS = {
    "defaults": [],
    "two_nodes": [
        "nodes=2",
        "gpus_per_node=2",
        "cpus_per_task=4",
        "partition=long",
        "account=vision",
        "qos=high",
        "constraint=a100|h100",
        "memory_gb=64.5",
        "time_limit=2-12:00:00",
        "setup=[module load cuda,ulimit -n 65536]",
        "sbatch={exclude: node7, mail_type: FAIL, exclusive: true}",
        "python=apptainer exec --nv /images/dino.sif python",
    ],
    "shared_gpu": ["runs_per_gpu=4", "array_parallelism=2", "grace_seconds=300", "time_limit=90"],
}
"""Changed settings by the name of the golden file; each for nine runs."""


def without_paths(script: str, python: str) -> str:
    """Return the script with the paths of this machine replaced by names."""
    folder = str(slurm.job_folder(SWEEP))
    return script.replace(folder, "@FOLDER@").replace(str(ROOT), "@ROOT@").replace(python, "@PYTHON@")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_sbatch_script_is_golden_and_the_dry_run_shows_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sys.executable", "/here/python")
    submit(range(9), *SCRIPTS[name])
    got = without_paths(cluster.script("100"), "/here/python")
    assert got == (HERE / "golden" / f"{name}.sh").read_text()
    settings = OmegaConf.create(with_changes("slurm", {}, SCRIPTS[name]))
    jobs = len([job for job in cluster.read()["jobs"] if job.startswith("100")])
    preview = without_paths(slurm.script(settings, SWEEP, jobs), "/here/python")
    assert preview == got


def test_a_single_job_is_not_an_array(cluster: Cluster) -> None:
    submit([0], "gpus_per_node=0", "tasks_per_node=2")
    script = cluster.script("100")
    assert "--array" not in script
    assert "--gpus-per-node" not in script
    assert "#SBATCH --ntasks-per-node=2\n" in script
    assert re.search(r"^srun .*/jobs/%j_%t_log\.out --kill-on-bad-exit=1 ", script, re.MULTILINE)


def test_arrays_are_no_longer_than_max_array_size(cluster: Cluster) -> None:
    cluster.set(max_array_size=4)
    groups = [[str(number)] for number in range(9)]
    assert [len(array) for array in slurm.arrays_of(groups)] == [4, 4, 1]
    cluster.set(max_array_size=0)  # the site allows no arrays
    assert [len(array) for array in slurm.arrays_of(groups)] == [1] * 9
    cluster.without("scontrol")
    assert [len(array) for array in slurm.arrays_of(groups)] == [9]


def test_a_failing_squeue_is_not_an_empty_queue(cluster: Cluster) -> None:
    assert slurm.queue() == {}
    cluster.set(jobs={"5": "RUNNING", "6_2": "PENDING", "7": "COMPLETED"})
    assert slurm.queue() == {"5": "RUNNING", "6_2": "PENDING"}
    cluster.set(down=True)
    assert slurm.queue() is None
    cluster.without("squeue")
    assert slurm.queue() is None


def test_sacct_is_called_once_and_may_be_missing(cluster: Cluster) -> None:
    cluster.set(jobs={"5_0": "TIMEOUT", "5_1": "CANCELLED", "8": "NODE_FAIL"})
    assert slurm.accounting(["5_0", "5_1", "8"]) == {"5_0": "TIMEOUT", "5_1": "CANCELLED", "8": "NODE_FAIL"}
    assert [words[4] for words in cluster.calls("sacct")] == ["5,8"]
    assert slurm.accounting([]) == {}
    assert len(cluster.calls("sacct")) == 1
    cluster.set(down=True)
    assert slurm.accounting(["8"]) == {}
    cluster.without("sacct")
    assert slurm.accounting(["8"]) == {}


def test_a_failing_scancel_is_an_error(cluster: Cluster) -> None:
    slurm.cancel([])
    cluster.set(jobs={"5_0": "RUNNING", "5_1": "RUNNING", "6": "PENDING"})
    slurm.cancel(["5_1", "6"])
    assert cluster.read()["jobs"] == {"5_0": "RUNNING", "5_1": "CANCELLED", "6": "CANCELLED"}
    cluster.set(down=True)
    with pytest.raises(UserError, match="scancel 5_0: SLURM does not answer"):
        slurm.cancel(["5_0"])
    assert len(cluster.calls("scancel")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("1:30:00", 90),
        ("0:0:1", 1),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-00:00:59", 1441),
    ],
)
def test_slurm_durations_are_read_as_minutes(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0:00:00", "-5", "1h", "1:2:3:4", "1-", "1--2", "x-1", "1.5", "infinite"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"hydra\.launcher\.time_limit = .*: not a duration; write minutes"):
        minutes(text)


def test_a_large_number_of_minutes_is_refused_as_hours_misread_by_yaml(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"time_limit = 28800: minutes\? YAML reads 8:00:00 as 28800"):
        with_changes("slurm", {}, ["time_limit=28800"])
    assert with_changes("slurm", {}, ["time_limit=8:00:00"])["time_limit"] == "8:00:00"
    assert with_changes("slurm", {}, ["time_limit=1440"])["time_limit"] == "1440"


def test_changed_settings_are_checked_as_on_the_command_line(cluster: Cluster) -> None:
    old = {"partition": "short", "nodes": 2}
    new = with_changes("slurm", old, ["partition=long", "time_limit=4:00:00", "sbatch.exclude=n7"])
    assert (new["partition"], new["nodes"], new["time_limit"]) == ("long", 2, "4:00:00")
    assert new["sbatch"] == {"exclude": "n7"}
    assert with_changes("slurm", old, ["partition=null"])["partition"] is None
    for change, error in {
        "partitoin=long": "partitoin",
        "nodes=0": r"hydra\.launcher\.nodes = 0",
        "time_limit=soon": "not a duration",
        "setup=[export A_TOKEN=1]": "has KEY, TOKEN",
    }.items():
        with pytest.raises(UserError, match=error):
            with_changes("slurm", old, [change])


def test_a_job_has_the_absolute_path_of_its_pickle(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit([0])
    folder = re.search(r"_submit (\S+)$", cluster.script("100"), re.MULTILINE)
    assert folder
    monkeypatch.chdir(tmp_path)
    assert (Path(folder[1]) / "100_submitted.pkl").is_absolute()
    assert (Path(folder[1]) / "100_submitted.pkl").exists()
