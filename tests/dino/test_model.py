"""Student and teacher: one backbone call per resolution, one head call, equal at step 0."""

import torch
from torch import nn

from dino_exp.backbone.randomness import random_operations
from dino_exp.config.compose import compose
from dino_exp.dino.head import DINOHead
from dino_exp.dino.model import DINONetwork, student_and_teacher
from dino_exp.training.networks import build_networks


class Counting(nn.Module):
    """Backbone that records the shapes of its inputs; its feature is the mean of each channel."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        return x.mean((2, 3))


def head(in_dim: int = 3, use_bn: bool = True) -> DINOHead:
    return DINOHead(in_dim=in_dim, out_dim=6, hidden_dim=8, bottleneck_dim=4, use_bn=use_bn)


def test_the_backbone_runs_once_per_resolution_and_the_head_once_for_all_crops() -> None:
    torch.manual_seed(0)
    network = DINONetwork(Counting(), head())
    calls = []
    network.head.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    large, small = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 4, 4)
    output = network([large, small])
    assert network.backbone.seen == [(4, 3, 8, 8), (6, 3, 4, 4)]
    (features,) = calls
    torch.testing.assert_close(features, torch.cat([large.mean((2, 3)), small.mean((2, 3))]))
    assert output.logits.shape == (10, 6)
    # with batch norm in the head, one call for all crops differs from one call per resolution
    apart = torch.cat([network([large]).logits, network([small]).logits])
    assert (apart - output.logits).abs().max() > 0.1


def test_our_transformer_runs_once_for_all_resolutions() -> None:
    student, _ = build_networks(compose(["experiment=debug", "backbone.drop_path_rate=0.2"]))
    images = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    assert random_operations(student, images) == ["bernoulli"]  # one per pass
    student.eval()
    apart = torch.cat([student.backbone(each) for each in images])
    torch.testing.assert_close(student(images).features, apart)


def test_views_of_one_size_share_a_backbone_call() -> None:
    network = DINONetwork(Counting(), head())
    network([torch.randn(4, 3, 8, 8), torch.randn(6, 3, 8, 8)])
    assert network.backbone.seen == [(10, 3, 8, 8)]


def test_the_teacher_starts_with_the_students_weights_without_gradients_or_stochastic_depth() -> None:
    cfg = compose(["experiment=debug", "backbone.drop_path_rate=0.5", "head.use_bn=true"])
    student, teacher = build_networks(cfg)
    assert student.state_dict().keys() == teacher.state_dict().keys()
    for name, value in student.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.training
    assert all(module.training for module in teacher.modules())
    images = [torch.randn(16, 3, 32, 32)]
    assert not torch.equal(student(images).features, student(images).features)
    assert torch.equal(teacher(images).features, teacher(images).features)


def test_networks_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        student, _ = build_networks(compose(["experiment=debug", f"trainer.seed={seed}"]))
        return torch.cat([parameter.flatten() for parameter in student.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_heads_are_built_for_the_feature_dimension_of_the_backbone() -> None:
    student, _ = student_and_teacher(lambda is_student: Counting(), lambda in_dim: head(in_dim))
    assert student([torch.randn(2, 3, 5, 5)]).bottleneck.shape == (2, 4)
