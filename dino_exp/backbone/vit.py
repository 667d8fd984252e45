"""Vision transformer with the released DINO code's parameter names, initialization and arithmetic.

Caron et al. 2021, `vision_transformer.py` of facebookresearch/dino; Dosovitskiy et al. 2021 for the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino_exp.backbone.initialization import initialize_linears
from dino_exp.errors import UserError

Shapes = tuple[tuple[int, int], ...]
"""Crops B and tokens of each crop N, of each resolution. The tokens of all are the rows of one matrix (T, D),
T = Σ B·N, in the order of resolution, crop, token; S = Σ B is the number of crops."""


def check_divisible(*, embed_dim: int, num_heads: int, image_size: int, patch_size: int) -> None:
    """Raise `UserError` unless heads divide the width, and patches the side of a global crop."""
    if embed_dim % num_heads:
        fitting = [heads for heads in range(1, embed_dim + 1) if embed_dim % heads == 0]
        nearest = min(fitting, key=lambda heads: abs(heads - num_heads))
        raise UserError(
            f"backbone.num_heads = {num_heads}: does not divide backbone.embed_dim = {embed_dim}; "
            f"the nearest that does is {nearest}."
        )
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        raise UserError(
            f"crops.global_size = {image_size}: not a multiple of backbone.patch_size = {patch_size}; "
            f"nearest are {below or patch_size} and {below + patch_size}."
        )


def by_resolution(rows: Tensor, shapes: Shapes) -> list[Tensor]:
    """Return the tokens of each resolution as views, (T, D) -> (B, N, D) each."""
    parts = rows.split([crops * tokens for crops, tokens in shapes]) if len(shapes) > 1 else (rows,)
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate the parts; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def class_tokens(tokens: Tensor, shapes: Shapes) -> Tensor:
    """Return the first token of each crop, (T, D) -> (S, D)."""
    return joined([part[:, 0] for part in by_resolution(tokens, shapes)])


def for_tokens(rows: Tensor, shapes: Shapes) -> Tensor:
    """Repeat numbers of crops for each of their tokens, (..., S) -> (..., T)."""
    parts = rows.split([crops for crops, _ in shapes], dim=-1)
    repeated = (part.unsqueeze(-1).expand(*part.shape, n) for part, (_, n) in zip(parts, shapes, strict=True))
    return joined([part.flatten(-2) for part in repeated], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q·k / √d)·v for (B, heads, N, d), by the fastest way on the device."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # PyTorch's fused kernel takes 3 to 8 times as long in this case (`benchmarks.step`).
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return weights.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention, with each head's d = D / heads dimensions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, shapes: Shapes, only_class: bool = False) -> Tensor:
        """Mix the tokens of each crop, (T, D) -> (T, D); with `only_class` return only the first, (S, D)."""
        if only_class:
            heads = self._of_class(x, shapes)
        else:
            qkv = by_resolution(self.qkv(x), shapes)
            heads = [tuple(map(self._split_heads, part.chunk(3, dim=-1))) for part in qkv]
        mixed = [attend(*each).transpose(1, 2).flatten(2).flatten(0, 1) for each in heads]
        return self.proj(joined(mixed))

    def class_weights(self, x: Tensor, shapes: Shapes) -> list[Tensor]:
        """Return the class token's attention to all tokens after softmax, (T, D) -> (B, heads, N) each."""
        found = []
        for query, key, _ in self._of_class(x, shapes):
            scores = (query @ key.transpose(-2, -1)).squeeze(2) * query.shape[-1] ** -0.5
            found.append(scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)))
        return found

    def _of_class(self, x: Tensor, shapes: Shapes) -> list[tuple[Tensor, ...]]:
        """Return the first token's query (B, heads, 1, d), and all keys and values (B, heads, N, d)."""
        dim, weight, bias = x.shape[1], self.qkv.weight, self.qkv.bias
        queries = F.linear(class_tokens(x, shapes), weight[:dim], bias[:dim])
        keys_and_values = F.linear(x, weight[dim:], bias[dim:])
        found = []
        for query, part in zip(
            by_resolution(queries, tuple((crops, 1) for crops, _ in shapes)),
            by_resolution(keys_and_values, shapes),
            strict=True,
        ):
            found.append(tuple(map(self._split_heads, (query, *part.chunk(2, dim=-1)))))
        return found

    def _split_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, N, D) -> (B, heads, N, d)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token, (B, N, D) -> (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each as a residual branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, shapes: Shapes, factors: Tensor | None = None, only_class: bool = False
    ) -> Tensor:
        """Transform the tokens of all crops, (T, D) -> (T, D); with `only_class` only the first, (S, D).

        `factors` (2, T, 1), with `only_class` (2, S, 1), multiply the two branches, if given.
        """
        attention, mlp = factors if factors is not None else (None, None)
        branch = self.attn(self.norm1(x), shapes, only_class)
        x = class_tokens(x, shapes) if only_class else x
        x = x + (branch if attention is None else branch * attention)
        branch = self.mlp(self.norm2(x))
        return x + (branch if mlp is None else branch * mlp)


class PatchEmbed(nn.Module):
    """Patch embedding: one convolution (`stem = patch`), or a small convolutional network (`stem = conv`).

    `conv` (Xiao et al. 2021) has 3x3 convolutions with batch norm and ReLU, with stride 2 until the patch
    size is reached and one more with stride 1 after the first, then a 1x1 convolution to D dimensions. The
    last 3x3 convolution has 3/4·D channels, and each stage before it half as many as the next.
    `conv_group_norm` has group norm (Wu and He 2018) in place of batch norm, with 8 groups where they divide
    the width: no statistics over the batch, so that the teacher has none that lag behind its weights.
    """

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int, stem: str) -> None:
        super().__init__()
        if stem == "patch":
            self.stem = None
            self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        else:
            norm = group_norm if stem == "conv_group_norm" else nn.BatchNorm2d
            self.stem = conv_stem(patch_size, in_channels, embed_dim, norm)
            self.proj = nn.Conv2d(conv_stem_widths(patch_size, embed_dim)[-1], embed_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches, (B, C, H, W) -> (B, h*w, D) with h = H / patch_size, w = W / patch_size."""
        if self.stem is not None:
            x = self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.proj(x).flatten(2).transpose(1, 2)


def conv_stem_widths(patch_size: int, embed_dim: int) -> list[int]:
    """Return the channels of each stride-2 stage of the convolutional stem; [24, 48] for patch 4, D = 64."""
    stages = patch_size.bit_length() - 1
    return [max(8, embed_dim * 3 // (4 << (stages - 1 - stage))) for stage in range(stages)]


def group_norm(width: int) -> nn.GroupNorm:
    """Build a group norm of 8 groups, or as many as divide the width."""
    return nn.GroupNorm(math.gcd(8, width), width)


def conv_stem(
    patch_size: int, in_channels: int, embed_dim: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """Build the 3x3 convolutions of the convolutional stem, (B, C, H, W) -> (B, width, h, w).

    Raises `UserError` unless the patch size is a power of two.
    """
    if patch_size < 2 or patch_size & (patch_size - 1):
        below = 1 << (patch_size.bit_length() - 1)
        raise UserError(
            f"backbone.patch_size = {patch_size}: backbone.stem = conv halves the image step by step and "
            f"needs a power of two; nearest are {max(2, below)} and {max(4, 2 * below)}."
        )
    layers: list[nn.Module] = []
    width = in_channels
    for stage, next_width in enumerate(conv_stem_widths(patch_size, embed_dim)):
        for stride in (2, 1) if stage == 0 else (2,):
            layers += [
                nn.Conv2d(width, next_width, kernel_size=3, stride=stride, padding=1, bias=False),
                norm(next_width),
                nn.ReLU(inplace=True),
            ]
            width = next_width
    return nn.Sequential(*layers)


class VisionTransformer(nn.Module):
    """Vision transformer; its feature is the class token after the final norm.

    Accepts any image size that is a multiple of the patch: the position embedding, stored for `image_size`
    (the side of a global crop in pixels), is interpolated as in the released code. The rate of stochastic
    depth grows linearly from 0 in the first block to `drop_path_rate` in the last.
    """

    keep: Tensor | None
    """(2·depth, 1), the share of crops that keep each branch; None without stochastic depth."""

    def __init__(
        self,
        *,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        stem: str = "patch",
        init: str = "trunc_normal",
        in_channels: int = 3,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        check_divisible(
            embed_dim=embed_dim, num_heads=num_heads, image_size=image_size, patch_size=patch_size
        )
        self.checkpoint_blocks = False
        self.patch_size = patch_size
        self.feature_dim = embed_dim
        self.grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, stem)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        keep = 1 - torch.linspace(0, drop_path_rate, depth).repeat_interleave(2).unsqueeze(1)
        self.register_buffer("keep", keep if drop_path_rate > 0 else None, persistent=False)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        initialize_linears(self, init)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the class token after the final norm, (B, C, H, W) -> (B, D).

        Images of several sizes, each (B, C, H, W), share a pass, and the result (S, D) has their order: norms
        and linear layers see the tokens of all crops as one matrix, attention those of one size at a time.
        Nothing depends on the last block's other tokens, so it computes only the class tokens.
        """
        x, shapes = self._embedded([images] if isinstance(images, Tensor) else images)
        factors = self.branch_factors(shapes)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = self._run(block, x, shapes, None if factors is None else factors[number], number == last)
        return self.norm(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass, which recomputes the rest.

        Named as in timm's models.
        """
        self.checkpoint_blocks = enable

    def class_attention(self, x: Tensor) -> Tensor:
        """Return the last block's attention of the class token to patches, (B, C, H, W) -> (B, heads, h, w).

        Softmax values, in float32 at least. They sum to less than 1, because the attention of the class token
        to itself is not included.
        """
        grid = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        x, shapes = self._embedded([x])
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, shapes)
        last = cast(Block, last)
        (weights,) = last.attn.class_weights(last.norm1(x), shapes)
        return weights[:, :, 1:].unflatten(2, grid)

    def intermediate_tokens(self, x: Tensor, n: int) -> list[Tensor]:
        """Return all tokens after each of the last `n` blocks, first to last, each (B, 1 + h*w, D).

        The final norm is applied to each, as in the released linear evaluation; stochastic depth is not.
        """
        x, shapes = self._embedded([x])
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x, shapes)
            if index >= len(self.blocks) - n:
                outputs.append(self.norm(x).unflatten(0, shapes[0]))
        return outputs

    def branch_factors(self, shapes: Shapes) -> list[Tensor] | None:
        """Draw stochastic depth (Huang et al. 2016): the factors of each block's two branches, (2, T, 1).

        A crop's branch is dropped entirely, 0, or kept and scaled up, 1 / keep. The last block's are those of
        class tokens, (2, S, 1). None in eval mode and at a rate of 0. One call draws all of a pass: a rate
        inside the blocks would make each of them another program to `torch.compile`.
        """
        if self.keep is None or not self.training:
            return None
        # float32 at least, as `keep` is: 1 / keep rounded to a half type would bias every kept branch
        rows = torch.bernoulli(self.keep.expand(-1, sum(crops for crops, _ in shapes))) / self.keep
        of_crops = rows.unflatten(0, (-1, 2)).unsqueeze(-1)
        of_tokens = for_tokens(rows, shapes).unflatten(0, (-1, 2)).unsqueeze(-1)
        return [*of_tokens[:-1], of_crops[-1]]

    def _run(self, block: nn.Module, *arguments: Tensor | Shapes | bool | None) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            # blocks draw no random numbers, so their state need not be kept
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    def _embedded(self, images: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
        """Return the tokens of all images as one matrix, and the shapes of the resolutions.

        The patches are embedded by resolution: convolutions need images, and the batch norms of `stem = conv`
        have the statistics of one resolution, as those of the released code's backbones.
        """
        parts = [self.tokens(each) for each in images]
        shapes = tuple((part.shape[0], part.shape[1]) for part in parts)
        return joined([part.flatten(0, 1) for part in parts]), shapes

    def tokens(self, x: Tensor) -> Tensor:
        """Embed class token and patches and add their positions, (B, C, H, W) -> (B, 1 + h*w, D)."""
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        patches = self.patch_embed(x)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat((cls, patches + self.patch_positions(height, width)), dim=1)

    def patch_positions(self, height: int, width: int) -> Tensor:
        """Return the patches' position embedding for a grid of `height` x `width`, (1, height*width, D)."""
        stored = self.pos_embed[:, 1:]
        return stored if height == width == self.grid else resize_positions(stored, height, width)


def resize_positions(stored: Tensor, height: int, width: int) -> Tensor:
    """Resize the position embedding of N x N patches, (1, N², D) -> (1, height*width, D).

    Bicubic without antialiasing, with the scale factor (n + 0.1) / N for a side of n patches, as in the
    released code. The 0.1 was added there against a rounding error, and trained weights now depend on it:
    resizing to the target size gives another network.
    """
    grid = math.isqrt(stored.shape[1])
    image = stored.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / grid, (width + 0.1) / grid)
    resized = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=False)
    if resized.shape[-2:] != (height, width):
        raise ValueError(
            f"position embedding of {grid}x{grid} became {tuple(resized.shape[-2:])}, not {height}x{width}"
        )
    return resized.flatten(2).transpose(1, 2)
