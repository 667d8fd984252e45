"""What only a GPU can prove: that the fast ways compute what the plain ones do, and that no step waits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.context import COMPILED, EAGER, NO_GPU, WAYS, Context, attempt, release_memory
from benchmarks.gpu.requirements import missing
from benchmarks.gpu.results import Row
from benchmarks.step import random_views
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.data.loader import CropBatch
from dino_exp.installation import ROOT
from dino_exp.training.trainer import Trainer

SUITE = ("tests/test_cuda.py", "tests/test_oracle_training.py")
BATCH, STEPS, WARM_UP = 16, 16, 6
MOVING = (
    *("trainer.epochs=8", f"data.train_size={2 * BATCH}", "optimizer=sgd", "optimizer.clip_grad=0.3"),
    *("optimizer.warmup_epochs=2", "optimizer.freeze_last_layer_epochs=2"),
    *("optimizer.weight_decay=0.04", "optimizer.final_weight_decay=0.4"),
    *("loss.teacher_temp=0.07", "loss.warmup_teacher_temp_epochs=4"),
)
"""Sixteen steps, two per epoch, in which every schedule moves and the last layer begins to: of SGD, as AdamW
turns the noise of gradients that are zero into steps of full length."""


def rows(context: Context) -> Iterator[Row]:
    """Yield each `check`, what was `found`, what is `allowed`, and whether it `passed`."""
    suite = start_suite(context)
    for name, dtype, allowed in (("float64", torch.float64, 1e-10), ("bf16", torch.bfloat16, 2e-2)):
        row = attempt(within, allowed, list_against_calls, context, dtype)
        yield {"check": f"ViT on a list of two sizes against two calls, {name}"} | row
    yield from ways_against_eager(context, "fp32", 1e-3)
    for way in WAYS:
        yield {"check": f"no step waits for the device, {way}"} | attempt(without_waiting, context, way)
        release_memory()
    yield {"check": f"pytest {' '.join(SUITE)}"} | attempt(end_of_suite, suite, context)
    for name, dtype, allowed in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 1e-2)):
        row = attempt(within, allowed, compiled_loss_against_eager, context, dtype)
        yield {"check": f"loss and its gradient, compiled against eager, {name}"} | row
        release_memory()
    yield from ways_against_eager(context, "bf16", 5e-2)


def within(allowed: float, error_of: Callable[..., float], *arguments: Any) -> Row:
    """Return the row of a relative error."""
    found = error_of(*arguments)
    return {"found": found, "allowed": allowed, "passed": "yes" if found <= allowed else "NO"}


def relative(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def list_against_calls(context: Context, dtype: torch.dtype) -> float:
    """Return the larger relative error of features and gradients; bfloat16 is that of autocast."""
    torch.manual_seed(0)
    half = dtype == torch.bfloat16
    kind: dict[str, Any] = {"device": context.device, "dtype": torch.float32 if half else dtype}
    sizes = ((4, 224), (16, 96)) if context.is_gpu else ((2, 32), (3, 16))
    network = VisionTransformer(depth=12 if context.is_gpu else 2, image_size=sizes[0][1]).to(**kind)
    images: Any = [torch.randn(number, 3, side, side, **kind) for number, side in sizes]
    weights = torch.randn(sum(number for number, _ in sizes), network.feature_dim, **kind)

    def outcome(features: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(context.device.type, torch.bfloat16, enabled=half):
            found = features()
        gradients = torch.autograd.grad((found * weights).sum(), list(network.parameters()))
        return found.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    one = outcome(lambda: network(images))
    two = outcome(lambda: torch.cat([network(each) for each in images]))
    return max(relative(*pair) for pair in zip(one, two, strict=True))


class Outcome(NamedTuple):
    """What some steps of training leave."""

    losses: Tensor
    moved: Tensor
    """How far student, teacher and center have moved from the start, flattened."""


def moving_trainer(context: Context, precision: str, way: str) -> Trainer:
    """Build a trainer in which every schedule moves."""
    small = ("backbone.depth=4", "head.out_dim=4096")  # to be built in a second
    return context.trainer("vit_small", BATCH, way, *MOVING, *small, precision=precision)


def trained(context: Context, precision: str, way: str) -> Outcome:
    """Train for sixteen steps on views that depend on the step alone."""
    trainer = moving_trainer(context, precision, way)

    def weights() -> Tensor:
        networks = [*trainer.student.parameters(), *trainer.teacher.parameters(), trainer.dino_loss.center]
        return torch.cat([tensor.detach().flatten() for tensor in networks])

    before, losses = weights(), []
    for step in range(STEPS):
        torch.manual_seed(step)
        losses.append(trainer.train_step(random_views(trainer))[0].detach().clone())
    return Outcome(torch.stack(losses), weights() - before)


def ways_against_eager(context: Context, precision: str, allowed: float) -> Iterator[Row]:
    """Yield how far each way's steps end from eager ones; eager ones again show what a GPU varies."""
    expected: list[Outcome] = []

    def distance(way: str) -> float:
        if not expected:
            expected.append(trained(context, precision, EAGER))
        pairs = zip(trained(context, precision, way), expected[0], strict=True)
        return max(relative(*pair) for pair in pairs)

    for way in WAYS:
        row = attempt(within, allowed, distance, way)
        yield {"check": f"{STEPS} steps against eager, {precision}, {way}"} | row
        release_memory()


def compiled_loss_against_eager(context: Context, dtype: torch.dtype) -> float:
    """Return the larger relative error of the loss and of its gradient in the student's logits."""

    def outcome(way: str) -> tuple[Tensor, Tensor]:
        trainer = context.trainer("vit_small", 32, way, "backbone.depth=1")
        crops, batch = trainer.cfg.crops.local_number + 2, trainer.cfg.trainer.batch_size
        torch.manual_seed(0)
        logits = torch.randn(crops * batch, trainer.cfg.head.out_dim, device=context.device).to(dtype)
        teacher, student = logits[: 2 * batch].flip(0), logits.clone().requires_grad_()
        loss = trainer.dino_loss(student, teacher, 0.04)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    return max(relative(*pair) for pair in zip(outcome(COMPILED), outcome(EAGER), strict=True))


def without_waiting(context: Context, way: str) -> Row:
    """Make steps, from the loader's bytes on, in a mode in which waiting for the device is an error."""
    trainer = moving_trainer(context, "bf16", way)
    images = list(range(trainer.cfg.trainer.batch_size))
    batches = [trainer.crop_batches[epoch, images] for epoch in range(3)]
    if context.is_gpu:
        batches = [CropBatch(*(part.pin_memory() for part in batch)) for batch in batches]

    def steps(count: int) -> Tensor:
        each = range(trainer.step, trainer.step + count)
        losses = [trainer.train_step(trainer.augmented(batches[step % len(batches)]))[0] for step in each]
        return torch.stack(losses)

    steps(WARM_UP)  # kernels are prepared, and a graph is recorded, in the first steps
    if not context.is_gpu:
        steps(STEPS - WARM_UP)
        return NO_GPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = steps(STEPS - WARM_UP)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"passed": "yes" if bool(losses.isfinite().all()) else "NO: not finite"}


def start_suite(context: Context) -> subprocess.Popen[str] | None:
    """Start the suite's tests for CUDA beside the other checks; None without pytest."""
    if missing(("pytest", "pytest-timeout", "pytest-xdist")):
        return None
    files = SUITE if context.is_gpu else SUITE[:1]
    command = ["-m", "pytest", "-p", "no:cacheprovider", "--tb=line", "--dist=load"]
    command.append("-n4" if context.is_gpu else "-n0")
    return subprocess.Popen(
        [sys.executable, *command, *files],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def end_of_suite(suite: subprocess.Popen[str] | None, context: Context) -> Row:
    """Return what pytest said last, and the names of the tests that failed."""
    if suite is None:
        return {"note": "needs pytest, pytest-timeout and pytest-xdist"}
    seconds = 0.7 * context.left
    try:
        said, _ = suite.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        suite.kill()
        return {"note": f"not done after {seconds:.0f} s more"}
    print(said)
    lines = [line for line in said.splitlines() if line.strip()]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    passed = "yes" if suite.returncode == 0 else "NO"
    return {"passed": passed, "note": ", ".join([lines[-1].strip("= "), *failed])[:400]}
