"""Settings that harm: the learning rate, the EMA, K, and those that `train.py` warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.doctor.logs import DATA, HEALTHY, finding, findings, ours, seen


def test_jumps_of_loss_and_gradient(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"loss": 5.5, "grad_norm": 30.0} if index == 20 else {})
    jump = finding(run, "Learning rate probably too high")
    assert "The loss jumps once, at step 1,181, from 3.25 to 5.5." in jump.evidence
    assert "The gradient norm jumps once, at step 1,181" in jump.evidence
    assert jump.advice[0].startswith("optimizer.lr=0.004, half of it (now 0.008)")
    assert len(jump.advice) == 1  # gradients are clipped at 3 already
    assert seen(run)[0] == 0  # not fatal
    unclipped = ours(
        tmp_path / "unclipped",
        {"optimizer.clip_grad": 0},
        lambda index: {"grad_norm": 30.0} if index == 20 else {},
    )
    jump = finding(unclipped, "Learning rate probably too high")
    assert jump.advice[1] == "gradient clipping at 3 or less: optimizer.clip_grad (now 0)."


@pytest.mark.parametrize(
    ("optimizer", "rate", "times"),
    [("adamw", 0.04, 0), ("adamw", 0.048, 6), ("sgd", 0.48, 0), ("sgd", 4.8, 10), ("lars", 38.4, 0)],
)
def test_a_learning_rate_is_compared_with_the_usual_one_of_its_optimizer(
    optimizer: str, rate: float, times: int, tmp_path: Path
) -> None:
    settings = {"optimizer.lr": rate, "optimizer._target_": f"dino_exp.dino.optimizer.{optimizer}"}
    found = findings(ours(tmp_path / "run", settings))
    rates = [(each.severity, each.title) for each in found if each.title.startswith("Learning rate")]
    assert rates == ([("remark", f"Learning rate {times} times the usual")] if times else [])


def test_a_warning_about_settings_is_only_a_remark_for_a_healthy_run(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", {"loss.center_momentum": 0.999})
    assert finding(run, "train.py warns of").severity == "remark"
    assert finding(DATA / "slow_center", "train.py warns of").severity == "doubtful"


@pytest.mark.parametrize(
    ("settings", "title", "evidence", "advice"),
    [
        (
            {"ema.momentum": 0.999},
            "EMA too slow for 2,250 steps",
            "half-life is 693 steps, and λ's schedule makes it 1.6 half-lives",
            ["ema.momentum=0.9908."],
        ),
        (
            {"ema.momentum": 0.9},
            "EMA fast: batch 32 is small for λ = 0.9",
            "7 steps of 32 images, 0.018 epochs",
            ["ema.momentum=0.982."],
        ),
        (
            {"head.out_dim": 4096},
            "Too few images for K = 4,096",
            "12,000 images are 2.9 per prototype",
            ["head.out_dim=1024."],
        ),
        (
            {"loss.teacher_temp": 0.08},
            "train.py warns of loss.teacher_temp = 0.08",
            "above 0.06 collapsed in the paper",
            [],
        ),
        (
            {"loss.center_momentum": 0.999},
            "train.py warns of loss.center_momentum = 0.999",
            "the center is too slow",
            [],
        ),
    ],
)
def test_harmful_settings_are_found(
    settings: dict[str, Any], title: str, evidence: str, advice: list[str], tmp_path: Path
) -> None:
    found = findings(ours(tmp_path / "run", settings))
    assert [each.title for each in found] == [title, HEALTHY]
    assert evidence in found[0].evidence
    assert list(found[0].advice[:1]) == advice


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"ema.momentum": 0.996, "head.out_dim": 1024}, 2250),
        ({"ema.schedule": "constant", "trainer.epochs": 200}, 200 * 375),
        (
            {  # the paper's ViT-S/16
                "ema.momentum": 0.996,
                "head.out_dim": 65536,
                "data.train_size": 1_281_167,
                "trainer.batch_size": 512,
                "optimizer.lr": 5e-4,
                "trainer.epochs": 100,
            },
            250_200,
        ),
    ],
)
def test_good_settings_give_no_finding(settings: dict[str, Any], steps: int, tmp_path: Path) -> None:
    assert [each.severity for each in findings(ours(tmp_path / "run", settings, steps=steps))] == ["good"]
