"""The HTML page of a run or a sweep, and its figures as files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dino_exp import metrics
from dino_exp.atomic import write_atomically
from dino_exp.config.expected import comparison
from dino_exp.config.per_step import conversion
from dino_exp.errors import UserError, refusing
from dino_exp.metrics import DATA_WAIT, KNN, PEAK_MEMORY, UNTRAINED_KNN, charts
from dino_exp.plots.drawing import Figure, write_files
from dino_exp.plots.html_page import as_columns, render
from dino_exp.report import evaluation_records, evaluation_results, run_figures
from dino_exp.report.defaults import differences
from dino_exp.report.fork_facts import fork_facts
from dino_exp.report.loading import load_run, utc
from dino_exp.report.run_data import RunData, SweepData
from dino_exp.report.run_images import as_data_url
from dino_exp.report.sweep import sweep_curves, sweep_figures, sweep_table
from dino_exp.report.sweep.boundary_figures import boundary_figures
from dino_exp.report.sweep.cells import averaged_over, map_axes
from dino_exp.report.sweep.paper import paper_rows
from dino_exp.report.verdicts import outcome_of
from dino_exp.runs.run_directory import refuse_links
from dino_exp.runs.run_files import is_file_inside, number

PAGE = "index.html"
IMAGES = {"attention.png": "Attention of the teacher", "crops.png": "Crops"}
MOST_ROWS_IN_FILES = 10_000
"""Rows of the curves of all runs, up to which each metric is a file; beyond, a file takes seconds."""
FACTS = (metrics.BEST_KNN, metrics.RAW_PIXELS_KNN, metrics.SPEED)
RUN_PAGES = 60
"""Largest sweep whose ended runs get pages of their own, which maps link to."""


def write_report(data: RunData | SweepData, folder: Path, refresh: float | None = None) -> list[Path]:
    """Write the page and its figures into `folder`, and return all paths, the page's first.

    Args:
        data: a run or a sweep.
        folder: created if it is missing.
        refresh: seconds after which an open page reloads itself; None is never.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(data, SweepData):
        _write_run_pages(data)
        figures, text = _sweep(data, folder, refresh)
    else:
        figures, text = _run(data, folder, refresh)
    paths = [path for figure in in_files(figures) for path in write_files(figure, folder)]
    return [_write_page(folder, text), *paths]


def in_files(figures: Sequence[Figure]) -> list[Figure]:
    """Return the figures as files; what the page lets readers choose is a file each."""
    files: list[Figure] = []
    for figure in figures:
        few = figure.name == "curves" and len(figure.spec["datasets"]["curves"]) <= MOST_ROWS_IN_FILES
        files += sweep_curves.of_each_metric(figure) if few else [figure]
    return files


def _write_page(folder: Path, text: str) -> Path:
    page, content = folder / PAGE, text.encode(errors="replace")  # names may contain any bytes
    write_atomically(page, lambda file: file.write(content))
    return page


def _write_run_pages(sweep: SweepData) -> None:
    """Write the pages of ended runs that have none, or whose page is older than their newest evaluation.

    Figures are not written as files.
    """
    if len(sweep.runs) > RUN_PAGES:
        return
    for run in sweep.runs:
        folder = run.path / "report"
        if folder.is_symlink():  # only a folder that is typed may be anywhere
            continue
        if run.state in ("finished", "collapsed", "failed") and _is_old(folder / PAGE, run):
            try:
                refuse_links(folder)
                with refusing("the others are skipped"):
                    folder.mkdir(exist_ok=True)
                    complete = load_run(run.path)
                    _write_page(folder, _run(complete, folder, None, beside=any(folder.glob("*.svg")))[1])
            except UserError as error:  # another user's runs, which can be reported on all the same
                sweep.problems.append(f"The pages of the runs could not be written: {error}")
                return


def _is_old(page: Path, run: RunData) -> bool:
    """Return whether a page is missing, or older than the run's evaluations."""
    try:
        written = page.stat().st_mtime_ns
        return bool(run.evaluations) and (run.path / evaluation_records.FILE).stat().st_mtime_ns > written
    except OSError:
        return not page.exists()


def _run(run: RunData, folder: Path, refresh: float | None, beside: bool = True) -> tuple[list[Figure], str]:
    """Return figures and page; with `beside`, the page links to their PNG and SVG files."""
    curves, absent = run_figures.run_figures(run)
    timeline = run_figures.timeline(run)
    figures = [*curves, timeline] if timeline else curves
    compared, differing = differences(run)
    problems = list(run.problems)
    found, others = evaluation_results.files(run, problems)
    of_run = [evaluation_results.File(IMAGES[name], name, run.path / "plots" / name) for name in IMAGES]
    own = [each for each in of_run if is_file_inside(each.path, run.path)]
    images, shown = (
        [(each.title, each.name, as_data_url(each.path), link(each.path, folder)) for each in files]
        for files in (own, found)
    )
    linked = [(each.name, link(each.path, folder)) for each in others]
    linked += [(name, target) for _, name, url, target in shown if not url]
    problems += [f"Not logged: {'; '.join(absent)}."] if absent else []
    for each in (each for each in of_run if each not in own):
        why = "a link to elsewhere, and not shown" if each.path.is_symlink() else "missing"
        problems.append(f"plots/{each.name} is {why}.")
    schedules = {chart.name for chart in charts() if chart.schedule}
    text = render(
        "run.html",
        figures,
        refresh,
        run=run,
        outcome=outcome_of(run.outcome),
        facts=_facts(run),
        curves=[figure for figure in curves if figure.name not in schedules],
        results=evaluation_results.result_lines(run),
        evaluations=link(run.path / evaluation_records.FILE, folder),
        notes=evaluation_results.collected_notes(run),
        shown=[each for each in shown if each[2]],
        linked=linked,
        schedules=[figure for figure in curves if figure.name in schedules],
        timeline=timeline,
        images=[each for each in images if each[2]],
        compared=compared,
        differing=differing,
        environment=_environment(run),
        problems=problems,
        beside=beside,
    )
    return figures, text


def _facts(run: RunData) -> list[tuple[str, str]]:
    step = "–" if run.step is None else f"{run.step:,}"
    total = "" if run.total_steps is None else f" of {run.total_steps:,}"
    wait = run.last(DATA_WAIT.key)
    seconds = number(run.summary.get("wall_seconds"))
    facts = [
        ("State", run.state + (f" ({run.note})" if run.note else "")),
        ("Step", step + total),
        *fork_facts(run),
        ("Reference batch", _reference_batch(run.config)),
        (f"{UNTRAINED_KNN.label} → now", f"{KNN.text(run.untrained_knn)} → {KNN.text(run.knn)}"),
        ("Expected", _expected(run)),
        ("Judged by", _probe(run.config)),
        ("k-NN of the student", KNN.text(run.last(str(KNN.student_key)))),
        *((row.label, row.text(run.last(row.key))) for row in FACTS),
        (DATA_WAIT.label, "–" if wait is None else f"{wait:.0%} of the time"),
        ("Training time", "–" if seconds is None else _duration(seconds)),
        (PEAK_MEMORY.label, PEAK_MEMORY.text(run.last(PEAK_MEMORY.key))),
    ]
    return [(name, value) for name, value in facts if value != "–"]


def _reference_batch(config: dict[str, Any]) -> str:
    """Return what the reference batch has changed, as the run itself says it."""
    try:
        return conversion(config) or "–"
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):  # damaged, or incomplete
        return "–"


def _expected(run: RunData) -> str:
    """Return how the last known k-NN compares with what the run's experiment reached."""
    known = [(step, value) for step, value in run.series(KNN.key) if value is not None]
    step, knn = known[-1] if known else (0, None)
    return comparison(run.config.get("expected"), step, run.total_steps or 0, knn) or "–"


def _probe(config: dict[str, Any]) -> str:
    """Return the probe set of a run as its configuration has it."""
    data = config.get("data")
    probe = data.get("probe") if isinstance(data, dict) else None
    parts = {part: probe.get(part) for part in ("train", "val")} if isinstance(probe, dict) else {}
    return ", ".join(f"data.probe.{part} = {path}" for part, path in parts.items() if path) or "–"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if seconds >= 120 else f"{seconds:.0f} s"


def _environment(run: RunData) -> list[tuple[str, str]]:
    known = run.summary.get("environment")
    rows = {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}
    for key in ("git_revision", "git_dirty", "host", "tracker_id"):
        if run.status.get(key) is not None:
            rows.setdefault(key, str(run.status[key]))
    heartbeat = number(run.status.get("heartbeat"))
    if heartbeat is not None:
        rows["last heartbeat"] = utc(heartbeat)
    return list(rows.items())


# ---- sweeps ------------------------------------------------------------------------------------------------


def _sweep(sweep: SweepData, folder: Path, refresh: float | None) -> tuple[list[Figure], str]:
    data = sweep_figures.map_data(sweep)
    maps = sweep_figures.maps(sweep, data)
    curves = sweep_curves.small_multiples(sweep)
    seeds = sweep_figures.seeds(sweep)
    effects = sweep_figures.effects(sweep)
    of_paper = dict(paper_rows(sweep))
    boundaries = boundary_figures(sweep.path, sweep.problems)
    several = (*maps, curves, seeds, *effects.values(), *of_paper.values())
    figures = [*(figure for figure, _ in boundaries), *(figure for figure in several if figure)]
    links = [page_link(run.path, folder) for run in sweep.runs]
    problems = list(sweep.problems)
    heads, rows = sweep_table.table(sweep, links, problems)
    for axis, keys in sweep.tied_keys.items():
        problems.append(f"{', '.join((axis, *keys))} change together; only {axis} is shown.")
    every = math.comb(len(map_axes(sweep)), 2)
    if len(data) < every:
        problems.append(
            f"Maps cover {len(data)} of {every} pairs of axes; more would make the page too large."
        )
    if sweep.runs and all(run.knn is None for run in sweep.runs):
        problems.append("No run has a k-NN; the mutual information of image and prototype is shown instead.")
    text = render(
        "sweep.html",
        figures,
        refresh,
        data={
            "maps": [
                each._asdict() | {"rows": as_columns(each.rows), "averaged": averaged(sweep, each.x, each.y)}
                for each in data
            ],
            "columns": [each.name for each in sweep_figures.MAPS],
            "measures": {each.name: each.metric.head for each in sweep_figures.measures_of(sweep)},
            "runs": [
                {"label": run.label, "outcome": run.outcome, "href": link, "evidence": run.evidence}
                for run, link in zip(sweep.runs, links, strict=True)
            ],
        },
        sweep=sweep,
        counts=Counter(run.outcome for run in sweep.runs).most_common(),
        states=Counter(run.state for run in sweep.runs).most_common(),
        outcome_of=outcome_of,
        best=best(sweep),
        spared=spared(sweep),
        pairs=data,
        averaged=averaged(sweep, data[0].x, data[0].y) if data else "",
        boundaries=boundaries,
        maps=maps,
        curves=curves,
        metrics={
            name: text for name, text in sweep_curves.CURVES.items() if curves and text in curves.columns
        },
        seeds=seeds,
        effects=[(figure, of_paper.get(axis)) for axis, figure in effects.items()],
        heads=heads,
        rows=rows,
        first=map_axes(sweep),
        outcomes=sorted({run.outcome for run in sweep.runs}),
        failures=[
            (run, link)
            for run, link in zip(sweep.runs, links, strict=True)
            if run.state in ("failed", "lost", "cancelled", "unknown") or run.outcome == "diverged"
        ],
        partial=[run for run in sweep.runs if run.problems],
        problems=problems,
    )
    return figures, text


def averaged(sweep: SweepData, x: str, y: str | None) -> str:
    """Return a sentence about the axes that a map over x and y averages over."""
    others = averaged_over(sweep, x, y)
    return f"A cell is the mean of its runs, which differ in {', '.join(others)}." if others else ""


def best(sweep: SweepData) -> str:
    """Return a sentence about the run with the highest k-NN; empty without one."""
    known = [run for run in sweep.runs if run.knn is not None]
    if not known:
        return ""
    run = max(known, key=lambda run: run.knn or 0.0)
    untrained = f" (untrained {run.untrained_knn:.1f} %)" if run.untrained_knn is not None else ""
    return f"Best k-NN: {run.knn:.1f} %{untrained} with {run.label}."


def spared(sweep: SweepData) -> str:
    """Return a sentence about the steps that runs did not make because their collapse ended them."""
    totals = [run.total_steps or 0 for run in sweep.runs]
    missing = [
        total - (run.step or 0)
        for run, total in zip(sweep.runs, totals, strict=True)
        if run.state == "collapsed" and total
    ]
    if not missing:
        return ""
    runs = (
        "1 run ended at its collapse" if len(missing) == 1 else f"{len(missing)} runs ended at their collapse"
    )
    return f"{runs}, which saved {sum(missing) / sum(totals):.0%} of the steps."


def page_link(path: Path, folder: Path) -> str:
    """Return the link from a page in `folder` to the page of a run or a sweep, or else to its folder."""
    page = path / "report" / PAGE
    return link(page, folder) if page.exists() else link(path, folder) + "/"


def link(target: Path, folder: Path) -> str:
    """Return the link from a page in `folder` to a file or folder."""
    relative = os.path.relpath(target.resolve(), folder.resolve()).replace(os.sep, "/")
    return quote(os.fsencode(relative))  # as bytes, because a name need not be Unicode
