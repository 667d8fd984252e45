"""Runs that should learn, and runs that should collapse, with their verdicts.

    python -m benchmarks.learning learns                      # shapes and Fashion-MNIST
    python -m benchmarks.learning learns --cifar10 DIRECTORY  # and class folders of CIFAR-10 images
    python -m benchmarks.learning collapses                   # five ways to collapse, and one that learns

Each line of the tables is a run of `train.py` with the overrides shown, so it can be repeated alone; a run
that has already finished is read, not repeated. The figures are from the `summary.json` of each run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from dino_exp.console import Console
from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION

TRAIN = Path(__file__).parents[1] / "train.py"
OUTPUTS = Path("outputs")

COLLAPSES = {
    "as it is": ([], "healthy"),
    "no centering": (["loss.centering=none"], "collapsed-one-hot"),
    "τ_t = 0.2": (["loss.teacher_temp=0.2"], "collapsed-uniform"),
    "m = 0.999": (["loss.center_momentum=0.999"], "collapsed-one-hot"),
    "neither centering nor sharpening": (
        ["loss.centering=none", "loss.sharpening=false"],
        "collapsed-constant",
    ),
    "no EMA (λ = 0)": (["ema=constant", "ema.momentum=0"], "collapsed"),
}
"""Overrides of experiment=shapes, and the beginning of the expected verdict."""


def run_training(name: str, overrides: list[str]) -> dict[str, Any]:
    """Run `train.py` in outputs/<name>, and return the summary."""
    command = [sys.executable, str(TRAIN), f"name={name}", *overrides]
    print("$", " ".join(["python", "train.py", *command[2:]]), flush=True)
    before = {path: path.stat().st_mtime for path in OUTPUTS.glob(f"{name}/*/summary.json")}
    subprocess.run(command, check=True)
    after = {path: path.stat().st_mtime for path in OUTPUTS.glob(f"{name}/*/summary.json")}
    (changed,) = [path for path in after if after[path] != before.get(path)] or after
    return json.loads(changed.read_text())


def percent(value: float | None) -> str:
    """Format with one decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def learns(cifar10: Path | None) -> list[dict[str, Any]]:
    """Make the runs that should learn."""
    jobs = {"shapes": ["experiment=shapes"], "Fashion-MNIST": ["experiment=fashion_mnist"]}
    if cifar10:
        jobs["CIFAR-10 images"] = ["experiment=cifar10_folder", f"data.root={cifar10 / 'train'}"]
    rows = []
    table = Table(title="k-NN top-1 on held-out images, %")
    for column in ("data", "raw pixels, centered", "untrained", "DINO", "verdict", "minutes", "overrides"):
        table.add_column(column, justify="right" if column in ("untrained", "DINO", "minutes") else "left")
    for name, overrides in jobs.items():
        slug = f"learning_{name.split()[0].lower().replace('-', '_')}"
        summary = run_training(slug, overrides)
        rows.append({"data": name, "overrides": overrides, **summary})
        table.add_row(
            name,
            percent(summary.get("raw_pixels_knn_top1")),
            percent(summary["untrained_knn_top1"]),
            percent(summary["knn_top1"]),
            summary["verdict"],
            f"{summary['wall_seconds'] / 60:.1f}",
            " ".join(overrides) or "(none)",
        )
        attention: Mapping[str, Any] | None = summary.get("attention")
        if attention:
            untrained = summary["untrained_attention"]
            print(
                f"{name}: {attention['mass']:.0%} of the class token's attention is on the object, which "
                f"covers {attention['area']:.0%}; untrained {untrained['mass']:.0%}, centered Gaussian "
                f"{attention['gaussian_mass']:.0%}; AUC {attention['auc']:.2f}, untrained "
                f"{untrained['auc']:.2f}, centered Gaussian {attention['gaussian_auc']:.2f}"
            )
    Console(width=160).print(table)
    return rows


def collapses() -> list[dict[str, Any]]:
    """Make the runs that should collapse, each of 900 steps."""
    rows = []
    table = Table(title="Verdicts")
    for column in ("run", "expected", "verdict", "h / ln K", "KL / ln K", "MI / ln K", "k-NN", "right"):
        table.add_column(column)
    for name, (overrides, expected) in COLLAPSES.items():
        summary = run_training("collapse", ["experiment=shapes", "trainer.max_steps=900", *overrides])
        final, right = summary["final"], summary["verdict"].startswith(expected)
        rows.append({"run": name, "overrides": overrides, "expected": expected, "right": right, **summary})
        table.add_row(
            name,
            expected,
            summary["verdict"],
            f"{final[ENTROPY.key]:.3f}",
            f"{final[DIVERGENCE.key]:.4f}",
            f"{final[INFORMATION.key]:.4f}",
            percent(summary["knn_top1"]),
            "yes" if right else "NO",
        )
    Console(width=140).print(table)
    return rows


def main() -> None:
    """Run the command line; the exit code is 1 if a verdict was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["learns", "collapses"])
    parser.add_argument("--cifar10", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--json", type=Path, help="where to write all figures", default=None)
    arguments = parser.parse_args()
    rows = learns(arguments.cifar10) if arguments.part == "learns" else collapses()
    out = arguments.json or OUTPUTS / f"{arguments.part}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"all figures: {out}")
    sys.exit(any(not row.get("right", True) for row in rows))


if __name__ == "__main__":
    main()
