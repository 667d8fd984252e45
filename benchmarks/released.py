"""The released recipe written out: networks, loss, schedules and step in the plain form of its authors' code.

Nothing here is from dino_exp but the configuration, from which the values are read. Names of parameters are
the released code's. AdamW and no stochastic depth, because the study that uses it (`benchmarks.parity`) has
no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.plain import attention, clip_one_by_one, pairwise_loss, update_one_by_one


class Attention(nn.Module):
    """Multi-head self-attention with the entire matrix of weights."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(attention(query, key, value).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """One convolution per patch."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Vision transformer, (B, C, H, W) -> class token after the final norm (B, D)."""

    def __init__(self, node: Any, in_channels: int, image_size: int) -> None:
        super().__init__()
        dim, self.patch_size = node.embed_dim, node.patch_size
        self.feature_dim = dim
        self.patch_embed = PatchEmbed(node.patch_size, in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // node.patch_size) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, node.num_heads, node.mlp_ratio) for _ in range(node.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(initialize)

    def positions(self, patches: int, width: int, height: int) -> Tensor:
        """Return the position embedding of class token and patches, interpolated for other sizes."""
        stored = self.pos_embed.shape[1] - 1
        if patches == stored and width == height:
            return self.pos_embed
        side, dim = math.isqrt(stored), self.pos_embed.shape[-1]
        w, h = width // self.patch_size + 0.1, height // self.patch_size + 0.1
        grid = self.pos_embed[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=(w / side, h / side), mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, dim)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, width, height = x.shape
        patches = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), patches), dim=1)
        x = x + self.positions(patches.shape[1], width, height)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Head(nn.Module):
    """Three linear layers, L2 normalization, and prototypes with weight norm."""

    def __init__(self, node: Any, in_dim: int) -> None:
        super().__init__()
        hidden = node.hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, node.bottleneck_dim),
        )
        self.apply(initialize)
        self.last_layer = weight_norm(nn.Linear(node.bottleneck_dim, node.out_dim, bias=False))
        gain = self.last_layer.parametrizations.weight.original0
        gain.data.fill_(1)
        gain.requires_grad = not node.norm_last_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))


def initialize(module: nn.Module) -> None:
    """Fill a linear layer as the released code does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class MultiCropWrapper(nn.Module):
    """Backbone once per resolution, head once for all crops."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        channels = cfg.data.channels
        if "embed_dim" in cfg.backbone:
            self.backbone: nn.Module = VisionTransformer(cfg.backbone, channels, cfg.crops.global_size)
            feature_dim = cfg.backbone.embed_dim
        else:
            self.backbone = timm.create_model(cfg.backbone.name, num_classes=0, in_chans=channels)
            feature_dim = self.backbone.num_features
        self.head = Head(cfg.head, feature_dim)

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        sizes = torch.tensor([crop.shape[-1] for crop in crops])
        ends = torch.cumsum(torch.unique_consecutive(sizes, return_counts=True)[1], 0).tolist()
        starts = [0, *ends[:-1]]
        features = [
            self.backbone(torch.cat(list(crops[start:end]))) for start, end in zip(starts, ends, strict=True)
        ]
        return self.head(torch.cat(features))


def cosine_scheduler(
    base: float, final: float, epochs: int, per_epoch: int, warmup_epochs: float = 0
) -> np.ndarray:
    """Return the value of each step."""
    warmup = np.linspace(0, base, round(warmup_epochs * per_epoch))
    steps = np.arange(epochs * per_epoch - len(warmup))
    return np.concatenate((warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))))


def params_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters with weight decay, and biases and one-dimensional ones without."""
    regularized: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.endswith(".bias") or len(parameter.shape) == 1
            (others if plain else regularized).append(parameter)
    return [{"params": regularized}, {"params": others, "weight_decay": 0.0}]


def cancel_gradients_last_layer(epoch: int, model: nn.Module, freeze_last_layer: int) -> None:
    """Remove the last layer's gradients in the first epochs."""
    if epoch >= freeze_last_layer:
        return
    for name, parameter in model.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


class ReleasedTraining:
    """Student, teacher, center, and everything that moves them.

    Args:
        cfg: a composed configuration, of which the values are taken.
        per_epoch: steps per epoch.
    """

    def __init__(self, cfg: Any, per_epoch: int) -> None:
        loss, ema, optimizer, epochs = cfg.loss, cfg.ema, cfg.optimizer, cfg.trainer.epochs
        self.cfg, self.per_epoch, self.step_number = cfg, per_epoch, 0
        self.student, self.teacher = MultiCropWrapper(cfg), MultiCropWrapper(cfg)
        self.teacher.load_state_dict(self.student.state_dict())
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.center = torch.zeros(1, cfg.head.out_dim)
        self.temperatures = np.concatenate(
            (
                np.linspace(
                    loss.warmup_teacher_temp, loss.teacher_temp, warm := loss.warmup_teacher_temp_epochs
                ),
                np.ones(epochs - warm) * loss.teacher_temp,
            )
        )
        self.optimizer = torch.optim.AdamW(params_groups(self.student))
        self.lr = cosine_scheduler(
            optimizer.lr * cfg.trainer.batch_size / 256,
            optimizer.min_lr,
            epochs,
            per_epoch,
            optimizer.warmup_epochs,
        )
        self.weight_decay = cosine_scheduler(
            optimizer.weight_decay, optimizer.final_weight_decay, epochs, per_epoch
        )
        self.momentum = cosine_scheduler(ema.momentum, ema.final_momentum, epochs, per_epoch)

    def step(self, crops: Sequence[Tensor]) -> float:
        """Make one step with the crops (B, C, S, S), the two global ones first; return the loss."""
        step, cfg = self.step_number, self.cfg
        epoch = step // self.per_epoch
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.lr[step]
            if number == 0:
                group["weight_decay"] = self.weight_decay[step]
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.trainer.precision == "bf16"):
            teacher = full_precision(self.teacher(crops[:2]))
            student = full_precision(self.student(crops))
        probabilities = F.softmax((teacher - self.center) / self.temperatures[epoch], dim=-1)
        loss = pairwise_loss(student, probabilities, cfg.loss.student_temp)
        m = cfg.loss.center_momentum
        self.center = self.center * m + teacher.mean(dim=0, keepdim=True) * (1 - m)
        self.optimizer.zero_grad()
        loss.backward()
        clip_one_by_one(self.student.parameters(), cfg.optimizer.clip_grad)
        cancel_gradients_last_layer(epoch, self.student, cfg.optimizer.freeze_last_layer_epochs)
        self.optimizer.step()
        update_one_by_one(self.teacher.parameters(), self.student.parameters(), self.momentum[step])
        self.step_number += 1
        return loss.item()


def full_precision(logits: Tensor) -> Tensor:
    """Return the logits of an autocast region in float32, in which loss and center are computed."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits
