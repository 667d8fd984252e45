"""The search by Optuna: its loop with a fake launcher, its checks, and once for real."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dino_exp import cli
from dino_exp.config import data_content
from dino_exp.config import launcher_settings as settings_module
from dino_exp.config.compose import check, compose_run
from dino_exp.config.hydra_loader import loader
from dino_exp.config.search_space import divide, probes, space_of
from dino_exp.config.sweep_runs import Run
from dino_exp.errors import UserError
from dino_exp.training.attempt import Outcome
from launchers import search as search_module
from launchers.search import JOURNAL, LOCK, search
from tests.data.stored import as_files, encoded
from tests.programs import run_program

TEMPERATURE = "loss.teacher_temp=tag(log,interval(0.01,0.09))"
MOMENTUM = "loss.center_momentum=choice(0,0.9,0.99)"
FIXED = ["experiment=debug", "trainer.epochs=3"]

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


class FakeLauncher:
    """Trains nothing, and returns the outcomes in reverse order, since launchers may change the order.

    Args:
        train: state, message and value of a job, from its overrides.
        objective: the metric that has the value.
    """

    def __init__(
        self, train: Callable[[dict[str, str]], tuple[str, str, float | None]], objective: str = "knn_top1"
    ) -> None:
        self.train, self.objective = train, objective
        self.batches: list[list[list[str]]] = []
        self.first_jobs: list[int] = []

    @property
    def jobs(self) -> list[list[str]]:
        return [job for batch in self.batches for job in batch]

    def __call__(self, runs: Sequence[Run], first: int) -> list[Outcome]:
        self.batches.append([list(run.job) for run in runs])
        self.first_jobs.append(first)
        outcomes = []
        for run in runs:
            state, message, knn = self.train(dict(word.split("=", 1) for word in run.job))
            metrics = {} if knn is None else {self.objective: knn}
            outcomes.append(Outcome(run.run_id, state, 0, message, metrics))
        return outcomes[::-1]


def well(values: dict[str, str]) -> tuple[str, str, float | None]:
    """Return a healthy result that is better the higher the temperature is."""
    return "finished", "healthy", 1000 * float(values.get("loss.teacher_temp", 0))


def run_search(folder: Path, launcher: FakeLauncher, overrides: Sequence[str], **changes: Any) -> None:
    settings = {
        "n_trials": 12,
        "n_jobs": 1,
        "sampler": "random",
        "seed": 0,
        "objective": "knn_top1",
    } | changes
    fixed, spaces = divide([loader(None).parse(text) for text in overrides])
    search(settings, folder, fixed, spaces, compose_run, launcher)


def studies(folder: Path) -> list[optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def trials(folder: Path) -> list[FrozenTrial]:
    (study,) = studies(folder)
    return study.trials


def test_a_search_over_changed_images_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = as_files(tmp_path / "images", encoded(8), ["cat", "dog"])
    held_out = as_files(tmp_path / "val", encoded(4, seed=1), ["cat", "dog"])
    words = [f"data.root={images}", "data=image_folder", f"data.val_root={held_out}"]
    words += ["loss.teacher_temp=0.04,0.07"]
    for _ in range(2):
        data_content.forget()
        data_content.read(compose_run([*words[:-1], "loss.teacher_temp=0.04"]).cfg)
        run_search(tmp_path, FakeLauncher(well), words, n_trials=2)
        said = " ".join(capsys.readouterr().out.split())
        (images / "dog" / "000003.jpg").unlink(missing_ok=True)
    names = [study.study_name for study in studies(tmp_path)]
    assert len(names) == 2
    assert (
        f"The images have changed since the study {names[0]} (2 trials): this is another, {names[1]}." in said
    )


# ---- the space ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "distribution", "shown"),
    [
        ("a.b=interval(0.02,0.2)", FloatDistribution(0.02, 0.2), ["0.02", "0.2"]),
        ("a.b=tag(log, interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True), ["1e-05", "0.01"]),
        ("a.b=int(interval(1,8))", IntDistribution(1, 8), ["1", "8"]),
        ("a.b=tag(int, log, interval(1.5,8))", IntDistribution(2, 8, log=True), ["2", "8"]),
        ("a.b=choice(0,0.9,0.99)", CategoricalDistribution(("0", "0.9", "0.99")), ["0", "0.9", "0.99"]),
        ("a.b=shuffle(x,1,y,x)", CategoricalDistribution(("x", "1", "y")), ["x", "1", "y"]),
        ("a.b=range(10,1,-3)", IntDistribution(4, 10, step=3), ["4", "10"]),
        ("a.b=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1), ["0.1", "0.4"]),
    ],
)
def test_grammar(text: str, distribution: Any, shown: list[str]) -> None:
    space = space_of(loader(None).parse(text))
    assert space.distribution() == distribution
    assert space.probes() == shown


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a=interval(2,1)", "the first end of an interval must be below the second."),
        ("a=interval(0,inf)", "an interval needs two finite ends."),
        ("a=tag(log,interval(0,1))", "tag log needs an interval above 0."),
        ("a=tag(lgo,interval(1,2))", "tag lgo is unknown; intervals take log and int."),
        ("a=tag(log,choice(1,2))", "tag log is unknown; intervals take log and int."),
        ("a=range(3,1)", "an empty range."),
        ("a=range(0,1,0)", "the step of a range cannot be 0."),
    ],
)
def test_empty_spaces(text: str, error: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{text}: {error}")):
        space_of(loader(None).parse(text))


def test_rounding_does_not_leave_the_space() -> None:
    space = space_of(loader(None).parse("a=interval(0.02123456789,0.123456789)"))
    typed = {0.1234567889: "0.123456789", 0.0212345679: "0.0212346", 0.05: "0.05"}
    assert [space.text(value) for value in typed] == list(typed.values())


def test_probes_vary_one_key_at_a_time() -> None:
    spaces = [space_of(loader(None).parse(text)) for text in ("a=interval(1,2)", "b=x,y,z")]
    assert probes(["c=1"], spaces) == [
        ["c=1", "a=1.0", "b=x"],
        ["c=1", "a=2.0", "b=x"],
        ["c=1", "a=1.0", "b=y"],
        ["c=1", "a=1.0", "b=z"],
    ]


# ---- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_stay_within_the_space(tmp_path: Path, sampler: str) -> None:
    launcher = FakeLauncher(well)
    spaces = [TEMPERATURE, MOMENTUM, "trainer.seed=range(1,10,4)", "trainer.batch_size=int(interval(8,64))"]
    run_search(tmp_path, launcher, [*FIXED, *spaces], n_trials=12, n_jobs=5, sampler=sampler)
    assert [len(batch) for batch in launcher.batches] == [5, 5, 2]
    assert launcher.first_jobs == [0, 5, 10]
    temperatures = []
    for job in launcher.jobs:
        assert job[:2] == FIXED
        values = dict(word.split("=") for word in job)
        temperatures.append(float(values["loss.teacher_temp"]))
        assert values["loss.center_momentum"] in ("0", "0.9", "0.99")
        assert values["trainer.seed"] in ("1", "5", "9")
        assert 8 <= int(values["trainer.batch_size"]) <= 64
    assert 0.01 <= min(temperatures) < max(temperatures) <= 0.09
    assert len(set(temperatures)) == 12
    # each trial has its own result, although the launcher reversed the order
    results = {trial.value: trial.user_attrs["overrides"] for trial in trials(tmp_path)}
    assert results.keys() == {1000 * temperature for temperature in temperatures}
    for temperature in temperatures:
        assert f"loss.teacher_temp={temperature:.6g}" in results[1000 * temperature]


ENDS = {
    "0": ("finished", "healthy, k-NN 40.0 %", 40.0, COMPLETE),
    "1": ("finished before", "finished before; slow", 60.0, COMPLETE),
    "2": ("collapsed", "collapsed-uniform, k-NN 12.0 %", 12.0, PRUNED),
    "3": ("finished", "collapsed-one-hot, k-NN 90.0 %", 90.0, PRUNED),
    "4": ("finished", "finished before; collapsed-one-hot", 90.0, PRUNED),
    "5": ("failed", "Traceback\nRuntimeError: out of memory", None, FAIL),
    "6": ("lost", "the job is gone", None, FAIL),
    "7": ("finished", "healthy", float("nan"), FAIL),
}


def test_what_optuna_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(values: dict[str, str]) -> tuple[str, str, float | None]:
        state, message, knn, _ = ENDS[values["trainer.seed"]]
        return state.removesuffix(" before"), message, knn

    # more trials than there are values, so that each value comes up; none is trained twice
    launcher = FakeLauncher(train)
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
    launcher = FakeLauncher(lambda values: ("failed", "no", None))
    with pytest.raises(SystemExit) as exit_code:
        run_search(tmp_path, launcher, [*FIXED, TEMPERATURE], n_trials=2)
    assert exit_code.value.code == 1
    assert len(launcher.jobs) == 2


def test_without_knn(tmp_path: Path) -> None:
    knn = {"0": None, "1": 5.0}
    launcher = FakeLauncher(lambda values: ("finished", "healthy", knn[values["trainer.seed"]]))
    with pytest.raises(UserError, match=r"has no knn_top1; .*data\.probe\.train="):
        run_search(tmp_path, launcher, [*FIXED, "trainer.seed=0,1"], n_trials=9, n_jobs=2)
    assert len(launcher.batches) == 1
    assert {trial.state for trial in trials(tmp_path)} == {COMPLETE, FAIL}


@pytest.mark.parametrize(("objective", "best"), [("teacher/feature_rank", "0.09"), ("loss", "0.02")])
def test_another_objective_is_another_study_with_its_own_direction(
    tmp_path: Path, objective: str, best: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FIXED, "loss.teacher_temp=0.02,0.05,0.09"]
    run_search(tmp_path, FakeLauncher(well), command, n_trials=4)
    (plain,) = studies(tmp_path)
    launcher = FakeLauncher(well, objective)
    run_search(tmp_path, launcher, command, n_trials=9, objective=objective)
    first, second = studies(tmp_path)
    assert (first.study_name, len(first.trials)) == (plain.study_name, 4)
    assert len(launcher.jobs) == 3
    assert second.best_trial.user_attrs["overrides"] == [f"loss.teacher_temp={best}"]
    assert f"best overrides loss.teacher_temp={best}" in " ".join(capsys.readouterr().out.split())


def test_a_search_without_labels_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = as_files(tmp_path / "images", encoded(40), ["all"]) / "all"
    command = [*SEARCH, "data=image_folder", f"data.root={flat}", f"output_root={tmp_path}/outputs"]
    command += ["loss.teacher_temp=0.02,0.04", "data.val_root=auto", "trainer.max_steps=1"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "compares its runs by knn_top1, which needs labeled images" in said
    assert "data.probe.train=... data.probe.val=..." in said
    assert not (tmp_path / "outputs").exists()


def test_a_search_without_labels_finishes_by_a_metric_of_the_training(tmp_path: Path) -> None:
    flat = as_files(tmp_path / "images", encoded(40), ["all"]) / "all"
    command = [*SEARCH, "data=image_folder", f"data.root={flat}", f"output_root={tmp_path}/outputs"]
    command += ["loss.teacher_temp=0.02,0.04", "trainer.max_steps=1", "hydra.sweeper.n_trials=2"]
    assert cli.main([*command, "hydra.sweeper.objective=teacher/feature_rank"]) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    told = {trial.user_attrs["run"]: trial.value for trial in trials(folder)}
    for name, value in told.items():
        summary = json.loads((folder / name / "summary.json").read_text())
        assert value == summary["final"]["teacher/feature_rank"]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.sweeper.objective=knn_top"], "did you mean knn_top1 or best_knn_top1?"),
        (["hydra.sweeper.objective=lr"], "no metric of which more or less is better"),
        (["hydra.sweeper.objective=linear/top1"], "eval.linear = null: a search compares its runs by"),
        (["eval=linear"], "eval.k = null: a search compares its runs by k-NN"),
    ],
)
def test_an_objective_that_no_run_has_is_refused(words: list[str], message: str) -> None:
    (error,) = check([*SEARCH, "trainer.seed=0,1", *words]).errors
    assert message in error


def test_a_search_resumes_after_a_kill_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    def kill_in_third_batch(values: dict[str, str]) -> tuple[str, str, float | None]:
        if len(dying.batches) == 3:
            raise Killed
        return well(values)

    dying = FakeLauncher(kill_in_third_batch)
    command = [*FIXED, TEMPERATURE, MOMENTUM]
    with pytest.raises(Killed):
        run_search(tmp_path, dying, command, n_trials=8, n_jobs=2)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":5,"worker')  # and another process in the middle of a line
    again = FakeLauncher(well)
    run_search(tmp_path, again, command, n_trials=8, n_jobs=2)
    assert again.batches[0] == dying.batches[2]
    assert [len(batch) for batch in again.batches] == [2, 2]
    trained = [tuple(job) for job in [*dying.batches[0], *dying.batches[1], *again.jobs]]
    assert len(set(trained)) == len(trained) == 8
    assert sum(trial.state == COMPLETE for trial in trials(tmp_path)) == 8
    nothing = FakeLauncher(well)
    run_search(tmp_path, nothing, command, n_trials=8, n_jobs=2)
    assert nothing.batches == []


def damage(lines: list[bytes], how: str) -> list[bytes]:
    """Return the lines of a journal of complete trials, with some in the middle damaged."""
    made = [number for number, line in enumerate(lines) if b'"op_code":4' in line]
    ended = [number for number, line in enumerate(lines) if b'"op_code":6' in line]
    changed = list(lines)
    if how == "study lost":
        del changed[0]
    elif how == "trial lost":
        del changed[made[2]]
    elif how == "result lost":
        del changed[ended[2]]
    elif how == "byte flipped in a trial":
        changed[made[2]] = changed[made[2]].replace(b":", b"\xba", 1)
    elif how == "zeros over two trials":
        block = b"".join(lines[made[2] : made[4]])
        changed[made[2] : made[4]] = [bytes(len(block) - 1) + b"\n"]
    elif how == "unknown operations":
        changed[made[3] : made[3]] = [b'{"op_code":99,"worker_id":"x"}\n', b"[]\n", b"\n", b'{"op_code":5}\n']
    return changed


@pytest.mark.parametrize(
    ("how", "repeated"),
    [
        ("study lost", 0),
        ("trial lost", 0),
        ("result lost", 1),  # a launcher shows the finished run instead of training it again
        ("byte flipped in a trial", 0),
        ("zeros over two trials", 2),
        ("unknown operations", 0),
    ],
)
def test_a_damaged_journal_is_mended_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, repeated: int
) -> None:
    command, journal = [*FIXED, TEMPERATURE], tmp_path / JOURNAL
    first, again = FakeLauncher(well), FakeLauncher(well)
    run_search(tmp_path, first, command, n_trials=6)
    before = {trial.user_attrs["run"]: trial.value for trial in trials(tmp_path)}
    damaged = b"".join(damage(journal.read_bytes().splitlines(keepends=True), how))
    journal.write_bytes(damaged)
    run_search(tmp_path, again, command, n_trials=6)
    assert len(again.jobs) == repeated
    after = {t.user_attrs["run"]: t.value for t in trials(tmp_path) if t.state == COMPLETE and t.user_attrs}
    assert len(before.items() & after.items()) >= 6 - repeated
    said, kept = "damaged. " in capsys.readouterr().err, tmp_path / f"{JOURNAL}.damaged"
    assert (said, kept.exists()) == (how != "result lost", how != "result lost")
    assert not said or kept.read_bytes() == damaged
    run_search(tmp_path, FakeLauncher(well), command, n_trials=6)
    assert "damaged" not in capsys.readouterr().err


def test_a_journal_that_cannot_be_mended_is_named(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    journal.write_text('{"op_code": 99}\n' * 200)
    with pytest.raises(UserError, match=rf"{journal}: not a journal .* Move it away"):
        run_search(tmp_path, FakeLauncher(well), [*FIXED, TEMPERATURE], n_trials=1)
    journal.unlink()
    journal.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=rf"{journal}: a link, which is not followed"):
        run_search(tmp_path, FakeLauncher(well), [*FIXED, TEMPERATURE], n_trials=1)
    assert not (tmp_path / "victim").exists()


def test_failed_trials_are_tried_again_next_time_and_more_can_be_asked_for(tmp_path: Path) -> None:
    def fail_some(values: dict[str, str]) -> tuple[str, str, float | None]:
        return ("failed", "no", None) if float(values["loss.teacher_temp"]) < 0.05 else well(values)

    command = [*FIXED, "loss.teacher_temp=interval(0.01,0.09)"]
    first, second, third = FakeLauncher(fail_some), FakeLauncher(well), FakeLauncher(well)
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
    launcher, again = FakeLauncher(well), FakeLauncher(well)
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
        launcher = FakeLauncher(well)
        run_search(tmp_path, launcher, command, n_trials=2)
        assert len(launcher.jobs) == 2
    assert [len(study.trials) for study in studies(tmp_path)] == [2, 2, 2]


def test_one_search_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "WAIT_SECONDS", 0)
    launcher = FakeLauncher(well)
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="another process is searching here"):
        run_search(tmp_path, launcher, [*FIXED, TEMPERATURE])
    assert launcher.batches == []


# ---- the checks ---------------------------------------------------------------------------------

SEARCH = ["-m", "hydra/sweeper=optuna", "experiment=debug"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("loss.teacher_tmp=interval(0,1)", "loss.teacher_tmp: no such key; did you mean loss.teacher_temp?"),
        (
            "loss.teacher_temp=interval(-0.1,0.2)",
            "loss.teacher_temp = -0.1: must be at least 0 (the paper uses 0.02–0.07; 0 is a hard argmax). "
            "(run loss.teacher_temp=-0.1)",
        ),
        (
            "loss.teacher_temp=0.02,0.04 loss.center_momentum=choice(0,0.9,1)",
            "loss.center_momentum = 1.0: must be at least 0 and below 1 (the paper uses 0.9; 0.999 "
            "collapses). (run loss.teacher_temp=0.02 loss.center_momentum=1)",
        ),
        (
            "trainer.batch_size=interval(8,64)",
            "trainer.batch_size=interval(8,64): trainer.batch_size takes whole numbers; write "
            "trainer.batch_size=int(interval(8,64)).",
        ),
        (
            "loss.teacher_temp=tag(log,interval(0,1))",
            "loss.teacher_temp=tag(log,interval(0,1)): tag log needs an interval above 0.",
        ),
        ("", "hydra/sweeper = optuna: nothing to search; give keys an interval or several values."),
        ("trainer.seed=0,1 hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials = 0: must be at least 1."),
        (
            "trainer.seed=0,1 hydra.sweeper.sampler=tpee",
            "hydra.sweeper.sampler = tpee: must be tpe or random; did you mean tpe?",
        ),
        (
            "trainer.seed=0,1 hydra/launcher=local hydra.launcher.detach=true",
            "hydra.launcher.detach = true: not with hydra/sweeper=optuna, which waits for its trials because "
            "the next ones depend on them; remove it.",
        ),
        (
            "trainer.seed=0,1 data=image_folder data.root=. data.val_root=null",
            "data.val_root = null: a search compares its runs by knn_top1, which needs labeled images to "
            "classify. Give some (data.probe.train=... data.probe.val=..., or labels in data.root and "
            "data.val_root), or another hydra.sweeper.objective, such as teacher/feature_rank.",
        ),
    ],
)
def test_errors(line: str, error: str) -> None:
    assert check([*SEARCH, *line.split()]).errors == [error]


def test_wrong_key_of_the_sweeper() -> None:
    (error,) = check([*SEARCH, "trainer.seed=0,1", "hydra.sweeper.n_trails=3"]).errors
    assert "did you mean hydra.sweeper.n_trials?" in error


def test_needs_m() -> None:
    assert check(["hydra/sweeper=optuna"]).errors == ["hydra/sweeper = optuna: works with -m; add -m."]


def test_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    assert check([*SEARCH, "trainer.seed=0,1"]).errors == [
        "hydra/sweeper = optuna: Optuna is not installed; pip install 'dino-exp[optuna]'."
    ]
    assert check(["-m", "experiment=debug", "trainer.seed=0,1"]).errors == []


def test_a_right_command() -> None:
    checked = check([*SEARCH, TEMPERATURE, MOMENTUM, "hydra.sweeper.n_jobs=4", "hydra/launcher=local"])
    assert (checked.errors, checked.search, checked.runs) == ([], True, [])
    assert checked.sweep_dir == "outputs/debug_sweep_teacher_temp_center_momentum"


def test_space_from_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        "      loss.teacher_temp: interval(-1,0.2)\n      trainer.seed: 0,1\n"
    )
    command = ["--config-dir", str(tmp_path), *SEARCH, "sweep=mine"]
    assert check(command).errors[0].startswith("loss.teacher_temp = -1.0: must be at least 0")
    narrowed = check([*command, "loss.teacher_temp=interval(0.02,0.2)"])  # what is typed wins
    assert (narrowed.errors, narrowed.sweep_dir) == ([], "outputs/debug_mine")
    fixed = check([*command, "loss.teacher_temp=0.04"])
    assert (fixed.errors, fixed.sweep_dir) == ([], "outputs/debug_mine")


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    assert cli.main([*SEARCH, f"output_root={root}", "loss.teacher_temp=interval(-1,1)"]) == 2
    assert not root.exists()


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for result, code in ((None, 0), (UserError("no"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(search_module, "search", Mock(side_effect=[result]))
        assert cli.main([*SEARCH, "trainer.seed=0,1"]) == code


def test_one_complete_trial_is_enough(tmp_path: Path) -> None:
    ends = {"0": ("finished", "healthy", 40.0), "1": ("failed", "no", None)}
    launcher = FakeLauncher(lambda values: ends[values["trainer.seed"]])
    run_search(tmp_path, launcher, [*FIXED, "trainer.seed=range(0,2)"], n_trials=9)
    assert {trial.state for trial in trials(tmp_path)} == {COMPLETE, FAIL}


# ---- for real -----------------------------------------------------------------------------------


def test_train_py(tmp_path: Path) -> None:
    folder = tmp_path / "debug_sweep_teacher_temp"

    def train_py() -> tuple[str, dict[str, float | None]]:
        words = f"trainer.max_steps=2 output_root={tmp_path} hydra.sweeper.n_trials=3 hydra.sweeper.n_jobs=2 "
        words += "loss.teacher_temp=interval(0.02,0.06)"
        done = run_program("train.py", *SEARCH, *words.split(), folder=tmp_path)
        assert done.returncode == 0, done.output
        told = [trial for trial in trials(folder) if trial.state == COMPLETE]
        return done.stdout, {trial.user_attrs["run"]: trial.value for trial in told}

    _, first = train_py()
    summaries = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    assert first == {name: summary["knn_top1"] for name, summary in summaries.items()}
    assert len(first) == 3
    (folder / JOURNAL).unlink()  # the runs alone know it, too
    printed, again = train_py()
    assert again == first
    assert printed.count("This run has already finished") == 3
