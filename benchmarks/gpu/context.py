"""What every section is given, and how it tries what may fail."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.results import Results, Row
from benchmarks.step import make_trainer, matrix_rate
from dino_exp.errors import UserError
from dino_exp.training.trainer import Trainer

NO_GPU = {"note": "needs a GPU"}
EAGER = "eager"
COMPILED = "compiled"
GRAPH = "CUDA graph"
COMPILED_GRAPH = "compiled, CUDA graph"
WAYS = {
    EAGER: ("trainer.compile=false",),
    COMPILED: ("trainer.compile=true",),
    GRAPH: ("trainer.compile=false", "trainer.cuda_graph=true"),
    COMPILED_GRAPH: ("trainer.compile=true", "trainer.cuda_graph=true"),
}
"""Ways to run a step, as overrides."""
TINY = (
    *("backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2"),
    *("head.out_dim=256", "head.hidden_dim=32", "head.bottleneck_dim=16"),
    *("crops.global_size=32", "crops.local_size=16", "crops.local_number=2"),
)
TINY_BATCH = 2
TINY_RUN = (
    *(*TINY, "trainer.precision=bf16", f"trainer.batch_size={TINY_BATCH}", "trainer.num_workers=1"),
    "trainer.log_every=1",
)
"""Overrides for a rehearsal on a CPU, which looks for mistakes and not for speed."""


@dataclass(frozen=True)
class Context:
    """The circumstances of a section.

    On a CPU all sizes are tiny: a rehearsal, whose figures mean nothing.
    """

    device: torch.device
    until: float
    """When the section is ended, as `time.monotonic` has it."""
    results: Results
    """The rows of earlier sections."""
    scratch: Path
    """A folder that is removed after all sections."""
    images: Path | None = None
    """A folder of images instead of generated ones."""

    @property
    def is_gpu(self) -> bool:
        """Whether this is the measurement, and no rehearsal."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Return the seconds that are left to the section."""
        return max(0.0, self.until - time.monotonic())

    def trainer(self, case: str, batch: int, way: str, *more: str, precision: str = "bf16") -> Trainer:
        """Build a trainer for a case of `benchmarks.step` that runs its steps in one of the `WAYS`.

        In a rehearsal all have one network, batch and precision, so that code is compiled once for all.
        """
        if self.is_gpu:
            return make_trainer(case, batch, self.device, precision, *WAYS[way], *more)
        return make_trainer(case, TINY_BATCH, self.device, "bf16", *WAYS[way], *more, *TINY)

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Measure the operations per second of one large matrix product."""
        return matrix_rate(self.device, dtype, None if self.is_gpu else 64)


def attempt(work: Callable[..., Row], *arguments: Any) -> Row:
    """Return the row that `work` makes of the arguments, or one with the reason why it cannot."""
    try:
        return work(*arguments)
    except Exception as error:
        return {"note": one_line(error)}


def one_line(error: Exception) -> str:
    """Return an error in one line of at most 200 characters."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return (first if isinstance(error, UserError) else f"{type(error).__name__}: {first}")[:200]


def release_memory() -> None:
    """Give back what the last variant left: compiled code, and the memory of its tensors."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
