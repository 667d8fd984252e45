"""Whole trainings by the released recipe and by ours, data path included: do they learn as well?

    python -m benchmarks.parity train --data fashion_mnist --network vit        # 5 seeds of each side
    python -m benchmarks.parity train --cifar10 DIRECTORY --part 1/8            # an eighth of all
    python -m benchmarks.parity train --seeds 5-9                               # more seeds
    python -m benchmarks.parity train --side released_step                      # released steps, our crops
    python -m benchmarks.parity table

The released side is `benchmarks.released` with torchvision's transforms on PIL images, crop by crop; ours is
a run of `train.py` with `data.backend=fast` or `pil`. Data, steps and configuration are the same, and both
are judged by the same k-NN. With one seed all sides start from the same weights, on which the end depends,
and see other crops; so `table` compares them seed by seed: the mean difference with its 95 % interval, and
two one-sided tests of whether it lies within ±1.5 points (`--points`). Where they differ, `released_step`
tells steps from crops: it ends where `pil` ends, if steps are equal. Each training is a line of
outputs/benchmarks/parity.jsonl and is not repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks.measure import OUTPUTS
from benchmarks.released import ReleasedTraining
from benchmarks.released_crops import ReleasedCrops
from dino_exp.backbone.execution import keep_gradients_exact
from dino_exp.config.compose import compose
from dino_exp.config.schema import Config
from dino_exp.config.targets import build, build_from
from dino_exp.console import Console
from dino_exp.data.crops import to_pillow
from dino_exp.data.loader import BatchOrder
from dino_exp.data.source import Splits
from dino_exp.eval.periodic import PeriodicEvaluations, subject_of
from dino_exp.machine import choose_precision
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.training.run import train
from dino_exp.training.trainer import Trainer

FILE = OUTPUTS / "parity.jsonl"
SIDES = ("released", "fast", "pil")
OTHER_SIDES = ("released_step",)
"""Trained only if asked for, and not in the table."""
PRECISIONS = ("fp32", "bf16")
CPU = torch.device("cpu")

COMMON = [
    *("experiment=debug", "name=parity", "head=micro", "head.init=trunc_normal"),
    *("augment=released", "augment.blur_sigma=[0.1,0.8]"),  # at 32 pixels more would erase textures
    *("loss=dino", "loss.teacher_temp=0.01", "loss.warmup_teacher_temp=0.01", "loss.center_momentum=0.5"),
    *("ema=small_data", "optimizer=adamw", "optimizer.lr=8e-3", "optimizer.warmup_epochs=0.5"),
    *("trainer.batch_size=32", "trainer.device=cpu", "trainer.log_every=1000"),
    *("trainer.checkpoint_every=100000", "eval.bank_size=5000", "eval.query_size=2000"),
]
"""A small recipe in the released one's kind, sharper and with a faster center, for trainings of minutes: what
`experiment=debug` says of these groups is replaced."""
DATA = {
    "shapes": "data=shapes crops=small trainer.epochs=3 augment.hue=0.5 augment.saturation=0.4 "
    "augment.solarize=0 augment.blur=[0.2,0.1,0.2]",
    "cifar10": "data=image_folder crops=small trainer.epochs=4",
    "fashion_mnist": "data=fashion_mnist trainer.epochs=1 crops=small28 crops.local_size=14 "
    "optimizer.freeze_last_layer_epochs=0",
}
"""Overrides by data set. The colors are the released ones, but stronger for shapes, whose color says nothing
of their class. An epoch of Fashion-MNIST is as long as six of the 10,000 images of CIFAR-10."""
NETWORKS = {
    "vit": "backbone=vit_small backbone.patch_size=4 backbone.embed_dim=64 backbone.depth=3 "
    "backbone.num_heads=2 backbone.mlp_ratio=2 backbone.drop_path_rate=0",
    "resnet": "backbone=timm backbone.name=test_resnet",
}
PATCH = {("fashion_mnist", "vit"): ["backbone.patch_size=7"]}
"""A patch that divides the crops of 28 and 14 pixels."""
LEFT_OUT = ("shapes", "vit")
"""Trained only if asked for alone, and not in the table, because it does not learn in that time."""


@dataclass(frozen=True)
class Training:
    """One training of the study."""

    data: str
    network: str
    precision: str
    side: str
    seed: int

    def words(self, cifar10: Path | None) -> list[str]:
        """Return its overrides; the released side's are those of the same training by ours."""
        root = [f"data.root={cifar10 / 'train'}"] if self.data == "cifar10" and cifar10 else []
        backend = "fast" if self.side == "fast" else "pil"
        return [
            *COMMON,
            *DATA[self.data].split(),
            *NETWORKS[self.network].split(),
            *PATCH.get((self.data, self.network), ()),
            f"data.backend={backend}",
            f"trainer.precision={self.precision}",
            f"trainer.seed={self.seed}",
            *root,
        ]

    @property
    def key(self) -> str:
        """A text that is equal for equal trainings, wherever the images are."""
        return " ".join([self.side, *self.words(None)])


def trainings(
    data: Sequence[str],
    networks: Sequence[str],
    precisions: Sequence[str],
    seeds: Sequence[int],
    sides: Sequence[str] = SIDES,
) -> Iterator[Training]:
    """Yield the trainings, seed by seed, so that a part has some of each."""
    for seed in seeds:
        for each in product(data, networks, precisions, sides):
            if each[:2] != LEFT_OUT or len(data) == len(networks) == 1:
                yield Training(*each, seed)


# ---- both sides --------------------------------------------------------------------------------------------


def ours(cfg: Config) -> list[dict[str, float]]:
    """Train as `train.py` does, in a folder that is removed; return k-NN of teacher and student by step."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        result = train(cfg, Path(folder) / "run")
        lines = list(read_metrics(result.directory / "metrics.jsonl"))
    if result.state != "finished":
        raise SystemExit(f"the run {result.state}: {result.message}")
    return [point(line["step"], line) for line in lines if line.get("knn_top1") is not None]


Batches = Iterator[list[torch.Tensor]]
"""The crops of each step, (B, C, S, S) each, the two global ones first."""


def released_crops(cfg: Config, splits: Splits) -> Batches:
    """Yield the crops of the released transforms."""
    images = [to_pillow(splits.train.read(index)) for index in range(len(splits.train))]
    transform = ReleasedCrops(cfg.crops, cfg.augment, cfg.data.mean, cfg.data.std)
    batch_size = cfg.trainer.batch_size
    for _ in range(cfg.trainer.epochs):
        order = torch.randperm(len(images)).tolist()
        for start in range(0, len(images) - batch_size + 1, batch_size):
            crops = [transform(images[index]) for index in order[start : start + batch_size]]
            yield [torch.stack(views) for views in zip(*crops, strict=True)]


def our_crops(cfg: Config, splits: Splits) -> Batches:
    """Yield the crops of a run of `cfg`."""
    trainer, size = Trainer(cfg, splits, CPU), cfg.trainer.batch_size
    for where in BatchOrder(len(splits.train), size, cfg.trainer.seed, 0, trainer.plan.total_steps):
        views = trainer.augmented(trainer.crop_batches[where])
        yield [crop for view in views for crop in view.split(size)]


def released(cfg: Config, crops_of: Callable[[Config, Splits], Batches]) -> list[dict[str, float]]:
    """Train by the released recipe's steps; return the same as `ours`."""
    torch.manual_seed(cfg.trainer.seed)
    random.seed(cfg.trainer.seed)  # the blur's, as in the released code
    splits: Splits = build(cfg.data)
    per_epoch = len(splits.train) // cfg.trainer.batch_size
    training = ReleasedTraining(cfg, per_epoch)
    keep_gradients_exact(training.student, CPU, choose_precision(cfg.trainer.precision, CPU))
    evaluations: PeriodicEvaluations = build_from(
        cfg.eval, subject=subject_of(cfg, training.teacher.backbone, CPU), splits=splits
    )
    curve = [point(0, evaluations.evaluate(Path()).figures)]
    batches = crops_of(cfg, splits)
    for epoch in range(1, cfg.trainer.epochs + 1):
        for crops in islice(batches, per_epoch):
            training.step(crops)
        if epoch % cfg.eval.every_epochs == 0 or epoch == cfg.trainer.epochs:
            found = evaluations.evaluate(Path(), training.student.backbone)
            curve.append(point(training.step_number, found.figures))
    return curve


def point(step: int, figures: dict[str, Any]) -> dict[str, float]:
    """Return a point of a curve."""
    names = {"teacher": "knn_top1", "student": "student_knn_top1"}
    return {"step": step} | {who: figures[name] for who, name in names.items() if name in figures}


def run(wanted: Sequence[Training], cifar10: Path | None, console: Console) -> None:
    """Make those trainings that have no line in the file yet."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    for number, training in enumerate(wanted, start=1):
        name = f"{number}/{len(wanted)} " + " ".join(map(str, vars(training).values()))
        if training.key in stored():
            console.print(f"{name}: done")
            continue
        cfg, start = compose(training.words(cifar10)), time.monotonic()
        crops = {"released": released_crops, "released_step": our_crops}.get(training.side)
        curve = released(cfg, crops) if crops else ours(cfg)
        row = vars(training) | {"seconds": time.monotonic() - start, "curve": curve, "key": training.key}
        with FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        last = curve[-1]
        console.print(
            f"{name}: teacher {last['teacher']:.1f}, student {last['student']:.1f} %, untrained "
            f"{curve[0]['teacher']:.1f}; {row['seconds']:.0f} s"
        )


def stored() -> dict[str, dict[str, Any]]:
    """Return the trainings in the file by their key."""
    lines = FILE.read_text("utf-8").splitlines() if FILE.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


# ---- the comparison ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The mean difference of pairs, in points."""

    difference: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    p: float
    """Level at which both one-sided tests say that the difference is within the bounds."""

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float], points: float) -> Comparison:
        """Compare pairs by Student's t, and by two one-sided tests (Schuirmann 1987) of ±points."""
        from scipy.stats import t

        differences = [one - other for one, other in zip(ours, theirs, strict=True)]
        difference, degrees = mean(differences), len(differences) - 1
        error = max(stdev(differences) / math.sqrt(len(differences)), 1e-12)
        half = error * float(t.ppf(0.975, degrees))
        p = max(float(t.sf((points + sign * difference) / error, degrees)) for sign in (1, -1))
        return cls(difference, difference - half, difference + half, p)

    def verdict(self, points: float) -> str:
        """Return what the interval says: equivalent, different, or that more seeds are needed."""
        if self.p < 0.05:
            return "equivalent"
        return "open" if self.low <= 0 <= self.high else "different"


def compare(points: float) -> list[dict[str, Any]]:
    """Return a row for each case, backend and network with at least two seeds that both sides have."""
    found: dict[tuple[str, ...], dict[str, dict[int, dict[str, Any]]]] = {}
    current = {
        each.key for each in trainings(list(DATA), list(NETWORKS), PRECISIONS, seeds_in(stored().values()))
    }
    for key, row in stored().items():
        if key in current:
            case = (row["data"], row["network"], row["precision"])
            found.setdefault(case, {}).setdefault(row["side"], {})[row["seed"]] = row
    rows = []
    for data, network, precision in product(DATA, NETWORKS, PRECISIONS):
        sides = found.get((data, network, precision), {})
        for side, who in product(SIDES[1:], ("teacher", "student")):
            both = [sides.get(name, {}) for name in (side, "released")]
            seeds = sorted(both[0].keys() & both[1].keys())
            if len(seeds) < 2:
                continue
            pairs = [[by_seed[seed] for seed in seeds] for by_seed in both]
            ours, theirs = ([row["curve"][-1][who] for row in of_side] for of_side in pairs)
            result = Comparison.of(ours, theirs, points)
            curves = [
                [mean(row["curve"][at].get(who, math.nan) for row in of_side) for at in places(pairs)]
                for of_side in pairs
            ]
            untrained = mean(row["curve"][0]["teacher"] for row in pairs[0])
            rows.append(
                {"data": data, "network": network, "precision": precision, "backend": side, "of": who}
                | {"seeds": len(seeds), "ours": [mean(ours), stdev(ours)]}
                | {"released": [mean(theirs), stdev(theirs)], "untrained": untrained, "curve": curves}
                | {**vars(result), "says": result.verdict(points)}
            )
    return rows


def places(sides: Sequence[Sequence[dict[str, Any]]]) -> range:
    """Return the indices of the points after step 0 that all curves have."""
    return range(1, min(len(row["curve"]) for rows in sides for row in rows))


def seeds_in(rows: Any) -> list[int]:
    """Return the seeds of stored trainings."""
    return sorted({row["seed"] for row in rows})


def print_table(rows: Sequence[dict[str, Any]], points: float, console: Console) -> None:
    """Print the comparisons, and below them the means along the way."""
    table = Table(title="k-NN top-1 at the end, %", title_justify="left", box=box.MARKDOWN)
    columns = ("data", "network", "", "backend", "of", "seeds", "untrained", "released", "ours")
    for column in (*columns, "difference, 95 %", f"within ±{points:g}: p", ""):
        table.add_column(column)
    for row in rows:
        (ours, spread), (theirs, their_spread) = row["ours"], row["released"]
        table.add_row(
            *(row[name] for name in ("data", "network", "precision", "backend", "of")),
            str(row["seeds"]),
            f"{row['untrained']:.1f}",
            f"{theirs:.1f} ± {their_spread:.1f}",
            f"{ours:.1f} ± {spread:.1f}",
            f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
            f"{row['p']:.3f}",
            row["says"],
        )
    console.print(table)
    for row in rows:
        (ours, theirs) = ([f"{value:.1f}" for value in curve] for curve in row["curve"])
        name = " ".join(row[name] for name in ("data", "network", "precision", "backend", "of"))
        console.print(f"{name}, along the way: ours {', '.join(ours)}; released {', '.join(theirs)}")


# ---- the command line --------------------------------------------------------------------------------------


def span(text: str) -> list[int]:
    """Parse `first-last`, both included, or a single seed."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def part_of(wanted: Sequence[Training], part: str) -> list[Training]:
    """Return the i-th of n parts for `i/n`."""
    number, _, count = part.partition("/")
    return list(wanted[int(number) - 1 :: int(count)])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["train", "table"])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--side", nargs="+", choices=(*SIDES, *OTHER_SIDES), default=SIDES)
    parser.add_argument("--seeds", type=span, default=span("0-4"), help="first-last")
    parser.add_argument("--part", default="1/1", help="this part of so many, e.g. 2/4")
    parser.add_argument("--cifar10", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--points", type=float, default=1.5, help="difference that is still equivalence")
    arguments = parser.parse_args(argv)
    console = Console(width=200)
    if arguments.what == "table":
        rows = compare(arguments.points)
        print_table(rows, arguments.points, console)
        (OUTPUTS / "parity.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
        return
    if "cifar10" in arguments.data and arguments.cifar10 is None:
        parser.error("give --cifar10 DIRECTORY, or other --data")
    cases = (arguments.data, arguments.network, arguments.precision)
    wanted = list(trainings(*cases, arguments.seeds, arguments.side))
    run(part_of(wanted, arguments.part), arguments.cifar10, console)


if __name__ == "__main__":
    main()
