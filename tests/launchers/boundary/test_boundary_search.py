"""The search for a boundary: its loop with a fake launcher, and once for real."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dino_exp.config.compose import check, compose_run
from dino_exp.config.hydra_loader import loader
from dino_exp.config.search_space import Numbers, divide
from dino_exp.report.sweep.boundary_figures import boundary_figures
from dino_exp.training.attempt import Outcome
from launchers.boundary.boundary_file import FILE, Tried, read_boundaries
from launchers.boundary.boundary_search import find_boundary, trains, verdict_of
from tests.launchers.boundary.fake_launcher import FakeLauncher
from tests.launchers.searches import FIXED
from tests.programs import run_program

TEMPERATURE = "loss.teacher_temp=interval(0.02,0.1)"
MOMENTUM = "loss.center_momentum=interval(0,0.999)"
COMMAND = [*FIXED, TEMPERATURE, MOMENTUM]
HEALTHY, COLLAPSED = ("finished", "healthy", None), ("collapsed", "collapsed-uniform", None)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


def by_temperature(values: dict[str, str]) -> tuple[str, str, float | None]:
    """Train below τ_t = 0.06, whatever m is."""
    return HEALTHY if float(values["loss.teacher_temp"]) < 0.06 else COLLAPSED


def find(folder: Path, launcher: FakeLauncher, overrides: Sequence[str] = COMMAND, **changes: Any) -> None:
    settings: dict[str, Any] = dict(n_runs=20, n_jobs=4, tolerance=0.0, seed=0)
    fixed, spaces = divide([loader(None).parse(text) for text in overrides])
    intervals = [space for space in spaces if isinstance(space, Numbers)]
    find_boundary(settings | changes, folder, fixed, intervals, compose_run, launcher)


def runs_in(folder: Path) -> list[Tried]:
    (boundary,) = read_boundaries(folder, []).values()
    return boundary.runs


def test_the_boundary_and_its_uncertainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = FakeLauncher(by_temperature)
    find(tmp_path, launcher)
    assert [len(batch) for batch in launcher.batches] == [4] * 5
    assert launcher.first_jobs == [0, 4, 8, 12, 16]
    assert len({tuple(job) for job in launcher.jobs}) == 20
    (boundary,) = read_boundaries(tmp_path, []).values()
    assert len(boundary.lines) == 4
    for line, momentum in zip(boundary.lines, ("0", "0.9", "0.99", "0.999"), strict=True):
        form = r"at loss.center_momentum = (\S+), training below loss.teacher_temp = (\S+) \((\S+)–(\S+)\)"
        found = re.fullmatch(form, line)
        assert found, line
        assert found[1] == momentum
        middle, low, high = map(float, found.groups()[1:])
        assert low <= 0.06 <= high
        assert abs(middle - 0.06) < 0.006
    printed = " ".join(capsys.readouterr().out.split())
    assert boundary.lines[1] in printed
    assert "all 20 runs are used up (hydra.sweeper.n_runs)" in printed
    near = [run for run in boundary.runs[8:] if abs(run.values["loss.teacher_temp"] - 0.06) < 0.015]
    assert len(near) > 0.6 * len(boundary.runs[8:])
    assert boundary.next[0].keys() == {"loss.teacher_temp", "loss.center_momentum"}


def test_it_ends_when_the_boundary_stands_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = FakeLauncher(by_temperature)
    find(tmp_path, launcher, n_runs=80, tolerance=0.02)
    assert 16 <= len(launcher.jobs) < 60
    assert "less than hydra.sweeper.tolerance = 0.02" in " ".join(capsys.readouterr().out.split())
    again = FakeLauncher(by_temperature)
    find(tmp_path, again, n_runs=80, tolerance=0.02)
    assert again.batches == []


def test_it_resumes_after_a_kill_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    def kill_in_fourth_batch(values: dict[str, str]) -> tuple[str, str, float | None]:
        if len(dying.batches) == 4:
            raise Killed
        return by_temperature(values)

    dying, again, whole = (
        FakeLauncher(each) for each in (kill_in_fourth_batch, by_temperature, by_temperature)
    )
    with pytest.raises(Killed):
        find(tmp_path / "killed", dying, n_runs=16)
    find(tmp_path / "killed", again, n_runs=16)
    find(tmp_path / "whole", whole, n_runs=16)
    assert again.batches[0] == dying.batches[3]
    assert dying.batches[:3] + again.batches == whole.batches
    stored = [(tmp_path / name / FILE).read_text() for name in ("killed", "whole")]
    assert stored[0] == stored[1]
    nothing = FakeLauncher(by_temperature)
    find(tmp_path / "whole", nothing, n_runs=16)
    assert nothing.batches == []


def test_where_outcomes_disagree_other_seeds_are_tried(tmp_path: Path) -> None:
    unlucky: list[str] = []

    def one_bad_seed(values: dict[str, str]) -> tuple[str, str, float | None]:
        if float(values["loss.teacher_temp"]) < 0.045 and not unlucky:
            unlucky.append(values["loss.teacher_temp"])
        bad = [values["loss.teacher_temp"]] == unlucky and values["trainer.seed"] == "5"
        return COLLAPSED if bad else by_temperature(values)

    def with_seed(values: dict[str, str]) -> tuple[str, str, float | None]:
        return one_bad_seed({"trainer.seed": "5"} | values)

    find(tmp_path, FakeLauncher(with_seed), [*COMMAND, "trainer.seed=5"], n_runs=24)
    repeated = [run for run in runs_in(tmp_path) if f"{run.values['loss.teacher_temp']:g}" in unlucky]
    assert [(run.seed, run.trains) for run in repeated][:2] == [(None, False), (6, True)]
    assert len({run.run for run in repeated}) == len(repeated) <= 3


@pytest.mark.parametrize(
    ("outcome", "information", "advice"),
    [
        (
            HEALTHY,
            lambda t: 0.3 - 2 * t,
            "all 10 runs train, .* widen loss.teacher_temp above 0.1, to .* falls",
        ),
        (COLLAPSED, lambda t: 1e-5 / t**2, "all 10 runs collapse, .* widen loss.teacher_temp below 0.02, to"),
        (COLLAPSED, None, "widen loss.teacher_temp below 0.02 or .* above 0.1 or loss.center_momentum above"),
    ],
)
def test_one_outcome_says_where_to_widen(
    tmp_path: Path, outcome: Any, information: Any, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def known(values: dict[str, str]) -> tuple[str, str, float | None]:
        return (*outcome[:2], information and information(float(values["loss.teacher_temp"])))

    launcher = FakeLauncher(known, "teacher/mutual_information_share")
    with pytest.raises(SystemExit) as ended:
        find(tmp_path, launcher, n_jobs=2)
    assert ended.value.code == 1
    assert len(launcher.jobs) == 10  # the others would tell nothing
    assert re.search(advice, " ".join(capsys.readouterr().out.split()))


def test_a_wider_search_begins_with_the_runs_of_the_narrower_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        find(
            tmp_path,
            FakeLauncher(by_temperature),
            [*FIXED, "loss.teacher_temp=interval(0.02,0.05)", MOMENTUM],
        )
    narrow = runs_in(tmp_path)
    launcher = FakeLauncher(by_temperature)
    find(tmp_path, launcher)
    assert 0 < len(narrow) == 20 - len(launcher.jobs)
    assert runs_in(tmp_path)[: len(narrow)] == narrow


def test_failed_runs_are_tried_again_next_time(tmp_path: Path) -> None:
    def fail_some(values: dict[str, str]) -> tuple[str, str, float | None]:
        hot = float(values["loss.teacher_temp"]) > 0.085
        return ("failed", "RuntimeError: out of memory", None) if hot else by_temperature(values)

    first, second = FakeLauncher(fail_some), FakeLauncher(by_temperature)
    find(tmp_path, first)
    failed = [run.run for run in runs_in(tmp_path) if run.trains is None]
    assert failed
    find(tmp_path, second)
    assert len(second.jobs) == len(failed)
    assert all(run.trains is not None for run in runs_in(tmp_path))


def test_a_search_in_which_all_runs_fail_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = FakeLauncher(lambda values: ("failed", "Traceback\nRuntimeError: out of memory", None))
    with pytest.raises(SystemExit):
        find(tmp_path, launcher)
    assert len(launcher.jobs) == 4
    assert "no run has a verdict; the last: failed: RuntimeError" in " ".join(capsys.readouterr().out.split())


def test_three_axes(tmp_path: Path) -> None:
    launcher = FakeLauncher(by_temperature)
    find(tmp_path, launcher, [*COMMAND, "optimizer.lr=tag(log,interval(1e-4,1e-2))"], n_runs=16, n_jobs=8)
    (boundary,) = read_boundaries(tmp_path, []).values()
    assert len(boundary.runs) == 16
    problems: list[str] = []
    figures = boundary_figures(tmp_path, problems)
    assert len(figures) == len(boundary.maps) == 4
    assert problems == []


def test_a_run_without_a_verdict_is_none(tmp_path: Path) -> None:
    assert [trains(word) for word in ("healthy", "slow", "collapsed-one-hot", "diverged")] == [
        True,
        True,
        False,
        False,
    ]
    assert trains("warming-up") is trains("") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps({"state": "failed", "verdict": "diverged"}))
    assert verdict_of(Outcome("a", "failed", 1, "loss is nan"), tmp_path) == "diverged"
    assert verdict_of(Outcome("b", "failed", 1, "out of memory"), tmp_path) == ""
    assert verdict_of(Outcome("b", "finished", 0, "already finished; slow"), tmp_path) == "slow"


SEARCH = ["-m", "hydra/sweeper=boundary", "experiment=debug"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["loss.teacher_temp=0.04"], "the space is a single point; give two or three keys an interval"),
        ([TEMPERATURE], "the space is that of one key"),
        (["loss.teacher_temp=interval(0.04,0.04)", MOMENTUM], "interval(0.04,0.04): a single point"),
        ([TEMPERATURE, "loss.center_momentum=0,0.9"], "write 'loss.center_momentum=interval(LOW,HIGH)'"),
        ([TEMPERATURE, MOMENTUM, "hydra.sweeper.n_runs=3"], "hydra.sweeper.n_runs = 3: must be at least 4"),
        ([TEMPERATURE, "loss.center_momentum=tag(momentum,interval(0,1))"], "needs an interval below 1"),
        ([TEMPERATURE, MOMENTUM, "hydra/launcher=local", "hydra.launcher.detach=true"], "waits for its runs"),
    ],
)
def test_what_no_boundary_is_searched_in(words: list[str], problem: str) -> None:
    assert problem in "\n".join(check([*SEARCH, *words]).errors)


def test_its_runs_end_when_their_verdict_is_settled_unless_typed_otherwise() -> None:
    checked = check([*SEARCH, TEMPERATURE, MOMENTUM, "trainer.on_healthy=continue"])
    assert checked.errors == []
    assert {"trainer.on_collapse=stop", "trainer.on_healthy=continue"} <= {*checked.fixed}


def test_a_search_by_optuna_takes_no_scale_of_momenta() -> None:
    words = [
        "-m",
        "hydra/sweeper=optuna",
        "experiment=debug",
        "ema.momentum=tag(momentum,interval(0.9,0.99))",
    ]
    assert "tag momentum is for hydra/sweeper=boundary" in check(words).errors[0]


def test_a_damaged_file_is_kept_and_begun_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"searches": 3')
    find(tmp_path, FakeLauncher(by_temperature), n_runs=8)
    assert len(runs_in(tmp_path)) == 8
    assert [path.read_text() for path in tmp_path.glob("boundary*") if path.name != FILE] == [
        '{"searches": 3'
    ]
    content = json.loads((tmp_path / FILE).read_text())
    (name,) = content["searches"]
    content["searches"][name]["maps"][0]["side"] = "odd"
    (tmp_path / FILE).write_text(json.dumps(content))
    problems: list[str] = []
    assert boundary_figures(tmp_path, problems) == []
    assert f"the map of {name} is damaged" in problems[0]


def test_train_py_and_its_report(tmp_path: Path) -> None:
    words = ["trainer.epochs=4", "trainer.batch_size=8", "crops.local_number=0", "eval.k=null"]
    words += ["trainer.log_every=8", "trainer.checkpoint_every=1000", "hydra.sweeper.n_runs=4"]
    words += ["loss.teacher_temp=interval(0.02,0.5)", "loss.center_momentum=interval(0,0.9)"]
    command = [*SEARCH, *words, f"output_root={tmp_path}/outputs"]
    done = run_program("train.py", *command, folder=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    (boundary,) = read_boundaries(folder, []).values()
    assert done.returncode == (0 if boundary.lines else 1), done.output
    assert len(boundary.runs) == 4
    summaries = {run.run: (folder / run.run / "summary.json").read_text() for run in boundary.runs}
    for run in boundary.runs:
        summary = json.loads(summaries[run.run])
        assert run.verdict == summary["verdict"]
        assert run.trains is trains(run.verdict) is not None
        assert run.information == summary["final"]["teacher/mutual_information_share"]
    run_program("train.py", *command, folder=tmp_path)
    assert {name: (folder / name / "summary.json").read_text() for name in summaries} == summaries
    assert run_program("report.py", str(folder), folder=tmp_path).returncode == 0
    page = (folder / "report" / "index.html").read_text()
    assert (boundary.lines[0] if boundary.lines else boundary.end) in page
