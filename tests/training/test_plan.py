"""Lengths, the scaled learning rate, and what a person is told about them."""

import numpy as np
import pytest

from dino_exp.config.compose import compose
from dino_exp.errors import UserError
from dino_exp.training.plan import Plan

IMAGENET = 1_281_167


def plan(*overrides: str, images: int = IMAGENET) -> Plan:
    return Plan.of(compose(["experiment=paper_vits16", "data.root=/", *overrides]), images)


def test_the_paper_s_run() -> None:
    paper = plan()
    assert (paper.steps_per_epoch, paper.total_steps, paper.stop_step) == (2502, 250_200, 250_200)
    assert (paper.warmup_steps, paper.freeze_steps) == (25_020, 2502)
    # The peak is scaled with the batch and reached at the end of the warm-up; the floor is absolute.
    assert paper.lr[0] == 0
    assert paper.lr[25_019] == paper.lr[25_020] == pytest.approx(5e-4 * 512 / 256)
    assert paper.lr[-1] == pytest.approx(1e-6, rel=1e-3)
    assert plan("trainer.batch_size=1024").lr[-1] == pytest.approx(1e-6, rel=1e-3)
    # Weight decay and EMA have no warm-up, and the cosine's last λ is not exactly 1.
    assert paper.weight_decay[0] == pytest.approx(0.04)
    assert paper.weight_decay[-1] == pytest.approx(0.4, rel=1e-6)
    assert paper.ema_momentum[0] == 0.996
    assert 0.996 < paper.ema_momentum[1] < paper.ema_momentum[-1] < 1


def test_a_cut_run_is_a_prefix_of_the_whole_one() -> None:
    whole, cut = plan(), plan("trainer.max_steps=100")
    assert cut.stop_step == 100
    for name in ("lr", "weight_decay", "ema_momentum"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))


def test_epochs_may_be_fractions() -> None:
    short = plan("optimizer.warmup_epochs=0.5", "optimizer.freeze_last_layer_epochs=0.1", images=5120)
    assert (short.steps_per_epoch, short.warmup_steps, short.freeze_steps) == (10, 5, 1)
    assert [short.epoch(step) for step in (0, 9, 10)] == [0, 0, 1]


def test_what_follows_is_said() -> None:
    facts = plan().facts()
    assert "11.0904" in facts["ln K"]
    assert "0.001 in 25,020 steps" in facts["learning rate"]
    assert "173 steps = 0.069 epochs at λ = 0.996" in facts["teacher's half-life"]
    assert (
        "the teacher is the student" in plan("ema=constant", "ema.momentum=0").facts()["teacher's half-life"]
    )


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.batch_size = 512: the data set has only 511"):
        plan(images=511)


def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_nearest_that_can() -> None:
    cfg = compose(["experiment=paper_vits16", "data.root=/", "trainer.accumulate=4"])
    assert Plan.of(cfg, IMAGENET, processes=8).batch_size == 512
    with pytest.raises(
        UserError, match=r"batch_size = 512: not a multiple of 3 processes .*accumulate = 4; .*504 and 516"
    ):
        Plan.of(cfg, IMAGENET, processes=3)
    with pytest.raises(UserError, match=r"batch_size = 6: not a multiple of .*accumulate = 4; .*4 and 8"):
        compose(["experiment=debug", "trainer.batch_size=6", "trainer.accumulate=4"])
