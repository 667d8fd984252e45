"""Submission of a sweep, and of the same sweep again after some of its runs have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dino_exp.config.compose import check, compose
from dino_exp.config.launcher_settings import with_changes
from dino_exp.errors import UserError
from dino_exp.runs.manifest import Manifest
from launchers import submission
from tests.launchers.doubles import (
    ON_SLURM,
    SWEEP,
    Cluster,
    by_seed,
    dino,
    directory,
    jobs,
    mark,
    resume,
    submit,
    the_sweep,
    trained_by,
)


def test_a_sweep_is_recorded_and_each_job_has_its_run(cluster: Cluster) -> None:
    assert dino(*ON_SLURM, "trainer.seed=0,1,2") == 0
    manifest = the_sweep()
    assert jobs() == {0: ["100_0"], 1: ["100_1"], 2: ["100_2"]}
    for seed, name in by_seed(manifest).items():
        entry, directory = manifest.runs[name], manifest.directory(name)
        assert (entry.job, entry.overrides) == (f"100_{seed}", [f"trainer.seed={seed}"])
        assert trained_by(manifest, f"100_{seed}") == [name]
        cfg = OmegaConf.load(directory.config_file)
        assert cfg == compose(["experiment=debug", f"trainer.seed={seed}"])
        assert directory.read_status()["state"] == "pending"
    assert len({entry.config_hash for entry in manifest.runs.values()}) == 3
    assert all(len(entry.config_hash) == 64 for entry in manifest.runs.values())


def test_the_same_sweep_again_submits_nothing(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    dino(*ON_SLURM, "trainer.seed=0,1")
    before = the_sweep()
    capsys.readouterr()
    assert dino(*ON_SLURM, "trainer.seed=0,1") == 0
    assert len(cluster.calls("sbatch")) == 1
    assert the_sweep() == before
    told = ["outputs/debug_sweep_seed: submitted 0 runs.", "Skipped: 2 pending."]
    assert capsys.readouterr().out.splitlines()[:2] == told


def test_a_larger_sweep_submits_only_the_missing_runs(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(range(8))
    mark(0, state="finished")
    failed = mark(1, state="failed", tracker_id="kept")
    failed.write_traceback("ValueError: of the first attempt")
    mark(2, state="preempted")  # and the job is gone: requeued too often
    mark(3, state="preempted")  # and the job waits in the queue
    mark(4, state="running")
    mark(5, state="running")  # and the job is gone: lost
    mark(6, state="collapsed")
    ended = dict.fromkeys(("100_0", "100_6"), "COMPLETED") | dict.fromkeys(("100_1", "100_2"), "FAILED")
    cluster.move({**ended, "100_4": "RUNNING", "100_5": "NODE_FAIL"})
    capsys.readouterr()
    assert dino(*ON_SLURM, "trainer.seed=0,1,2,3,4,5,6,7,8,9", "trainer.on_collapse=stop") == 0

    manifest = the_sweep()
    names = by_seed(manifest)
    again = {seed: own[-1] for seed, own in jobs().items() if own[-1].startswith("101")}
    assert again == {1: "101_0", 2: "101_1", 5: "101_2", 8: "101_3", 9: "101_4"}
    for seed, job in again.items():
        assert trained_by(manifest, job) == [names[seed]]
    assert jobs()[5] == ["100_5", "101_2"]
    assert [seed for seed, name in names.items() if manifest.runs[name].retries] == [1]
    assert manifest.runs[names[1]].retries == 1
    status = failed.read_status()
    assert (status["state"], status["tracker_id"]) == ("pending", "kept")
    assert not failed.traceback_file.exists()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "outputs/debug_sweep_seed: submitted 5 runs as job 101."
    skipped = ("collapsed", "finished", "pending", "preempted", "running")
    assert sorted(shown[1:6]) == [f"Skipped: 1 {state}." for state in skipped]


def test_a_smaller_sweep_keeps_the_other_runs_in_the_folder(cluster: Cluster) -> None:
    submit(range(3))
    cluster.set(jobs={})
    assert [name[-11:-9] for name in submit([1, 2]).submitted] == ["s1", "s2"]
    assert {seed: len(own) for seed, own in jobs().items()} == {0: 1, 1: 2, 2: 2}


def test_a_failed_run_is_tried_again_max_retries_times(cluster: Cluster) -> None:
    for number in range(3):
        again = submit([0], "max_retries=1")
        assert len(jobs()[0]) == min(2, number + 1)
        mark(0, state="failed")
        cluster.move({jobs()[0][-1]: "FAILED"})
    assert list(again.skipped.values()) == ["failed 2 times (hydra.launcher.max_retries = 1)"]
    assert resume("max_retries=2") == 0
    assert len(jobs()[0]) == 3


def test_a_run_whose_job_ran_out_of_memory_counts_as_failed(cluster: Cluster) -> None:
    for _ in range(3):
        submit([0], "max_retries=1")
        mark(0, state="running")  # killed with its worker, so no state was recorded
        cluster.move({jobs()[0][-1]: "OUT_OF_MEMORY"})
    assert len(jobs()[0]) == 2


def test_nothing_is_submitted_while_squeue_does_not_answer(cluster: Cluster) -> None:
    submit([0, 1])
    mark(0, state="running")
    cluster.set(down=True)
    assert submit([0, 1]).submitted == []


def test_a_run_that_trains_outside_of_launchers_is_not_submitted(cluster: Cluster) -> None:
    by_hand = directory(2)
    by_hand.hold()
    mark(2, state="running")
    submission = submit([1, 2])
    by_hand.release()
    assert submission.submitted == [directory(1).path.name]
    assert submission.skipped == {by_hand.path.name: "running, in a process that no launcher started"}


def test_a_sweep_is_split_into_arrays_that_the_site_allows(cluster: Cluster) -> None:
    cluster.set(max_array_size=3)
    submit(range(7), "array_parallelism=6")
    ids = ["100_0", "100_1", "100_2", "101_0", "101_1", "101_2", "102"]
    assert jobs() == {seed: [job] for seed, job in enumerate(ids)}
    assert sorted(cluster.read()["jobs"]) == ids
    manifest = the_sweep()
    assert [trained_by(manifest, job) for job in ids] == [[name] for name in by_seed(manifest).values()]
    assert "#SBATCH --array=0-2%2\n" in cluster.script("100")  # three arrays share the six
    assert "--array" not in cluster.script("102")


def test_jobs_accepted_before_a_refusal_are_not_submitted_twice(cluster: Cluster) -> None:
    cluster.set(max_array_size=2, room=1)
    with pytest.raises(UserError, match=r"SLURM refuses the job: .*QOSMaxSubmitJobPerUserLimit"):
        submit(range(4))
    assert jobs() == {0: ["100_0"], 1: ["100_1"], 2: [], 3: []}
    cluster.set(room=None)
    submit(range(4))
    assert jobs() == {0: ["100_0"], 1: ["100_1"], 2: ["101_0"], 3: ["101_1"]}


def test_runs_that_share_a_gpu_share_a_job(cluster: Cluster) -> None:
    submit(range(5), "runs_per_gpu=2")
    assert jobs() == {0: ["100_0"], 1: ["100_0"], 2: ["100_1"], 3: ["100_1"], 4: ["100_2"]}
    names = by_seed(the_sweep())
    assert trained_by(the_sweep(), "100_1") == [names[2], names[3]]
    mark(0, state="finished")
    mark(1, state="failed")
    cluster.move({"100_0": "FAILED"})
    submit(range(5), "runs_per_gpu=2")
    assert jobs()[1] == ["100_0", "101"]
    assert trained_by(the_sweep(), "101") == [names[1]]


def test_runs_that_can_share_batches_share_a_job(cluster: Cluster) -> None:
    sweep = ("loss.teacher_temp=0.02,0.04", "trainer.seed=0,1", "hydra.launcher.runs_per_gpu=2")
    assert dino(*ON_SLURM, *sweep) == 0
    (folder,) = Path("outputs").iterdir()
    manifest = Manifest.load(folder)
    together = [
        {manifest.runs[name].overrides[1] for name in trained_by(manifest, f"100_{job}")} for job in (0, 1)
    ]
    assert together == [{"trainer.seed=0"}, {"trainer.seed=1"}]


def test_another_configuration_with_the_same_short_hash_is_refused(cluster: Cluster) -> None:
    submit([0, 1])
    manifest = the_sweep()
    manifest.runs[by_seed(manifest)[1]].config_hash = "0" * 64
    manifest.save()
    cluster.set(jobs={})
    before = Manifest.path(SWEEP).read_bytes()
    with pytest.raises(UserError, match="another configuration with the same short hash"):
        submit([0, 1])
    assert Manifest.path(SWEEP).read_bytes() == before
    assert len(cluster.calls("sbatch")) == 1


def test_resume_never_submits_new_runs_each_time(cluster: Cluster) -> None:
    dino(*ON_SLURM, "trainer.seed=0,1", "resume=never")
    assert dino(*ON_SLURM, "trainer.seed=0,1", "resume=never") == 0
    names = list(the_sweep().runs)
    assert names[2:] == [f"{name}-2" for name in names[:2]]
    written = OmegaConf.load(the_sweep().directory(names[2]).config_file)
    assert written.resume == "auto"  # a requeued job resumes in this directory


def test_two_submissions_of_new_runs_at_once_get_directories_of_their_own(
    here: Path, cluster: Cluster
) -> None:
    checked = [check([*ON_SLURM, "trainer.seed=0,1", "resume=never"]) for _ in range(2)]
    both = [submission.wanted(each.runs, SWEEP) for each in checked]
    settings = with_changes("slurm", {}, [])
    assert [run.name for run in both[0]] == [run.name for run in both[1]]
    first, second = (submission.submit(SWEEP, "slurm", settings, runs).submitted for runs in both)
    assert len(first) == 2
    assert second == [f"{name}-2" for name in first]
