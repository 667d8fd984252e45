"""The search for a boundary against a dense grid, random runs, and a grid of the same size.

    python -m benchmarks.boundary synthetic                   # known boundaries with seed noise; minutes
    python -m benchmarks.boundary classifiers                 # ours and scikit-learn's on such searches
    python -m benchmarks.boundary grid shapes --part 1/2      # real 10 x 10 grid; can be resumed
    python -m benchmarks.boundary grid shapes --seed 1        # the same with another seed
    python -m benchmarks.boundary compare shapes              # from the runs of these grids
    python -m benchmarks.boundary search shapes               # the search itself, over the same axes

`synthetic` draws the outcome of a run from the distance to a boundary plus a normal number for its seed, and
reports the share of the space on the wrong side. `grid` trains τ_t × m, healthy runs to their end, so that
`compare` can also say whether `trainer.on_healthy=stop` would have ended a run that collapsed later.
`compare` repeats each method on the cells of the grid with seed 0, and counts the cells in which it differs
from that grid, beside those in which the grid of seed 1 differs. `search` trains its own runs, two at a time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.special import ndtr

from benchmarks.collapse import logged
from benchmarks.measure import OUTPUTS
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.stored import read_config
from dino_exp.console import Console, a_console
from dino_exp.runs.run_directory import RunDirectory, to_json
from dino_exp.training.attempt import attempt
from dino_exp.training.plan import judge_of
from launchers.boundary.boundary_axis import Axis
from launchers.boundary.boundary_search import trains
from launchers.boundary.classifier import Classifier
from launchers.boundary.proposal import first_points, next_points
from launchers.submission import Wanted

FIRST, BATCH, RUNS, SIDE = 8, 4, 20, 10
"""First points and batches of a search, its runs, and the cells along a side of the dense grid."""
FINE = 60
NOISES = (0.01, 0.05)
"""Standard deviation by which a seed moves a boundary, in lengths of an axis."""
MOMENTUM = Axis("loss.center_momentum", 0.0, 0.999, "momentum")
DATA = {
    "shapes": (
        (Axis("loss.teacher_temp", 0.02, 0.1, "linear"), MOMENTUM),
        "experiment=shapes optimizer.warmup_epochs=0.1 crops.global_size=24 trainer.max_steps=400",
    ),
    "fashion_mnist": (
        (Axis("loss.teacher_temp", 0.02, 0.3, "linear"), MOMENTUM),
        "experiment=fashion_mnist optimizer.warmup_epochs=0.02 crops.global_size=20 trainer.max_steps=500",
    ),
}
"""Axes of the real grids, and overrides: 75 steps of warm-up, and steps in which a collapse is called."""
SHORT = [
    "backbone.embed_dim=32",
    "backbone.depth=2",
    "crops.local_size=12",
    "trainer.epochs=1",
    "trainer.batch_size=16",
    "optimizer.lr=0.016",
    "trainer.log_every=10",
    "trainer.on_collapse=stop",
    "eval.bank_size=200",
    "eval.query_size=100",
    "tracker=none",
]
"""Overrides of both: a quarter of a minute of CPU a run."""

Draw = Callable[[Tensor], Tensor]
"""Returns whether a run at each point (n, 2) trains, or the distance to the boundary."""
TRUTHS: dict[str, Draw] = {
    "diagonal": lambda x: 0.95 - x[:, 0] - 0.6 * x[:, 1],
    "curved": lambda x: torch.minimum(0.55 - 0.4 * x[:, 1] ** 3 - x[:, 0], 0.9 - x[:, 1]),
    "ragged": lambda x: (
        0.5 - 0.25 * x[:, 1] + 0.06 * torch.sin(18 * x[:, 1]) + 0.03 * torch.sin(47 * x[:, 1] + 1) - x[:, 0]
    ),
    "band": lambda x: 0.22 - (x[:, 0] - 0.45 - 0.2 * x[:, 1]).abs(),
    "corner": lambda x: torch.minimum(x[:, 0] - 0.6, 0.55 - x[:, 1]),
}
"""Distances to boundaries in the unit square; training is above 0."""


def evenly(*numbers: int) -> Tensor:
    """Return a grid of points with so many values of each axis, ends included."""
    return torch.cartesian_prod(*(torch.linspace(0, 1, number, dtype=torch.float64) for number in numbers))


def searched(
    draw: Draw, seed: int, snap: Callable[[Tensor], Tensor] = lambda points: points
) -> tuple[Tensor, Tensor]:
    """Return points and outcomes of a search; `snap` moves points to where a run is possible."""
    at = snap(first_points(2, FIRST, seed))
    outcomes = draw(at)
    while len(at) < RUNS:
        new = snap(next_points(Classifier(at, outcomes), BATCH, seed + len(at), avoid=at[:0]))
        at, outcomes = torch.cat([at, new]), torch.cat([outcomes, draw(new)])
    return at, outcomes


def at_random(draw: Draw, seed: int) -> Classifier:
    """Return what as many random runs know."""
    at = torch.rand(RUNS, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Classifier(at, draw(at))


def methods(draw: Draw, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the methods, each as what says the side of points (n, 2) as a probability."""
    dense, coarse = evenly(SIDE, SIDE), evenly(5, 4)
    outcomes = draw(dense)

    def nearest(points: Tensor) -> Tensor:
        return outcomes[torch.cdist(points, dense).argmin(1)].double()

    found = {"search": Classifier(*searched(draw, seed)), "random": at_random(draw, seed)}
    found |= {"grid 5 x 4": Classifier(coarse, draw(coarse))}
    sides = {name: (lambda points, known=known: known.at(points).side) for name, known in found.items()}
    return {f"grid {SIDE} x {SIDE}": nearest, **sides}


def drawing(distance: Draw, noise: float, seed: int) -> Draw:
    """Return what draws outcomes near a boundary that seeds move."""
    numbers = torch.Generator().manual_seed(seed)

    def draw(at: Tensor) -> Tensor:
        moved = noise * torch.randn(len(at), generator=numbers, dtype=torch.float64)
        return torch.as_tensor(distance(at) + moved > 0)

    return draw


def synthetic(repeats: int, console: Console) -> list[dict[str, Any]]:
    """Print the share of the space on the wrong side, by boundary, noise and method."""
    fine, rows = evenly(FINE, FINE), list[dict[str, Any]]()
    for noise in NOISES:
        for name, distance in TRUTHS.items():
            for seed in range(repeats):
                draw = drawing(distance, noise, seed)
                for method, side in methods(draw, seed).items():
                    said, truth = side(fine), distance(fine) > 0
                    wrong, sure = (said > 0.5) != truth, (said - 0.5).abs() >= 0.45
                    shares = {
                        "wrong": float(wrong.double().mean()),
                        "sure": float(sure.double().mean()),
                        "sure_and_wrong": float((wrong & sure).double().sum() / sure.sum().clamp_min(1)),
                    }
                    rows.append({"boundary": name, "noise": noise, "seed": seed, "method": method} | shares)
    table = Table(title="share of the space on the wrong side", title_justify="left", box=box.MARKDOWN)
    names = list(dict.fromkeys(row["method"] for row in rows))
    for column in ("boundary", "seed noise", *names, "sure (search)", "of it wrong"):
        table.add_column(column)
    for noise in NOISES:
        for boundary in (*TRUTHS, None):
            those = [row for row in rows if row["noise"] == noise and boundary in (None, row["boundary"])]
            own = [row for row in those if row["method"] == "search"]
            table.add_row(
                boundary or "all",
                f"{noise:g}",
                *(f"{mean(row['wrong'] for row in those if row['method'] == name):.1%}" for name in names),
                f"{mean(row['sure'] for row in own):.0%}",
                f"{mean(row['sure_and_wrong'] for row in own):.1%}",
            )
    console.print(table)
    return rows


def classifiers(repeats: int, console: Console) -> list[dict[str, Any]]:
    """Print how our classifier and scikit-learn's judge the runs of the same searches."""
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    fine, rows = evenly(FINE, FINE), list[dict[str, Any]]()
    for noise, (name, distance), seed in product(NOISES, TRUTHS.items(), range(repeats)):
        at, outcomes = searched(drawing(distance, noise, seed), seed)
        kernel = ConstantKernel(9.0, (0.5, 200)) * RBF([0.5, 0.5], (0.1, 5))
        theirs = GaussianProcessClassifier(kernel, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a length scale is at its bound
            theirs.fit(at.numpy(), outcomes.numpy())
        both = {
            "ours": Classifier(at, outcomes).at(fine).probability,
            "scikit-learn": torch.from_numpy(theirs.predict_proba(fine.numpy())[:, 1]),
        }
        truth = ndtr(distance(fine) / noise)  # over the seeds
        for method, said in both.items():
            p = said.clamp(1e-4, 1 - 1e-4)
            loss = -(truth * p.log() + (1 - truth) * (1 - p).log())
            sure = (said - 0.5).abs() >= 0.45
            rows.append(
                {"boundary": name, "noise": noise, "seed": seed, "method": method}
                | {"wrong": float(((said > 0.5) != (truth > 0.5)).double().mean())}
                | {"log_loss": float(loss.mean()), "sure": float(sure.double().mean())}
            )
    for method in ("ours", "scikit-learn"):
        own = [row for row in rows if row["method"] == method]
        wrong, loss, sure = (mean(row[key] for row in own) for key in ("wrong", "log_loss", "sure"))
        console.print(f"{method}: {wrong:.1%} wrong, log loss {loss:.3f}, {sure:.0%} beyond 0.05 to 0.95")
    return rows


def folder_of(data: str, seed: int) -> Path:
    """Return the folder of a real grid."""
    return Path(f"outputs/boundary_grid_{data}_{seed}")


def wanted(data: str, seed: int) -> list[Wanted]:
    """Return the runs of a real grid."""
    runs, (axes, given) = [], DATA[data]
    for point in evenly(SIDE, SIDE).tolist():
        own = [f"{axis.key}={axis.value(each):.6g}" for axis, each in zip(axes, point, strict=True)]
        cfg = compose([*given.split(), *SHORT, *own, f"trainer.seed={seed}"])
        runs.append(Wanted(run_id(cfg), tuple(own), cfg))
    return runs


def train_grid(data: str, seed: int, part: str) -> None:
    """Train a part of a real grid in this process: a run is shorter than the start of a process."""
    number, _, parts = part.partition("/")
    for run in wanted(data, seed)[int(number) - 1 :: int(parts)]:
        attempt(run.cfg, folder_of(data, seed) / run.name, None)


def search(data: str) -> int:
    """Type the search over the axes of a real grid as a user does, and return its exit code."""
    axes, given = DATA[data]
    words = ["hydra/sweeper=boundary", "hydra.sweeper.n_jobs=2", "hydra/launcher=local"]
    words += [f"{axis.key}=interval({axis.low:g},{axis.high:g})" for axis in axes]
    words += [*given.split(), *SHORT, f"name=boundary_search_{data}"]
    return subprocess.run([sys.executable, "train.py", "-m", *words]).returncode


def directories(data: str, seed: int) -> dict[tuple[str, ...], RunDirectory]:
    """Return the directories of a real grid's runs by their overrides, those to come included."""
    return {run.overrides: RunDirectory(folder_of(data, seed) / run.name) for run in wanted(data, seed)}


def outcomes_of(data: str, seed: int) -> dict[tuple[str, ...], bool]:
    """Return whether each run of a real grid trains, by its overrides without the seed."""
    found = {}
    for overrides, directory in directories(data, seed).items():
        outcome = trains(str(directory.read_summary().get("verdict") or ""))
        if outcome is not None:
            found[overrides] = outcome
    return found


def settled_wrongly(directory: RunDirectory) -> bool | None:
    """Return whether a run that `trainer.on_healthy=stop` would have ended collapsed later; None if none."""
    cfg, total = read_config(directory), directory.read_status()["total_steps"]
    warmup = round(cfg.optimizer.warmup_epochs * total / cfg.trainer.epochs)
    per_epoch = total // cfg.trainer.epochs
    judge = judge_of(cfg, warmup_steps=warmup, total_steps=total, steps_per_epoch=per_epoch)
    settled = False
    for line in logged(directory):
        verdict = judge.observe(line["step"], line)
        settled |= judge.settled
    return (verdict.collapsed or verdict.word == "diverged") if settled else None


def compare(data: str, repeats: int, console: Console) -> list[dict[str, Any]]:
    """Print in how many cells of the real grid of seed 0 each method, and the grid of seed 1, differ."""
    known, other = outcomes_of(data, 0), outcomes_of(data, 1) if folder_of(data, 1).exists() else {}
    cells = [run.overrides for run in wanted(data, 0)]
    missing = len(cells) - sum(cell in known for cell in cells)
    if missing:
        console.print(f"{missing} runs of {folder_of(data, 0)} are missing; type: grid {data}")
        raise SystemExit(1)
    grid, truth = evenly(SIDE, SIDE), torch.tensor([known[cell] for cell in cells])

    def snap(points: Tensor) -> Tensor:
        return grid[torch.cdist(points, grid).argmin(1)]

    def draw(points: Tensor) -> Tensor:
        return truth[torch.cdist(points, grid).argmin(1)]

    rows: list[dict[str, Any]] = []
    for seed in range(repeats):
        found = {"search": Classifier(*searched(draw, seed, snap)), "random": at_random(draw, seed)}
        found["grid 5 x 4"] = Classifier(snap(evenly(5, 4)), draw(evenly(5, 4)))
        for method, classifier in found.items():
            wrong = int(((classifier.at(grid).side > 0.5) != truth).sum())
            rows.append({"data": data, "seed": seed, "method": method, "cells": wrong})
    for method in dict.fromkeys(row["method"] for row in rows):
        each = [row["cells"] for row in rows if row["method"] == method]
        console.print(f"{method}: {mean(each):.1f} of {len(cells)} cells differ ({min(each)} to {max(each)})")
    if both := [cell for cell in cells if cell in other]:
        moved = sum(known[cell] != other[cell] for cell in both)
        console.print(f"the grid of seed 1: {moved} of {len(both)} cells differ")
    ends = [settled_wrongly(directory) for directory in directories(data, 0).values()]
    console.print(
        f"trainer.on_healthy=stop would have ended {sum(each is not None for each in ends)} of {len(ends)} "
        f"runs early, {sum(each is True for each in ends)} of which collapsed later"
    )
    return rows


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the figures of a comparison."""
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / f"{name}.json").write_text(to_json(rows, indent=1), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; figures go to outputs/benchmarks/boundary*.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["synthetic", "classifiers", "grid", "compare", "search"])
    parser.add_argument("data", nargs="?", choices=list(DATA), help="for the last three")
    parser.add_argument("--seed", type=int, default=0, help="for grid: seed of its runs")
    parser.add_argument("--part", default="1/1", help="for grid: this part of so many, e.g. 2/4")
    parser.add_argument("--repeats", type=int, default=8, help="seeds of each method")
    arguments = parser.parse_args(argv)
    if arguments.what in ("grid", "compare", "search") and arguments.data is None:
        parser.error(f"{arguments.what}: give one of {', '.join(DATA)}")
    console = a_console()
    if arguments.what == "grid":
        train_grid(arguments.data, arguments.seed, arguments.part)
    elif arguments.what == "compare":
        rows = compare(arguments.data, arguments.repeats, console)
        write(f"boundary_{arguments.data}", rows)
    elif arguments.what == "search":
        raise SystemExit(search(arguments.data))
    elif arguments.what == "classifiers":
        write("boundary_classifiers", classifiers(arguments.repeats, console))
    else:
        write("boundary", synthetic(arguments.repeats, console))


if __name__ == "__main__":
    main()
