"""A search prunes trials by their interim values, averages over seeds, and learns from collapses."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.launchers.searches import FIXED, TEMPERATURE, FakeTraining, run_search, trials, well

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
COMMAND = [*FIXED, TEMPERATURE]


def temperature(values: dict[str, str]) -> float:
    return float(values["loss.teacher_temp"])


def rising(values: dict[str, str]) -> list[float]:
    """Return k-NN that rises to what `well` gives."""
    return [100 * temperature(values) * part for part in range(1, 10)]


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_trials_that_are_behind_are_stopped_and_not_trained_again(
    tmp_path: Path, pruner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = FakeTraining(well, curve=rising)
    run_search(tmp_path, training, COMMAND, n_trials=16, n_jobs=3, pruner=pruner)
    told = trials(tmp_path)
    pruned = [trial for trial in told if trial.state == PRUNED]
    complete = [trial for trial in told if trial.state == COMPLETE]
    assert (len(pruned) + len(complete), training.most) == (16, 3)
    assert {trial.user_attrs["run"] for trial in pruned} == training.stopped.keys()
    assert 4 <= len(pruned) <= 14
    assert all(0 < len(trial.intermediate_values) <= 9 for trial in pruned)
    assert all(list(trial.intermediate_values) == list(range(1, 10)) for trial in complete)
    # at equal steps, none that was pruned is better than the best
    best = max(complete, key=lambda trial: trial.value or 0)
    for trial in pruned:
        last = max(trial.intermediate_values)
        assert trial.intermediate_values[last] < best.intermediate_values[last]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"pruned (behind the others) {len(pruned)} " in printed
    assert f"best k-NN {best.value:.1f} % (trial {best.number})" in printed
    nothing = FakeTraining(well)
    run_search(tmp_path, nothing, COMMAND, n_trials=16, n_jobs=3, pruner=pruner)
    assert nothing.starts == []


def test_a_run_that_has_finished_when_it_is_told_to_stop_is_complete(tmp_path: Path) -> None:
    class Late(FakeTraining):
        def prune(self, run_ids: object) -> None:
            pass

    training = Late(well, curve=rising)
    run_search(tmp_path, training, COMMAND, n_trials=12, n_jobs=3, pruner="median")
    assert {trial.state for trial in trials(tmp_path)} == {COMPLETE}


def test_a_pruner_without_interim_values_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_search(tmp_path, FakeTraining(well), COMMAND, n_trials=1, pruner="asha")
    assert "had no knn_top1 between a tenth of its steps and its end; lower eval" in capsys.readouterr().out


def with_seed(values: dict[str, str]) -> tuple[str, str, float | None]:
    return "finished", "healthy", 1000 * temperature(values) + int(values.get("trainer.seed", 7))


def test_seeds_are_averaged(tmp_path: Path) -> None:
    training = FakeTraining(with_seed)
    command = [*FIXED, "trainer.seed=7", TEMPERATURE]
    run_search(tmp_path, training, command, n_trials=4, n_jobs=2, seeds=3)
    assert [len(jobs) for jobs in training.starts] == [6, 3, 3]
    for trial in trials(tmp_path):
        (value,) = trial.params.values()
        assert trial.value == pytest.approx(1000 * value + 8, abs=0.01)
    seeds = [[word for word in job if word.startswith("trainer.seed=")] for job in training.jobs[:3]]
    assert seeds == [["trainer.seed=7"], ["trainer.seed=8"], ["trainer.seed=9"]]
    again = FakeTraining(with_seed)
    run_search(tmp_path, again, command, n_trials=4, n_jobs=2, seeds=3)
    assert again.starts == []


def test_a_seed_that_collapses_prunes_its_trial_and_one_that_fails_has_it_tried_again(tmp_path: Path) -> None:
    def end(values: dict[str, str]) -> tuple[str, str, float | None]:
        seed = values.get("trainer.seed", "0")
        if temperature(values) < 0.03 and seed == "1":
            return "collapsed", "collapsed-uniform", 12.0
        return ("failed", "no", None) if temperature(values) > 0.05 and seed == "1" else well(values)

    def curve(values: dict[str, str]) -> list[float]:
        return [1.0] if values.get("trainer.seed") == "1" else [1.0] * 5

    training = FakeTraining(end, curve=curve)
    run_search(tmp_path, training, COMMAND, n_trials=8, n_jobs=2, seeds=3)
    told = trials(tmp_path)
    assert {trial.state for trial in told} == {COMPLETE, PRUNED, FAIL}
    for trial in told:
        (value,) = trial.params.values()
        assert trial.state == (PRUNED if value < 0.03 else FAIL if value > 0.05 else COMPLETE)
    # its other seeds are stopped at once; those of a failed one are not
    assert all(temperature(values) < 0.03 for values in training.stopped.values())
    assert len(training.stopped) == 2 * sum(trial.state == PRUNED for trial in told)
    again = FakeTraining(well)
    run_search(tmp_path, again, COMMAND, n_trials=8, n_jobs=2, seeds=3)
    assert len(again.jobs) == 3 * sum(trial.state == FAIL for trial in told)


def test_the_gaussian_process_learns_where_runs_collapse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(values: dict[str, str]) -> tuple[str, str, float | None]:
        if temperature(values) > 0.05:
            return "collapsed", "collapsed-uniform, k-NN 12.0 %", 12.0
        return "finished", "healthy", 60 - 1000 * abs(temperature(values) - 0.025)

    command = [*FIXED, "loss.teacher_temp=interval(0.01,0.09)"]
    run_search(tmp_path, FakeTraining(end), command, n_trials=16, sampler="gp")
    told = [trial.params["loss.teacher_temp"] for trial in trials(tmp_path)]
    assert sum(value > 0.05 for value in told[10:]) <= 1  # at random, half of the six
    best = min(told, key=lambda value: abs(value - 0.025))
    printed = " ".join(capsys.readouterr().out.split())
    collapsed = sum(value > 0.05 for value in told)
    assert f"trials 16, of them {16 - collapsed} complete" in printed
    assert f"best overrides loss.teacher_temp={best:.6g} " in printed
    assert f"pruned (collapsed) {collapsed} " in printed
    nothing = FakeTraining(end)
    run_search(tmp_path, nothing, command, n_trials=16, sampler="gp")
    assert nothing.starts == []


def test_all_that_collapsed_is_no_result(tmp_path: Path) -> None:
    training = FakeTraining(lambda values: ("collapsed", "collapsed-uniform", 12.0))
    with pytest.raises(SystemExit):
        run_search(tmp_path, training, COMMAND, n_trials=2, sampler="gp")
