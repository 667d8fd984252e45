"""Fine-tuning: the entire network trained with labels, then evaluated on the held-out images."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from dino_exp.atomic import write_atomically
from dino_exp.backbone.execution import keep_gradients_exact
from dino_exp.config.evaluation_schema import FinetuneConfig
from dino_exp.console import LOG_LINES
from dino_exp.data.source import ImageSource
from dino_exp.dino.optimizer import adamw
from dino_exp.dino.schedule import cosine_schedule
from dino_exp.errors import UserError
from dino_exp.eval.features import evaluating
from dino_exp.eval.finetune.layer_decay import has_layers, layered_groups
from dino_exp.eval.finetune.training_images import Substituting, epoch_order, training_images
from dino_exp.eval.subject import Findings, LabeledData, Subject, labeled
from dino_exp.parallel import distributed
from dino_exp.parallel.batch_norm import synchronize_batch_norms
from dino_exp.seeding import seed_step

FILE = "finetuned.pt"
MAX_NORM = 1.0
"""Bound of the norm of all gradients. AdamW remembers the square of a single outlier for a thousand steps,
which is as long as fine-tuning on a small data set takes."""


class Classifier(nn.Module):
    """A backbone with a linear layer on its feature: (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, backbone: nn.Module, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(cast(int, backbone.feature_dim), classes, device="cpu")
        drawn = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02, generator=drawn)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))


class Finetune:
    """Fine-tuning by AdamW with warm-up, cosine schedule, layer-wise learning rates and random crops.

    The network of the last epoch is evaluated: the held-out images choose nothing.
    """

    def __init__(self, cfg: FinetuneConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for a batch that does not fit, too long a warm-up, or images without labels."""
        train, _ = labeled(data.splits)
        processes, size = distributed.count(), self.cfg.batch_size
        if size % processes:
            below = size // processes * processes
            nearest = f"nearest are {below} and {below + processes}" if below else f"use {processes}"
            raise UserError(
                f"finetune.batch_size = {size}: not a multiple of the {processes} processes; {nearest}."
            )
        if len(train) < size:
            most = len(train) // processes * processes
            raise UserError(
                f"finetune.batch_size = {size}: there are only {len(train)} training images, less than one "
                f"batch; use {f'at most {most}' if most else 'fewer processes'}."
            )
        if self.cfg.warmup_epochs > self.cfg.epochs:
            raise UserError(
                f"finetune.warmup_epochs = {self.cfg.warmup_epochs:g}: more than finetune.epochs = "
                f"{self.cfg.epochs}; use at most {self.cfg.epochs}."
            )
        least, greatest = self.cfg.crop_scale
        if least > greatest:
            raise UserError(
                f"finetune.crop_scale = [{least:g}, {greatest:g}]: the smaller share comes first; "
                f"use [{greatest:g}, {least:g}]."
            )

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Train a copy of the subject's backbone, write it to `finetuned.pt`, and return top1 (and top5).

        Raises UserError if the loss becomes infinite or NaN.
        """
        train, test = labeled(data.splits)
        classes = train.classes or [str(number) for number in range(int(_labels(train).max()) + 1)]
        network = Classifier(copy.deepcopy(subject.backbone), len(classes), subject.seed)
        network.to(subject.device).requires_grad_(True)
        keep_gradients_exact(network, subject.device, subject.autocast_type)
        loss, unreadable = self._train(network, train, subject)
        top1, top5, seen = accuracy(network, test, subject)

        findings = Findings(
            figures={"top1": top1} | ({"top5": top5} if len(classes) > 5 else {}),
            details={
                "epochs": self.cfg.epochs,
                "images": len(train) - unreadable,
                "held_out_images": seen,
                "classes": len(classes),
                "training_loss": loss,
            },
        )
        if self.cfg.layer_decay < 1 and not has_layers(subject.backbone):
            findings.notes.append("All layers had the same learning rate: the network has no blocks.")
        if unreadable:
            findings.notes.append(f"{unreadable} training images could not be read.")
        if len(test) > seen:
            findings.notes.append(f"{len(test) - seen} held-out images could not be read.")
        if distributed.is_main():
            self._save(network, classes, subject, folder / FILE)
            findings.files.append(folder / FILE)
        return findings

    def _train(self, network: Classifier, train: ImageSource, subject: Subject) -> tuple[float, int]:
        """Train all epochs; return the mean loss of the last one and the number of unreadable images."""
        rank, processes = distributed.rank(), distributed.count()
        part, per_epoch = self.cfg.batch_size // processes, len(train) // self.cfg.batch_size
        peak, warmup = self.cfg.lr * self.cfg.batch_size / 256, round(self.cfg.warmup_epochs * per_epoch)
        lrs = cosine_schedule(peak, 0.0, self.cfg.epochs * per_epoch, warmup_steps=warmup)
        synchronized = over_processes(network, subject)
        decays = {"layer_decay": self.cfg.layer_decay, "weight_decay": self.cfg.weight_decay}
        optimizer = adamw(params=layered_groups(network.backbone, network.classifier, **decays))
        scaler = torch.amp.GradScaler(subject.device.type, enabled=subject.autocast_type is torch.float16)
        images, labels = Substituting(train), _labels(train)
        mean_loss = math.nan
        network.train()
        with EpochProgress(self.cfg.epochs, per_epoch) as progress:
            for epoch in range(self.cfg.epochs):
                order = epoch_order(len(train), subject.seed, epoch)
                starts = range(rank * part, per_epoch * self.cfg.batch_size, self.cfg.batch_size)
                batches = training_images(
                    images,
                    [index for start in starts for index in order[start : start + part]],
                    seed=subject.seed,
                    epoch=epoch,
                    image_size=subject.image_size,
                    scale=self.cfg.crop_scale,
                    batch_size=part,
                    workers=subject.workers,
                )
                total = torch.zeros((), device=subject.device)
                for step, (batch, indices) in enumerate(batches, epoch * per_epoch):
                    seed_step(subject.seed, step, rank)  # stochastic depth and dropout
                    for group in optimizer.param_groups:
                        group["lr"] = float(lrs[step]) * group["lr_factor"]
                    targets = labels[[images.index_read(index) for index in indices]].to(subject.device)
                    with subject.autocast():
                        logits = synchronized(subject.normalized(batch))
                    loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.cfg.label_smoothing)
                    optimizer.zero_grad(set_to_none=True)
                    scaler.scale(loss).backward()
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(network.parameters(), MAX_NORM)
                    scaler.step(optimizer)
                    scaler.update()
                    total += loss.detach()
                    progress.advance(progress.task)
                mean_loss = distributed.mean(total / per_epoch).item()
                if not math.isfinite(mean_loss):
                    other = ", or precision=fp32" if subject.autocast_type is not None else ""
                    raise UserError(
                        f"finetune.lr = {self.cfg.lr:g}: the loss became {mean_loss} in epoch {epoch + 1} of "
                        f"{self.cfg.epochs}; try {self.cfg.lr / 3:.1g}{other}."
                    )
                progress.epoch(epoch + 1, mean_loss)
        unreadable = set().union(*distributed.from_all(list(images.unreadable)))
        return mean_loss, len(unreadable)

    def _save(self, network: Classifier, classes: list[str], subject: Subject, file: Path) -> None:
        """Write weights as `backbone.*` and `classifier.*`, and what is needed to use them."""
        settings = asdict(self.cfg)
        del settings["_target_"]
        content = {
            "state_dict": {name: value.detach().cpu() for name, value in network.state_dict().items()},
            "classes": list(classes),
            "settings": settings
            | {"weights": subject.name, "digest": subject.digest, "seed": subject.seed}
            | {"image_size": subject.image_size, "crop_ratio": subject.crop_ratio}
            | {"channels": subject.channels, "mean": list(subject.mean), "std": list(subject.std)},
        }
        write_atomically(file, lambda out: torch.save(content, out))


def over_processes(network: Classifier, subject: Subject) -> nn.Module:
    """Return the network with gradients and batch norms over all processes; itself if there is only one."""
    if not distributed.several():
        return network
    synchronize_batch_norms(network, subject.device)
    size = subject.image_size
    parameters = list(network.parameters())
    network.eval()
    logits = network(torch.zeros(2, subject.channels, size, size, device=subject.device))
    unused = any(each is None for each in torch.autograd.grad(logits.sum(), parameters, allow_unused=True))
    parallel = DistributedDataParallel(
        network,
        device_ids=[subject.device] if subject.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=unused,
    )
    parallel.broadcast_buffers = False  # synchronized batch norms are equal already
    return parallel


def accuracy(network: Classifier, test: ImageSource, subject: Subject) -> tuple[float, float, int]:
    """Return top-1 and top-5 on the held-out images in percent, and the number of readable images.

    Several processes share the work. Raises UserError if no image can be read.
    """
    labels, hits = _labels(test), torch.zeros(3, dtype=torch.int64)
    with evaluating(network), subject.autocast():
        for batch, indices in subject.still_images(test, distributed.share_of(range(len(test)))):
            logits = network(subject.normalized(batch)).float()
            first = logits.topk(min(5, logits.shape[1])).indices.cpu()
            right = first == labels[indices].unsqueeze(1)
            hits += torch.stack([right[:, 0].sum(), right.sum(), torch.tensor(len(indices))])
    top1, top5, seen = distributed.total(hits).tolist()
    if seen == 0:
        raise UserError(f"None of the {len(test)} held-out images could be read; is data.val_root right?")
    return 100 * top1 / seen, 100 * top5 / seen, seen


def _labels(source: ImageSource) -> Tensor:
    return torch.as_tensor(source.labels, dtype=torch.int64)


class EpochProgress(Progress):
    """A progress bar on rank 0's terminal, and up to `LOG_LINES` lines elsewhere."""

    def __init__(self, epochs: int, per_epoch: int) -> None:
        console = distributed.console_for_a_run()
        words, steps = TextColumn("{task.description}"), TextColumn("steps, left")
        columns = (words, BarColumn(), MofNCompleteColumn(), steps, TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_interactive)
        self.epochs, self.task = epochs, self.add_task("fine-tuning", total=epochs * per_epoch)

    def epoch(self, done: int, loss: float) -> None:
        self.update(self.task, description=f"fine-tuning, loss {loss:.3f}")
        due = done * LOG_LINES // self.epochs > (done - 1) * LOG_LINES // self.epochs
        if due and not self.console.is_interactive:
            self.console.print(f"fine-tuning: epoch {done}/{self.epochs}  loss {loss:.3f}")
