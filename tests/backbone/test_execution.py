"""Recomputation and memory format change memory and speed, not results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from dino_exp.backbone.execution import checkpoint_blocks, has_unused_parameters, is_convolutional
from dino_exp.backbone.library import timm_backbone, torchvision_backbone
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.dino.head import DINOHead
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError


def small_vit() -> nn.Module:
    return VisionTransformer(
        patch_size=8, embed_dim=32, depth=4, num_heads=2, drop_path_rate=0.4, stem="conv", image_size=32
    )


def library_vit() -> nn.Module:
    return timm_backbone(name="test_vit", drop_path_rate=0.4, in_channels=3, image_size=160)


def saved_bytes_and_gradients(backbone: nn.Module, size: int) -> tuple[int, list[torch.Tensor], dict]:
    """Return the bytes that the forward pass keeps besides the parameters, the gradients, and the buffers."""
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(2))
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(5)  # decides which branches stochastic depth drops
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        features = backbone(images)
    bytes_kept = sum(kept.values())
    gradients = torch.autograd.grad(features.square().sum(), list(backbone.parameters()))
    return bytes_kept, list(gradients), {name: value.clone() for name, value in backbone.named_buffers()}


@pytest.mark.parametrize(("build", "size", "share"), [(small_vit, 32, 0.6), (library_vit, 160, 0.5)])
def test_checkpointed_blocks_give_the_same_gradients_from_less_memory(
    build: Any, size: int, share: float
) -> None:
    torch.manual_seed(0)
    plain = build()
    torch.manual_seed(0)
    checkpointed = build()
    checkpoint_blocks(checkpointed, name="it")
    kept, gradients, buffers = saved_bytes_and_gradients(plain, size)
    kept_less, same_gradients, same_buffers = saved_bytes_and_gradients(checkpointed, size)
    assert kept_less < share * kept
    torch.testing.assert_close(same_gradients, gradients, rtol=1e-6, atol=1e-6)
    # the running statistics of the stem's batch norms must move only once
    torch.testing.assert_close(same_buffers, buffers, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "settings", "reason"),
    [
        (timm_backbone, dict(name="resnet10t", drop_path_rate=0), "batch norm"),
        (torchvision_backbone, dict(name="resnet18", stem="imagenet"), r"batch norm in its blocks \(bn1\)"),
        (timm_backbone, dict(name="vgg11", drop_path_rate=0), "no blocks that can be recomputed"),
    ],
)
def test_backbones_that_cannot_recompute_their_blocks_are_refused(
    build: Callable[..., nn.Module], settings: dict[str, Any], reason: str
) -> None:
    backbone = build(**settings, in_channels=3, image_size=64)
    with pytest.raises(UserError, match=rf"trainer\.checkpoint_blocks = true: .*{reason}.*; set trainer\."):
        checkpoint_blocks(backbone, name="it")


def test_channels_last_gives_convolutional_networks_the_same_result() -> None:
    assert not is_convolutional(small_vit())
    torch.manual_seed(0)
    network = DINONetwork(torchvision.models.resnet18(num_classes=16), DINOHead(in_dim=16, out_dim=8))
    assert is_convolutional(network.backbone)
    images = torch.randn(4, 3, 32, 32)
    before = network.eval()([images]).logits
    network.use_memory_format(torch.channels_last)
    strides: list[bool] = []
    network.backbone.get_submodule("conv1").register_forward_hook(
        lambda _, inputs, output: strides.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(network([images]).logits, before, rtol=1e-4, atol=1e-5)
    assert strides == [True]


def test_unused_parameters_are_found_without_changing_the_network() -> None:
    torch.manual_seed(0)
    network = DINONetwork(small_vit(), DINOHead(in_dim=32, out_dim=8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not has_unused_parameters(network, channels=3, size=32)
    network.backbone.unused = nn.Linear(3, 3)
    assert has_unused_parameters(network, channels=3, size=32)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
