"""The benchmark's released recipe makes the steps that ours makes, and its comparison says what it should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from benchmarks import parity
from benchmarks.released import ReleasedTraining
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.training.trainer import Trainer

NETWORKS = {
    "vit": "backbone=vit_small backbone.patch_size=4 backbone.embed_dim=12 backbone.depth=2 "
    "backbone.num_heads=2 backbone.drop_path_rate=0",
    "resnet": parity.NETWORKS["resnet"],
}


def released_name(name: str) -> str:
    """Return the released code's name of a parameter, which PyTorch's present weight norm calls otherwise."""
    for present, former in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{present}", former)
    return name


@pytest.mark.parametrize("network", NETWORKS)
def test_the_released_recipe_and_ours_make_equal_steps(network: str, tmp_path: Path) -> None:
    words = [
        *parity.COMMON,
        "crops=small",
        *NETWORKS[network].split(),
        *("head.out_dim=16", "head.hidden_dim=8", "head.bottleneck_dim=4", f"data.root={tmp_path}"),
        *("data.train_size=12", "trainer.batch_size=4", "trainer.epochs=4", "loss.center_momentum=0.8"),
        *("optimizer.warmup_epochs=1", "optimizer.clip_grad=0.05", "optimizer.lr=0.1"),
        *("loss.warmup_teacher_temp=0.08", "loss.warmup_teacher_temp_epochs=3"),
    ]
    cfg = compose(words)
    trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
    for module in (trainer.student, trainer.teacher, trainer.dino_loss):
        module.double()
    released = ReleasedTraining(cfg, per_epoch=3)
    for network_of in (released.student, released.teacher):
        network_of.double().load_state_dict(trainer.student.state_dict())
    released.center = released.center.double()

    torch.manual_seed(1)
    for _ in range(8):  # the last layer is frozen in three of them
        crops = [torch.randn(4, 3, size, size, dtype=torch.float64) for size in (32, 32, 16, 16)]
        loss, _ = trainer.train_step([torch.cat(crops[:2]), torch.cat(crops[2:])])
        assert released.step(crops) == pytest.approx(loss.item(), abs=1e-9)
    torch.testing.assert_close(released.center, trainer.dino_loss.center, rtol=0, atol=1e-9)
    for ours, theirs in ((trainer.student, released.student), (trainer.teacher, released.teacher)):
        found = {released_name(name): value for name, value in theirs.named_parameters()}
        torch.testing.assert_close(dict(ours.named_parameters()), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("data", parity.DATA)
@pytest.mark.parametrize("network", parity.NETWORKS)
def test_every_case_is_a_configuration(data: str, network: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    cfg = compose(parity.Training(data, network, "fp32", "fast", seed=3).words(tmp_path))
    assert (cfg.trainer.seed, cfg.data.backend) == (3, "fast")


@pytest.mark.parametrize(
    ("shift", "spread", "says"),
    [(0.0, 0.3, "equivalent"), (0.8, 0.3, "equivalent"), (3.0, 0.3, "different"), (0.5, 4.0, "open")],
)
def test_the_comparison_tells_equivalent_from_different_and_undecided(
    shift: float, spread: float, says: str
) -> None:
    draw = random.Random(0)
    theirs = [60 + draw.gauss(0, 5) for _ in range(6)]
    noise = [draw.gauss(0, spread) for _ in range(6)]
    pairs = zip(theirs, noise, strict=True)
    ours = [value + shift + each - sum(noise) / 6 for value, each in pairs]
    result = parity.Comparison.of(ours, theirs, points=1.5)
    assert result.difference == pytest.approx(shift)
    assert result.verdict(1.5) == says
    half = 2.5706 * parity.stdev(noise) / 6**0.5  # 5 degrees of freedom
    assert (result.low, result.high) == pytest.approx((shift - half, shift + half), abs=1e-3)


def test_trainings_of_both_sides_are_stored_once_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = f"data=shapes crops=small data.root={tmp_path}/shapes data.train_size=40 data.test_size=20 "
    small += "trainer.batch_size=8 trainer.epochs=2"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(parity.DATA, "shapes", small)
    cases = ["--data", "shapes", "--network", "resnet", "--precision", "fp32"]
    words = ["train", *cases, "--seeds", "0-1", "--part"]
    parity.main([*words, "1/2"])
    parity.main([*words, "2/2"])
    assert len(parity.stored()) == 6
    parity.main([*words, "1/1"])
    assert len(parity.stored()) == 6
    assert capsys.readouterr().out.count(": done\n") == 6
    parity.main(["table"])
    rows = parity.compare(points=100)
    assert [(row["backend"], row["of"], row["seeds"], row["says"]) for row in rows] == [
        (backend, who, 2, "equivalent") for backend in ("fast", "pil") for who in ("teacher", "student")
    ]
    untrained = {(row["seed"], row["curve"][0]["teacher"]) for row in parity.stored().values()}
    assert len(untrained) == 2  # all sides of a seed start from the same weights
    parity.main([*words, "1/1", "--side", "released_step"])
    ends = {
        (row["side"], row["seed"]): [point["teacher"] for point in row["curve"]]
        for row in parity.stored().values()
    }
    assert ends["released_step", 0] == ends["pil", 0] != ends["pil", 1]
    steps = {tuple(point["step"] for point in row["curve"]) for row in parity.stored().values()}
    assert steps == {(0, 5, 10)}
