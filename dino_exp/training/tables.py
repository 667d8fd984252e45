"""What a run prints before and after it trains."""

from __future__ import annotations

from typing import Any

import torch

from dino_exp.config.expected import comparison
from dino_exp.console import Console, table
from dino_exp.eval.periodic import main_figures
from dino_exp.eval.subject import probe_in_words
from dino_exp.parallel import distributed
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.progress import verdict_text
from dino_exp.training.trainer import Trainer


def introduce(
    trainer: Trainer, directory: RunDirectory, console: Console, resumed: bool, shared: str = ""
) -> None:
    """Print what follows from the configuration, and whether batches are `shared`, in words."""
    cfg, splits = trainer.cfg, trainer.splits
    parameters = sum(parameter.numel() for parameter in trainer.student.backbone.parameters())
    precision = str(trainer.autocast_type or torch.float32).removeprefix("torch.")
    threads = torch.get_num_threads()
    held_out = f", {len(splits.test):,} held out" if splits.test else ""
    rows = {
        "data": f"{cfg.data.name}: {len(splits.train):,} images{held_out}",
        **({"probe": probe} if (probe := probe_in_words(splits)) else {}),
        "backbone": f"{cfg.backbone.name}: {parameters:,} parameters",
        "machine": f"{trainer.device.type}, {precision}, {'compiled, ' * trainer.compiled}"
        f"{threads} thread{'s' * (threads != 1)}, "
        f"{trainer.workers} loader processes",
        **batch_shares(trainer),
        **({"batches": shared} if shared else {}),
        **trainer.plan.facts(),
        "directory": str(directory.path),
    }
    if trainer.taken:
        console.print(table("Fork" if trainer.parent else "Initial weights", trainer.taken))
    console.print(table(f"DINO: {directory.path.name}", rows))
    if trainer.augment.skipped_steps:
        skipped = ", ".join(trainer.augment.skipped_steps)
        console.print(f"data.channels = {cfg.data.channels}: {skipped} need RGB and are skipped.")
    if trainer.evaluations.misses_labels:
        console.print(
            "No labeled images to judge features by: k-NN is off. Give some: data.probe.train and "
            "data.probe.val, or labels in data.root and data.val_root."
        )
    if resumed:
        console.print(f"Resuming from step {trainer.step:,} of {trainer.plan.stop_step:,}.")


def batch_shares(trainer: Trainer) -> dict[str, str]:
    """Return how the batch is divided among processes and parts, if it is."""
    processes, parts, batch = distributed.count(), trainer.cfg.trainer.accumulate, trainer.plan.batch_size
    if processes * parts == 1:
        return {}
    of_a_process = f"{batch} images = {processes} processes x {batch // processes}"
    return {"batch": f"{of_a_process}, in {parts} parts" if parts > 1 else of_a_process}


def before_and_now(summary: dict[str, Any], name: str, now: float) -> dict[str, str]:
    """Return a table row with a percentage before and after training, by its label."""
    before = "initial" if "initial_knn_top1" in summary else "untrained"
    first = summary.get(f"{before}_{name}")
    label = "k-NN" if name == "knn_top1" else name
    return {f"{label}, {before} → now": f"{'?' if first is None else f'{first:.1f}'} % → {now:.1f} %"}


def conclude(
    trainer: Trainer, directory: RunDirectory, console: Console, state: str, summary: dict[str, Any]
) -> str:
    """Print the closing table, and return its essence in one line."""
    verdict = trainer.judge.verdict
    if state == "preempted":
        at = f"at step {trainer.step:,} of {trainer.plan.stop_step:,}; saved"
        where = at if trainer.step else "before the first step"
        console.print(f"Stopped {where}. The same command resumes from there.")
        return f"stopped at step {trainer.step}"
    rows: dict[str, Any] = {"verdict": verdict_text(verdict), "because": verdict.evidence}
    for name, value in main_figures(trainer.last_metrics).items():
        rows |= before_and_now(summary, name, value)
    plan, cfg = trainer.plan, trainer.cfg
    compared = comparison(cfg.expected, trainer.step, plan.stop_step, summary.get("knn_top1"))
    if compared:
        rows["expected"] = compared
    if summary.get("raw_pixels_knn_top1") is not None:
        rows["k-NN of raw pixels"] = f"{summary['raw_pixels_knn_top1']:.1f} %"
    if summary.get("attention"):
        now, untrained = summary["attention"], summary["untrained_attention"]
        rows["attention on the object"] = (
            f"{now['mass']:.0%} of the class token's attention (untrained {untrained['mass']:.0%}, "
            f"centered Gaussian {now['gaussian_mass']:.0%}); the object covers {now['area']:.0%} of the image"
        )
    rows["speed"] = f"{summary['images_per_second']:,.0f} images/s, {summary['wall_seconds']:,.0f} s in all"
    if summary["corrupt_images"]:
        rows["unreadable images"] = str(len(summary["corrupt_images"]))
    rows["state"] = state
    for name, path in (
        ("crops", directory.plots / "crops.png"),
        ("curves", directory.plots / "curves.png"),
        ("attention", directory.plots / "attention.png"),
        ("directory", directory.path),
    ):
        if path.exists():
            rows[name] = str(path)
    console.print(table("Result", rows))
    if state == "failed":
        return f"{verdict.word}: {verdict.evidence}"
    knn = "" if summary["knn_top1"] is None else f", k-NN {summary['knn_top1']:.1f} %"
    return f"{verdict.word}{knn}"
