"""Student and teacher: one architecture, the same weights at step 0 (paper, section 3.1 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn


class Output(NamedTuple):
    """What a network says of N crops."""

    features: torch.Tensor  # (N, feature_dim) of the backbone
    bottleneck: torch.Tensor  # (N, bottleneck_dim), L2-normalized
    logits: torch.Tensor  # (N, K), before centering and temperature


class DINONetwork(nn.Module):
    """Backbone and head. Crops of one size share a backbone call; the head sees all crops in one call."""

    memory_format = torch.contiguous_format
    """Of the images that the backbone is given."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Lay out the backbone's weights and its images so; only speed and rounding change."""
        self.memory_format = memory_format
        self.backbone.to(memory_format=memory_format)

    def forward(self, views: Sequence[torch.Tensor]) -> Output:
        """Views are batches of crops (n·B, C, S, S), crop-major; outputs keep their order."""
        sizes = [view.shape[-1] for view in views]
        if len(set(sizes)) == 1:
            views = [torch.cat(list(views))] if len(views) > 1 else views
        images = [view.contiguous(memory_format=self.memory_format) for view in views]
        features = torch.cat([self.backbone(image) for image in images])
        return Output(features, *self.head(features))


def student_and_teacher(
    build_backbone: Callable[[bool], nn.Module], build_head: Callable[[int], nn.Module]
) -> tuple[DINONetwork, DINONetwork]:
    """The two networks with equal weights; the teacher without stochastic depth and without gradients.

    The teacher stays in train mode like the released code's: its batch norm uses the batch's statistics.

    Args:
        build_backbone: given whether it is the student's, makes a backbone with attribute `feature_dim`.
        build_head: given the feature dimension, makes a head.
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
