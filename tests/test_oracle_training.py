"""Whole trainings against the released code's numbers: every loss, and all final weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import vit
from dino_exp.ema import momentum_schedule, update_teacher
from dino_exp.head import DINOHead, HeadOutput
from dino_exp.loss import DINOLoss
from dino_exp.optimizer import adamw, clip_gradients, freeze_last_layer, parameter_groups, sgd
from dino_exp.schedule import cosine_schedule

ORACLE = Path(__file__).parent / "oracle"


class Network(nn.Module):
    """Backbone and head under the released code's names."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = vit(
            name="oracle",
            patch_size=settings["patch"],
            embed_dim=settings["embed_dim"],
            depth=settings["depth"],
            num_heads=settings["num_heads"],
            mlp_ratio=4.0,
            drop_path_rate=settings["drop_path"],
            stem="patch",
            init="trunc_normal",
            in_channels=3,
            image_size=settings["img"],
        )
        self.head = DINOHead(
            in_dim=settings["embed_dim"],
            out_dim=settings["out_dim"],
            hidden_dim=settings["head_hidden"],
            bottleneck_dim=settings["head_bottleneck"],
            use_bn=settings["use_bn"],
            norm_last_layer=settings["norm_last_layer"],
        )

    def forward(self, crops_by_size: list[Tensor]) -> HeadOutput:
        return self.head(torch.cat([self.backbone(crops) for crops in crops_by_size]))


@dataclass
class Training:
    """One of the oracle's trainings, ready for its first step."""

    settings: dict[str, Any]
    expected: Any
    student: Network
    teacher: Network
    loss: DINOLoss
    optimizer: torch.optim.Optimizer

    def crops(self, step: int, kind: str) -> list[Tensor]:
        """The step's crops of one size, crop-major (crops·B, 3, size, size); empty where there are none."""
        if kind not in self.expected:
            return []
        return [torch.from_numpy(self.expected[kind][step]).flatten(0, 1)]


def prepare(name: str) -> Training:
    settings = json.loads((ORACLE / f"{name}.json").read_text())
    expected = np.load(ORACLE / f"{name}.npz")
    init = {k[len("init/") :]: torch.from_numpy(v) for k, v in expected.items() if k.startswith("init/")}
    student, teacher = Network(settings).double(), Network(settings).double()
    student.load_state_dict(init, strict=True)
    teacher.load_state_dict(init, strict=True)
    groups = parameter_groups(student)
    loss = DINOLoss(
        out_dim=settings["out_dim"],
        student_temp=settings["student_temp"],
        teacher_temp=settings["teacher_temp"],
        warmup_teacher_temp=settings["warmup_teacher_temp"],
        warmup_teacher_temp_epochs=settings["warmup_teacher_temp_epochs"],
        center_momentum=settings["center_momentum"],
    ).double()
    optimizer = {"adamw": adamw, "sgd": sgd}[settings["optimizer"]](params=groups)
    return Training(settings, expected, student, teacher, loss, optimizer)


def train(training: Training) -> list[float]:
    """The DINO step, written out; returns the loss of every step."""
    settings, student, teacher = training.settings, training.student, training.teacher
    steps, per_epoch = settings["steps"], settings["steps_per_epoch"]
    lr = cosine_schedule(
        settings["lr"], settings["min_lr"], steps, warmup_steps=settings["warmup_epochs"] * per_epoch
    )
    weight_decay = cosine_schedule(settings["weight_decay"], settings["weight_decay_end"], steps)
    momentum = momentum_schedule(
        schedule="cosine",
        momentum=settings["ema_start"],
        final_momentum=settings["ema_end"],
        total_steps=steps,
    )
    losses = []
    for step in range(steps):
        epoch = step // per_epoch
        for group in training.optimizer.param_groups:
            group["lr"] = lr[step]
        training.optimizer.param_groups[0]["weight_decay"] = weight_decay[step]
        global_crops, local_crops = training.crops(step, "global_crops"), training.crops(step, "local_crops")
        with torch.no_grad():
            teacher_logits = teacher(global_crops).logits
        student_logits = student(global_crops + local_crops).logits
        loss = training.loss(student_logits, teacher_logits, training.loss.teacher_temp_at(epoch))
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(student.parameters(), settings["clip_grad_per_parameter"])
        if epoch < settings["freeze_last_layer_epochs"]:
            freeze_last_layer(student.head)
        training.optimizer.step()
        update_teacher(teacher, student, momentum[step])
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["train_adamw_multicrop", "train_sgd_two_global"])
def test_whole_training_agrees_with_the_released_code(name: str) -> None:
    training = prepare(name)
    losses = train(training)
    assert losses == pytest.approx(training.expected["losses"].tolist(), abs=1e-9)
    center = torch.from_numpy(training.expected["final_center"])
    torch.testing.assert_close(training.loss.center, center, rtol=0, atol=1e-9)
    for role, network in {"student": training.student, "teacher": training.teacher}.items():
        for key, value in network.state_dict().items():
            final = torch.from_numpy(training.expected[f"{role}/{key}"])
            torch.testing.assert_close(value, final, rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["train_adamw_multicrop", "train_sgd_two_global"])
def test_weight_decay_spares_the_same_parameters(name: str) -> None:
    training = prepare(name)
    _, spared = training.optimizer.param_groups
    names = {parameter: name for name, parameter in training.student.named_parameters()}
    assert [names[parameter] for parameter in spared["params"]] == training.settings["no_weight_decay"]
    assert spared["weight_decay"] == 0
