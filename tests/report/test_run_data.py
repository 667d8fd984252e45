"""Loading of folders, above all of incomplete and broken ones."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from dino_exp.config.compose import compose
from dino_exp.errors import UserError
from dino_exp.report.defaults import differences
from dino_exp.report.loading import load, load_run, load_sweep
from dino_exp.report.run_data import RunData, SweepData
from dino_exp.report.verdicts import outcome_of
from dino_exp.runs.metrics_lines import read_metrics
from tests.report.synthetic import record, temps_momenta, write_json, write_lines, write_run, write_sweep


def test_a_finished_run_is_loaded(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run"))
    assert isinstance(run, RunData)
    assert (run.state, run.verdict, run.knn, run.untrained_knn) == ("finished", "healthy", 72.0, 20.0)
    assert run.series("knn_top1")[0] == (0, 20.0)
    assert len(run.series("loss")) == 24
    assert run.problems == []


@pytest.mark.parametrize("manifest", [True, False])
def test_every_run_of_a_sweep_is_loaded_however_it_ended(tmp_path: Path, manifest: bool) -> None:
    ends = ("finished", "failed", "collapsed", "cancelled", "preempted")
    wanted = [{"values": {"trainer.seed": seed}, "state": state} for seed, state in enumerate(ends)]
    sweep = load_sweep(write_sweep(tmp_path / "sweep", wanted, manifest))
    assert [run.state for run in sweep.runs] == list(ends)
    failed = sweep.runs[1]
    assert failed.last_lines.endswith("RuntimeError: <out of memory>")
    assert [run.values for run in sweep.runs] == [{"trainer.seed": float(seed)} for seed in range(5)]


def test_incomplete_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[5] = lines[5][:40]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 901, "loss": 1.', "[]", "7"]))
    run = load_run(path)
    assert len(run.metrics) == 24
    assert any("skipped 4 lines, incomplete" in problem for problem in run.problems)


def test_values_that_are_not_numbers_are_problems(tmp_path: Path) -> None:
    records = [record(step, 3, "diverged") for step in (1, 2, 3)]
    records[1]["loss"] = None
    path = tmp_path / "run"
    write_lines(path / "metrics.jsonl", records)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": NaN, "kl_share": Infinity, "knn_top1": "high"}\n')
    run = load_run(path)
    assert [value is None for _, value in run.series("loss")] == [False, True, False, True]
    assert run.last("kl_share") == 0.001
    assert run.knn is None
    assert "loss is not a number at step 2." in run.problems
    assert "No k-NN of the trained network was measured." in run.problems


def test_a_running_run_is_not_shown_as_ended(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", state="running", verdict="collapsed-uniform")
    write_json(path / "status.json", {"state": "running", "step": 300, "heartbeat": time.time()})
    run = load_run(path)
    assert run.outcome == "running: collapsed-uniform"
    shown, final = outcome_of(run.outcome), outcome_of("collapsed-uniform")
    assert shown.kind == final.kind == "collapsed"
    assert shown.shape != final.shape
    assert "so far: Collapsed" in shown.meaning


@pytest.mark.parametrize("heartbeat", [1e30, -5e20, 1e15])
def test_an_impossible_time_is_no_sign_of_life(tmp_path: Path, heartbeat: float) -> None:
    path = write_run(tmp_path / "run", state="running")
    write_json(path / "status.json", {"state": "running", "step": 3, "heartbeat": heartbeat})
    run = load_run(path)
    assert run.state == "lost"
    assert any("heartbeat" in problem for problem in run.problems)


@pytest.mark.parametrize("overrides", [None, 5, "loss.teacher_temp=0.02"])
def test_overrides_that_are_not_a_list_are_ignored(tmp_path: Path, overrides: object) -> None:
    folder = write_sweep(tmp_path / "sweep", temps_momenta()[:3])
    manifest = json.loads((folder / "manifest.json").read_text())
    first = next(iter(manifest["runs"].values()))
    first["overrides"] = overrides
    write_json(folder / "manifest.json", manifest)
    sweep = load_sweep(folder)
    assert len(sweep.runs) == 3
    assert sweep.runs[0].overrides == []


def test_runs_without_an_override_have_the_option_of_their_configuration(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", temps_momenta()[:3])
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second, third = manifest["runs"].values()
    first["overrides"], second["overrides"] = ["backbone=timm", "experiment=x"], ["backbone=vit_micro"]
    third["overrides"] = ["experiment=x"]
    write_json(folder / "manifest.json", manifest)
    sweep = load_sweep(folder)
    assert sweep.axes["backbone"] == ["timm", "vit_micro"]
    assert [run.values["experiment"] for run in sweep.runs] == ["x", "demo", "x"]


def test_runs_of_several_data_sets_are_a_problem(tmp_path: Path) -> None:
    runs = [{"values": {"data.name": name}} for name in ("shapes", "fashion_mnist")]
    sweep = load_sweep(write_sweep(tmp_path, runs))
    assert any("fashion_mnist, shapes" in problem for problem in sweep.problems)


@pytest.mark.parametrize("experiment", ["demo", "cifar10_folder", "paper_vits16"])
def test_differences_from_an_experiment_that_requires_a_folder(tmp_path: Path, experiment: str) -> None:
    path = write_run(tmp_path / "run")
    own = [] if experiment == "demo" else [f"data.root={tmp_path}"]
    words = [f"experiment={experiment}", *own, "loss.student_temp=0.2"]
    cfg = OmegaConf.to_container(compose(words), resolve=True)
    write_json(path / "config.yaml", cfg)
    sentence, rows = differences(load_run(path))
    assert sentence == f"Compared with experiment={experiment}."
    assert {key for key, _, _ in rows} - {"data.root"} == {"loss.student_temp"}


def test_the_knn_at_step_0_is_that_of_the_untrained_network(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", state="running")
    write_lines(path / "metrics.jsonl", [{"step": 0, "knn_top1": 20.0}, record(1, 9, "warming-up")])
    run = load_run(path)
    assert run.knn is None
    assert run.untrained_knn == 20.0


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "summary.json", "metrics.jsonl"])
def test_any_file_may_be_missing_or_incomplete(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run")
    (path / name).write_bytes((path / name).read_bytes()[:25] + b"\xff")
    torn = load_run(path)
    assert [problem for problem in torn.problems if problem.startswith(name)]
    (path / name).unlink()
    assert load_run(path).state == "finished"


def test_a_silent_run_that_no_process_holds_is_lost(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", state="running")
    assert load_run(path).state == "lost"
    with FileLock(path / ".lock"):
        assert load_run(path).state == "running"
    write_json(path / "status.json", {"state": "running", "heartbeat": time.time()})
    assert load_run(path).state == "running"


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        load(tmp_path)
    write_run(tmp_path / "sweep" / "run")
    with pytest.raises(UserError, match="Its folder sweep contains runs"):
        load(tmp_path)


def test_an_empty_folder_is_a_sweep_without_runs(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert isinstance(sweep, SweepData)
    assert sweep.runs == []
    assert sweep.problems == ["There are no runs in this folder."]


def test_axes_from_the_manifest(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, temps_momenta(seeds=2)))
    assert list(sweep.axes) == ["loss.teacher_temp", "loss.center_momentum", "trainer.seed"]
    assert sweep.axes["loss.teacher_temp"] == [0.02, 0.04, 0.07, 0.1, 0.2]
    assert len(sweep.runs) == 40
    assert sweep.runs[3].values == dict(zip(sweep.axes, (0.02, 0.9, 1.0), strict=True))


def test_a_pruned_run_is_so_in_its_sweep_and_alone(tmp_path: Path) -> None:
    folder = write_sweep(
        tmp_path, [{"values": {"trainer.seed": seed}, "state": "cancelled"} for seed in (0, 1)]
    )
    content = json.loads((folder / "manifest.json").read_text())
    pruned, cancelled = content["runs"]
    content["runs"][pruned]["pruned"] = True
    write_json(folder / "manifest.json", content)
    assert [run.state for run in load_sweep(folder).runs] == ["pruned", "cancelled"]
    assert [load_run(folder / name).outcome for name in (pruned, cancelled)] == [
        "pruned: healthy",
        "cancelled",
    ]


def test_axes_without_a_manifest_are_keys_that_differ_between_configurations(tmp_path: Path) -> None:
    runs = temps_momenta()
    for run in runs:
        run["values"]["head.out_dim"] = 64 if run["values"]["loss.teacher_temp"] < 0.1 else 128
        run["values"]["trainer.device"] = f"cuda:{len(str(run['values']))}"
        run["values"]["optimizer.lr"] = run["values"]["loss.center_momentum"] + 1.0
    sweep = load_sweep(write_sweep(tmp_path, runs, manifest=False))
    assert set(sweep.axes) == {"loss.teacher_temp", "loss.center_momentum", "head.out_dim"}
    assert sweep.tied_keys == {"loss.center_momentum": ["optimizer.lr"]}
    assert sweep.axes["loss.center_momentum"] == [0.0, 0.9, 0.99, 0.999]


@pytest.mark.parametrize("manifest", [True, False])
def test_a_list_valued_axis_is_text(tmp_path: Path, manifest: bool) -> None:
    runs = [{"values": {"crops.global_scale": scale}} for scale in ([0.14, 1.0], [0.4, 1.0])]
    sweep = load_sweep(write_sweep(tmp_path, runs, manifest))
    found = [value.replace("1.0", "1") for value in map(str, sweep.axes["crops.global_scale"])]
    assert found == ["[0.14, 1]", "[0.4, 1]"]


def test_keys_that_only_some_versions_have_are_no_axes(tmp_path: Path) -> None:
    write_run(tmp_path / "a_00000001", values={"loss.teacher_temp": 0.04, "loss.koleo": 0.1})
    older = write_run(tmp_path / "b_00000002") / "config.yaml"
    write_json(
        older, {key: value for key, value in json.loads(older.read_text()).items() if key != "augment"}
    )
    write_run(tmp_path / "c_00000003")
    sweep = load_sweep(tmp_path)
    assert list(sweep.axes) == ["loss.teacher_temp"]
    assert any("of different versions" in problem and "loss.koleo" in problem for problem in sweep.problems)


def test_every_run_of_a_manifest_is_loaded(tmp_path: Path) -> None:
    runs = temps_momenta()[:6]
    runs[1] |= {"state": "running"}
    write_sweep(tmp_path, runs)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    names = list(manifest["runs"])
    manifest["runs"]["never_started_0000000f"] = {"overrides": ["loss.teacher_temp=0.5"], "job": None}
    manifest["runs"]["of_a_later_version_0000000e"] = {"overrides": [], "config_hash": "", "color": "red"}
    manifest["runs"]["torn_0000000d"] = 7
    write_json(tmp_path / "manifest.json", manifest)
    (tmp_path / names[2] / "status.json").write_text('{"state": "fin')
    write_run(tmp_path / "by_hand_0000000a")
    states = {run.name: run.state for run in load_sweep(tmp_path).runs}
    assert len(states) == 10
    assert states[names[0]] == "finished"
    assert states[names[1]] == "lost"
    assert states["never_started_0000000f"] == "lost"
    assert states[names[2]] == "finished"  # its summary says so
    assert states["by_hand_0000000a"] == "finished"


def test_large_metrics_are_sampled(tmp_path: Path) -> None:
    records = [record(step, 4000, "healthy") for step in range(1, 4001)]
    records[2999]["knn_top1"] = 64.0
    write_lines(tmp_path / "metrics.jsonl", records)
    problems: list[str] = []
    some = read_metrics(tmp_path / "metrics.jsonl", problems, 100)
    steps = [each["step"] for each in some]
    assert steps[0] == 1
    assert steps[-1] == 4000
    assert 3000 in steps  # the last one with a k-NN
    assert 95 <= len(steps) <= 105
    assert max(after - before for before, after in pairwise(steps)) < 60
    assert problems == []
    write_lines(tmp_path / "metrics.jsonl", records[2900:3100])
    steps = [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl", problems, 20)]
    assert steps[0] == 2901
    assert steps[-1] == 3100
    assert 3000 in steps
    assert 20 <= len(steps) <= 22
