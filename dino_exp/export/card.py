"""The model card of exported weights."""

from __future__ import annotations

import re
from typing import Any

from dino_exp.config.per_step import PerStep
from dino_exp.config.schema import Config
from dino_exp.export.trained import Trained

CARD = """\
---
license: {license}
tags: [dino, self-supervised, image-feature-extraction]
---
# {title}

{networks} of the run `{run}`, pretrained without labels by DINO
([Caron et al. 2021](https://arxiv.org/abs/2104.14294)), after step {step:,}.

## Use

{use}

Images: {size} x {size} pixels, {channels} channels{stored}, values from 0 to 1, minus the mean {mean},
divided by the standard deviation {std}.

## Training

| | |
|---|---|
{training}

## Result

| | |
|---|---|
{result}

License: {license_words}.
"""


def card(trained: Trained, networks: str, use: str, license: str | None) -> str:
    """Return the text of README.md.

    Args:
        trained: the run.
        networks: the networks in the files, as the beginning of a sentence.
        use: how to load the files, as Markdown.
        license: an identifier such as apache-2.0; None if it is not stated.
    """
    data = trained.cfg.data
    return CARD.format(
        title=as_text(trained.cfg.backbone.name),
        networks=networks,
        run=" ".join(trained.path.resolve().name.replace("`", "'").split()),
        step=trained.step,
        use=use,
        size=trained.image_size,
        channels=data.channels,
        stored=stored(data),
        mean=list(data.mean),
        std=list(data.std),
        training=rows(training(trained.cfg)),
        result=rows(result(trained)),
        license=license or "unknown",
        license_words=license
        or "not stated; whoever publishes the weights decides, considering the data's license",
    )


def stored(data: Any) -> str:
    """Return how the values of files became those from 0 to 1, where that is not a division by 255."""
    bands, pairs = data.get("bands"), data.get("range")
    text = f" (bands {as_text(str(list(bands)))} of the files)" if bands else ""
    if pairs:
        text += (
            f", stored values mapped from {as_text(str(pairs))} (low and high; p is a percentile and sd the "
            "standard deviation, in each channel of each image) to 0 and 255, clipped, divided by 255"
        )
    return text


def training(cfg: Config) -> dict[str, str]:
    """Return the main settings of the training; the run's config.yaml has all of them."""
    crops, loss, optimizer, per_step = cfg.crops, cfg.loss, cfg.optimizer, PerStep.of(cfg)
    batch, lr = cfg.trainer.batch_size, f"lr {optimizer.lr:g} for a batch of 256"
    if optimizer.lr_rule != "linear":
        lr = f"lr {per_step.peak_lr:g} at its peak"
    local = f", {crops.local_number} local of {crops.local_size}" if crops.local_number else ""
    facts = {
        "data": cfg.data.name,
        "crops": f"2 global of {crops.global_size} pixels{local}",
        "prototypes": f"{cfg.head.out_dim:,}",
        "temperatures": f"student {loss.student_temp:g}, teacher {loss.teacher_temp:g}",
        "centering": f"{loss.centering}, momentum {per_step.center_momentum:.6g}",
        "teacher's momentum": f"{per_step.momentum:.6g}, {cfg.ema.schedule}",
        "optimizer": f"{optimizer._target_.rpartition('.')[2]}, {lr}",
        "length": f"{cfg.trainer.epochs} epochs of batches of {batch}",
        "seed": str(cfg.trainer.seed),
    }
    if getattr(cfg, "fork_parent", None):
        facts["fork of"] = str(cfg.fork_parent)
    if getattr(cfg, "init_from", None):  # runs of earlier versions do not have the key
        facts["started from"] = f"{cfg.init_from} (SHA-256 {cfg.init_sha256})"
    return facts


def result(trained: Trained) -> dict[str, str]:
    """Return verdict, k-NN accuracy and code revision of the training."""
    because = f": {trained.evidence}" if trained.evidence else ""
    knn = "not measured" if trained.knn_top1 is None else f"{trained.knn_top1:.1f} %"
    return {
        "verdict": f"{trained.verdict}{because}",
        "k-NN top-1 of the teacher on held-out images": knn,
        "code": f"dino-exp, revision {trained.revision}",
    }


def rows(facts: dict[str, str]) -> str:
    """Return the lines of a Markdown table with two columns."""
    return "\n".join(f"| {name} | {as_text(fact)} |" for name, fact in facts.items())


def as_text(value: str) -> str:
    """Return Markdown that shows a value of the run's files, which may hold HTML, as one line of text."""
    return re.sub(r"([\\`|<\[\]])", r"\\\1", " ".join(value.split()))
