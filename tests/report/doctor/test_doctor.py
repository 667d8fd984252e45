"""The doctor: its findings in excerpts of real runs, in other codes' logs and in synthetic ones."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.report.doctor.doctor_command import diagnose, doctor
from dino_exp.report.doctor.finding import Finding
from dino_exp.report.doctor.training_log import read_log
from dino_exp.report.loading import load_run
from dino_exp.report.report_command import main
from tests.report.synthetic import changed, write_json, write_lines

DATA = Path(__file__).parents[1] / "data"
"""Lines of real runs on the shapes, 900 steps each: one healthy, five with a bad setting."""

LN_K = math.log(65_536)
HEALTHY = "Healthy: the outputs depend on the image"
NO_COLLAPSE = "No sign of collapse in the loss"


def seen(path: Path, out_dim: int | None = None) -> tuple[int, str]:
    """Run the doctor, and return its exit code and text."""
    text = StringIO()
    code = doctor(path, out_dim, Console(file=text, width=400))
    return code, text.getvalue()


def findings(path: Path, out_dim: int | None = None) -> list[Finding]:
    return diagnose(read_log(path, out_dim))


def titles(path: Path, out_dim: int | None = None) -> list[str]:
    return [each.title for each in findings(path, out_dim)]


def finding(path: Path, title: str, out_dim: int | None = None) -> Finding:
    """Return the finding whose title begins with `title`; there must be one."""
    return next(each for each in findings(path, out_dim) if each.title.startswith(title))


def by_epoch(path: Path, losses: Sequence[float], **more: Any) -> Path:
    """Write a log as the released code does."""
    common = {"train_lr": 1e-4, **more}
    write_lines(path, [{"train_loss": loss, "epoch": epoch, **common} for epoch, loss in enumerate(losses)])
    return path


def ours(
    path: Path,
    settings: Mapping[str, Any] = MappingProxyType({}),
    each: Callable[[int], dict[str, Any]] = lambda index: {},
    count: int = 40,
    steps: int = 6 * 375,
) -> Path:
    """Write a healthy run of a number of steps with some settings and lines changed."""
    config = yaml.safe_load((DATA / "healthy" / "config.yaml").read_text())
    config = changed(config, {"trainer.max_steps": None, **settings})
    write_json(path / "config.yaml", config)
    set_state(path, state="finished", total_steps=steps)
    common = {"grad_norm": 1.0, "ln_k": math.log(config["head"]["out_dim"]), "verdict": "healthy"}
    lines = [
        {"step": (index + 1) * steps // count, "loss": 4.1 - 0.05 * index, **common, **each(index)}
        for index in range(count)
    ]
    write_lines(path / "metrics.jsonl", lines)
    return path


def judged(path: Path, word: str, settings: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> Path:
    """Write a run of which all lines have a verdict."""
    return ours(path, settings, lambda index: {"verdict": word}, **more)


def set_state(run: Path, **status: Any) -> None:
    write_json(run / "status.json", status)


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


def test_names_are_matched_in_any_case(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"Step": 10 * index, "Loss": 9.0 - 0.1 * index, "Out_Dim": 4096, "k": 20} for index in range(20)]
    write_lines(log, lines)
    read = read_log(log)
    assert (read.unit, read.last.at, read.last.get("loss"), read.out_dim) == ("step", 190, 9.0 - 1.9, 4096)


@pytest.mark.parametrize("out_dim", [-5, 0, 1])
def test_a_k_below_two_is_refused(out_dim: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = by_epoch(tmp_path / "log.txt", [9.0, 8.9])
    assert main(["doctor", str(log), "--out-dim", str(out_dim)]) == 2
    error = capsys.readouterr().err
    assert error == f"--out-dim {out_dim}: K is the number of prototypes, 2 or more.\n"


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


def test_jumps_of_loss_and_gradient(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"loss": 5.5, "grad_norm": 30.0} if index == 20 else {})
    jump = finding(run, "Learning rate probably too high")
    assert "The loss jumps once, at step 1,181, from 3.25 to 5.5." in jump.evidence
    assert "The gradient norm jumps once, at step 1,181" in jump.evidence
    assert jump.advice[0].startswith("half the learning rate: optimizer.lr (now 0.008)")
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


@pytest.mark.parametrize(
    ("temperature", "first"),
    [
        (0.04, "loss.teacher_temp=0.02 (now 0.04)."),
        (0.03, "loss.teacher_temp=0.02 (now 0.03)."),
        (0.02, "half the learning rate: optimizer.lr (now 0.008)"),
        (0.01, "half the learning rate: optimizer.lr (now 0.008)"),
    ],
)
def test_no_teacher_temperature_below_0_02_is_advised(temperature: float, first: str, tmp_path: Path) -> None:
    settings = {"loss.teacher_temp": temperature, "loss.center_init": "first_batch"}
    stuck = finding(judged(tmp_path / "run", "collapsed-uniform", settings), "Stuck at ln K")
    assert stuck.advice[0].startswith(first)
    assert stuck.advice[-1].startswith("half the learning rate")


def test_all_findings_advise_the_same_k(tmp_path: Path) -> None:
    settings = {"head.out_dim": 4096, "data.train_size": 9984}
    found = findings(judged(tmp_path / "run", "collapsed-uniform", settings))
    advice = [words for each in found for words in each.advice if "head.out_dim" in words]
    assert advice == ["head.out_dim=512."] * 2


def test_a_warning_about_settings_is_only_a_remark_for_a_healthy_run(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", {"loss.center_momentum": 0.999})
    assert finding(run, "train.py warns of").severity == "remark"
    assert finding(DATA / "slow_center", "train.py warns of").severity == "doubtful"


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


def test_the_state_is_the_same_as_in_the_report(tmp_path: Path) -> None:
    run = ours(tmp_path / "run")
    set_state(run, state="running", heartbeat=1_700_000_000)
    assert read_log(run).state == load_run(run).state == "lost"
    lost = finding(run, "The run is lost")
    assert lost.evidence == "It was at step 2,250; no sign of life since 2023-11-14 22:13:20 UTC."
    set_state(run, state="running", heartbeat=time.time())
    assert read_log(run).state == load_run(run).state == "running"


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


def test_the_number_of_images_follows_from_the_log(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"epoch": ((index + 1) * 2250 // 40 - 1) // 375})
    settings = json.loads((run / "config.yaml").read_text())
    del settings["data"]["train_size"]
    write_json(run / "config.yaml", settings)
    assert read_log(run).images == 12_000
    (run / "status.json").unlink()
    assert read_log(run).images == pytest.approx(12_000, rel=0.02)


def test_a_recovered_run_and_one_that_does_not_learn_the_classes(tmp_path: Path) -> None:
    recovered = ours(
        tmp_path / "recovered", each=lambda index: {"verdict": "collapsed-uniform"} if 3 <= index < 8 else {}
    )
    remark = finding(recovered, "It had collapsed, and recovered")
    assert "Collapsed at 5 of 40 logged steps, first at step 225, last at step 450" in remark.evidence
    assert seen(recovered)[0] == 0
    other = ours(tmp_path / "other", each=lambda index: {"knn_top1": 20.0} if index == 39 else {})
    with (other / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "knn_top1": 19.5}) + "\n")
    assert finding(other, "It learns something, but not the classes").severity == "doubtful"


def test_an_early_run_with_an_incomplete_line(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "warming-up", count=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    code, text = seen(run)
    assert code == 0
    assert "Too early for a verdict" in text
    assert "Lines of the log that were skipped: 1." in text


def test_a_path_without_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.log").write_text("Epoch 1 loss 3.2\n")
    (tmp_path / "other.jsonl").write_text('{"epoch": 1, "accuracy": 3}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    sweep = tmp_path / "sweep"
    shutil.copytree(DATA / "healthy", sweep / "run")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("name: demo\n")
    (begun / "traceback.txt").write_text("Traceback\nValueError: too large\n")
    refused = {
        tmp_path / "nowhere": "no such file or folder",
        tmp_path / "text.log": "not a log of JSON lines",
        tmp_path / "other.jsonl": "no line has a loss .*; the lines have: accuracy, epoch",
        tmp_path / "empty.jsonl": "empty; nothing was logged yet",
        sweep: "a sweep; give one of its runs, e.g. .*sweep/run",
        begun: "nothing was logged yet. It failed: ValueError: too large",
        tmp_path: "no metrics.jsonl or log.txt in it",
    }
    for path, words in refused.items():
        with pytest.raises(UserError, match=words):
            read_log(path)


def test_an_unreadable_configuration_is_only_a_remark(tmp_path: Path) -> None:
    run = ours(tmp_path / "run")
    (run / "config.yaml").write_text("loss: {teacher_temp: hot}\nema: {momentum: 0.99}\n")
    assert titles(run) == ["The configuration is from another version", HEALTHY]
