"""A recipe at another batch: λ^κ, m^κ, the rules of the learning rate, and what a run does with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_exp.config.compose import check, compose
from dino_exp.config.identity import run_id
from dino_exp.config.per_step import PerStep, conversion
from dino_exp.config.targets import build
from dino_exp.errors import UserError
from dino_exp.training.plan import Plan, judge_of
from dino_exp.training.trainer import Trainer
from tests.programs import run_program

RECIPE = ["experiment=paper_vits16", "data.root=/", "ema.momentum=0.996", "ema.final_momentum=0.9999"]
IMAGES = 100_000


@pytest.mark.parametrize("batch", [64, 1024, 4096])
def test_teacher_and_center_forget_within_as_many_images(batch: int) -> None:
    cfg = compose([*RECIPE, "trainer.reference_batch=1024", f"trainer.batch_size={batch}"])
    plan, kappa = Plan.of(cfg, IMAGES), batch / 1024
    assert plan.ema_momentum[0] == pytest.approx(0.996**kappa, abs=1e-12)
    assert plan.ema_momentum[-1] == pytest.approx(0.9999**kappa, abs=1e-5)
    assert plan.center_momentum == pytest.approx(0.9**kappa, abs=1e-12)
    # what is left of the first batch after 4,096 images is the same at every batch
    assert plan.ema_momentum[0] ** (4096 / batch) == pytest.approx(0.996**4)
    assert plan.lr.max() == pytest.approx(5e-4 * batch / 256)
    judge = judge_of(cfg, warmup_steps=0, total_steps=plan.total_steps)
    assert judge.catching_up == pytest.approx(3 / (1 - 0.9**kappa))
    assert (cfg.ema.momentum, cfg.loss.center_momentum) == (0.996, 0.9)  # as they were written


@pytest.mark.parametrize(
    ("words", "peak"),
    [
        (["optimizer.lr_rule=linear"], 5e-4 / 4),
        (["optimizer.lr_rule=sqrt"], 5e-4 / 2),
        (["optimizer.lr_rule=none"], 5e-4),
        (["optimizer.lr_rule=linear", "trainer.reference_batch=1024"], 5e-4 / 4),
        (["optimizer.lr_rule=sqrt", "trainer.reference_batch=1024"], 5e-4 * 4 / 4),
        (["optimizer.lr_rule=none", "trainer.reference_batch=1024"], 5e-4 * 4),
    ],
)
def test_the_learning_rate_follows_the_batch_by_a_rule(words: list[str], peak: float) -> None:
    plan = Plan.of(compose([*RECIPE, "trainer.batch_size=64", *words]), IMAGES)
    assert plan.lr.max() == pytest.approx(peak)
    assert plan.lr[-1] == pytest.approx(1e-6, rel=0.01)  # the floor is absolute


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
def test_with_its_own_batch_a_recipe_stays_as_it_is_bit_for_bit(rule: str) -> None:
    # not a power of two, so that rounding would show
    before, after = (
        Plan.of(compose([*RECIPE, "optimizer.lr=7e-4", "trainer.batch_size=96", *words]), IMAGES)
        for words in ([], ["trainer.reference_batch=96", f"optimizer.lr_rule={rule}"])
    )
    for name in ("lr", "weight_decay", "ema_momentum"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert after.center_momentum == before.center_momentum == 0.9
    assert after.conversion == "96 → 96, κ = 1: nothing changes"
    assert before.conversion == ""


def test_a_step_moves_teacher_and_center_by_the_converted_momenta(tmp_path: Path) -> None:
    words = ["experiment=debug", f"data.root={tmp_path}", "trainer.batch_size=8", "loss.center_init=zeros"]
    cfg = compose([*words, "ema.momentum=0.81", "loss.center_momentum=0.64", "trainer.reference_batch=16"])
    trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
    before = [parameter.clone() for parameter in trainer.teacher.parameters()]
    batch = trainer.crop_batches[0, list(range(8))]
    with torch.no_grad():
        logits = trainer.teacher(trainer.augmented(batch)[:1]).logits
    trainer.train_step(trainer.augmented(batch))
    torch.testing.assert_close(trainer.dino_loss.center, (1 - 0.8) * logits.mean(0, keepdim=True))
    for old, new, student in zip(before, trainer.teacher.parameters(), trainer.parameters, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)


def test_a_sweep_over_batches_converts_each_run_and_says_so(tmp_path: Path) -> None:
    words = ["trainer.batch_size=16,32", "trainer.reference_batch=32", "ema.momentum=0.98"]
    done = run_program("train.py", "-m", "experiment=debug", *words, folder=tmp_path)
    assert done.returncode == 0, done.output
    assert "32 → 16, κ = 0.5: λ 0.98 → 0.989949, m 0.5 → 0.707107" in " ".join(done.stdout.split())
    assert "32 → 32, κ = 1: nothing changes" in done.stdout
    again = run_program("train.py", "-m", "experiment=debug", *words, folder=tmp_path)
    assert again.stdout.count("This run has already finished") == 2
    configs = sorted(path.read_text() for path in tmp_path.glob("outputs/*/*/config.yaml"))
    assert len(configs) == 2
    assert all("  momentum: 0.98\n" in text and "reference_batch: 32" in text for text in configs)
    report = run_program("report.py", *map(str, tmp_path.glob("outputs/*/*_b16_*")), folder=tmp_path)
    assert report.returncode == 0, report.output
    (page,) = tmp_path.glob("outputs/*/*_b16_*/report/index.html")
    assert "κ = 0.5: λ 0.98 → 0.989949" in page.read_text()


def test_it_is_part_of_a_run_and_off_it_is_not() -> None:
    ids = [
        run_id(compose(["experiment=debug", *words]))
        for words in (
            [],
            ["trainer.reference_batch=null", "optimizer.lr_rule=linear"],
            ["trainer.reference_batch=64"],
            ["optimizer.lr_rule=sqrt"],
        )
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_what_cannot_be_is_refused() -> None:
    assert check(["trainer.reference_batch=0"]).errors == [
        "trainer.reference_batch = 0: must be at least 1 (1024 for the paper's recipes)."
    ]
    (problem,) = check(["optimizer.lr_rule=root"]).errors
    assert problem == "optimizer.lr_rule = root: must be linear, sqrt or none."
    with pytest.raises(UserError, match=r"min_lr = 0\.1: more than the peak, optimizer\.lr_rule = none"):
        compose(["optimizer.lr=0.01", "optimizer.lr_rule=none", "optimizer.min_lr=0.1"])


def test_plain_dictionaries_of_former_runs_have_no_reference() -> None:
    node = {
        "ema": {"momentum": 0.9, "final_momentum": 1},
        "loss": {"center_momentum": 0.5},
        "optimizer": {"lr": 0.001},
        "trainer": {"batch_size": 128},
    }
    assert PerStep.of(node) == PerStep(0.9, 1, 0.5, 0.0005)
    assert conversion(node) == ""
