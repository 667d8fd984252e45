"""A CUDA graph of a step's forward and backward passes: one launch instead of some two thousand.

It helps where the processor that launches the kernels is the limit, and not the GPU: with small networks and
small batches. Never run on a GPU yet.

A graph repeats kernels with the addresses and numbers that they were recorded with. So what differs between
steps comes in through tensors that stay, results go out through tensors that stay, and nothing in between is
decided on the host. Random numbers are those of the eager step after the same `torch.manual_seed`: a replay
first writes seed and offset of PyTorch's generator to where the recorded kernels read them (note "CUDA
Graph-safe RNG states" in PyTorch's ATen/cuda/CUDAGeneratorImpl.h).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dino_exp.errors import UserError
from dino_exp.parallel import distributed

log = logging.getLogger(__name__)

Result = TypeVar("Result")
WARM_UP = 3
"""Steps before the recording, in which libraries choose their kernels and allocate what they keep."""


class Recorder:
    """Work of a GPU that is recorded once, in a CUDA graph, and then repeated."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], Result]) -> Result:
        """Do the work on the stream that will be recorded, after all earlier work and before all later."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Result]) -> Result:
        """Record the work without doing it; return what holds its results after each `replay`."""
        # the default mode would take what the loader's thread does meanwhile, pinning memory, for an error
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        """Launch the recorded kernels."""
        self.graph.replay()


class GraphedPasses(Generic[Result]):
    """Forward and backward passes that are recorded after `WARM_UP` steps, and from then on replayed.

    Autocast must begin and end within the passes, as it casts each weight once and keeps it until its end. No
    autograd graph of an earlier step may be alive at the recording: its nodes belong to another stream.

    Args:
        parameters: the parameters that the passes give gradients to.
        recorder: what records them.
    """

    def __init__(self, parameters: Iterable[Tensor], recorder: Recorder) -> None:
        self.parameters, self.recorder = list(parameters), recorder
        self.warm_up_left = WARM_UP
        self.recorded: tuple[list[Tensor], list[Tensor | None], Result] | None = None
        """Inputs, gradients and results, which stay where they are."""

    def __call__(
        self,
        passes: Callable[[Sequence[Tensor], Tensor], Result],
        views: Sequence[Tensor],
        teacher_temp: Tensor,
    ) -> Result:
        """Return the results of `passes`, which the next call overwrites, and leave the gradients.

        All calls have the same `passes`, and views of the same shapes. Raises `UserError` if they cannot be
        recorded.
        """
        if self.warm_up_left:
            self.warm_up_left -= 1
            return self.recorder.warm_up(lambda: passes(views, teacher_temp))
        given = [*views, teacher_temp]
        if self.recorded is None:
            self.recorded = self._record(passes, [torch.empty_like(tensor) for tensor in given])
        inputs, gradients, results = self.recorded
        for kept, tensor in zip(inputs, given, strict=True):
            kept.copy_(tensor, non_blocking=True)
        self.recorder.replay()
        # of the frozen last layer, or of a step that was not replayed, they are others
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return results

    def _record(
        self, passes: Callable[[Sequence[Tensor], Tensor], Result], inputs: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None], Result]:
        *views, teacher_temp = inputs
        try:
            results = self.recorder.record(lambda: passes(views, teacher_temp))
        except RuntimeError as error:
            first = error.__context__ or error  # that the recording failed is said last
            reason = (str(first).strip() or type(first).__name__).splitlines()[0]
            raise UserError(
                f"trainer.cuda_graph = true: this network's step cannot be recorded ({reason}); set "
                "trainer.cuda_graph=false."
            ) from error
        return inputs, [parameter.grad for parameter in self.parameters], results


def graphed_passes(student: nn.Module, device: torch.device) -> GraphedPasses | None:
    """Return what records a step that gives gradients to `student`; None among several processes.

    Raises `UserError` on other devices than CUDA's.
    """
    if device.type != "cuda":
        raise UserError(
            f"trainer.cuda_graph = true: needs a GPU with CUDA, and this run is on {device.type}; set "
            "trainer.cuda_graph=false."
        )
    if distributed.several():
        log.warning("trainer.cuda_graph = true: ignored, as this run has several processes.")
        return None
    return GraphedPasses(student.parameters(), Recorder(device))
