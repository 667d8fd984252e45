"""Plots of a run (crops, curves, attention), and the k-NN of raw pixels as the baseline."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from typing import Any

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.data.subset import evenly_spread
from dino_exp.eval.attention.attend import Attended, AttentionMass, attend, attention_mass
from dino_exp.eval.periodic import subject_of
from dino_exp.eval.subject import Subject
from dino_exp.plots.run_curves import plot_curves
from dino_exp.plots.sheets import plot_attention, plot_crops
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.tracker import Tracker
from dino_exp.training.networks import build_networks
from dino_exp.training.trainer import Trainer

log = logging.getLogger(__name__)

RAW_PIXELS_UP_TO = 64
"""Largest image side for the baseline of raw pixels; larger ones would not fit in memory as features."""
MASS_IMAGES = 1000
SHEET_IMAGES = 8
SHEET_PATCHES = 24
"""Patches along a side, or more, of the images on the sheet of attention: as many times the side as trained
on as is needed. The position embedding is interpolated; the released script uses 480 pixels, 30 patches."""


def draw_crops(trainer: Trainer, directory: RunDirectory, tracker: Tracker) -> None:
    """Plot `plots/crops.png`: the first images as the networks see them in the first epoch."""
    data, source = trainer.cfg.data, trainer.splits.train
    indices = list(range(min(SHEET_IMAGES, len(source))))
    batch = trainer.crop_batches[0, indices]
    by_crop = [crop for view in trainer.augmented(batch) for crop in view.cpu().split(len(indices))]
    rows = [
        (source.read(index), [crops[row] for crops in by_crop])
        for row, index in enumerate(indices)
        if index not in batch.corrupt
    ]
    out = directory.plots / "crops.png"
    if rows:
        plot_crops(rows, out, mean=list(data.mean), std=list(data.std))
        tracker.image("crops", out, 0)


def baseline(trainer: Trainer) -> dict[str, Any]:
    """Return the k-NN of the raw pixels of small images, for `summary.json`; all processes call it."""
    if "knn" not in trainer.evaluations.evaluations or trainer.cfg.crops.global_size > RAW_PIXELS_UP_TO:
        return {}
    return {"raw_pixels_knn_top1": trainer.evaluations.pixels_top1()}


def draw(trainer: Trainer, directory: RunDirectory, tracker: Tracker) -> dict[str, Any]:
    """Plot `plots/*.png`, send them to the tracker, and return their figures for `summary.json`."""
    shown: dict[str, Any] = {}
    curves = directory.plots / "curves.png"
    if plot_curves(directory.metrics_file, curves):
        tracker.image("curves", curves, trainer.step)
    if trainer.splits.evaluated.test is not None and hasattr(trainer.teacher.backbone, "class_attention"):
        shown |= _attention(trainer, directory)
        tracker.image("attention", directory.plots / "attention.png", trainer.step)
    return shown


def _attention(trainer: Trainer, directory: RunDirectory) -> dict[str, Any]:
    """Plot the class token's attention over held-out images before and after training; return its mass.

    The mass is that of images of the size of global crops; those of the sheet have `SHEET_PATCHES` a side.
    """
    source = trainer.splits.evaluated.test
    assert source is not None
    _, untrained = build_networks(trainer.cfg)  # the seed gives the same weights again
    before, after = (
        subject_of(trainer.cfg, network.backbone, trainer.device)
        for network in (untrained.to(trainer.device), trainer.teacher)
    )
    caption, result = "", {}
    if source.has_masks:
        wanted = evenly_spread(len(source), MASS_IMAGES)
        mass, untrained_mass = (_mass(attend(each, source, wanted)) for each in (after, before))
        caption = f"at {after.image_size} pixels: {mass.sentence(untrained_mass)}"
        result = {"attention": asdict(mass), "untrained_attention": asdict(untrained_mass)}
    shown, shown_untrained = (
        attend(_enlarging(each), source, evenly_spread(len(source), SHEET_IMAGES)) for each in (after, before)
    )
    plot_attention(
        shown.images,
        shown.attention,
        shown.masks,
        shown_untrained.attention,
        directory.plots / "attention.png",
        caption=caption,
    )
    return result


def _mass(attended: Attended) -> AttentionMass:
    assert attended.masks is not None
    return attention_mass(attended.attention, attended.masks)


def _enlarging(subject: Subject) -> Subject:
    """Return a subject whose images are enlarged; other backbones than ours might not take the size."""
    if not isinstance(subject.backbone, VisionTransformer):
        return subject
    return replace(subject, image_size=math.ceil(SHEET_PATCHES / subject.backbone.grid) * subject.image_size)
