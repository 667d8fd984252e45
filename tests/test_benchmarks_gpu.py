"""`python -m benchmarks.gpu`: nothing is lost, no section takes another's time, and each works on a CPU."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import attention, correctness, end_to_end, hardware, kernels, training_step
from benchmarks.gpu.context import COMPILED, EAGER, Context, attempt
from benchmarks.gpu.guard import run_sections
from benchmarks.gpu.requirements import REQUIRED
from benchmarks.gpu.results import Results, Row
from benchmarks.gpu.runs import Run
from benchmarks.plain import UNDO
from dino_exp.errors import UserError
from tests.programs import ROOT, run_program


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results(tmp_path / "gpu.json")
    found.begin({"benchmark": "gpu"})
    return found


@pytest.fixture
def context(results: Results, tmp_path: Path) -> Context:
    return Context(torch.device("cpu"), time.monotonic() + 300, results, tmp_path)


def test_sections_that_hang_fail_or_crash_cost_only_their_own_figures(
    results: Results, tmp_path: Path
) -> None:
    commands = {
        "first": "true",
        "hangs": "sleep 300 & echo $! > child; wait",
        "fails": "echo begun; echo 'ValueError: too wide'; exit 3",
        "crashes": "kill -SEGV $$",
        "last": "true",
    }

    def command(name: str, until: float) -> list[str]:
        results.add(name, {"figure": float("nan")})
        return ["sh", "-c", commands[name]]

    shares = dict.fromkeys(commands, 1.0) | {"hangs": 0.02}
    run_sections(shares, command, results, time.monotonic() + 60, tmp_path / "log", tmp_path)
    sections = results.read()["sections"]
    assert list(sections) == list(commands)
    assert all(section["rows"] == [{"figure": None}] for section in sections.values())
    assert [re.sub(r"\d+ s$", "N s", section["note"]) for section in sections.values()] == [
        "",
        "cut after N s",
        "failed with exit code 3: ValueError: too wide",
        "failed with exit code -11: it said nothing",
        "",
    ]
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "cmdline")
    assert not status.exists() or status.read_bytes() == b""  # ended, with the section that began it


def test_time_that_a_section_does_not_need_goes_to_the_later_ones(results: Results, tmp_path: Path) -> None:
    start, ends = time.monotonic(), []

    def command(name: str, until: float) -> list[str]:
        ends.append(until - start)
        return ["true"]

    run_sections({"a": 1, "b": 2, "c": 1}, command, results, start + 400, tmp_path / "log", tmp_path)
    assert ends == [pytest.approx(100, abs=20), pytest.approx(267, abs=20), pytest.approx(400, abs=20)]


def test_what_fails_becomes_a_note(context: Context) -> None:
    def fail(error: Exception) -> Row:
        raise error

    assert attempt(fail, ValueError("first line\nsecond")) == {"note": "ValueError: first line"}
    assert attempt(fail, UserError("no such key")) == {"note": "no such key"}
    assert attempt(lambda: {"value": 1}) == {"value": 1}


def test_the_project_declares_what_must_be_installed() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8").split("dependencies = [")[1].split("\n]")[0]
    assert set(REQUIRED) <= set(re.findall(r'^ +"([\w-]+)', declared, re.MULTILINE))


@pytest.mark.parametrize("section", [hardware, attention])
def test_a_section_of_small_measurements_works_on_a_cpu(section: Any, context: Context) -> None:
    rows = list(section.rows(context))
    notes = {row["note"] for row in rows if "note" in row}
    assert {note for note in notes if "GPU" not in note and "kernel" not in note.lower()} == set()
    assert sum(isinstance(value, float) and value > 0 for row in rows for value in row.values()) > 4


def test_the_step_is_measured_with_and_without_each_item(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ("vit_small", 256, (), ("grouped clipping", "nothing known", training_step.PLAIN))
    monkeypatch.setattr(training_step, "PLANS", (plan,))
    operations, ours, without, unknown, plain, others = training_step.rows(context)
    assert others["case"] == "vit_base"
    assert operations["GFLOP per image"] > 0
    for row in (ours, without, plain):
        assert row["case"] == "vit_small, batch 256"
        assert row["images/s"] == pytest.approx(2000 / row["ms per step"])  # of two images: a rehearsal
    assert ours["of matrix rate"] > 0
    assert without["eager is faster by"] > 0
    assert "of matrix rate" not in plain  # whose precision is another
    assert unknown["note"] == "not available: nothing known"
    assert "grouped clipping" in UNDO


@pytest.mark.parametrize(
    ("name", "gpu", "rate", "said"),
    [
        (EAGER, "NVIDIA H200", 1599.0, "1,600 MISSED"),
        (COMPILED, "NVIDIA H200", 2400.0, "2,400 met"),
        (COMPILED, "NVIDIA H100 80GB HBM3", 2150.0, "2,100 met"),
        (COMPILED, "NVIDIA A100", 2150.0, None),
        (training_step.PLAIN, "NVIDIA H200", 9000.0, None),
    ],
)
def test_the_goal_is_beside_the_result(name: str, gpu: str, rate: float, said: str | None) -> None:
    assert training_step.goal(name, {"images/s": rate}, gpu).get("goal") == said


def test_a_trace_is_counted() -> None:
    def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
        return {"cat": category, "name": name, "ts": start, "dur": duration}

    figures = kernels.figures(
        [
            event("cuda_runtime", "cudaLaunchKernel", 0, 5),
            event("cuda_driver", "cuLaunchKernelEx", 5, 5),
            event("cuda_runtime", "cudaGraphLaunch", 10, 5),
            event("cuda_runtime", "cudaStreamSynchronize", 20, 5),
            event("kernel", "gemm", 100, 1000),
            event("kernel", "gemm", 2000, 1000),
            event("kernel", "softmax", 2500, 1500),  # on another stream
            event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 5000, 500),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 5100, 100),
            event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 5600, 100),
        ]
    )
    longest = figures.pop("longest")
    assert figures == {
        "kernels": 3,
        "kernel launches": 2,
        "graph launches": 1,
        "copies to the device": 2,
        "of these pageable": 1,
        "waits for a stream": 1,
        "device busy ms": pytest.approx(3.6),
        "device from first to last ms": pytest.approx(5.6),
    }
    assert longest[0] == {"kernel": "gemm", "times": 2, "ms": 2.0}


def test_checks_pass_where_nothing_differs_and_fail_where_something_does(context: Context) -> None:
    outcomes = [correctness.trained(context, "fp32", EAGER) for _ in range(2)]
    assert correctness.relative(outcomes[0].moved, outcomes[1].moved) == 0
    assert outcomes[0].moved.norm() > 0
    assert correctness.compiled_loss_against_eager.__doc__
    assert correctness.within(0.1, lambda: 0.1)["passed"] == "yes"
    assert correctness.within(0.1, lambda: float("nan"))["passed"] == "NO"
    assert correctness.without_waiting(context, EAGER) == {"note": "needs a GPU"}


class EndedRun(Run):
    """A run that has logged what a test says."""

    def __init__(self, folder: Path, lines: list[Row]) -> None:
        self.folder = folder
        (folder / "a" / "b").mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "a" / "b" / "metrics.jsonl").write_text(text + '{"step": 9, "images_p')


def test_the_speed_of_a_run_is_that_after_its_first_logged_steps(tmp_path: Path) -> None:
    first = [{"step": 0, "knn_top1": 10.0}]
    laps = [(1.0, 0.9), (2.0, 0.9), (100.0, 0.1), (300.0, 0.5)]
    lines = first + [{"images_per_second": rate, "data_wait_share": share} for rate, share in laps]
    rate, waiting = EndedRun(tmp_path / "run", lines).speed()
    assert rate == pytest.approx(150)  # as many images in three quarters and in one quarter of the time
    assert waiting == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    with pytest.raises(UserError, match="not more than 2 logged steps"):
        EndedRun(tmp_path / "short", lines[:3]).speed()


def test_a_real_run_is_compared_with_the_step_alone(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begin(self: Run, context: Context, name: str, *words: str) -> None:
        assert {"trainer.compile=false", f"data.root={tmp_path}"} <= set(words)

    monkeypatch.setattr(Run, "__init__", begin)
    monkeypatch.setattr(end_to_end, "speeds", lambda runs, seconds: [(96.0, 0.01)])
    assert end_to_end.measured(context, tmp_path, EAGER) == {"images/s": 96.0, "waiting": 0.01}
    context.results.add("step", {"case": "vit_small, batch 256", "step": EAGER, "images/s": 100.0})
    row = end_to_end.measured(context, tmp_path, EAGER)
    assert row["of the step's"] == pytest.approx(0.96)
    assert row["goal"] == "≥ 97%, waiting < 5%: MISSED"


@pytest.mark.spawn
def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--sections", "attention", "--output", "there", "--seconds", "250")
    done = run_program("-m", "benchmarks.gpu", *words, folder=tmp_path)
    assert done.returncode == 0, done.output
    section = json.loads((tmp_path / "there" / "gpu.json").read_text())["sections"]["attention"]
    assert section["note"] == ""
    assert len(section["rows"]) == len(attention.BACK_ENDS)
    assert "the default" in done.stdout
    assert "rehearsal" in done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["gpu.json", "gpu.log"]
