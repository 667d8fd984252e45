"""The doctor: what it finds in excerpts of real runs, in other codes' logs and in made ones."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from synthetic import changed, write_lines

from dino_exp.errors import UserError
from dino_exp.report.doctor import diagnose, doctor
from dino_exp.report.findings import Finding
from dino_exp.report.training_log import read_log

DATA = Path(__file__).parent / "data"
"""Lines of real runs on the shapes, 900 steps each: one sound, five ruined."""

LN_K = math.log(65_536)


def seen(path: Path, out_dim: int | None = None) -> tuple[int, str]:
    """Exit code and text."""
    text = StringIO()
    code = doctor(path, out_dim, Console(file=text, width=400))
    return code, text.getvalue()


def finding(path: Path, title: str, out_dim: int | None = None) -> Finding | None:
    """The finding whose title begins so."""
    found = diagnose(read_log(path, out_dim))
    return next((each for each in found if each.title.startswith(title)), None)


def by_epoch(path: Path, losses: Sequence[float], **more: Any) -> Path:
    """A log as the released code writes it."""
    lines = [
        {"train_loss": loss, "train_lr": 1e-4, "epoch": epoch, **more} for epoch, loss in enumerate(losses)
    ]
    write_lines(path, lines)
    return path


def ours(
    path: Path, count: int = 40, each: Callable[[int], dict[str, Any]] | None = None, **config: Any
) -> Path:
    """A healthy run with some lines and settings changed; `steps` is its length."""
    steps = config.pop("steps", 6 * 375)
    for name in ("config.yaml", "status.json"):
        path.mkdir(exist_ok=True)
        shutil.copy(DATA / "healthy" / name, path / name)
    settings = yaml.safe_load((path / "config.yaml").read_text())
    settings = changed(settings, {"trainer.max_steps": None, **config})
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "status.json").write_text(json.dumps({"state": "finished", "total_steps": steps}))
    lines = [
        {
            "step": (index + 1) * steps // count,
            "loss": 4.1 - 0.05 * index,
            "grad_norm": 1.0,
            "ln_k": math.log(settings["head"]["out_dim"]),
            "verdict": "healthy",
        }
        | (each(index) if each else {})
        for index in range(count)
    ]
    write_lines(path / "metrics.jsonl", lines)
    return path


@pytest.mark.parametrize(
    ("run", "title", "since", "first"),
    [
        ("no_centring", "One-hot collapse", 50, "loss.centering=mean"),
        ("slow_centre", "One-hot collapse", 125, "loss.center_momentum=0.9 (now 0.999)"),
        ("hot_teacher", "Stuck at ln K", 50, "loss.teacher_temp=0.04 (now 0.2)"),
        ("no_ema", "Stuck at ln K", 225, "ema.momentum=0.99"),
        ("neither", "Constant output", 125, "loss.centering=mean"),
    ],
)
def test_known_failures_are_named_with_when_and_what_to_try(
    run: str, title: str, since: int, first: str
) -> None:
    code, text = seen(DATA / run)
    assert code == 1
    lines = text.splitlines()
    assert lines[2].startswith(title)
    assert lines[3].startswith(f"  Since step {since}.")  # though the verdict came later
    assert lines[4].strip().startswith(f"Try first: {first}")
    assert "Healthy" not in text
    assert seen(DATA / run / "metrics.jsonl") == (code, text)


def test_the_causes_are_named_beside_the_collapse() -> None:
    assert "Known to fail: loss.center_momentum = 0.999" in seen(DATA / "slow_centre")[1]
    assert "Known to fail: loss.teacher_temp = 0.2" in seen(DATA / "hot_teacher")[1]
    no_ema = seen(DATA / "no_ema")[1]
    assert "Known to fail: ema.momentum = 0" in no_ema
    assert "Learning rate probably too high" in no_ema


def test_a_healthy_run() -> None:
    code, text = seen(DATA / "healthy")
    assert code == 0
    assert [each.title for each in diagnose(read_log(DATA / "healthy"))] == [
        "Healthy: the outputs depend on the picture"
    ]
    assert "mutual information of picture and prototype 0.358" in text
    assert "k-NN: 19.5 % at first, 72.4 % now" in text


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ("hot_teacher", "Stuck at ln K"),
        ("no_ema", "Stuck at ln K"),
        ("no_centring", "One-hot collapse"),
        ("slow_centre", "One-hot collapse"),
        ("neither", "The loss stands still"),
        ("healthy", "No collapse to be seen in the loss"),
    ],
)
def test_the_loss_alone_tells_most(run: str, title: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (DATA / run / "metrics.jsonl").read_text().splitlines()]
    lines = [{"iteration": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    write_lines(tmp_path / "log.json", lines)
    found = diagnose(read_log(tmp_path / "log.json", 64))
    assert any(each.title.startswith(title) for each in found)
    assert seen(tmp_path / "log.json", 64)[0] == (title not in ("The loss stands still", found[-1].title))


def test_another_codes_uniform_collapse(tmp_path: Path) -> None:
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


def test_another_codes_slow_start_and_healthy_end_are_no_collapse(tmp_path: Path) -> None:
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


def test_another_codes_one_hot_collapse(tmp_path: Path) -> None:
    code, text = seen(by_epoch(tmp_path / "log.txt", [8.0, 0.6, 0.05, 0.04, 0.03]), 4096)
    assert code == 1
    assert "Since epoch 2 the loss is below 0.17; it is 0.03 now, 0.36% of ln K" in text
    assert "center_momentum of DINOLoss 0.9" in text


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


def test_a_gradient_that_fp16_skipped_is_no_divergence(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"grad_norm": None} if index % 7 == 0 else {})
    assert seen(run)[0] == 0


def test_jumps_of_loss_and_gradient(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"loss": 5.5, "grad_norm": 30.0} if index == 20 else {})
    jump = finding(run, "Learning rate probably too high")
    assert jump is not None
    assert "The loss jumps once, first at step 1,181; most at step 1,181, from 3.25 to 5.5." in jump.evidence
    assert "The gradient norm jumps once" in jump.evidence
    assert jump.advice[0].startswith("half the learning rate: optimizer.lr (now 0.008)")
    assert seen(run)[0] == 0  # it goes on


@pytest.mark.parametrize(
    ("settings", "title", "evidence", "advice"),
    [
        (
            {"ema.momentum": 0.999},
            "EMA too slow for 2,250 steps",
            "half-life is 693 steps, and λ's schedule makes it 1.6 half-lives",
            "ema.momentum=0.9908.",
        ),
        (
            {"ema.momentum": 0.9},
            "EMA fast: batch 32 is small for λ = 0.9",
            "7 steps of 32 pictures, 0.018 epochs",
            "ema.momentum=0.982.",
        ),
        (
            {"head.out_dim": 4096},
            "Too few pictures for K = 4,096",
            "12,000 pictures are 2.9 per prototype",
            "head.out_dim=1024.",
        ),
        (
            {"loss.teacher_temp": 0.08},
            "Known to fail: loss.teacher_temp = 0.08",
            "above 0.06 collapsed in the paper",
            None,
        ),
        (
            {"loss.center_momentum": 0.999},
            "Known to fail: loss.center_momentum = 0.999",
            "the centre is too slow",
            None,
        ),
    ],
)
def test_settings_that_do_harm(
    settings: dict[str, Any], title: str, evidence: str, advice: str | None, tmp_path: Path
) -> None:
    found = diagnose(read_log(ours(tmp_path / "run", **settings)))
    assert [each.title for each in found] == [title, "Healthy: the outputs depend on the picture"]
    assert evidence in found[0].evidence
    assert advice is None or found[0].advice[0] == advice


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
                "trainer.epochs": 100,
            },
            250_200,
        ),
    ],
)
def test_settings_that_work_are_left_alone(settings: dict[str, Any], steps: int, tmp_path: Path) -> None:
    found = diagnose(read_log(ours(tmp_path / "run", steps=steps, **settings)))
    assert [each.severity for each in found] == ["good"]


def test_the_size_of_the_data_follows_from_the_log(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"epoch": ((index + 1) * 2250 // 40 - 1) // 375})
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["data"]["train_size"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert read_log(run).pictures == 12_000
    (run / "status.json").unlink()
    assert read_log(run).pictures == pytest.approx(12_000, rel=0.02)


def test_a_run_that_recovered_and_one_that_learns_other_things(tmp_path: Path) -> None:
    def first_collapsed(index: int) -> dict[str, Any]:
        return {"verdict": "collapsed-uniform" if 3 <= index < 8 else "healthy"}

    def no_better(index: int) -> dict[str, Any]:
        return {"knn_top1": 20.0} if index == 39 else {}

    recovered = ours(tmp_path / "recovered", each=first_collapsed)
    remark = finding(recovered, "It had collapsed, and recovered")
    assert remark is not None
    assert "Collapsed at 5 of 40 logged steps, first at step 225, last at step 450" in remark.evidence
    assert seen(recovered)[0] == 0
    other = ours(tmp_path / "other", each=no_better)
    with (other / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "knn_top1": 19.5}) + "\n")
    assert finding(other, "Learns something, and not the classes") is not None


def test_a_run_at_its_beginning_and_a_log_cut_short(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", count=2, each=lambda index: {"verdict": "warming-up"})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    code, text = seen(run)
    assert code == 0
    assert "Too early for a verdict" in text
    assert "1 of the log, left out" in text


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
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
        tmp_path / "nowhere": "there is no such file or folder",
        tmp_path / "text.log": "not a log of JSON lines",
        tmp_path / "other.jsonl": "no line has a loss; .* and the lines have: accuracy, epoch",
        tmp_path / "empty.jsonl": "empty; nothing was logged yet",
        sweep: "a sweep; give one of its runs, e.g. .*sweep/run",
        begun: "nothing was logged yet. It failed: ValueError: too large",
        tmp_path: "no metrics.jsonl or log.txt there",
    }
    for path, words in refused.items():
        with pytest.raises(UserError, match=words):
            read_log(path)


def test_a_configuration_of_another_version_does_not_matter(tmp_path: Path) -> None:
    run = ours(tmp_path / "run")
    (run / "config.yaml").write_text("loss: {teacher_temp: hot}\nema: {momentum: 0.99}\n")
    assert [each.title for each in diagnose(read_log(run))] == [
        "The configuration is of another version",
        "Healthy: the outputs depend on the picture",
    ]
