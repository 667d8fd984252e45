"""Complete trainings with the trainer's own step, from a composed configuration, against the released code.

Compares every loss and the final student, teacher and center in float64 to 1e-9; on a GPU only the losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.training.trainer import Trainer

ORACLE = Path(__file__).parent / "oracle"
RUNS = ["train_adamw_multicrop", "train_sgd_two_global"]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]


def trainer_of(settings: dict[str, Any], cache: Path, device: str) -> Trainer:
    """Build a trainer with the released training's settings as overrides, and convert it to float64."""
    per_epoch, batch = settings["steps_per_epoch"], settings["batch"]
    same = {
        "backbone": ["embed_dim", "depth", "num_heads"],
        "head": ["out_dim", "norm_last_layer", "use_bn"],
        "loss": ["student_temp", "teacher_temp", "warmup_teacher_temp", "warmup_teacher_temp_epochs"],
        "optimizer": ["min_lr", "warmup_epochs", "weight_decay", "freeze_last_layer_epochs"],
    }
    values = {
        "backbone": "vit_small",
        "backbone.patch_size": settings["patch"],
        "backbone.drop_path_rate": settings["drop_path"],
        "head": "dino",
        "head.hidden_dim": settings["head_hidden"],
        "head.bottleneck_dim": settings["head_bottleneck"],
        "crops.global_size": settings["img"],
        "crops.local_number": settings["local_crops"],
        "loss": "dino",
        "loss.center_momentum": settings["center_momentum"],
        "ema": "paper",
        "ema.momentum": settings["ema_start"],
        "ema.final_momentum": settings["ema_end"],
        "optimizer": settings["optimizer"],
        "optimizer.lr": settings["lr"] * 256 / batch,
        "optimizer.final_weight_decay": settings["weight_decay_end"],
        "optimizer.clip_grad": settings["clip_grad_per_parameter"],
        "data.root": cache,
        "data.train_size": batch * per_epoch,
        "data.test_size": batch,
        "trainer.batch_size": batch,
        "trainer.epochs": settings["steps"] // per_epoch,
    } | {f"{group}.{name}": settings[name] for group, names in same.items() for name in names}
    cfg = compose([f"{key}={value}" for key, value in values.items()])
    trainer = Trainer(cfg, build(cfg.data), torch.device(device))
    trainer.autocast_type = None
    for network in (trainer.student, trainer.teacher, trainer.dino_loss):
        network.double()
    return trainer


def views(expected: Any, step: int, device: str) -> list[Tensor]:
    kinds = [kind for kind in ("global_crops", "local_crops") if kind in expected]
    return [torch.from_numpy(expected[kind][step]).flatten(0, 1).to(device) for kind in kinds]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RUNS)
def test_a_complete_training_equals_the_released_code(name: str, device: str, tmp_path: Path) -> None:
    settings = json.loads((ORACLE / f"{name}.json").read_text())
    with np.load(ORACLE / f"{name}.npz") as arrays:
        expected = dict(arrays)
    trainer = trainer_of(settings, tmp_path, device)
    initial = [key for key in expected if key.startswith("init/")]
    init = {key.removeprefix("init/"): torch.from_numpy(expected[key]) for key in initial}
    trainer.student.load_state_dict(init, strict=True)
    trainer.teacher.load_state_dict(init, strict=True)

    # with diagnostics on every other step, which must change nothing
    losses = [
        trainer.train_step(views(expected, step, device), observe=step % 2 == 0)[0].item()
        for step in range(settings["steps"])
    ]

    if device == "cuda":
        # PyTorch's kernel of weight normalization takes its square root in float32 on a GPU for any type
        assert losses == pytest.approx(expected["losses"].tolist(), abs=1e-5)
        return
    assert losses == pytest.approx(expected["losses"].tolist(), abs=1e-9)
    center = torch.from_numpy(expected["final_center"])
    torch.testing.assert_close(trainer.dino_loss.center, center, rtol=0, atol=1e-9)
    for role, network in {"student": trainer.student, "teacher": trainer.teacher}.items():
        for key, value in network.state_dict().items():
            final = torch.from_numpy(expected[f"{role}/{key}"])
            torch.testing.assert_close(value, final, rtol=0, atol=1e-9, msg=f"{key}: {{}}".format)


@pytest.mark.parametrize("name", RUNS)
def test_parameters_without_weight_decay_equal_those_of_the_released_code(name: str, tmp_path: Path) -> None:
    settings = json.loads((ORACLE / f"{name}.json").read_text())
    trainer = trainer_of(settings, tmp_path, "cpu")
    decayed, spared = trainer.optimizer.param_groups
    names = {parameter: name for name, parameter in trainer.student.named_parameters()}
    assert [names[parameter] for parameter in spared["params"]] == settings["no_weight_decay"]
    trainer.train_step([torch.zeros(8, 3, 32, 32, dtype=torch.float64)])
    assert spared["weight_decay"] == 0
    assert decayed["weight_decay"] == pytest.approx(settings["weight_decay"])
