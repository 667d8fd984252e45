"""The loss and its center against the released code's numbers and its plain pairwise form."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dino_exp.dino.loss import DINOLoss
from tests.programs import in_two_processes

ORACLE = Path(__file__).parents[1] / "oracle"


def pairwise(student: Tensor, teacher_probabilities: Tensor, student_temp: float = 0.1) -> Tensor:
    """Compute the loss as the released code does, with one term per pair."""
    batch = len(teacher_probabilities) // 2
    terms = [
        torch.sum(-target * F.log_softmax(crop / student_temp, dim=-1), dim=-1).mean()
        for i, target in enumerate(teacher_probabilities.split(batch))
        for j, crop in enumerate(student.split(batch))
        if i != j
    ]
    return torch.stack(terms).sum() / len(terms)


def logits(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every tensor that PyTorch allocates without values with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def built(compiled: bool = False, **options: Any) -> DINOLoss:
    """Build the loss; compiled without a C++ compiler, to the same operations as for kernels."""
    dino_loss = DINOLoss(**options)
    if compiled:
        dino_loss.compile(backend="aot_eager_decomp_partition")
    return dino_loss


def gradient_of(logits: Tensor) -> Tensor:
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["loss_multicrop", "loss_two_global", "loss_center_m0"])
def test_loss_gradient_and_center_of_three_steps_equal_the_released_code(name: str, compiled: bool) -> None:
    with np.load(ORACLE / f"{name}.npz") as arrays:
        expected = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    dino_loss = built(
        compiled,
        out_dim=expected["center"].shape[-1],
        student_temp=expected["student_temp"].item(),
        center_momentum=expected["center_momentum"].item(),
    ).double()
    dino_loss.center.copy_(expected["center"][0])
    for step in range(3):
        student = expected["student_logits"][step].clone().requires_grad_()
        loss = dino_loss(student, expected["teacher_logits"][step], expected["teacher_temp"].item())
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected["loss"][step], rtol=0, atol=1e-9)
        torch.testing.assert_close(student.grad, expected["grad_student"][step], rtol=0, atol=1e-9)
        torch.testing.assert_close(dino_loss.center, expected["center"][step + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_crops", [2, 3, 10])
def test_gradient_of_a_scaled_loss_is_the_pairwise_one(n_crops: int) -> None:
    student, teacher = logits(n_crops * 3, 50).requires_grad_(), logits(6, 50, seed=1)
    dino_loss = DINOLoss(out_dim=50).double()
    expected = pairwise(student, torch.softmax(teacher / 0.04, dim=1))
    (expected_gradient,) = torch.autograd.grad(7 * expected, student)
    loss = dino_loss(student, teacher, 0.04)
    (gradient,) = torch.autograd.grad(7 * loss, student, retain_graph=True)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)
    # the buffer has been scaled in place: an error, not a gradient 49 times too large
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(7 * loss, student)


def test_the_loss_is_the_same_number_under_no_grad() -> None:
    student, teacher = logits(12, 50), logits(6, 50, seed=1)
    with torch.no_grad():
        without = DINOLoss(out_dim=50).double()(student.requires_grad_(), teacher, 0.04)
    with_gradient = DINOLoss(out_dim=50).double()(student, teacher, 0.04)
    assert not without.requires_grad
    assert without.item() == with_gradient.item()


@pytest.mark.parametrize("compiled", [False, True])
def test_half_logits_under_autocast_are_computed_in_float32(compiled: bool) -> None:
    student, teacher = logits(20, 512, dtype=torch.bfloat16), logits(4, 512, seed=1, dtype=torch.bfloat16)
    exact = student.double().requires_grad_()
    expected = pairwise(exact, torch.softmax(teacher.double() / 0.04, dim=1))
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(compiled, out_dim=512)(student.requires_grad_(), teacher, 0.04)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradient_of(student).dtype == torch.bfloat16
    torch.testing.assert_close(gradient_of(student).double(), gradient_of(exact), rtol=2**-8, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_float16_gradients_survive_until_the_loss_scale_arrives(compiled: bool) -> None:
    student, teacher = logits(80, 4096, dtype=torch.float16), logits(16, 4096, seed=1, dtype=torch.float16)
    exact = student.double().requires_grad_()
    pairwise(exact, torch.softmax(teacher.double() / 0.04, dim=1)).backward()
    assert (gradient_of(exact).half() == 0).double().mean() > 0.1  # unscaled, float16 loses these entries
    loss = built(compiled, out_dim=4096)(student.requires_grad_(), teacher, 0.04)
    (65536 * loss).backward()
    torch.testing.assert_close(
        gradient_of(student).double() / 65536, gradient_of(exact), rtol=2**-9, atol=1e-11
    )


def test_the_compiled_loss_keeps_only_its_inputs_for_the_backward_pass() -> None:
    student, teacher = logits(40, 512, dtype=torch.bfloat16).requires_grad_(), logits(8, 512).float()
    loss = built(compiled=True, out_dim=512)(student, teacher, 0.04)
    kept = cast(Any, loss.grad_fn).saved_tensors
    assert sum(tensor.nbytes for tensor in kept) < student.nbytes + teacher.nbytes + 1024


@pytest.mark.spawn
def test_kernels_of_the_compiler_compute_the_same() -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    results = []
    for compiled in (False, True):
        student, dino_loss = logits(24, 50).requires_grad_(), DINOLoss(out_dim=50).double()
        if compiled:
            dino_loss.compile()
        loss = dino_loss(student, logits(12, 50, seed=1), 0.04)
        (3 * loss).backward()
        results.append((loss, gradient_of(student)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_losses_of_many_runs_in_one_process_can_be_compiled() -> None:
    for number in range(12):
        n_crops, batch, prototypes = 2 + number % 5, 2 + number, 40 + number
        student = logits(n_crops * batch, prototypes).requires_grad_()
        teacher = logits(2 * batch, prototypes, seed=1)
        temperature = 0.1 + 0.01 * number
        loss = built(compiled=True, out_dim=prototypes, student_temp=temperature).double()(
            student, teacher, 0.04
        )
        loss.backward()
        expected = pairwise(student, torch.softmax(teacher / 0.04, dim=1), temperature)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_teacher_temperature_warms_up_per_epoch_and_reaches_its_end_point() -> None:
    dino_loss = DINOLoss(
        out_dim=2, teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=30
    )
    assert dino_loss.teacher_temp_at(0) == 0.04
    assert dino_loss.teacher_temp_at(1) == pytest.approx(0.04 + 0.03 / 29, abs=1e-15)
    assert dino_loss.teacher_temp_at(29) == 0.07
    assert dino_loss.teacher_temp_at(99) == 0.07
    assert DINOLoss(out_dim=2, teacher_temp=0.07).teacher_temp_at(0) == 0.07
    oracle = DINOLoss(out_dim=2, teacher_temp=0.05, warmup_teacher_temp=0.03, warmup_teacher_temp_epochs=1)
    assert [oracle.teacher_temp_at(epoch) for epoch in (0, 1)] == [0.03, 0.05]


def test_without_sharpening_the_teacher_has_the_students_temperature() -> None:
    dino_loss = DINOLoss(
        out_dim=2, sharpening=False, teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=9
    )
    assert [dino_loss.teacher_temp_at(epoch) for epoch in (0, 8, 50)] == [0.1, 0.1, 0.1]


def test_temperature_zero_is_a_hard_argmax_of_the_centered_logits() -> None:
    dino_loss = DINOLoss(out_dim=3).double()
    dino_loss.center.copy_(torch.tensor([[0.0, 5.0, 0.0]]))
    teacher = torch.tensor([[1.0, 5.5, 0.9], [1.0, 7.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(dino_loss.teacher_probabilities(teacher, 0), expected)
    loss = dino_loss(torch.zeros(2, 3, dtype=torch.float64), teacher, 0)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-12)


def test_the_first_batch_initializes_the_center_once_and_not_after_a_resume() -> None:
    dino_loss = DINOLoss(out_dim=50, center_init="first_batch").double()
    student, teacher = logits(12, 50), logits(6, 50, seed=1)
    loss = dino_loss(student, teacher, 0.04)
    mean = teacher.mean(dim=0, keepdim=True)
    torch.testing.assert_close(dino_loss.center, mean, rtol=0, atol=1e-15)
    expected = pairwise(student, torch.softmax((teacher - mean) / 0.04, dim=1))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    resumed = DINOLoss(out_dim=50, center_init="first_batch").double()
    resumed.load_state_dict(dino_loss.state_dict())
    resumed(student, teacher + 10, 0.04)
    torch.testing.assert_close(resumed.center, mean + 1, rtol=0, atol=1e-12)  # 0.9·mean + 0.1·(mean + 10)


def test_without_centering_the_center_stays_zero() -> None:
    for centering in ("none", "sinkhorn"):
        dino_loss = DINOLoss(out_dim=50, centering=centering, center_init="first_batch").double()
        dino_loss(logits(12, 50), logits(6, 50, seed=1) + 3, 0.04)
        assert dino_loss.center.abs().max() == 0
    plain = DINOLoss(out_dim=50, centering="none").double().teacher_probabilities(logits(6, 50), 0.04)
    torch.testing.assert_close(plain, torch.softmax(logits(6, 50) / 0.04, dim=1), rtol=0, atol=1e-15)


def swav_sinkhorn(scores: Tensor, iterations: int = 3) -> Tensor:
    """Compute Sinkhorn-Knopp as SwAV and DINOv2 do, without logarithms."""
    q = torch.exp(scores).t()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def test_sinkhorn_balances_both_global_crops_together() -> None:
    teacher = logits(64, 8, seed=3) + torch.tensor([2.0] + 7 * [0.0])  # the first prototype always wins
    dino_loss = DINOLoss(out_dim=8, centering="sinkhorn").double()
    balanced = dino_loss.teacher_probabilities(teacher, 0.2)
    torch.testing.assert_close(balanced, swav_sinkhorn(teacher / 0.2), rtol=0, atol=1e-12)
    assert torch.softmax(teacher / 0.2, dim=1).mean(dim=0)[0] > 0.98
    assert balanced.mean(dim=0)[0] == pytest.approx(1 / 8, abs=0.01)
    extreme = dino_loss.teacher_probabilities(1e5 * teacher, 0.04)  # exp() of these would overflow
    torch.testing.assert_close(extreme.sum(dim=1), torch.ones(64, dtype=torch.float64))


def test_logits_of_wrong_shapes_are_refused() -> None:
    dino_loss = DINOLoss(out_dim=5)
    for student, teacher in (((7, 5), (4, 5)), ((2, 5), (4, 5)), ((8, 6), (4, 6)), ((6, 5), (3, 5))):
        with pytest.raises(ValueError, match="student logits"):
            dino_loss(torch.zeros(student), torch.zeros(teacher), 0.04)


def probabilities_and_center(rank: int, folder: str) -> None:
    teacher = logits(8, 6).view(2, 2, 2, 6)[:, rank].reshape(4, 6)  # this process's half of each global crop
    results = {}
    for centering in ("mean", "sinkhorn"):
        dino_loss = DINOLoss(out_dim=6, centering=centering).double()
        results[centering] = dino_loss.teacher_probabilities(teacher, 0.04)
        dino_loss(teacher, teacher, 0.04)
        results[f"{centering} center"] = dino_loss.center
    torch.save(results, f"{folder}/{rank}.pt")


def test_two_processes_have_the_center_and_the_balance_of_the_global_batch(tmp_path: Path) -> None:
    in_two_processes(probabilities_and_center, str(tmp_path))
    teacher = logits(8, 6)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        for centering in ("mean", "sinkhorn"):
            alone = DINOLoss(out_dim=6, centering=centering).double()
            expected = alone.teacher_probabilities(teacher, 0.04).view(2, 2, 2, 6)[:, rank].reshape(4, 6)
            alone(teacher, teacher, 0.04)
            torch.testing.assert_close(got[centering], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(got[f"{centering} center"], alone.center, rtol=0, atol=1e-12)
    assert alone.center.abs().max() == 0
    mean_center = 0.1 * teacher.mean(dim=0, keepdim=True)
    torch.testing.assert_close(got["mean center"], mean_center, rtol=0, atol=1e-12)


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the peak of the bytes that `function` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(changes))


def test_the_loss_needs_memory_for_the_gradient_and_three_crops() -> None:
    batch, n_crops, prototypes = 4, 10, 65536
    student = logits(n_crops * batch, prototypes, dtype=torch.float32).requires_grad_()
    teacher = logits(2 * batch, prototypes, seed=1, dtype=torch.float32)
    dino_loss = DINOLoss(out_dim=prototypes)

    def plain() -> Tensor:
        return pairwise(student, torch.softmax((teacher - dino_loss.center) / 0.04, dim=1))

    crop = batch * prototypes * 4
    ours = peak_bytes(lambda: torch.autograd.grad(dino_loss(student, teacher, 0.04), student))
    released = peak_bytes(lambda: torch.autograd.grad(plain(), student))
    without_gradient = peak_bytes(lambda: dino_loss(student.detach(), teacher, 0.04))
    # the 0.3 is for the batch mean (1, K), a quarter of a crop here
    assert ours <= (n_crops + 3.3) * crop
    assert released >= 38 * crop
    assert without_gradient <= 4.3 * crop
