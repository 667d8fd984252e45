"""The doctor's page on excerpts of real runs: what failed, since when, and what to try first."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.report.report_command import main
from tests.report.doctor.logs import DATA, HEALTHY, by_epoch, seen, titles


@pytest.mark.parametrize(
    ("run", "title", "since", "first"),
    [
        ("no_centering", "One-hot collapse", 125, "loss.centering=mean"),
        ("slow_center", "One-hot collapse", 125, "loss.center_momentum=0.9 (now 0.999)"),
        ("hot_teacher", "Stuck at ln K", 125, "loss.teacher_temp=0.04 (now 0.2)"),
        ("no_ema", "Stuck at ln K", 250, "ema.momentum=0.99"),
        ("neither", "Constant output", 200, "loss.centering=mean loss.sharpening=true: with neither"),
    ],
)
def test_known_failures_are_named_with_when_and_what_to_try(
    run: str, title: str, since: int, first: str
) -> None:
    code, text = seen(DATA / run)
    assert code == 1
    lines = text.splitlines()
    assert lines[2].startswith(title)
    assert lines[3].startswith(f"  Since step {since}.")  # although the verdict came later
    assert lines[4].strip().startswith(f"Try first: {first}")
    assert "Healthy" not in text
    assert seen(DATA / run / "metrics.jsonl") == (code, text)


def test_causes_are_named_in_addition_to_the_collapse() -> None:
    assert "train.py warns of loss.center_momentum = 0.999" in seen(DATA / "slow_center")[1]
    assert "train.py warns of loss.teacher_temp = 0.2" in seen(DATA / "hot_teacher")[1]
    no_ema = seen(DATA / "no_ema")[1]
    assert "train.py warns of ema.momentum = 0" in no_ema
    assert "Learning rate probably too high" in no_ema


def test_a_healthy_run() -> None:
    code, text = seen(DATA / "healthy")
    assert code == 0
    assert titles(DATA / "healthy") == [HEALTHY]
    assert "mutual information of image and prototype 0.358" in text
    assert "k-NN: 19.5 % at first, 72.4 % now" in text


@pytest.mark.parametrize("out_dim", [-5, 0, 1])
def test_a_k_below_two_is_refused(out_dim: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = by_epoch(tmp_path / "log.txt", [9.0, 8.9])
    assert main(["doctor", str(log), "--out-dim", str(out_dim)]) == 2
    error = capsys.readouterr().err
    assert error == f"--out-dim {out_dim}: K is the number of prototypes, 2 or more.\n"
