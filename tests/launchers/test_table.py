"""Tables of a sweep in the terminal, and the files that `collect` writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet

from dino_exp.console import Console
from dino_exp.runs.manifest import Entry, Manifest
from launchers.states import RunState
from launchers.table import collect, counts, failures, remark, rows, runs_table

ATTEMPTS = [
    {"began": 1000.0, "until": 4600.0, "to_step": 5, "processes": 4, "device": "cuda"},
    {"began": 9000.0, "processes": 2, "device": "cuda"},
]


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Manifest, list[RunState]]:
    """Return a sweep with a finished run, a failed one, and a lost one without a summary."""
    manifest = Manifest(tmp_path, "slurm")
    temp = "loss.teacher_temp"
    overrides = [[f"{temp}=0.04"], [f"{temp}=null"], [f"{temp}=1e-1", "head=dino"]]
    statuses: list[dict[str, Any]] = [
        {"state": "finished", "step": 8, "total_steps": 8, "heartbeat": 10800.0, "attempts": ATTEMPTS},
        {"state": "failed", "step": 3, "total_steps": 8, "heartbeat": 9300.0, "attempts": ATTEMPTS[1:]},
        {"state": "lost"},
    ]
    runs = []
    for number, (own, status) in enumerate(zip(overrides, statuses, strict=True)):
        entry = Entry(own, "", f"7_{number}", [f"5_{number}", f"7_{number}"])
        manifest.runs[f"run{number}"] = entry
        manifest.directory(f"run{number}").mark(**status)
        runs.append(RunState(f"run{number}", entry, status["state"], status))
    manifest.directory("run0").write_summary(
        {
            "verdict": "learns",
            "knn_top1": 61.5,
            "untrained_knn_top1": 30.25,
            "images_per_second": 512.0,
            "final": {"loss": 1.5, "entropy": float("nan"), "evidence": "rank", "step": 8},
        }
    )
    manifest.directory("run1").traceback_file.write_text("Traceback\n  line\nValueError: [bold]NaN[/bold]\n")
    return manifest, runs


def test_a_row_has_swept_values_results_and_cost(sweep: tuple[Manifest, list[RunState]]) -> None:
    row = rows(*sweep)[0]
    assert row["run"] == "run0"
    assert row["loss.teacher_temp"] == 0.04
    assert (row["state"], row["verdict"], row["step"]) == ("finished", "learns", 8)
    assert (row["knn_top1"], row["untrained_knn_top1"], row["final.loss"]) == (61.5, 30.25, 1.5)
    assert "final.evidence" not in row
    assert (row["attempts"], row["hours"], row["gpu_hours"]) == (2, 1.5, 5.0)
    assert row["jobs"] == "5_0 7_0"


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    words = ["=cmd|'/C calc'!A0", "@SUM(1)", "+1+1", "-1+1", "\t=1", "\r=1", "-0.5", "+1e-3", "a=b"]
    manifest = Manifest(tmp_path, "local")
    manifest.runs = {f"run{n}": Entry([f"x={word}", "=1+1=2"], "") for n, word in enumerate(words)}
    paths = collect(manifest, [RunState(name, entry, "lost", {}) for name, entry in manifest.runs.items()])
    text = csv.read_csv(paths[0], parse_options=csv.ParseOptions(newlines_in_values=True))
    plain = ["\\x0d=1", "-0.5", "0.001", "a=b"]
    assert text.column("x").to_pylist() == [*(f"'{word}" for word in words[:5]), *plain]
    table = parquet.read_table(paths[1])
    assert table.column("x").to_pylist() == [*words[:5], *plain]
    heads = [name for name in text.column_names if name not in table.column_names]
    assert [name[:1] for name in heads] == ["'"] * len(heads)
    assert not [name for name in text.column_names if name.startswith("=")]


def test_csv_and_parquet_have_every_run(sweep: tuple[Manifest, list[RunState]]) -> None:
    paths = collect(*sweep)
    assert [path.name for path in paths] == ["runs.csv", "runs.parquet"]
    table = parquet.read_table(paths[1])
    assert table.column("run").to_pylist() == ["run0", "run1", "run2"]
    assert table.column("state").to_pylist() == ["finished", "failed", "lost"]
    assert table.column("knn_top1").to_pylist() == [61.5, None, None]
    assert table.column("hours").to_pylist() == pytest.approx([1.5, 300 / 3600, 0])
    # a column has one type, so that neither file loses the text
    assert table.column("loss.teacher_temp").to_pylist() == ["0.04", "null", "0.1"]
    assert table.column("head").to_pylist() == [None, None, "dino"]
    text = csv.read_csv(paths[0])
    assert text.column_names == table.column_names
    assert text.column("step").to_pylist() == [8, 3, None]
    assert text.column("final.loss").to_pylist() == [1.5, None, None]


def test_collect_works_before_any_run_has_ended(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "slurm", {}, {"a": Entry(["trainer.seed=0"], "")})
    paths = collect(manifest, [RunState("a", manifest.runs["a"], "pending")])
    for table in (csv.read_csv(paths[0]), parquet.read_table(paths[1])):
        assert table.select(["run", "trainer.seed", "state", "knn_top1", "attempts"]).to_pylist() == [
            {"run": "a", "trainer.seed": 0.0, "state": "pending", "knn_top1": None, "attempts": 0}
        ]


def shown(*what: object) -> str:
    """Return what a terminal would show."""
    console = Console(file=io.StringIO(), width=200)
    console.print(*what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_the_runs_and_the_failures_below_it(sweep: tuple[Manifest, list[RunState]]) -> None:
    manifest, runs = sweep
    runs[2].note = "the job is gone"
    text = shown(runs_table(manifest, runs))
    assert "3 runs: 1 finished, 1 failed, 1 lost" in text
    assert "61.5 %" in text
    assert "8/8" in text
    below = shown(failures(manifest, runs))
    assert "ValueError: [bold]NaN[/bold]" in below  # as the traceback has it
    assert "the job is gone" in below
    assert "run0" not in below
    assert failures(manifest, runs[:1]) is None


def test_a_short_table_shows_urgent_runs_first(tmp_path: Path) -> None:
    states = ["finished"] * 60 + ["failed", "running", "pending"]
    manifest = Manifest(tmp_path, "slurm", {}, {f"r{n}": Entry([f"n={n}"], "") for n in range(len(states))})
    runs = [RunState(f"r{n}", manifest.runs[f"r{n}"], state) for n, state in enumerate(states)]
    text = shown(runs_table(manifest, runs, 5))
    assert "n=60" in text
    assert "n=61" in text
    assert text.count("n=") == 5
    assert counts([run.state for run in runs]).plain == "63 runs: 60 finished, 1 running, 1 pending, 1 failed"


def test_silence_and_further_attempts_are_remarked() -> None:
    entry = Entry([], "")
    status = {"heartbeat": 0.0, "attempts": ATTEMPTS}
    assert remark(RunState("a", entry, "finished", status)) == "attempt 2"
    assert remark(RunState("a", entry, "running", status, note="job running")).startswith("silent for ")
    assert remark(RunState("a", entry, "pending", {}, note="job pending")) == "job pending"
