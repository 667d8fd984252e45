"""A recorded step is the eager step: by a stand-in for CUDA graphs on the CPU, and by what it may not do."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dino_exp.errors import UserError
from dino_exp.parallel import distributed
from dino_exp.training.graph import WARM_UP, GraphedPasses, Recorder, graphed_passes
from dino_exp.training.trainer import Passes, Trainer
from tests.training.test_trainer import trainer, views

MOVING = (
    *("data.train_size=16", "trainer.batch_size=8", "trainer.epochs=8", "backbone.drop_path_rate=0.3"),
    *(
        "optimizer.warmup_epochs=1",
        "optimizer.freeze_last_layer_epochs=3",
        "optimizer.final_weight_decay=0.4",
    ),
    *("loss.warmup_teacher_temp=0.01", "loss.teacher_temp=0.06", "loss.warmup_teacher_temp_epochs=7"),
    *("ema.momentum=0.9", "loss.center_init=first_batch"),
)
"""Two steps per epoch, of which each has other values of all schedules; the last layer moves from step 6."""
OBSERVED = (0, 7, 13)


class OnCPU(Recorder):
    """A stand-in for a CUDA graph that repeats the work itself.

    As with CUDA, recording computes nothing and moves neither buffers nor random numbers; a replay writes to
    the tensors that were there after the recording, and touches no attribute of a parameter.
    """

    def __init__(self, of: Trainer) -> None:
        self.parameters = list(of.student.parameters())
        self.buffers = [
            buffer for part in (of.student, of.teacher, of.dino_loss) for buffer in part.buffers()
        ]
        self.replays = 0

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> Any:
        before = [buffer.clone() for buffer in self.buffers]
        with torch.random.fork_rng(devices=[]):
            results = work()
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        self.work, self.filled = work, self._leaves(results)
        for tensor in self.filled:
            tensor.fill_(torch.nan)
        return results

    def replay(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters]
        for kept, tensor in zip(self.filled, self._leaves(self.work()), strict=True):
            kept.copy_(tensor)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.replays += 1

    def _leaves(self, results: Any) -> list[Tensor]:
        """Return the gradients and results, without what is missing."""
        found = [parameter.grad for parameter in self.parameters] + tree_leaves(results)
        return [tensor for tensor in found if tensor is not None]


def graphed(of: Trainer) -> OnCPU:
    """Have a trainer record its steps; return what does."""
    recorder = OnCPU(of)
    of.graph = GraphedPasses(of.student.parameters(), recorder)
    return recorder


def losses(of: Trainer, until: int) -> list[Tensor]:
    """Train up to a step, with views whose memory is used again at once."""
    found = []
    for step in range(of.step, until):
        given = views(of, step)
        found.append(of.train_step(given, observe=step in OBSERVED)[0])
        for view in given:
            view.fill_(torch.nan)
    return found


def test_a_recorded_step_is_the_eager_step_to_the_bit(tmp_path: Path) -> None:
    eager, first, second = (trainer(tmp_path, *MOVING) for _ in range(3))
    recorders = [graphed(each) for each in (first, second)]
    assert eager.plan.freeze_steps == 6
    temperatures = [eager.dino_loss.teacher_temp_at(eager.plan.epoch(step)) for step in range(14)]
    assert len(set(temperatures)) == 7
    expected, found = losses(eager, 16), losses(first, 9)
    second.restore(first.state())
    found += losses(second, 16)
    assert [recorder.replays for recorder in recorders] == [7 - WARM_UP, 6 - WARM_UP]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    for part in ("student", "teacher", "loss", "optimizer"):
        tensors = [
            [leaf for leaf in tree_leaves(each.state()[part]) if isinstance(leaf, Tensor)]
            for each in (second, eager)
        ]
        assert all(torch.equal(*pair) for pair in zip(*tensors, strict=True)), part


def test_nothing_that_is_observed_keeps_an_autograd_graph(tmp_path: Path) -> None:
    """Its nodes would belong to another stream than the recorded one."""
    of = trainer(tmp_path)
    loss, observed = of.train_step(views(of, 0), observe=True)
    passes = of._forward_backward(views(of, 1), torch.tensor(0.04), observe=True)
    kept = [leaf for leaf in tree_leaves((loss, observed, passes)) if isinstance(leaf, Tensor)]
    assert len(kept) > 30
    assert not any(tensor.requires_grad for tensor in kept)


class Operations(TorchDispatchMode):
    """A count of the operations, by the devices that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if tensors:
            self.count["+".join(sorted({tensor.device.type for tensor in tensors}))] += 1
        return result


@contextmanager
def without_values(of: Trainer, device: str) -> Iterator[None]:
    """Move a trainer to a device without values, on which whoever asks for one gets an error."""
    there = mock.patch.multiple("torch.cuda", is_available=lambda: True, is_bf16_supported=lambda *_: True)
    with FakeTensorMode() as mode, there:
        for part in (of.student, of.teacher, of.dino_loss):
            part._apply(lambda tensor: torch.empty_like(mode.from_tensor(tensor), device=device))
        of.device = torch.device("cuda")
        yield


@pytest.mark.parametrize(
    ("device", "precision", "extra"),
    [
        ("cuda", torch.bfloat16, ()),
        ("cuda", None, ("loss.centering=sinkhorn", "head.use_bn=true")),
        ("meta", None, ()),
    ],
    ids=str,
)
def test_the_recorded_passes_wait_for_nothing_and_copy_nothing_from_the_host(
    device: str, precision: torch.dtype | None, extra: tuple[str, ...], tmp_path: Path
) -> None:
    of = trainer(tmp_path, "backbone.depth=2", "backbone.drop_path_rate=0.3", "trainer.batch_size=8", *extra)
    of.autocast_type = precision
    batch, crops = of.cfg.trainer.batch_size, of.cfg.crops
    sizes = [(2 * batch, crops.global_size), (crops.local_number * batch, crops.local_size)]
    # PyTorch's engine needs a GPU for a backward pass of CUDA tensors, even of those without values
    forward_alone = mock.patch.object(Tensor, "backward") if device == "cuda" else mock.MagicMock()
    with without_values(of, device), forward_alone:
        static = [torch.empty(count, 3, side, side, device=device) for count, side in sizes]
        teacher_temp = torch.empty((), device=device)
        with pytest.raises(Exception, match="_local_scalar_dense"):  # the check works
            teacher_temp.item()
        with Operations() as operations:
            passes = of._forward_backward(static, teacher_temp)
        assert isinstance(passes, Passes)
        assert passes.losses[0].device.type == device
    assert operations.count.keys() == {device}
    assert operations.count[device] > 200


def test_without_a_gpu_the_graph_is_refused(tmp_path: Path) -> None:
    refused = r"trainer\.cuda_graph = true: needs a GPU with CUDA, and this run is on cpu; set trainer\."
    with pytest.raises(UserError, match=refused):
        trainer(tmp_path, "trainer.cuda_graph=true")


def test_several_processes_train_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "several", lambda: True)
    assert graphed_passes(torch.nn.Linear(1, 1), torch.device("cuda")) is None
    assert "trainer.cuda_graph = true: ignored, as this run has several processes." in caplog.messages


def test_a_step_that_cannot_be_recorded_is_refused_with_the_reason(tmp_path: Path) -> None:
    of = trainer(tmp_path)
    recorder = graphed(of)

    def invalidated(work: Callable[[], Any]) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with mock.patch.object(recorder, "record", invalidated):
        losses(of, 1 + WARM_UP)
        with pytest.raises(UserError, match=r"\(operation not permitted when stream is capturing\); set tr"):
            losses(of, 2 + WARM_UP)
