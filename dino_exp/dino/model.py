"""Student and teacher: one architecture, equal weights at step 0 (paper, section 3.1 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from dino_exp.backbone.vit import VisionTransformer


class NetworkOutput(NamedTuple):
    """A network's output for N crops."""

    features: torch.Tensor
    """(N, feature_dim), from the backbone; evaluations use these."""
    bottleneck: torch.Tensor
    """(N, bottleneck_dim), L2-normalized: the input of the prototypes."""
    logits: torch.Tensor
    """(N, K), scores of the prototypes, before centering and temperature."""


class DINONetwork(nn.Module):
    """g = h ∘ f: backbone f and projection head h.

    Crops of one size share a backbone call, and those of all sizes do in our transformer; the head gets all
    crops in one call.
    """

    memory_format = torch.contiguous_format
    """Memory format of the backbone's input images."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Convert the backbone's weights, and from now on its images; changes only speed and rounding."""
        self.memory_format = memory_format
        self.backbone.to(memory_format=memory_format)

    def forward(self, views: Sequence[torch.Tensor]) -> NetworkOutput:
        """Return the output for all crops, in the order of `views`.

        Each view holds the crops of one size S, (n·B, C, S, S), crop-major: rows [i·B, (i + 1)·B) are crop i.
        """
        sizes = [view.shape[-1] for view in views]
        if len(set(sizes)) == 1:
            views = [torch.cat(list(views))] if len(views) > 1 else views
        images = [view.contiguous(memory_format=self.memory_format) for view in views]
        if isinstance(self.backbone, VisionTransformer):
            features = self.backbone(images)
        else:
            features = torch.cat([self.backbone(each) for each in images])
        return NetworkOutput(features, *self.head(features))


def student_and_teacher(
    build_backbone: Callable[[bool], nn.Module], build_head: Callable[[int], nn.Module]
) -> tuple[DINONetwork, DINONetwork]:
    """Build both networks with equal weights; the teacher has no stochastic depth and no gradients.

    The teacher stays in train mode, as in the released code: its batch norms use the batch's statistics.

    Args:
        build_backbone: takes whether it is the student's; returns a backbone with attribute `feature_dim`.
        build_head: takes the feature dimension; returns a head.
    """
    networks = []
    for is_student in (True, False):
        backbone = build_backbone(is_student)
        feature_dim = backbone.feature_dim
        assert isinstance(feature_dim, int)
        networks.append(DINONetwork(backbone, build_head(feature_dim)))
    student, teacher = networks
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    return student, teacher
