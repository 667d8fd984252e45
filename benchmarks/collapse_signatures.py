"""The figure of docs/collapse.md: the metrics of a healthy run and of each kind of failure.

    python -m benchmarks.collapse_signatures FOLDER ... --out docs/collapse.png

draws runs from the folders of `benchmarks.collapse train`, with verdicts computed again from their metrics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.collapse import logged, verdicts
from dino_exp.config.stored import read_config
from dino_exp.dino.verdict import ALIKE, most_information
from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION
from dino_exp.plots.png import DPI, INK, save
from dino_exp.plots.run_curves import BLUE, GREEN, ORANGE, PINK
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory

RUNS = {
    36: "Healthy",
    46: "Slow: near ln K, and learning",
    47: "Uniform collapse",
    41: "One-hot collapse",
    60: "Constant output",
    25: "One-hot for a while, then not",
}
"""Title of the panel of each run, by the run's number in `benchmarks.collapse`."""
CURVES = {
    ENTROPY.key: ("h / ln K", BLUE, "-"),
    DIVERGENCE.key: ("KL / ln K", PINK, "-"),
    INFORMATION.key: ("mutual information, teacher", GREEN, "-"),
    str(INFORMATION.student_key): ("mutual information, student", ORANGE, "--"),
}
COLORS = {"healthy": "#7fbf7b", "slow": "#f6d87a", "collapsed": "#d6604d", "warming-up": "#d9d9d9"}


def draw_run(axes: Axes, directory: RunDirectory, title: str) -> None:
    """Draw one run: four curves by step, and its verdicts as a band below them."""
    cfg = read_config(directory)
    lines = logged(directory)
    ceiling = most_information(cfg.head.out_dim, 2 * cfg.trainer.batch_size)
    steps = [line["step"] for line in lines]
    for key, (label, color, style) in CURVES.items():
        scale = ceiling if key in INFORMATION.keys else 1.0
        values = [line[key] / scale for line in lines]
        axes.plot(steps, values, style, color=color, label=label, linewidth=1.6)
    for (step, verdict), following in zip(verdicts(directory), [*steps[1:], steps[-1]], strict=True):
        word = "collapsed" if verdict.collapsed else verdict.word
        axes.axvspan(step, following, ymin=0, ymax=0.04, color=COLORS[word], linewidth=0)
    summary = directory.read_summary()
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    gain = f"k-NN {summary['untrained_knn_top1']:.0f} → {summary['knn_top1']:.0f} %"
    axes.text(0.99, 1.03, gain, transform=axes.transAxes, ha="right", color=INK)
    # linear below 0.001, to show the threshold between slow and collapsed, logarithmic above
    axes.set_yscale("symlog", linthresh=0.001)
    axes.set_yticks([0, ALIKE, 0.01, 0.1, 1], ["0", f"{ALIKE:g}", "0.01", "0.1", "1"], minor=False)
    axes.axhline(ALIKE, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.0003, 1.3)
    axes.set_xlim(0, steps[-1])
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/collapse.png"))
    arguments = parser.parse_args()
    found = {
        int(entry.overrides[0].partition("=")[2]): manifest.directory(name)
        for manifest in map(Manifest.load, reversed(arguments.folders))
        for name, entry in manifest.runs.items()
        if manifest.directory(name).read_summary()
    }
    figure = Figure(figsize=(15, 7.5), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (run, title) in zip(panels, RUNS.items(), strict=True):
        draw_run(axes, found[run], title)
        axes.set_xlabel("step")
    figure.supylabel("share of the most it can be")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles += [figure.axes[0].fill_between([], [], [], color=color) for color in COLORS.values()]
    labels += [f"verdict: {word}" for word in COLORS]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(figure, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
