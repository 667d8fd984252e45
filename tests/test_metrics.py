"""Every metric has one row, and the row alone decides where the metric is shown."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dino_exp import metrics
from dino_exp.config.compose import compose
from dino_exp.console import Console
from dino_exp.dino.verdict import Verdict
from dino_exp.metrics import KNN, METRICS, Chart, Metric
from dino_exp.plots.run_curves import curves_figure
from dino_exp.report.loading import load_run, load_sweep
from dino_exp.report.run_figures import run_figures
from dino_exp.report.sweep.sweep_table import table
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training.progress import RunProgress
from dino_exp.training.run import train
from tests.report.synthetic import record, temps_momenta, write_lines, write_run, write_sweep


def test_a_run_logs_the_metrics_that_have_a_row_and_no_others(tmp_path: Path) -> None:
    small = ["trainer.max_steps=2", "trainer.batch_size=8", "data.train_size=16", "data.test_size=16"]
    train(compose(["experiment=debug", *small]), tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    logged = {key for line in read_metrics(directory.metrics_file) for key in line}
    keys = [key for row in METRICS for key in row.keys]
    assert len(keys) == len(set(keys))
    assert logged - {"verdict"} == set(keys)
    in_summary = {metrics.BEST_KNN.key, metrics.UNTRAINED_KNN.key, *KNN.keys}
    assert in_summary <= directory.read_summary().keys()


def test_a_row_is_shown_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Metric(
        "teacher/kurtosis",
        "Kurtosis of the features",
        "kurtosis",
        form=".1f",
        student_key="student/kurtosis",
        better="higher",
        chart=Chart("kurtosis"),
        panel=9,
        progress=9,
        column=9,
    )
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, row))
    values = {"teacher/kurtosis": 2.5, "student/kurtosis": 3.5}
    lines = [record(step, 3, "healthy") | values for step in (1, 2, 3)]

    run = write_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", lines)
    figure = run_figures(load_run(run))[0][-1]
    assert (figure.name, figure.title) == ("kurtosis", "Kurtosis of the features")
    assert figure.columns == ("step", "teacher", "student")

    (panel,) = [
        axes for axes in curves_figure(lines, name="run").axes if "Kurtosis" in axes.get_title("left")
    ]
    assert [line.get_label() for line in panel.lines] == ["teacher", "student"]

    console = Console(file=io.StringIO(), width=300)
    RunProgress(console, stop_step=3).logged(3, lines[-1], Verdict("healthy", ""))
    assert "images/s 320  kurtosis 2.5" in console.file.getvalue()  # type: ignore[attr-defined]

    heads, _ = table(load_sweep(write_sweep(tmp_path / "sweep", temps_momenta())), [""] * 20, [])
    assert heads[-1] == ("kurtosis", "", True)
