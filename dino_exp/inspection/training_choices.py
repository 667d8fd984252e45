"""What follows from the number of images and the machine: network, prototypes, temperatures, length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dino_exp.inspection.choice import Choice
from dino_exp.inspection.image_choices import Sides
from dino_exp.inspection.measured import Measured
from dino_exp.machine import Hardware

FEW_PROTOTYPES = (
    "with τ_t 0.02, k-NN was the same within a point for K from 64 to 4,096, on 1,000, 10,000 and 60,000 "
    "images (docs/results.md)"
)
SMALL_SET = 200_000
"""Images below which a set counts as small: the advice for ImageNet does not hold for it."""
PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
"""Numbers of images, and K below them, as LightlyTrain chooses it for DINO."""
CPU_STEPS = 30 * (10_000 // 64)
"""Of batch 64: `experiment=cifar10_folder_resnet` with 30 epochs of 10,000 images (docs/results.md)."""
CPU_IMAGES_PER_SECOND = 190
"""The same on a core without AVX-512, with crops of 32 pixels (docs/results.md)."""
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
            images,
            batch,
            why_batch,
            epochs,
            "30 epochs of 10,000 images, a third of experiment=cifar10_folder_resnet; longer is better",
        )
    if images >= SMALL_SET:
        return Length(images, batch, why_batch, 100, "100 epochs as the released README's vanilla run")
    epochs = min(max(math.ceil(15_000 / epoch), 200), 800)
    why = "200 epochs as Lightly's CIFAR-10 benchmark, more for few steps, at most the paper's 800"
    return Length(images, batch, why_batch, epochs, why)


def _batch(images: int, gpu: bool) -> tuple[int, str]:
    """Return the batch, a power of two, and why."""
    most = 1 << max(0, (images // 4).bit_length() - 1)
    wanted, why = 64, "that of experiment=cifar10_folder_resnet"
    if gpu and images >= 500_000:
        wanted, why = 512, "the released README's, on 8 GPUs"
    elif gpu:
        wanted = 128 if images < SMALL_SET else 256
        why = "small batches cost little: k-NN 57.9 at 128, 59.9 at 1,024 (the paper, 100 epochs, 2 crops)"
    return (wanted, why) if wanted <= most else (most, "at most a quarter of the images")


def cpu_choices(measured: Measured, hardware: Hardware) -> Iterator[Choice]:
    """Yield what learned small photographs on a CPU: `experiment=cifar10_folder_resnet`, for less time."""
    length, sides = length_of(measured, hardware), Sides.fitting(measured, hardware)
    yield Choice(
        "backbone",
        "resnet_micro",
        f"{hardware.cores} CPU cores and no GPU: this small ResNet learned photographs of 32 pixels better "
        "than a small ViT in the same time (docs/results.md); for maps of attention see "
        "experiment=cifar10_folder",
    )
    yield Choice("head", "cifar_small", f"K = 512; {FEW_PROTOTYPES}")
    yield Choice("crops", "small_two_large", "two global crops and no local ones, as it learned")
    yield Choice("loss", "dino", "the released center momentum, 0.9, and a constant τ_t, which is below")
    why = "0.996 was as good within a point, 0.97 and 0.999 worse on photographs (docs/results.md)"
    yield Choice("ema", "constant", f"λ = 0.99 throughout: {_half_life(length)}; {why}")
    yield Choice("optimizer", "sgd_cifar", "SGD with a peak of 0.03 at batch 64, as it learned")
    yield from _evaluation(measured, length, sides, "small")
    yield from _sharp()
    yield from _length_choices(length)


def _sharp() -> Iterator[Choice]:
    """Yield the teacher's temperature for few images."""
    why = (
        "sharper than the paper's 0.04: as good as 0.04 or better on 1,000 and 10,000 photographs "
        "(docs/results.md), LightlyTrain's for 20,000"
    )
    yield Choice("loss.teacher_temp", 0.02, why)
    yield Choice("loss.warmup_teacher_temp", 0.02, "no warm-up, so the same")


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
        why = "the paper's 0.996 is for ImageNet, and LightlyTrain starts small sets at 0.99 too"
        yield Choice("ema", "small_data", f"λ from 0.99 to 1: {_half_life(length)}; {why}")
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
        f"and {FEW_PROTOTYPES}",
    )
    if small:
        yield from _sharp()
        why = "in short runs a center from zero pushes towards a uniform collapse (docs/collapse.md)"
        yield Choice("loss.center_init", "first_batch", why)
    else:
        yield Choice(
            "loss.teacher_temp", 0.04, "the released default; 0.07 needs a warm-up (docs/collapse.md)"
        )
    yield from _length_choices(length)
    need = MIB_PER_IMAGE * _patches(sides) / PAPER_PATCHES * (0.5 if tiny else 1) * length.batch
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


def _half_life(length: Length) -> str:
    steps = math.log(2) / -math.log(0.99)
    return f"the teacher forgets half in {steps:.0f} steps, {steps / length.epoch:.2g} epochs of this set"


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


def _patches(sides: Sides) -> int:
    """Return the patches of 2 + 8 crops of an image."""
    return 2 * sides.patches**2 + 8 * (sides.local // sides.patch) ** 2


def time_of(measured: Measured, hardware: Hardware) -> str:
    """Return in words how long the run takes, as far as it was measured."""
    length, sides = length_of(measured, hardware), Sides.fitting(measured, hardware)
    seen = length.batch * length.steps
    decode = measured.decode_milliseconds
    if hardware.gpu is None:
        slower = (sides.crop / 32) ** 2 / CPU_IMAGES_PER_SECOND
        minutes = seen * (slower + decode / 1000) / 60
        return (
            f"{seen:,} images in all, about {minutes:,.0f} minutes on one core without AVX-512 instructions, "
            f"by {CPU_IMAGES_PER_SECOND} images per second of 32 pixels (docs/results.md), in proportion to "
            f"the area of crops, with {decode:.2g} ms to decode one. A core with such instructions needed a "
            "third of it, and with those for bfloat16 trainer.precision=bf16 is 1.5 times as fast as that"
        )
    workers = max(1, min(16, hardware.cores - 1))
    rate = workers * 1000 / (decode + CUT_MILLISECONDS)
    return (
        f"{seen:,} images in all. {workers} loader processes prepare at most {rate:,.0f} per second "
        f"({seen / rate / 3600:.1f} hours), with {decode:.2g} ms to decode one and {CUT_MILLISECONDS:.1f} "
        f"ms to cut the crops (docs/performance.md). The speed of a {hardware.gpu} is not known; an H200 "
        "trained ViT-S/16 on 958 images per second"
    )
