"""What to try first."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.report.doctor.rescue import likeliest
from dino_exp.report.doctor.training_log import read_log
from tests.report.doctor.logs import DATA, finding, findings, judged


@pytest.mark.parametrize(
    ("word", "title"),
    [
        ("collapsed-uniform", "Stuck"),
        ("collapsed-one-hot", "One-hot"),
        ("collapsed-constant", "Constant"),
        ("slow", "Slow"),
    ],
)
def test_a_far_too_high_learning_rate_is_the_first_advice(word: str, title: str, tmp_path: Path) -> None:
    settings = {"optimizer.lr": 0.5, "trainer.batch_size": 32, "loss.sharpening": False}
    run = judged(tmp_path / "run", word, settings)
    first = "optimizer.lr=0.008 (now 0.5, 62 times what is usual)."
    rate = finding(run, "Learning rate 62 times the usual")
    assert (rate.severity, rate.advice[0]) == ("doubtful", first)
    assert finding(run, title).advice == (first, "loss.sharpening=true: without it the teacher flattens.")


@pytest.mark.parametrize(
    ("temperature", "first"),
    [
        (0.04, "loss.teacher_temp=0.02 (now 0.04)."),
        (0.03, "loss.teacher_temp=0.02 (now 0.03)."),
        (0.02, "optimizer.lr=0.004, half of it (now 0.008)"),
        (0.01, "optimizer.lr=0.004, half of it (now 0.008)"),
    ],
)
def test_no_teacher_temperature_below_0_02_is_advised(temperature: float, first: str, tmp_path: Path) -> None:
    settings = {"loss.teacher_temp": temperature, "loss.center_init": "first_batch"}
    stuck = finding(judged(tmp_path / "run", "collapsed-uniform", settings), "Stuck at ln K")
    assert stuck.advice[0].startswith(first)
    assert stuck.advice[-1].startswith("optimizer.lr=0.004, half of it")


def test_all_findings_advise_the_same_k(tmp_path: Path) -> None:
    settings = {"head.out_dim": 4096, "data.train_size": 9984}
    found = findings(judged(tmp_path / "run", "collapsed-uniform", settings))
    advice = [words for each in found for words in each.advice if "head.out_dim" in words]
    assert advice == ["head.out_dim=512."] * 2


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        ("no_centering", ["loss.centering=mean", "loss.centering=mean optimizer.lr=0.004"]),
        ("slow_center", ["loss.center_momentum=0.9", "loss.teacher_temp=0.04", "optimizer.lr=0.004"]),
        ("hot_teacher", ["loss.teacher_temp=0.04", "optimizer.lr=0.004"]),
        ("no_ema", ["ema.momentum=0.99", "ema.momentum=0.99 optimizer.lr=0.004", "ema.momentum=0.996"]),
        ("neither", ["loss.centering=mean loss.sharpening=true"]),
    ],
)
def test_the_likeliest_remedies_can_be_typed(run: str, wanted: list[str]) -> None:
    log = read_log(DATA / run)
    (collapse,) = [each for each in findings(DATA / run) if each.severity == "fatal"]
    found = [" ".join(words) for words in likeliest(log, collapse.advice, fork=True)]
    assert len(found) == 3
    assert found[0] == wanted[0]
    assert set(wanted) <= set(found)
