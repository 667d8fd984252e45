"""Does the region in which DINO trains stay in its place when the batch changes, with `reference_batch`?

    python -m benchmarks.batch_rule train --part 1/4      # 84 runs of experiment=shapes; can be resumed
    python -m benchmarks.batch_rule figure                # what is there, as a table and one figure

τ_t × m maps of experiment=shapes at batches of 16, 32, 64 and 128, for which its recipe (batch 32) is taken
as it is, and with `trainer.reference_batch=32`; every run sees the same number of images, unless it
collapses and ends. The figure has the maps of k-NN, with the runs that collapsed, and k-NN by images seen at
its own τ_t and m.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from benchmarks.local_runs import train_here
from benchmarks.measure import OUTPUTS
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.console import Console, a_console
from dino_exp.plots.png import DPI, INK, save
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.runs.run_directory import RunDirectory
from launchers.boundary.boundary_search import trains
from launchers.submission import Wanted

FOLDER = Path("outputs/batch_rule")
RECIPE = ["experiment=shapes", "trainer.epochs=2", "trainer.on_collapse=stop", "tracker=none"]
REFERENCE = 32
"""The batch of experiment=shapes."""
BATCHES = (16, 32, 64, 128)
TEMPERATURES = (0.02, 0.04, 0.07)
MOMENTA = (0.5, 0.9, 0.99, 0.999)
OWN = (0.02, 0.5)
"""τ_t and m of experiment=shapes."""


class Cell(NamedTuple):
    """A run of the study."""

    batch: int
    converted: bool
    """Whether with `trainer.reference_batch`; at the reference itself both are one run."""
    teacher_temp: float
    center_momentum: float

    def words(self) -> tuple[str, ...]:
        """Return its overrides."""
        reference = (f"trainer.reference_batch={REFERENCE}",) if self.converted else ()
        return (
            f"trainer.batch_size={self.batch}",
            *reference,
            f"loss.teacher_temp={self.teacher_temp}",
            f"loss.warmup_teacher_temp={self.teacher_temp}",
            f"loss.center_momentum={self.center_momentum}",
        )


def cells() -> Iterator[Cell]:
    """Yield the runs, those of one place of the maps together."""
    for temperature, momentum in product(TEMPERATURES, MOMENTA):
        for batch, converted in product(BATCHES, (False, True)):
            if batch != REFERENCE or not converted:
                yield Cell(batch, converted, temperature, momentum)


def wanted(cell: Cell) -> Wanted:
    """Return a run as the queue takes it."""
    cfg = compose([*RECIPE, *cell.words()])
    return Wanted(run_id(cfg), cell.words(), cfg)


class Outcome(NamedTuple):
    """How a run ended."""

    knn: float | None
    trains: bool | None
    curve: list[tuple[int, float]]
    """Images seen, and k-NN."""


def outcomes() -> dict[Cell, Outcome]:
    """Return the runs that have ended."""
    found = {}
    for cell in cells():
        directory = RunDirectory(FOLDER / wanted(cell).name)
        summary = directory.read_summary() if directory.path.exists() else {}
        if summary:
            lines = read_metrics(directory.metrics_file)
            curve = [(line["images"], line["knn_top1"]) for line in lines if line.get("knn_top1") is not None]
            ended = trains(str(summary.get("verdict") or ""))
            found[cell] = Outcome(summary.get("knn_top1"), ended, curve)
    return found


def at(found: dict[Cell, Outcome], batch: int, converted: bool, place: tuple[float, float]) -> Outcome | None:
    """Return the run of a place of a map."""
    return found.get(Cell(batch, converted and batch != REFERENCE, *place))


def moved(found: dict[Cell, Outcome], batch: int, converted: bool) -> dict[str, Any]:
    """Compare a map with that of the reference batch, where both have runs."""
    pairs = [
        (here, there)
        for place in product(TEMPERATURES, MOMENTA)
        if (here := at(found, batch, converted, place)) and (there := at(found, REFERENCE, False, place))
    ]
    known = [(a.knn, b.knn) for a, b in pairs if a.knn is not None and b.knn is not None]
    return {
        "batch": batch,
        "reference_batch": converted,
        "places": len(pairs),
        "train": sum(here.trains is True for here, _ in pairs),
        "changed": sum(here.trains != there.trains for here, there in pairs),
        "knn_difference": float(np.mean([abs(a - b) for a, b in known])) if known else None,
    }


def figure_of(found: dict[Cell, Outcome]) -> Figure:
    """Return the maps without and with a reference, and the curves of the recipe's own place."""
    figure = Figure(figsize=(4 * len(BATCHES), 11), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(3, len(BATCHES))
    image = None
    for (row, converted), (column, batch) in product(enumerate((False, True)), enumerate(BATCHES)):
        axes = figure.add_subplot(grid[row, column])
        values = np.full((len(MOMENTA), len(TEMPERATURES)), math.nan)
        for (y, momentum), (x, temperature) in product(enumerate(MOMENTA), enumerate(TEMPERATURES)):
            run = at(found, batch, converted, (temperature, momentum))
            if run is None:
                continue
            values[y, x] = math.nan if run.knn is None else run.knn
            shown = "–" if run.knn is None else f"{run.knn:.0f}"
            text = f"{shown}\ncollapsed" if run.trains is False else shown
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)
        image = axes.imshow(values, origin="lower", vmin=10, vmax=100, cmap="YlGn", aspect="auto")
        axes.set_xticks(range(len(TEMPERATURES)), [f"{value:g}" for value in TEMPERATURES])
        axes.set_yticks(range(len(MOMENTA)), [f"{value:g}" for value in MOMENTA])
        axes.set_xlabel("teacher temperature")
        axes.set_ylabel("center momentum, as written")
        how = f"reference {REFERENCE}" if converted else "per step, as written"
        axes.set_title(f"batch {batch}: {how}", fontsize=11, color=INK)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label="k-NN top-1, %", shrink=0.6)
    curves = figure.add_subplot(grid[2, :])
    for number, batch in enumerate(BATCHES):
        for converted in (False, True):
            run = at(found, batch, converted, OWN)
            if run and run.curve and (batch != REFERENCE or not converted):
                images, knn = zip(*run.curve, strict=True)
                name = f"batch {batch}" + (f", reference {REFERENCE}" if converted else "")
                curves.plot(images, knn, "-" if converted else "--", color=f"C{number}", label=name)
    curves.set_xlabel("images seen")
    curves.set_ylabel("k-NN top-1, %")
    curves.set_title(f"τ_t = {OWN[0]:g}, m = {OWN[1]:g}", fontsize=11, color=INK)
    if curves.lines:
        curves.legend(ncols=4, fontsize=9)
    return figure


def show(console: Console) -> None:
    """Print the comparison with the map of the reference batch, and draw the figure."""
    found = outcomes()
    maps = [(batch, converted) for converted in (False, True) for batch in BATCHES if batch != REFERENCE]
    rows = [moved(found, batch, converted) for batch, converted in maps]
    table = Table(title=f"against the map of batch {REFERENCE}", title_justify="left", box=box.MARKDOWN)
    for column in ("batch", "reference_batch", "places", "train", "outcome changed", "mean |Δ k-NN|"):
        table.add_column(column)
    for row in rows:
        difference = row["knn_difference"]
        table.add_row(
            str(row["batch"]),
            str(REFERENCE) if row["reference_batch"] else "–",
            *(str(row[name]) for name in ("places", "train", "changed")),
            "–" if difference is None else f"{difference:.1f}",
        )
    console.print(table)
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / "batch_rule.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    out = OUTPUTS / "batch_rule.png"
    save(figure_of(found), out)
    console.print(f"{len(found)} of {len(list(cells()))} runs -> {out}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["train", "figure"])
    parser.add_argument("--part", default="1/1", help="for train: this part of so many, e.g. 2/12")
    arguments = parser.parse_args(argv)
    console = a_console()
    if arguments.what == "figure":
        show(console)
        return
    number, _, parts = arguments.part.partition("/")
    chosen = list(cells())[int(number) - 1 :: int(parts)]
    train_here(FOLDER, [wanted(cell) for cell in chosen], console)


if __name__ == "__main__":
    main()
