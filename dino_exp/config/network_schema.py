"""The typed configuration of the networks: the groups `backbone` and `head` of `schema`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from dino_exp.config.fields import choice, number


@dataclass(kw_only=True)
class BackboneConfig:
    """The network that makes the features; the same architecture for student and teacher."""

    _target_: str = MISSING
    name: str = MISSING
    """Architecture name; for `backbone=timm` and `backbone=torchvision` any model name of that library."""


@dataclass(kw_only=True)
class VitConfig(BackboneConfig):
    """The released code's vision transformer."""

    _target_: str = "dino_exp.backbone.vit.VisionTransformer"
    name: str = "vit_small"
    patch_size: int = number(16, at_least=1, hint="8 or 16 in the paper")
    """Side of a patch in pixels; crop sizes must be multiples of it."""
    embed_dim: int = number(384, at_least=1, at_most=65536)
    """Width of the tokens, D; also the size of the feature."""
    depth: int = number(12, at_least=1)
    """Number of transformer blocks."""
    num_heads: int = number(6, at_least=1)
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = number(4.0, above=0)
    """Hidden width of a block's MLP as a multiple of embed_dim."""
    drop_path_rate: float = number(0.1, at_least=0, below=1)
    """Stochastic depth of the student's last block, growing linearly from 0; the teacher has none."""
    stem: str = choice("patch", ["patch", "conv", "conv_group_norm"])
    """`patch`: one convolution per patch (the paper). `conv`: stride-2 3x3 convolutions with batch norm
    down to the patch size, which small networks on small images need in order to learn in minutes.
    `conv_group_norm`: with group norm, which has no running statistics for the teacher to lag behind."""
    init: str = choice("trunc_normal", ["trunc_normal", "xavier", "xavier_centered"])
    """Initial weights: truncated normal of std 0.02 (the released code), Xavier uniform, or that less each
    output's mean weight (`xavier_centered`), so that the features of images start apart instead of alike."""


@dataclass(kw_only=True)
class TimmConfig(BackboneConfig):
    """Any timm model by name, with its classifier removed and its own pooling kept."""

    _target_: str = "dino_exp.backbone.library.timm_backbone"
    drop_path_rate: float = number(0.0, at_least=0, below=1)
    """Stochastic depth of the student, if the model supports it; the teacher has none. Dropout that timm
    builds into a model is off in both."""


@dataclass(kw_only=True)
class TorchvisionConfig(BackboneConfig):
    """Any torchvision classification model by name, with its last linear layer removed."""

    _target_: str = "dino_exp.backbone.library.torchvision_backbone"
    stem: str = choice("imagenet", ["imagenet", "small"])
    """`small` (ResNets only): a 3x3 stride-1 first convolution and no max-pool, for 32-pixel images."""


@dataclass(kw_only=True)
class SmallResnetConfig(BackboneConfig):
    """A ResNet of three basic blocks for small images."""

    _target_: str = "dino_exp.backbone.library.small_resnet"
    name: str = "resnet_micro"
    width: int = number(32, at_least=1, at_most=16384)
    """Channels of the first block; the second has twice as many and the third, the feature, four times."""


@dataclass(kw_only=True)
class GivenBackboneConfig(BackboneConfig):
    """A network that Python code gives to `dino_exp.train(backbone=...)`."""

    _target_: str = "dino_exp.backbone.given.given"
    name: str = "given"
    content: str = MISSING
    """Digest of its layers and weights; computed, not typed."""


@dataclass(kw_only=True)
class HeadConfig:
    """Projection head (paper, section 3.2 and appendix C)."""

    _target_: str = "dino_exp.dino.head.DINOHead"
    out_dim: int = number(65536, at_least=2, hint="1,024 to 262,144 in the paper; small data wants fewer")
    """K, the number of prototypes."""
    hidden_dim: int = number(2048, at_least=1)
    """Width of the hidden layers."""
    bottleneck_dim: int = number(256, at_least=1)
    """Width of the L2-normalized layer before the prototypes."""
    layers: int = number(3, at_least=1)
    """Linear layers up to the bottleneck."""
    use_bn: bool = False
    """Batch norm after each hidden layer."""
    norm_last_layer: bool = True
    """Keep the prototypes' gain at 1 (true), or train it (false). They are weight-normalized either way."""
    init: str = choice("trunc_normal", ["trunc_normal", "xavier", "xavier_centered"])
    """Initial weights: truncated normal of std 0.02 (the released code), Xavier uniform, or that less each
    output's mean weight (`xavier_centered`), so that the features of images start apart instead of alike."""
