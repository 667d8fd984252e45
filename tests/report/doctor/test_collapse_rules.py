"""Collapse, divergence and slow starts: found in our runs, and from the loss alone in others' logs."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.report.doctor.logs import (
    DATA,
    LN_K,
    NO_COLLAPSE,
    by_epoch,
    finding,
    judged,
    ours,
    seen,
    set_state,
    titles,
)
from tests.report.synthetic import write_json, write_lines


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ("hot_teacher", "Stuck at ln K"),
        ("no_ema", "Stuck at ln K"),
        ("no_centering", "One-hot collapse"),
        ("slow_center", "One-hot collapse"),
        ("neither", "The loss stands still"),
        ("healthy", NO_COLLAPSE),
    ],
)
def test_most_failures_are_found_from_the_loss_alone(run: str, title: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (DATA / run / "metrics.jsonl").read_text().splitlines()]
    lines = [{"iteration": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    write_lines(tmp_path / "log.json", lines)
    found = titles(tmp_path / "log.json", 64)
    assert any(each.startswith(title) for each in found)
    assert seen(tmp_path / "log.json", 64)[0] == (title not in ("The loss stands still", found[-1]))


def test_uniform_collapse_in_another_codes_log(tmp_path: Path) -> None:
    log = by_epoch(tmp_path / "log.txt", [10.6, 10.9, *[LN_K - 0.0003] * 20])
    code, text = seen(log, 65_536)
    assert code == 1
    assert "Stuck at ln K" in text
    assert "Since epoch 2 the loss is within 0.2% of ln K; it is 11.0901 now" in text
    assert "Try first: a sharper teacher: --teacher_temp 0.04" in text
    assert seen(tmp_path, 65_536) == (code, text)  # the released code's output folder
    unknown, text = seen(log)
    assert (unknown, "K was not given; 11.0901 is ln 65,536" in text) == (1, True)
    in_the_log = by_epoch(tmp_path / "other.txt", [8.3178] * 4, args={"out_dim": 4096})
    assert "(K = 4,096)" in seen(in_the_log)[1]


def test_a_slow_start_and_a_healthy_end_are_no_collapse_in_another_codes_log(tmp_path: Path) -> None:
    chance = random.Random(0)
    slow = [LN_K * (0.991 + 0.003 * chance.random()) for _ in range(30)]
    at_first = [LN_K - 0.001, LN_K - 0.002]
    healthy = [10.9 - 8.0 * (1 - math.exp(-epoch / 20)) for epoch in range(100)]
    settled = [2.9 - 0.4 * (1 - (epoch / 100) ** 2) ** 0.5 for epoch in range(101)]
    for name, losses in {"slow": slow, "at_first": at_first, "healthy": healthy, "settled": settled}.items():
        code, text = seen(by_epoch(tmp_path / name, losses), 65_536)
        assert code == 0, name
        assert "collapse," not in text, name
        assert "stands still" not in text, name


@pytest.mark.parametrize(
    ("losses", "out_dim", "title"),
    [
        ([6.0] * 40, None, "The loss stands still"),
        ([6.0] * 40, 4096, "The loss stands still"),
        ([8.5 + 0.03 * (index % 2) for index in range(40)], None, "Not judged: a loss says little without"),
        ([8.3 - 0.01 * (index % 2) for index in range(40)], 4096, "The loss is near ln K"),
        ([*[4.0] * 20, 10.0, *[4.0] * 19], 65_536, "Learning rate probably too high"),
        ([9.5 + 0.1 * (index % 2) for index in range(40)], 4096, "The loss is above ln K"),
        ([*[6.0 + 0.1 * (index % 2) for index in range(30)], 7.0, 7.5, 8.0, 8.5], 4096, "The loss is above"),
        ([6.0 - 0.1 * index for index in range(9)], 4096, "Too early for a verdict"),
    ],
)
def test_a_doubtful_loss_is_not_reported_as_good(
    losses: list[float], out_dim: int | None, title: str, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    write_lines(log, [{"step": step, "loss": loss} for step, loss in enumerate(losses)])
    assert finding(log, title, out_dim).severity != "good"
    assert NO_COLLAPSE not in titles(log, out_dim)
    code, text = seen(log, out_dim)
    assert code == 0
    assert ("the loss was not compared with ln K: give it as --out-dim K" in text) == (out_dim is None)


def test_a_loss_above_ln_k(tmp_path: Path) -> None:
    falls = [9.5, 9.0, 8.4, *[6.0 - 0.05 * epoch for epoch in range(20)]]
    assert finding(by_epoch(tmp_path / "falls", falls), NO_COLLAPSE, 4096).severity == "good"
    rises = by_epoch(tmp_path / "rises", [*falls, 7.0, 8.0, 9.0, 10.0])
    above = finding(rises, "The loss is above ln K", 4096)
    assert above.evidence.startswith("Since epoch 25; it is 10 now, 1.20 times ln K.")
    assert [words.partition(":")[0] for words in above.advice] == [
        "half the learning rate",
        "a teacher that moves slowly",
        "a center that follows",
    ]


def test_one_hot_collapse_in_another_codes_log(tmp_path: Path) -> None:
    code, text = seen(by_epoch(tmp_path / "log.txt", [8.0, 0.6, 0.05, 0.04, 0.03]), 4096)
    assert code == 1
    assert "Since epoch 2 the loss is below 0.17; it is 0.03 now, 0.36% of ln K" in text
    assert "center_momentum of DINOLoss 0.9" in text
    assert "a healthy run comes near: one ended at 2.3% of ln K" in text


@pytest.mark.parametrize("lost", ["NaN", "null", '"nan"', "Infinity"])
def test_divergence(lost: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text('{"train_loss": 9.1, "epoch": 0}\n{"train_loss": 9.4, "epoch": 1}\n')
    with log.open("a") as file:
        file.write("".join(f'{{"train_loss": {lost}, "epoch": {epoch}}}\n' for epoch in (2, 3)))
    code, text = seen(log, 65_536)
    assert code == 1
    assert "Diverged" in text
    assert "Since epoch 2; before, it was 9.4." in text
    assert "half the learning rate: --lr" in text


def test_a_step_that_fp16_skipped_is_no_divergence(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"grad_norm": None} if index % 7 == 0 else {})
    assert seen(run)[0] == 0


@pytest.mark.parametrize(("state", "first"), [("running", "wait: "), ("finished", "longer training (")])
def test_slow(state: str, first: str, tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "slow")
    set_state(run, state=state, heartbeat=time.time())
    slow = finding(run, "Slow: the outputs hardly depend on the image yet")
    assert slow.advice[0].startswith(first)
    evidence = "teacher entropy is 0.002 of ln K: since step 900 the outputs do not depend on the image"
    write_json(run / "summary.json", {"verdict": "slow", "evidence": evidence})
    slow = finding(run, "Slow")
    assert slow.evidence == f"T{evidence[1:]}."


def test_slow_with_outputs_that_do_not_depend_on_the_image(tmp_path: Path) -> None:
    def waiting(index: int) -> dict[str, Any]:
        share = 0.0 if index >= 20 else 0.1
        shares = {f"{name}/mutual_information_share": share for name in ("teacher", "student")}
        return {"verdict": "slow" if index >= 20 else "healthy", **shares}

    slow = finding(ours(tmp_path / "run", each=waiting), "Slow: the outputs do not depend on the image")
    assert slow.evidence.startswith("Since step 1,181, which is a collapse if it lasts.")


def test_a_recovered_run_is_told_when_it_had_collapsed(tmp_path: Path) -> None:
    run = ours(
        tmp_path / "run", each=lambda index: {"verdict": "collapsed-uniform"} if 3 <= index < 8 else {}
    )
    remark = finding(run, "It had collapsed, and recovered")
    assert "Collapsed at 5 of 40 logged steps, first at step 225, last at step 450" in remark.evidence
    assert seen(run)[0] == 0
