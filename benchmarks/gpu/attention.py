"""PyTorch's back ends of attention at the two shapes of a step of batch 256."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.context import Context, attempt
from benchmarks.gpu.results import Row
from benchmarks.measure import least_seconds

SHAPES = ((512, 6, 197, 64), (2048, 6, 37, 64))
"""(crops, heads, tokens, dimensions of a head): global and local crops of ViT-S/16."""
BACK_ENDS = {
    "the default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def rows(context: Context) -> Iterator[Row]:
    """Yield milliseconds of the device, and TFLOP/s, of each back end in bfloat16."""
    for shape in SHAPES if context.is_gpu else [(2, 2, 5, 8)]:
        for name, back_end in BACK_ENDS.items():
            row = attempt(timed, shape, back_end, context.device)
            yield {"(B, heads, N, d)": str(shape), "back end": name} | row


def timed(shape: tuple[int, int, int, int], back_end: SDPBackend | None, device: torch.device) -> Row:
    """Time a back end, forward and backward; the inputs have the strides that our network gives them."""
    crops, heads, tokens, dim = shape
    qkv = torch.randn(crops, tokens, 3 * heads * dim, device=device, dtype=torch.bfloat16)
    query, key, value = (
        part.unflatten(2, (heads, dim)).transpose(1, 2).detach().requires_grad_() for part in qkv.chunk(3, 2)
    )

    def forward() -> Tensor:
        if back_end is None:
            return F.scaled_dot_product_attention(query, key, value)
        with sdpa_kernel(back_end):
            return F.scaled_dot_product_attention(query, key, value)

    mixed = forward()
    gradient = torch.randn_like(mixed)

    def backward() -> object:
        return torch.autograd.grad(mixed, (query, key, value), gradient, retain_graph=True)

    ahead, back = (device_seconds(work, device) for work in (forward, backward))
    products = 2 * 2 * crops * heads * tokens**2 * dim
    return {
        "forward ms": 1e3 * ahead,
        "backward ms": 1e3 * back,
        "forward TFLOP/s": products / ahead / 1e12,
        "backward TFLOP/s": 2.5 * products / back / 1e12,
    }


def device_seconds(work: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Return the least seconds of the device per call.

    The calls wait behind large products until the host has launched all of them, so that its time does not
    count.
    """
    if device.type != "cuda":
        return least_seconds({"work": work}, 2)["work"]
    work()
    large = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    least = float("inf")
    for _ in range(5):
        torch.cuda.synchronize(device)
        for _ in range(5):  # some 7 ms
            torch.mm(large, large)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / 1e3 / calls)
    return least
