"""What follows from the number of images and the machine: network, prototypes, temperatures, length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dino_exp.inspection.choice import Choice
from dino_exp.inspection.image_choices import Sides
from dino_exp.inspection.measured import Measured
from dino_exp.machine import Hardware

SMALL_SET = 200_000
"""Images below which a set counts as small: the advice for ImageNet does not hold for it."""
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
"""Numbers of images, and K below them, as LightlyTrain chooses it for DINO."""
CPU_STEPS = 6_250
"""Of batch 32: `experiment=cifar10_folder` learns in as many."""
CPU_IMAGES_PER_SECOND = 72_000 / 186
"""experiment=shapes on two cores: six epochs of 12,000 images in 3.1 minutes (docs/results.md)."""
SHAPES_PATCHES = 2 * 8**2 + 2 * 4**2
"""Of its crops: 2 x 32 and 2 x 16 pixels in patches of 4."""
PAPER_PATCHES = 2 * 14**2 + 8 * 6**2
"""Patches of the ten crops of an image: 2 x 224 and 8 x 96 pixels in patches of 16."""
MIB_PER_IMAGE = 6_965 / 64
"""ViT-S/16 with these crops in bfloat16 at batch 64, everything included (docs/performance.md)."""
CUT_MILLISECONDS = 2.64 - 1.13
"""To cut these crops out of a decoded image, on one core (docs/performance.md)."""


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    images: int
    batch: int
    why_batch: str
    epochs: int
    why_epochs: str

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return max(1, self.images // self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch


def length_of(measured: Measured, hardware: Hardware) -> Length:
    """Return batch and epochs."""
    images, gpu = measured.images, hardware.gpu is not None
    batch, why_batch = _batch(images, gpu)
    epoch = max(1, images // batch)
    if not gpu:
        epochs = min(max(round(CPU_STEPS / epoch), 1), 400)
        return Length(
            images, batch, why_batch, epochs, "experiment=cifar10_folder learned in 6,250 steps of 32"
        )
    if images >= SMALL_SET:
        return Length(images, batch, why_batch, 100, "100 epochs as the released README's vanilla run")
    epochs = min(max(math.ceil(15_000 / epoch), 200), 800)
    why = "200 epochs as Lightly's CIFAR-10 benchmark, more for few steps, at most the paper's 800"
    return Length(images, batch, why_batch, epochs, why)


def _batch(images: int, gpu: bool) -> tuple[int, str]:
    """Return the batch, a power of two, and why."""
    most = 1 << max(0, (images // 4).bit_length() - 1)
    wanted, why = 32, "that of experiment=cifar10_folder"
    if gpu and images >= 500_000:
        wanted, why = 512, "the released README's, on 8 GPUs"
    elif gpu:
        wanted = 128 if images < SMALL_SET else 256
        why = "small batches cost little: k-NN 57.9 at 128, 59.9 at 1,024 (the paper, 100 epochs, 2 crops)"
    return (wanted, why) if wanted <= most else (most, "at most a quarter of the images")


def cpu_choices(measured: Measured, hardware: Hardware) -> Iterator[Choice]:
    """Yield what a run of minutes needs: the recipe of our own experiments on CPUs."""
    length, sides = length_of(measured, hardware), Sides.fitting(measured, hardware)
    ours = "experiment=shapes and cifar10_folder learned with it (docs/results.md)"
    yield Choice(
        "backbone",
        "vit_micro",
        f"{hardware.cores} CPU cores and no GPU: {ours}; two cores train ViT-S/16 on 2 images per second, "
        "and this network on some hundreds (docs/performance.md)",
    )
    yield Choice("head", "small" if length.images >= 5_000 else "micro", _cpu_head(length.images))
    yield Choice("crops", "small", "2 global and 2 local crops; 8 local crops take 1.3 times as long")
    yield Choice(
        "loss",
        "small",
        "τ_t 0.02, sharper than the paper's 0.04 to 0.07, and a center that starts from the first batch: for "
        "some ten thousand images and some thousand steps (docs/collapse.md)",
    )
    yield Choice("ema", "small_data", _small_ema(length))
    yield Choice("optimizer", "adamw_small", f"a peak of 1e-3 at batch 32; {ours}")
    yield from _evaluation(measured, length, sides, "small")
    why = f"{sides.patches} x {sides.patches} patches in a global crop; cifar10_folder has 8 x 8 of 4 pixels"
    yield Choice("backbone.patch_size", sides.patch, why)
    yield from _length_choices(length)
    yield Choice("optimizer.warmup_epochs", _short(0.08 * length.epochs), "8 % of the run, as in the demo")
    frozen = "20 steps in which the prototypes do not move, as in the demo"
    yield Choice("optimizer.freeze_last_layer_epochs", _short(min(20 / length.epoch, length.epochs)), frozen)


def _cpu_head(images: int) -> str:
    why = (
        "K = 256, with which 10,000 and 60,000 small images were learned"
        if images >= 5_000
        else "K = 64, as in the demo, because there are few images"
    )
    return f"{why} (docs/results.md); too many for the data push towards a uniform collapse"


def gpu_choices(measured: Measured, hardware: Hardware) -> Iterator[Choice]:
    """Yield what follows from published guidance; none of it was trained by us for images like these."""
    length, sides = length_of(measured, hardware), Sides.fitting(measured, hardware)
    small = length.images < SMALL_SET
    tiny = hardware.gpu_mib < 6 * 1024
    yield Choice(
        "backbone",
        "vit_tiny" if tiny else "vit_small",
        f"{hardware.gpu} with {hardware.gpu_mib / 1024:.0f} GiB; "
        + ("less than 6 GiB, so not ViT-S" if tiny else "the paper's main network"),
    )
    yield Choice("head", "dino", "the released head; K is below")
    yield Choice("crops", "multicrop", "the paper's 2 global and 8 local crops; their sizes are below")
    yield Choice("loss", "dino", "the released center momentum, 0.9, and a constant τ_t, which is below")
    if small:
        yield Choice("ema", "small_data", _small_ema(length))
    else:
        why = "λ from 0.996, as in the paper; the released help advises 0.9995 for a batch of 256"
        yield Choice("ema", "paper", f"{why} (ema=small_batch)")
    yield Choice("optimizer", "adamw", "the released one for ViTs: lr 5e-4 · batch / 256")
    yield from _evaluation(measured, length, sides, "large")
    why = f"{sides.patches} x {sides.patches} patches in a global crop; the paper has 14 x 14"
    yield Choice("backbone.patch_size", sides.patch, why)
    prototypes = next((k for most, k in PROTOTYPES if length.images < most), 65_536)
    yield Choice(
        "head.out_dim",
        prototypes,
        f"K as LightlyTrain chooses it for {length.images:,} images; 65,536 is for ImageNet's 1.28 million, "
        "and with τ_t 0.02 64 to 4,096 were within a point on 1,000 and 10,000 photographs (docs/results.md)",
    )
    if small:
        why = (
            "sharper than the paper's 0.04: as good as 0.04 or better on 1,000 and 10,000 photographs "
            "(docs/results.md), LightlyTrain's for 20,000"
        )
        yield Choice("loss.teacher_temp", 0.02, why)
        yield Choice("loss.warmup_teacher_temp", 0.02, "no warm-up, so the same")
        why = "in short runs a center from zero pushes towards a uniform collapse (docs/collapse.md)"
        yield Choice("loss.center_init", "first_batch", why)
    else:
        yield Choice(
            "loss.teacher_temp", 0.04, "the released default; 0.07 needs a warm-up (docs/collapse.md)"
        )
    yield from _length_choices(length)
    need = MIB_PER_IMAGE * _patches(sides, 8) / PAPER_PATCHES * (0.5 if tiny else 1) * length.batch
    parts = 1
    while need / parts > 0.8 * hardware.gpu_mib and parts < length.batch:
        parts *= 2
    yield Choice(
        "trainer.accumulate",
        parts,
        f"parts of a batch, for the memory: it needs about {need / 1024:.1f} GiB in one part, by the "
        "figure of ViT-S/16 on an H200 (docs/performance.md) in proportion to the patches; "
        "python -m benchmarks.memory measures it",
    )
    warmup = max(1, length.epochs // 10)
    yield Choice("optimizer.warmup_epochs", warmup, "a tenth of the run, as in the released code")


def _small_ema(length: Length) -> str:
    steps = math.log(2) / -math.log(0.99)
    return (
        f"λ from 0.99 to 1: the teacher forgets half in {steps:.0f} steps, {steps / length.epoch:.2g} "
        "epochs of this set; the paper's 0.996 is for ImageNet, and LightlyTrain starts small sets "
        "at 0.99 too"
    )


def _evaluation(measured: Measured, length: Length, sides: Sides, scale: str) -> Iterator[Choice]:
    whole = measured.shorter_sides[50.0] <= 1.15 * sides.crop
    if scale == "small":
        yield Choice("eval", "knn_small", "k-NN on a part of the images, often")
        if not whole:
            yield Choice(
                "eval.crop_ratio", 0.875, "images are larger than the crops: the center, as in the paper"
            )
    else:
        yield Choice("eval", "knn", "the paper's protocol")
        if whole:
            yield Choice("eval.crop_ratio", 1.0, "images are as small as the crops, so they are seen whole")
    if length.epochs > 20 or scale == "large":
        yield Choice("eval.every_epochs", max(1, length.epochs // 20), "twenty times in the run")


def _length_choices(length: Length) -> Iterator[Choice]:
    yield Choice(
        "trainer.epochs",
        length.epochs,
        f"{length.images:,} images are {length.epoch:,} steps of {length.batch} per epoch, "
        f"{length.steps:,} in all; {length.why_epochs}",
    )
    yield Choice("trainer.batch_size", length.batch, length.why_batch)
    every = max(1, min(50, length.steps // 100))
    yield Choice("trainer.log_every", every, "a hundred lines or more per run")


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _patches(sides: Sides, local_number: int) -> int:
    """Return the patches of all crops of an image."""
    return 2 * sides.patches**2 + local_number * (sides.local // sides.patch) ** 2


def time_of(measured: Measured, hardware: Hardware) -> str:
    """Return in words how long the run takes, as far as it was measured."""
    length, sides = length_of(measured, hardware), Sides.fitting(measured, hardware)
    seen = length.batch * length.steps
    decode = measured.decode_milliseconds
    if hardware.gpu is None:
        larger = _patches(sides, 2) / SHAPES_PATCHES
        minutes = seen * (larger / CPU_IMAGES_PER_SECOND + decode / 1000) / 60
        also = "" if hardware.cores == 2 else f"; {hardware.cores} cores were not measured"
        return (
            f"{seen:,} images in all, about {minutes:,.0f} minutes on two cores that do nothing else: by the "
            "default run (docs/results.md), in proportion to the patches of an image, with "
            f"{decode:.2g} ms to decode one{also}"
        )
    workers = max(1, min(16, hardware.cores - 1))
    rate = workers * 1000 / (decode + CUT_MILLISECONDS)
    return (
        f"{seen:,} images in all. {workers} loader processes prepare at most {rate:,.0f} per second "
        f"({seen / rate / 3600:.1f} hours), with {decode:.2g} ms to decode one and {CUT_MILLISECONDS:.1f} "
        f"ms to cut the crops (docs/performance.md). The speed of a {hardware.gpu} is not known; an H200 "
        "trained ViT-S/16 on 958 images per second"
    )
