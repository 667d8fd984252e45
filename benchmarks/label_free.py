"""Which measure without labels orders runs as k-NN does?

    python -m benchmarks.label_free measure outputs/demo outputs/demo_temps_momenta  # runs or folders of them
    python -m benchmarks.label_free table                                            # all that were measured
    python -m benchmarks.label_free table outputs/demo_temps_momenta

`measure` computes the measures of `benchmarks.label_free_measures` for the final teacher of each run that has
finished or collapsed with a k-NN, on training images and the run's own crops of them, and takes what the run
itself logged at its end, by which a search can choose. Each is a line of outputs/benchmarks/label_free.jsonl
and is not computed again. `table` compares them with k-NN, for each data set: Kendall's τ_b with a bootstrap
interval over the runs, and the regret, which is the k-NN of the best run minus that of the run with the
largest measure. With two data sets or more, the measure that orders the others best is judged by each one
that is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.label_free_measures import MEASURES, measure, outputs_of
from benchmarks.measure import OUTPUTS
from dino_exp.config.targets import images_of
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.export.trained import read_run
from dino_exp.metrics import KNN, numbers
from dino_exp.runs.run_directory import RunDirectory, to_json
from dino_exp.runs.run_files import ENDED_WELL
from dino_exp.runs.weights_file import digest
from launchers.boundary.boundary_search import trains

FILE = OUTPUTS / "label_free.jsonl"
LOGGED = ("teacher/mutual_information", "teacher/mutual_information_share", "teacher/feature_rank")
"""Metrics of a run's end, from its summary."""
COMPARED = (*LOGGED, *MEASURES)
RESAMPLES = 1000
FEWEST = 3
"""Runs from which an order of runs is judged."""


# ---- measuring ---------------------------------------------------------------------------------------------


def runs_in(places: Sequence[Path]) -> Iterator[Path]:
    """Yield the runs at paths or in folders below them that have ended."""
    for place in places:
        yield from sorted(file.parent for file in place.rglob("summary.json"))


def reason_to_skip(path: Path) -> str:
    """Return why a run cannot be compared; empty if it can."""
    summary = RunDirectory(path).read_summary()
    if summary.get("state") not in ENDED_WELL:
        return "neither finished nor collapsed"
    if summary.get(KNN.key) is None:
        return "no k-NN"
    return "" if (path / "checkpoints" / "last.pt").is_file() else "no checkpoint"


def run(places: Sequence[Path], images: int, crops: int, console: Console) -> None:
    """Measure those runs that have no line in the file yet, and say which cannot be compared."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    known, paths, skipped = stored(), list(runs_in(places)), 0
    for number, path in enumerate(paths, start=1):
        name = f"{number}/{len(paths)} {path}"
        reason = reason_to_skip(path)
        key = f"{digest(str(path))} {images} {crops}"
        if not reason and key in known:
            console.print(f"{name}: done")
            continue
        try:
            row = {} if reason else line_of(path, images, crops)
        except UserError as error:
            reason = str(error)
        if reason:
            skipped += 1
            console.print(f"{name}: skipped, {reason}")
            continue
        with FILE.open("a", encoding="utf-8") as file:
            file.write(to_json(row | {"key": key}))
        console.print(f"{name}: k-NN {row['knn']:.1f} %, {row['seconds']:.1f} s")
    console.print(f"{len(paths) - skipped} of {len(paths)} runs can be compared -> {FILE}")


def line_of(path: Path, images: int, crops: int) -> dict[str, Any]:
    """Return the line of a run. Raises UserError if it cannot be loaded, or has no checkpoint of its end."""
    start = time.monotonic()
    summary, trained = RunDirectory(path).read_summary(), read_run(path, "last")
    if trained.step != summary.get("steps"):
        raise UserError(f"its checkpoint is of step {trained.step:,}, its k-NN of {summary.get('steps')}")
    source = images_of(trained.cfg.data).train
    outputs = outputs_of(trained, source, images, crops)
    found = measure(outputs)
    return {
        "run": str(path.resolve()),
        "state": summary["state"],
        "verdict": str(summary.get("verdict") or ""),
        "data": trained.cfg.data.name,
        "fingerprint": source.fingerprint(),
        "knn": summary[KNN.key],
        "images": images,
        "crops": crops,
        "measured": len(outputs.chosen),
        "seconds": time.monotonic() - start,
        "logged": {name: numbers(summary).get(name) for name in LOGGED},
        "measures": found,
    }


def stored() -> dict[str, dict[str, Any]]:
    """Return the lines in the file by their key."""
    lines = FILE.read_text("utf-8").splitlines() if FILE.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


# ---- comparing ---------------------------------------------------------------------------------------------


def values_of(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Return a measure of the runs, (n,); −∞ where outputs were not finite."""
    found = ((row["measures"] | row["logged"])[name] for row in rows)
    return np.array([-math.inf if value is None else value for value in found])


def knn_of(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the k-NN of the runs in percent, (n,)."""
    return np.array([row["knn"] for row in rows], float)


def signs(values: np.ndarray) -> np.ndarray:
    """Return which of two runs has the larger value, (n, n): 1, 0 or −1."""
    return (values[:, None] > values).astype(int) - (values[:, None] < values)


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    """Return Kendall's τ_b of two orders, given as `signs` (Kendall 1945); NaN if one has only ties."""
    pairs = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / pairs if pairs else math.nan


def interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the percentiles 2.5 and 97.5 of τ_b over runs that are drawn with replacement."""
    random, count = np.random.default_rng(0), len(first)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = random.integers(count, size=count)
        where = np.ix_(chosen, chosen)
        tau = kendall(first[where], second[where])
        drawn += [] if math.isnan(tau) else [tau]
    low, high = np.percentile(drawn or [math.nan], [2.5, 97.5])
    return float(low), float(high)


def regret(values: np.ndarray, knn: np.ndarray) -> float:
    """Return the k-NN of the best run minus that of the chosen one, in points; of equal ones, their mean."""
    return float(knn.max() - knn[values == values.max()].mean())


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what each measure is worth on the runs of one data set."""
    knn, trained = knn_of(rows), [row for row in rows if trains(row["verdict"])]
    found = {}
    for name in COMPARED:
        values = values_of(rows, name)
        pair = signs(values), signs(knn)
        found[name] = {
            "tau": kendall(*pair),
            "interval": interval(*pair),
            "tau_trained": kendall(signs(values_of(trained, name)), signs(knn_of(trained))),
            "regret": regret(values, knn),
        }
    return {
        "data": rows[0]["data"],
        "fingerprint": rows[0]["fingerprint"],
        "runs": len(rows),
        "trained": len(trained),
        "best": float(knn.max()),
        "regret_by_chance": float(knn.max() - knn.mean()),
        "seconds": mean(row["seconds"] for row in rows),
        "measures": found,
    }


def left_out(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each data set, the measure with the best mean τ_b on the others, and its worth here."""
    rows = []
    for judged in sets if len(sets) > 1 else ():
        others = [each["measures"] for each in sets if each is not judged]
        means = {name: mean(each[name]["tau"] for each in others) for name in COMPARED}
        name = max(COMPARED, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
        worth = judged["measures"][name]
        rows.append({"data": judged["data"], "measure": name, "tau": worth["tau"], "regret": worth["regret"]})
    return rows


def by_data(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the runs of each set of training images that has enough of them."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["data"], row["fingerprint"]), []).append(row)
    return [each for each in found.values() if len(each) >= FEWEST]


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for each data set, and that of the data sets that were left out."""
    sets = [compare(each) for each in by_data(rows)]
    if not sets:
        console.print(f"{len(rows)} runs were measured, and no data set has {FEWEST}.")
    for found in sets:
        table = Table(
            title=f"{found['data']}: {found['runs']} runs, {found['trained']} of which trained; the best has "
            f"{found['best']:.1f} % k-NN, a run by chance {found['regret_by_chance']:.1f} points less; "
            f"{found['seconds']:.1f} s per run",
            title_justify="left",
            box=box.MARKDOWN,
        )
        for column in ("measure", "τ, 95 %", "τ of those that trained", "regret, points"):
            table.add_column(column)
        for name, worth in sorted(found["measures"].items(), key=lambda item: item[1]["regret"]):
            low, high = worth["interval"]
            table.add_row(
                name,
                f"{shown(worth['tau'])} ({shown(low)} to {shown(high)})",
                shown(worth["tau_trained"]),
                f"{worth['regret']:.1f}",
            )
        console.print(table)
    others = left_out(sets)
    if others:
        table = Table(title="Chosen on the other data sets", title_justify="left", box=box.MARKDOWN)
        for column in ("left out", "measure", "τ", "regret, points"):
            table.add_column(column)
        for row in others:
            table.add_row(row["data"], row["measure"], shown(row["tau"]), f"{row['regret']:.1f}")
        console.print(table)
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    text = to_json({"data": sets, "left_out": others}, indent=2)
    (OUTPUTS / "label_free.json").write_text(text, "utf-8")


def shown(tau: float) -> str:
    """Return τ as text; a dash where there is none."""
    return "–" if math.isnan(tau) else f"{tau:+.2f}"


# ---- the command line --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument(
        "runs", nargs="*", type=Path, help="runs, or folders of runs; for table, all by default"
    )
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--crops", type=int, default=8, help="global crops of each, an even number")
    arguments = parser.parse_args(argv)
    console = Console(width=160)
    if arguments.what == "measure":
        if not arguments.runs:
            parser.error("give runs, or folders of runs")
        if arguments.crops < 2 or arguments.crops % 2:
            parser.error(
                f"--crops {arguments.crops}: give an even number; a run cuts two global crops at once"
            )
        run(arguments.runs, arguments.images, arguments.crops, console)
        return
    folders = [place.resolve() for place in arguments.runs]
    rows = {
        row["run"]: row  # the last one of a run that was trained again
        for row in stored().values()
        if (row["images"], row["crops"]) == (arguments.images, arguments.crops)
        and (not folders or any(Path(row["run"]).is_relative_to(folder) for folder in folders))
    }
    show(list(rows.values()), console)


if __name__ == "__main__":
    main()
