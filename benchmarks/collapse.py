"""Accuracy of the verdict, on short runs with random data sets, networks and settings.

    python -m benchmarks.collapse train --cifar10 DIRECTORY    # hours on two cores; can be resumed
    python -m benchmarks.collapse train --cifar10 DIRECTORY --numbers 100-119   # the long ones
    python -m benchmarks.collapse judge                        # tables, from the finished runs
    python -m benchmarks.collapse saves outputs/SWEEP          # what on_collapse=stop would have saved there

`train` draws `RUNS` configurations, healthy ones and others, and submits them to this machine's queue; with
`--numbers 0-35` only some of them, so that several machines can share the work (`judge FOLDER ...`). `judge`
determines the outcome of each run without the verdict's signal: from k-NN compared to the untrained network,
and from the distance of the teacher's outputs for held-out images to their mean. The verdict is then computed
again from metrics.jsonl, line by line as during the run. Its thresholds may be tuned on even-numbered runs;
odd-numbered runs measure its accuracy. From 100 on they are those of `benchmarks.long_runs`, by which nothing
is tuned.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks.local_runs import train_here
from benchmarks.long_runs import LONG_RUNS
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.stored import read_config
from dino_exp.config.targets import build
from dino_exp.console import Console, a_console
from dino_exp.data.subset import evenly_spread
from dino_exp.dino.verdict import Verdict
from dino_exp.eval.extraction import extract
from dino_exp.eval.periodic import subject_of
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory, read_metrics, to_json
from dino_exp.training import checkpoint
from dino_exp.training.networks import build_networks
from dino_exp.training.plan import judge_of
from launchers.states import Observer
from launchers.submission import Wanted

FOLDER = Path("outputs/collapse_runs")
RUNS = 72
FIRST_LONG = 100
"""Number of the first long run."""
SEED = 5
TRUTHS = ("learned", "unclear", "hollow", "collapsed", "diverged")
KINDS = ("healthy", "slow", "collapsed", "diverged", "warming-up")
IMAGES = 500
"""Number of held-out images whose outputs are compared."""
LEARNED_POINTS = 5.0
"""Percentage points of k-NN above the untrained network at which a run counts as learned."""
SAME_OUTPUTS = 0.02
"""Spread of the outputs, 0 to 1, below which they do not depend on the image."""

DATA = {
    "shapes": (["experiment=shapes"], 3),
    "fashion": (["experiment=fashion_mnist", "optimizer.warmup_epochs=0.12"], 1),
    "cifar10": (["experiment=cifar10_folder"], 4),
}
"""Overrides, and epochs: at least two minutes on one core, about 1,100 to 1,900 steps at batch 32."""
LONGER = {128: 2, 256: 3}
"""Factor on the epochs by batch size, because a large batch would make only 150 steps."""
VARIED: dict[str, list[str]] = {
    "backbone": ["backbone=vit_micro", "backbone=timm backbone.name=resnet10t"],
    "K": [f"head.out_dim={k}" for k in (64, 256, 1024, 4096)],
    "τ_t": [f"loss.teacher_temp={value}" for value in (0.01, 0.02, 0.03, 0.04, 0.07, 0.1, 0.2)],
    "m": [f"loss.center_momentum={value}" for value in (0, 0.5, 0.9, 0.99, 0.999)],
    "λ": [
        *(f"ema.momentum={value}" for value in (0.9, 0.98, 0.99, 0.996)),
        "ema=constant ema.momentum=0",
        "ema=constant ema.momentum=0.99",
    ],
    "lr": [f"optimizer.lr={value}" for value in (0.001, 0.004, 0.008, 0.02, 0.08, 0.5, 5.0)],
    "crops": ["crops.local_number=0", "crops.local_number=2", "crops.local_number=4"],
    "batch": [f"trainer.batch_size={size}" for size in (16, 32, 64, 128, 256)],
    "center": [
        "loss.centering=none",
        "loss.sharpening=false",
        "loss.centering=none loss.sharpening=false",
        "loss.centering=sinkhorn",
        "loss.center_init=zeros",
    ],
}
"""Changes that a run may make to its data set's experiment; a third of the values are harmless."""


def drawn(number: int, cifar10: Path) -> list[str]:
    """Return the overrides of one run: a data set with two to four changes, or a long run."""
    if number >= FIRST_LONG:
        words = [word.format(train=cifar10 / "train") for word in LONG_RUNS[number - FIRST_LONG].split()]
        return [*words, f"trainer.seed={number}", "tracker=none", "trainer.log_every=50"]
    numbers = random.Random(f"{SEED}-{number}")
    data = list(DATA)[number % 3]
    experiment, epochs = DATA[data]
    words = [*experiment, f"trainer.seed={number}"]
    if data == "cifar10":
        words.append(f"data.root={cifar10 / 'train'}")
    for name in numbers.sample(list(VARIED), numbers.randint(2, 4)):
        words += numbers.choice(VARIED[name]).split()
    longer = next((times for size, times in LONGER.items() if f"trainer.batch_size={size}" in words), 1)
    words.append(f"trainer.epochs={longer * epochs}")
    return [*words, "tracker=none", "trainer.log_every=10", "eval.every_epochs=1"]


def train_runs(cifar10: Path, numbers: Sequence[int]) -> None:
    """Submit the runs to this machine's queue, and wait for them."""
    wanted = []
    for number in numbers:
        words = drawn(number, cifar10)
        cfg = compose(words)
        own = tuple(word for word in words if word.partition("=")[0] not in ("tracker", "trainer.log_every"))
        wanted.append(Wanted(run_id(cfg), (f"number={number}", *own), cfg))
    train_here(FOLDER, wanted, a_console())


@dataclass(frozen=True)
class Truth:
    """Outcome of a run, determined without the verdict's signal."""

    word: str
    """learned; collapsed; hollow: collapsed, although k-NN improved; unclear: k-NN did not improve, although
    the outputs differ; diverged; unknown, and ignored: k-NN did not improve, and there is no checkpoint."""
    knn: float | None
    untrained: float | None
    spread: float | None
    """Spread of the teacher's outputs over held-out images; None if it was not computed."""


@torch.inference_mode()
def spread_of_outputs(directory: RunDirectory) -> float:
    """Return how far the teacher's distributions for held-out images are from their mean, Σ|p − p̄| / 2."""
    cfg = read_config(directory)
    _, teacher = build_networks(cfg)
    state = checkpoint.load(directory.checkpoints / "last.pt")
    teacher.load_state_dict(state["teacher"])
    dino_loss = build(cfg.loss, out_dim=cfg.head.out_dim)
    dino_loss.load_state_dict(state["loss"])
    dino_loss.awaits_first_batch = False
    source = build(cfg.data).test
    found = extract(
        subject_of(cfg, teacher.backbone, torch.device("cpu")), source, evenly_spread(len(source), IMAGES)
    )
    teacher.eval()
    logits = teacher.head(found.final).logits
    outputs = dino_loss.teacher_probabilities(logits, dino_loss.teacher_temp_at(cfg.trainer.epochs - 1))
    return float((outputs - outputs.mean(0)).abs().sum(1).mean() / 2)


def truth_of(directory: RunDirectory) -> Truth:
    """Return the outcome of a finished run, and keep it in truth.json in its directory."""
    kept = directory.path / "truth.json"
    if not kept.exists():
        kept.write_text(to_json(asdict(determine_truth(directory))))
    return Truth(**json.loads(kept.read_text()))


def determine_truth(directory: RunDirectory) -> Truth:
    """Determine the outcome of a finished run from what the verdict does not use."""
    summary = directory.read_summary()
    knn, untrained = summary.get("knn_top1"), summary.get("untrained_knn_top1")
    if summary["state"] == "failed" or knn is None or untrained is None:
        return Truth("diverged", knn, untrained, None)
    gained = knn >= untrained + LEARNED_POINTS
    if not (directory.checkpoints / "last.pt").exists():
        return Truth("learned" if gained else "unknown", knn, untrained, None)
    differ = spread_of_outputs(directory)
    alike = differ < SAME_OUTPUTS
    word = ("hollow" if gained else "collapsed") if alike else ("learned" if gained else "unclear")
    return Truth(word, knn, untrained, differ)


@dataclass(frozen=True)
class Reading:
    """Verdicts in the course of a run."""

    final: str
    first_alarm: float | None
    """Share of the run after which the verdict was first collapsed; None if never."""
    last_alarm_from: float | None
    """Share after which it was collapsed to the end; None if it was not at the end."""


def logged(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the logged steps of a run."""
    return [with_nan(line) for line in read_metrics(directory.metrics_file) if "loss" in line]


def verdicts(directory: RunDirectory) -> list[tuple[int, Verdict]]:
    """Compute the verdict at each logged step of a run, with the present code."""
    cfg = read_config(directory)
    total = directory.read_status()["total_steps"]
    warmup = round(cfg.optimizer.warmup_epochs * total / cfg.trainer.epochs)
    judge = judge_of(cfg, warmup_steps=warmup, total_steps=total)
    return [(line["step"], judge.observe(line["step"], line)) for line in logged(directory)]


def read_again(directory: RunDirectory) -> Reading:
    """Summarize the verdicts on a run, computed with the present code."""
    total = directory.read_status()["total_steps"]
    by_share = [(step / total, verdict) for step, verdict in verdicts(directory)]
    alarms = [share for share, verdict in by_share if verdict.collapsed]
    lasting = None
    for share, verdict in reversed(by_share):
        if not verdict.collapsed:
            break
        lasting = share
    return Reading(by_share[-1][1].word, alarms[0] if alarms else None, lasting)


def with_nan(line: dict[str, Any]) -> dict[str, Any]:
    """Replace the nulls of a line of metrics.jsonl by NaN; without a gradient norm fp16 skipped the step."""
    return {
        key: float("nan") if value is None and key != "grad_norm" else value for key, value in line.items()
    }


def judge_runs(folder: Path) -> list[dict[str, Any]]:
    """Return outcome and verdicts of all finished runs of a folder."""
    manifest = Manifest.load(folder)
    rows = []
    for run in Observer().observe(manifest):
        if run.state in ("finished", "failed") and manifest.directory(run.name).read_summary():
            directory = manifest.directory(run.name)
            number = int(run.entry.overrides[0].partition("=")[2])
            own = " ".join(run.entry.overrides[1:])
            rows.append(
                {"number": number, "half": half_of(number), "overrides": own}
                | asdict(truth_of(directory))
                | asdict(read_again(directory))
            )
    return rows


def half_of(number: int) -> str:
    """Return for what a run is used: `tuning`, `report`, or `long`, which is for reporting too."""
    return "long" if number >= FIRST_LONG else ("tuning", "report")[number % 2]


def print_tables(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print outcome by verdict, with the time of the alarms, for each use of runs, and those judged wrong."""
    for half in ("tuning", "report", "long"):
        own = [row for row in rows if row["half"] == half]
        if not own:
            continue
        verdicts = [word for word in KINDS if any(kind(row["final"]) == word for row in own)]
        table = Table(title=f"{half}: {len(own)} runs", title_justify="left", box=box.MARKDOWN)
        for column in ("outcome", "runs", *verdicts, "ever called collapsed", "right from"):
            table.add_column(column)
        for truth in TRUTHS:
            those = [row for row in own if row["word"] == truth]
            count = Counter(kind(row["final"]) for row in those)
            alarmed = sum(row["first_alarm"] is not None for row in those)
            from_then = sorted(share for row in those if (share := row["last_alarm_from"]) is not None)
            right_from = f"median {median(from_then):.0%}, last {from_then[-1]:.0%}" if from_then else "–"
            shown = [str(count[verdict] or "–") for verdict in verdicts]
            table.add_row(truth, str(len(those)), *shown, str(alarmed), right_from)
        console.print(table)
    wrong = [row for row in rows if is_wrong(row)]
    for row in wrong:
        knn = "–" if row["knn"] is None else f"{row['untrained']:.1f} → {row['knn']:.1f}"
        console.print(
            f"{row['half']} {row['number']}: {row['word']} (k-NN {knn}, spread {row['spread']}), verdict "
            f"{row['final']}, first alarm {row['first_alarm']}: {row['overrides']}",
            soft_wrap=True,
        )
    console.print(f"{len(wrong)} of {len(rows)} wrong at the end, or with an alarm in a run that learned.")


def kind(verdict: str) -> str:
    """Return a verdict's word without the kind of collapse."""
    return "collapsed" if verdict.startswith("collapsed") else verdict


def is_wrong(row: dict[str, Any]) -> bool:
    """Return whether a collapse or divergence was missed, or a run that learned was ever called collapsed."""
    if row["word"] == "learned":
        return row["first_alarm"] is not None or row["final"] == "diverged"
    return row["word"] in ("collapsed", "diverged") and kind(row["final"]) != row["word"]


def saves(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Return what `trainer.on_collapse=stop` would have saved in a sweep whose runs were not stopped."""
    manifest, rows = Manifest.load(folder), []
    table = Table(title=str(folder), title_justify="left", box=box.MARKDOWN)
    for column in ("run", "k-NN, untrained → now", "verdict", "would stop at"):
        table.add_column(column)
    for name, entry in manifest.runs.items():
        directory = manifest.directory(name)
        summary = directory.read_summary()
        if summary.get("state") != "finished":
            continue
        reading = read_again(directory)
        row = {"run": " ".join(entry.overrides), "knn": summary["knn_top1"]} | asdict(reading)
        rows.append(row | {"untrained": summary["untrained_knn_top1"]})
        stop = "–" if reading.first_alarm is None else f"{reading.first_alarm:.0%}"
        knn = f"{summary['untrained_knn_top1']:.1f} → {summary['knn_top1']:.1f}"
        table.add_row(row["run"], knn, reading.final, stop)
    console.print(table)
    spared = sum(1 - row["first_alarm"] for row in rows if row["first_alarm"] is not None)
    if rows:
        console.print(f"{spared / len(rows):.0%} of the steps of {len(rows)} runs would have been saved.")
    return rows


def span(text: str) -> range:
    """Parse `first-last`, both included."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    """Run the command line; figures go to outputs/benchmarks/collapse*.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["train", "judge", "saves"])
    parser.add_argument("folders", type=Path, nargs="*", help="for judge and saves: folders of sweeps")
    parser.add_argument(
        "--cifar10", type=Path, help="for train: folder with train/<class>/ and test/<class>/"
    )
    parser.add_argument("--numbers", type=span, default=range(RUNS), help="for train: first-last of the runs")
    arguments = parser.parse_args()
    console = Console(width=160)
    if arguments.part == "train":
        if arguments.cifar10 is None:
            parser.error("train: give --cifar10 DIRECTORY")
        last = FIRST_LONG + len(LONG_RUNS) - 1
        if not all(number < RUNS or FIRST_LONG <= number <= last for number in arguments.numbers):
            parser.error(f"--numbers: the runs are 0-{RUNS - 1} and, long ones, {FIRST_LONG}-{last}")
        train_runs(arguments.cifar10, arguments.numbers)
        return
    if arguments.part == "saves":
        if not arguments.folders:
            parser.error("saves: give the folder of a sweep")
        rows = [row for folder in arguments.folders for row in saves(folder, console)]
    else:
        found = [row for folder in arguments.folders or [FOLDER] for row in judge_runs(folder)]
        found = [row for row in found if row["word"] != "unknown"]
        rows = list({row["number"]: row for row in reversed(found)}.values())  # the first folder has priority
        rows.sort(key=lambda row: row["number"])
        print_tables(rows, console)
    name = "collapse" if arguments.part == "judge" else "collapse_saves"
    out = Path(f"outputs/benchmarks/{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"all figures: {out}")


if __name__ == "__main__":
    main()
