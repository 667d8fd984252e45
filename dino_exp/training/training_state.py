"""What a run trains: networks, loss, optimizer, and what a checkpoint has of them."""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from dino_exp import machine
from dino_exp.backbone.execution import has_unused_parameters
from dino_exp.config.schema import Config
from dino_exp.config.targets import build, build_from
from dino_exp.data.augment import Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.loader import CropBatches
from dino_exp.data.source import Splits
from dino_exp.dino.loss import DINOLoss
from dino_exp.dino.optimizer import parameter_groups
from dino_exp.errors import UserError
from dino_exp.eval.periodic import PeriodicEvaluations, subject_of
from dino_exp.parallel import distributed
from dino_exp.training.networks import build_networks, prepare_networks
from dino_exp.training.plan import Plan, judge_of
from dino_exp.training.unreadable import UnreadableImages
from dino_exp.weights.init_from import begin_with_weights

FUSE_FROM_PIXELS = 1e9
"""Pixels in all crops of a run above which compiling the color steps saves more time than it takes."""

MOST_LINES = 20_000
"""Most lines of metrics.jsonl that a checkpoint has, some 12 MB."""


class TrainingState:
    """The networks of a run, and everything that changes while they are trained.

    Args:
        cfg: a validated configuration.
        splits: training images and, for the evaluations, held-out images.
        device: where to train.
    """

    def __init__(self, cfg: Config, splits: Splits, device: torch.device) -> None:
        self.cfg, self.splits, self.device = cfg, splits, device
        self.autocast_type = machine.choose_precision(cfg.trainer.precision, device)
        self.workers = machine.choose_workers(cfg.trainer.num_workers, device)
        self.plan = Plan.of(cfg, len(splits.train), distributed.count())
        self.student, self.teacher = build_networks(cfg)
        self.compiled = prepare_networks(
            cfg, self.student, self.teacher, device, self.plan, self.autocast_type
        )
        """Whether the networks are compiled by `torch.compile`."""
        self.parameters, self.teacher_parameters = (
            tuple(network.parameters()) for network in (self.student, self.teacher)
        )
        """Those of student and teacher, because to find them in the modules takes time in every step."""
        self.student_of_all: torch.nn.Module = self.student
        """The student; after `join` its gradients are averaged over the processes."""
        crops: MultiCrop = build(cfg.crops)
        self.augment: Augment = build(
            cfg.augment, channels=cfg.data.channels, mean=list(cfg.data.mean), std=list(cfg.data.std)
        )
        if self.plan.total_steps * cfg.trainer.batch_size * crops.pixels > FUSE_FROM_PIXELS:
            self.augment.fuse()
        self.crop_batches = CropBatches(splits.train, crops, self.augment, cfg.trainer.seed, cfg.data.backend)
        self.dino_loss: DINOLoss = build(
            cfg.loss, out_dim=cfg.head.out_dim, center_momentum=self.plan.center_momentum
        ).to(device)
        if self.compiled and device.type == "cuda":  # on a CPU its loop is faster
            self.dino_loss.compile()
        self.optimizer: torch.optim.Optimizer = build(cfg.optimizer, params=parameter_groups(self.student))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_type is torch.float16)
        teacher = subject_of(cfg, self.teacher.backbone, device, self.workers)
        with self.uncompiled():
            self.evaluations: PeriodicEvaluations = build_from(cfg.eval, subject=teacher, splits=splits)
        self.judge = judge_of(
            cfg,
            warmup_steps=self.plan.warmup_steps,
            total_steps=self.plan.stop_step,
            steps_per_epoch=self.plan.steps_per_epoch,
        )
        self.step = 0
        self.last_metrics: dict[str, Any] = {}
        """The line of metrics.jsonl of the last logged step."""
        self.logged: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        """The last lines of metrics.jsonl, which a checkpoint has too, should the file be damaged."""
        self.due = False
        """Whether the evaluations of this step are still to be made; its line is then written after them."""
        self.taken: dict[str, str] = {}
        """What `begin_with_weights` took from the file, or `forks.begin` from a run, in words, by part."""
        self.parent: str | None = None
        """The parent's configuration, as YAML, of a fork that begins in this attempt."""
        self.unreadable = UnreadableImages(splits.train, cfg.data.max_corrupt)
        self.seconds = 0.0
        """Time in the loop so far, evaluations and earlier attempts included."""
        self.training_seconds = 0.0
        """The part of `seconds` that was not spent on evaluations."""
        self._not_finite = torch.zeros((), device=device)

    def join(self) -> None:
        """Wrap the student so that gradients are averaged; all processes call it before the first step."""
        if not distributed.several():
            return
        data, size = self.cfg.data, self.cfg.crops.global_size
        with self.uncompiled():
            unused = has_unused_parameters(self.student, data.channels, size)
        self.student_of_all = DistributedDataParallel(
            self.student,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused,
        )
        # synchronized batch norms agree already; set here because torch is renaming the argument
        self.student_of_all.broadcast_buffers = False
        # a warning about 1x1 convolutions, whose two layouts differ in name only
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

    def begin_with_weights(self) -> None:
        """Load networks and center from `init_from`. Raises UserError if the file does not fit."""
        self.taken = begin_with_weights(self.cfg, self.student, self.teacher, self.dino_loss)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Run without torch.compile: evaluations have other shapes, too rarely to be worth compiling for."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def state(self) -> dict[str, Any]:
        """Return all that a bit-identical resume needs; random numbers need nothing (`seed_step`)."""
        return {
            "config": OmegaConf.to_yaml(self.cfg, resolve=True),
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "loss": self.dino_loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "judge": self.judge.state_dict(),
            **self.evaluations.state(),
            "last_metrics": self.last_metrics,
            "logged": list(self.logged),
            "evaluation_due": self.due,
            "corrupt": sorted(self.unreadable.known),
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`. Raises UserError if it is of other images."""
        count = len(self.splits.train)
        if any(not 0 <= index < count for index in state["corrupt"]):
            raise UserError(
                f"it has skipped image {max(state['corrupt']):,}, and there are {count:,} images."
            )
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.dino_loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.judge.load_state_dict(state["judge"])
        self.step = state["step"]
        self.evaluations.restore(state)
        self.last_metrics, self.unreadable.known = state["last_metrics"], set(state["corrupt"])
        self.logged = deque(state.get("logged", [self.last_metrics]), MOST_LINES)
        self.due = state.get("evaluation_due", False)
        self.seconds, self.training_seconds = state["seconds"], state["training_seconds"]
