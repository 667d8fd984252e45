"""The search by Optuna: its loop without training, and once for real."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import FileLock
from optuna.trial import TrialState

from dino_exp import cli
from dino_exp.config import data_content
from dino_exp.config.compose import check, compose_run
from dino_exp.errors import UserError
from launchers import one_search
from launchers import search as search_module
from launchers.one_search import LOCK
from launchers.search import JOURNAL
from tests.data.stored import as_files, encoded
from tests.launchers.searches import (
    FIXED,
    MOMENTUM,
    SEARCH,
    TEMPERATURE,
    FakeTraining,
    run_search,
    studies,
    trials,
    well,
)
from tests.programs import run_program

OLD = Path(__file__).parents[1] / "data_of_former_versions" / "e87c3b1"
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


def test_a_search_over_changed_images_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = as_files(tmp_path / "images", encoded(8), ["cat", "dog"])
    held_out = as_files(tmp_path / "val", encoded(4, seed=1), ["cat", "dog"])
    words = [f"data.root={images}", "data=image_folder", f"data.val_root={held_out}"]
    words += ["loss.teacher_temp=0.04,0.07"]
    for _ in range(2):
        data_content.forget()
        data_content.read(compose_run([*words[:-1], "loss.teacher_temp=0.04"]).cfg)
        run_search(tmp_path, FakeTraining(well), words, n_trials=2)
        said = " ".join(capsys.readouterr().out.split())
        (images / "dog" / "000003.jpg").unlink(missing_ok=True)
    names = [study.study_name for study in studies(tmp_path)]
    assert len(names) == 2
    assert (
        f"The images have changed since the study {names[0]} (2 trials): this is another, {names[1]}." in said
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_proposals_stay_within_the_space(tmp_path: Path, sampler: str) -> None:
    launcher = FakeTraining(well)
    spaces = [TEMPERATURE, MOMENTUM, "trainer.seed=range(1,10,4)", "trainer.batch_size=int(interval(8,64))"]
    run_search(tmp_path, launcher, [*FIXED, *spaces], n_trials=16, n_jobs=3, sampler=sampler)
    assert [len(jobs) for jobs in launcher.starts] == [3, *[1] * 13]  # one whenever one has ended
    assert launcher.most == 3
    temperatures = []
    for job in launcher.jobs:
        assert job[:2] == FIXED
        values = dict(word.split("=") for word in job)
        temperatures.append(float(values["loss.teacher_temp"]))
        assert values["loss.center_momentum"] in ("0", "0.9", "0.99")
        assert values["trainer.seed"] in ("1", "5", "9")
        assert 8 <= int(values["trainer.batch_size"]) <= 64
    assert 0.01 <= min(temperatures) < max(temperatures) <= 0.09
    assert len({tuple(job) for job in launcher.jobs}) == 16
    # each trial has its own result, although they end in another order than they began
    for trial in trials(tmp_path):
        values = dict(word.split("=") for word in trial.user_attrs["overrides"])
        assert trial.value == 1000 * float(values["loss.teacher_temp"])


ENDS = {
    "0": ("finished", "healthy, k-NN 40.0 %", 40.0, COMPLETE),
    "1": ("finished before", "finished before; slow", 60.0, COMPLETE),
    "2": ("collapsed", "collapsed-uniform, k-NN 12.0 %", 12.0, PRUNED),
    "3": ("finished", "collapsed-one-hot, k-NN 90.0 %", 90.0, PRUNED),
    "4": ("finished", "already finished; collapsed-one-hot", 90.0, PRUNED),
    "5": ("failed", "Traceback\nRuntimeError: out of memory", None, FAIL),
    "6": ("lost", "the job is gone", None, FAIL),
    "7": ("finished", "healthy", float("nan"), FAIL),
}


def test_what_optuna_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(values: dict[str, str]) -> tuple[str, str, float | None]:
        state, message, knn, _ = ENDS[values["trainer.seed"]]
        return state.removesuffix(" before"), message, knn

    # more trials than there are values, so that each value comes up; none is trained twice
    launcher = FakeTraining(train)
    run_search(tmp_path, launcher, [*FIXED, "trainer.seed=range(0,8)"], n_trials=60, n_jobs=3)
    assert len(launcher.jobs) == len({tuple(job) for job in launcher.jobs}) == 8
    told = trials(tmp_path)
    assert len(told) == 60
    for trial in told:
        _, _, knn, state = ENDS[str(trial.params["trainer.seed"])]
        assert (trial.state, trial.value) == (state, knn if state == COMPLETE else None)
    (study,) = studies(tmp_path)
    assert (study.best_value, study.best_params) == (60.0, {"trainer.seed": 1})
    printed = capsys.readouterr().out
    count = {state: sum(trial.state == state for trial in told) for state in TrialState}
    rows = {" ".join(line.split()) for line in printed.splitlines()}
    assert f"trials 60, of them {count[COMPLETE]} complete" in rows
    assert {f"pruned (collapsed) {count[PRUNED]}", f"failed {count[FAIL]}"} <= rows
    assert "best overrides trainer.seed=1" in rows
    assert "trainer.seed=5: failed: RuntimeError: out of memory" in printed


def test_none_complete(tmp_path: Path) -> None:
    launcher = FakeTraining(lambda values: ("failed", "no", None))
    with pytest.raises(SystemExit) as exit_code:
        run_search(tmp_path, launcher, [*FIXED, TEMPERATURE], n_trials=2)
    assert exit_code.value.code == 1
    assert len(launcher.jobs) == 2


def test_without_knn(tmp_path: Path) -> None:
    knn = {"0": None, "1": 5.0}
    launcher = FakeTraining(lambda values: ("finished", "healthy", knn[values["trainer.seed"]]))
    with pytest.raises(UserError, match=r"has no knn_top1; .*data\.probe\.train="):
        run_search(tmp_path, launcher, [*FIXED, "trainer.seed=0,1"], n_trials=9, n_jobs=2)
    assert len(launcher.jobs) == 2
    assert FAIL in {trial.state for trial in trials(tmp_path)}


@pytest.mark.parametrize(("objective", "best"), [("teacher/feature_rank", "0.09"), ("loss", "0.02")])
def test_another_objective_is_another_study_with_its_own_direction(
    tmp_path: Path, objective: str, best: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FIXED, "loss.teacher_temp=0.02,0.05,0.09"]
    run_search(tmp_path, FakeTraining(well), command, n_trials=4)
    (plain,) = studies(tmp_path)
    launcher = FakeTraining(well, objective)
    run_search(tmp_path, launcher, command, n_trials=9, objective=objective)
    first, second = studies(tmp_path)
    assert (first.study_name, len(first.trials)) == (plain.study_name, 4)
    assert len(launcher.jobs) == 3
    assert second.best_trial.user_attrs["overrides"] == [f"loss.teacher_temp={best}"]
    assert f"best overrides loss.teacher_temp={best}" in " ".join(capsys.readouterr().out.split())


def test_a_search_without_labels_finishes_by_a_metric_of_the_training(tmp_path: Path) -> None:
    flat = as_files(tmp_path / "images", encoded(40), ["all"]) / "all"
    command = [*SEARCH, "data=image_folder", f"data.root={flat}", f"output_root={tmp_path}/outputs"]
    command += ["loss.teacher_temp=0.02,0.04", "trainer.max_steps=1", "hydra.sweeper.n_trials=2"]
    assert cli.main([*command, "hydra.sweeper.objective=teacher/mutual_information"]) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    told = {trial.user_attrs["run"]: trial.value for trial in trials(folder)}
    for name, value in told.items():
        summary = json.loads((folder / name / "summary.json").read_text())
        assert value == summary["final"]["teacher/mutual_information"]
    assert len(told) == 2


def test_a_search_resumes_what_was_running_when_it_was_killed(tmp_path: Path) -> None:
    def kill_at_the_fifth_end(values: dict[str, str]) -> tuple[str, str, float | None]:
        if len(dying.jobs) == 6:
            raise Killed
        return well(values)

    dying = FakeTraining(kill_at_the_fifth_end)
    command = [*FIXED, TEMPERATURE, MOMENTUM]
    with pytest.raises(Killed):
        run_search(tmp_path, dying, command, n_trials=8, n_jobs=2)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":5,"worker')  # and another process in the middle of a line
    again = FakeTraining(well)
    run_search(tmp_path, again, command, n_trials=8, n_jobs=2)
    running = [job for job in dying.jobs if dict(word.split("=") for word in job) in dying.running.values()]
    assert (again.starts[0], len(running), len(again.jobs)) == (running, 2, 4)
    assert len({tuple(job) for job in [*dying.jobs, *again.jobs]}) == 8
    assert sum(trial.state == COMPLETE for trial in trials(tmp_path)) == 8
    nothing = FakeTraining(well)
    run_search(tmp_path, nothing, command, n_trials=8, n_jobs=2)
    assert nothing.starts == []


def test_failed_trials_are_tried_again_next_time_and_more_can_be_asked_for(tmp_path: Path) -> None:
    def fail_some(values: dict[str, str]) -> tuple[str, str, float | None]:
        return ("failed", "no", None) if float(values["loss.teacher_temp"]) < 0.05 else well(values)

    command = [*FIXED, "loss.teacher_temp=interval(0.01,0.09)"]
    first, second, third = FakeTraining(fail_some), FakeTraining(well), FakeTraining(well)
    run_search(tmp_path, first, command, n_trials=6)
    failed = [job for job in first.jobs if float(job[-1].partition("=")[2]) < 0.05]
    assert 0 < len(failed) < len(first.jobs) == 6
    run_search(tmp_path, second, command, n_trials=6)
    assert second.jobs == failed
    run_search(tmp_path, third, command, n_trials=9)
    assert len(third.jobs) == 3
    assert not {tuple(job) for job in third.jobs} & {tuple(job) for job in first.jobs}
    assert sum(trial.state == COMPLETE for trial in trials(tmp_path)) == 9


def test_values_that_do_not_go_together_are_not_launched(tmp_path: Path) -> None:
    launcher, again = FakeTraining(well), FakeTraining(well)
    command = [*FIXED, TEMPERATURE, "trainer.batch_size=30,32", "trainer.accumulate=1,4"]
    run_search(tmp_path, launcher, command, n_trials=12)
    refused = [trial for trial in trials(tmp_path) if trial.state == FAIL]
    assert refused
    keys = ("trainer.batch_size", "trainer.accumulate")
    assert {tuple(trial.params[key] for key in keys) for trial in refused} == {("30", "4")}
    assert len(launcher.jobs) == 12 - len(refused)
    run_search(tmp_path, again, command, n_trials=12)
    assert again.jobs == []
    assert len(trials(tmp_path)) == 12


def test_another_command_is_another_study(tmp_path: Path) -> None:
    for command in (
        [*FIXED, TEMPERATURE],
        ["experiment=debug", "trainer.epochs=4", TEMPERATURE],
        [*FIXED, "loss.teacher_temp=interval(0.01,0.09)"],
    ):
        launcher = FakeTraining(well)
        run_search(tmp_path, launcher, command, n_trials=2)
        assert len(launcher.jobs) == 2
    assert [len(study.trials) for study in studies(tmp_path)] == [2, 2, 2]


def test_one_search_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_search, "WAIT_SECONDS", 0)
    launcher = FakeTraining(well)
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="another process is searching here"):
        run_search(tmp_path, launcher, [*FIXED, TEMPERATURE])
    assert launcher.starts == []


def test_its_runs_end_at_their_collapse_unless_typed_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed, value in ([], "stop"), (["trainer.on_collapse=warn"], "warn"):
        checked = check([*SEARCH, TEMPERATURE, *typed])
        assert checked.errors == []
        assert [word for word in checked.fixed if "on_collapse" in word] == [f"trainer.on_collapse={value}"]
        run_search(tmp_path, FakeTraining(well), [*checked.fixed, TEMPERATURE], n_trials=1)
        assert ("Runs end at their collapse" in capsys.readouterr().out) == (value == "stop")
    assert len(studies(tmp_path)) == 1  # one study: they are the same runs


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for result, code in ((None, 0), (UserError("no"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(search_module, "search", Mock(side_effect=[result]))
        assert cli.main([*SEARCH, "trainer.seed=0,1"]) == code


def test_train_py(tmp_path: Path) -> None:
    folder = tmp_path / "debug_sweep_teacher_temp"

    def train_py() -> tuple[str, dict[str, float | None]]:
        words = f"trainer.max_steps=2 output_root={tmp_path} hydra.sweeper.n_trials=3 hydra.sweeper.n_jobs=2 "
        words += "loss.teacher_temp=interval(0.02,0.06)"
        done = run_program("train.py", *SEARCH, *words.split(), folder=tmp_path)
        assert done.returncode == 0, done.output
        told = [trial for trial in trials(folder) if trial.state == COMPLETE]
        return done.stdout, {trial.user_attrs["run"]: trial.value for trial in told}

    printed, first = train_py()
    assert len(re.findall(r"^loss\.teacher_temp=\S+$", printed, re.MULTILINE)) == 3  # the heads of the trials
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    assert first == {name: summary["knn_top1"] for name, summary in summaries.items()}
    assert len(first) == 3
    (folder / JOURNAL).unlink()  # the runs alone know it, too
    printed, again = train_py()
    assert again == first
    assert printed.count("This run has already finished") == 3


def test_a_study_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """It was killed in its fourth batch of two, after three complete trials, two collapses and a failure."""
    (tmp_path / JOURNAL).write_bytes((OLD / JOURNAL).read_bytes())
    before = trials(tmp_path)
    training = FakeTraining(well)
    run_search(tmp_path, training, [*FIXED, TEMPERATURE, MOMENTUM], n_trials=12, n_jobs=2, sampler="tpe")
    assert {trial.user_attrs["run"] for trial in before[:4]}.isdisjoint(training.seen)
    again = [trial.user_attrs["overrides"] for trial in before if trial.state in (FAIL, TrialState.RUNNING)]
    assert [job[2:] for job in training.jobs[:3]] == again
    assert len(training.jobs) == 12 - 5
    assert len(studies(tmp_path)) == 1
