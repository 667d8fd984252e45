"""Sheets of images: attention maps, and crops."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dino_exp.plots.png import DPI, INK, QUIET, save

MOST_HEADS = 6


def plot_attention(
    images: Tensor,
    maps: Tensor,
    masks: Tensor | None,
    untrained_maps: Tensor | None,
    out: Path,
    *,
    caption: str = "",
) -> None:
    """Save `attention_figure` as a PNG."""
    save(attention_figure(images, maps, masks, untrained_maps, caption=caption), out)


def attention_figure(
    images: Tensor, maps: Tensor, masks: Tensor | None, untrained_maps: Tensor | None, *, caption: str = ""
) -> Figure:
    """Return a row per image: image, mask outline, mean attention untrained and now, attention of each head.

    images uint8 (N, C, H, W); maps (N, heads, h, w), per patch or at the image's size; masks (N, H, W),
    bool or shares; untrained_maps like maps. About 8 images and `MOST_HEADS` heads fit on a sheet.
    """
    heads = min(maps.shape[1], MOST_HEADS) if maps.shape[1] > 1 else 0
    titles = ["image"]
    titles += ["object"] if masks is not None else []
    titles += ["attention,\nuntrained"] if untrained_maps is not None else []
    titles += ["attention,\nnow"] + [f"head {head + 1}" for head in range(heads)]
    scale = "each map from 0 to its own maximum"
    if untrained_maps is not None:
        scale = "untrained and now on one scale per image, from 0; each head from 0 to its own maximum"
    figure, grid = _sheet(len(images), titles, caption, scale + channel_note(images))
    size = tuple(images.shape[-2:])
    for row, image in enumerate(images):
        cells = iter(grid[row])
        draw_image(next(cells), image)
        if masks is not None:
            outline(draw_image(next(cells), image), masks[row])
        now = maps[row].mean(dim=0)
        top = top_of(now)
        if untrained_maps is not None:
            untrained = untrained_maps[row].mean(dim=0)
            top = max(top, top_of(untrained))
            heat(next(cells), untrained, size, top)
        heat(next(cells), now, size, top)
        for head in range(heads):
            heat(next(cells), maps[row, head], size, top_of(maps[row, head]))
    return figure


def plot_crops(
    rows: Sequence[tuple[Tensor, Sequence[Tensor]]],
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    note: str = "",
) -> None:
    """Save `crops_figure` as a PNG."""
    save(crops_figure(rows, mean=mean, std=std, note=note), out)


def crops_figure(
    rows: Sequence[tuple[Tensor, Sequence[Tensor]]],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    note: str = "",
) -> Figure:
    """Return a row per image: the image, uint8 (C, H, W), and its augmented crops, (C, h, w).

    Crops are uint8 or float; float crops are normalized by mean and std, or in 0–1 without these.
    The largest crops are titled global, all others local. The note is printed below.
    """
    crops = rows[0][1]
    largest = max((crop.shape[-1] for crop in crops), default=0)
    titles, numbers = ["image"], {"global": 0, "local": 0}
    for crop in crops:
        kind = "global" if crop.shape[-1] == largest else "local"
        numbers[kind] += 1
        titles.append(f"{kind} {numbers[kind]}\n{crop.shape[-1]} px")
    figure, grid = _sheet(len(rows), titles, "", (note + channel_note(rows[0][0][None])).lstrip("; "))
    for cells, (image, its_crops) in zip(grid, rows, strict=True):
        draw_image(cells[0], image)
        for cell, crop in zip(cells[1:], its_crops, strict=True):
            draw_image(cell, _as_bytes(crop, mean, std))
    return figure


def _as_bytes(crop: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    if not crop.is_floating_point():
        return crop
    if mean is not None and std is not None:
        crop = crop.cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (crop.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _sheet(rows: int, titles: Sequence[str], caption: str, note: str) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty sheet of square cells, with titles over the first row, a caption and a note."""
    cell = min(max(1.3, 5.8 / len(titles)), 2.2)
    width = max(cell * len(titles) + 0.2, 6.0)
    caption = textwrap.fill(caption, int(width * 11.5))
    header = 0.5 + 0.21 * (caption.count("\n") + 1 if caption else 0)
    note = textwrap.fill(note, int(width * 13))
    footer = 0.3 + 0.15 * note.count("\n") if note else 0.1
    height = cell * rows + header + footer
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    grid = figure.add_gridspec(
        rows,
        len(titles),
        left=0.1 / width,
        right=1 - 0.1 / width,
        bottom=footer / height,
        top=1 - header / height,
        wspace=0.06,
        hspace=0.06,
    )
    axes = [
        # ticks would take most of the sheet's time, though nobody sees them
        [figure.add_subplot(grid[row, column], xticks=[], yticks=[]) for column in range(len(titles))]
        for row in range(rows)
    ]
    for cell_axes in figure.axes:
        cell_axes.set_axis_off()
    for cell_axes, title in zip(axes[0], titles, strict=True) if rows else ():
        cell_axes.set_title(title, fontsize=9.5, color=INK, pad=4)
    if caption:
        figure.suptitle(caption, fontsize=11, color=INK, y=1 - 0.1 / height, va="top", parse_math=False)
    if note:
        figure.text(0.1 / width, 0.08 / height, note, fontsize=8.5, color=QUIET, va="bottom")
    return figure, axes


def draw_image(axes: Axes, image: Tensor) -> Axes:
    """Draw an image, uint8 (C, H, W): one channel in gray, two as red and cyan, of more the first three."""
    image = image.cpu()
    if image.shape[0] == 2:
        image = image[[0, 1, 1]]
    pixels = image[0] if image.shape[0] == 1 else image[:3].permute(1, 2, 0)
    # Small images stay crisp squares; large ones are reduced without aliasing.
    interpolation = "nearest" if max(pixels.shape[:2]) <= 96 else "antialiased"
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255, interpolation=interpolation)
    return axes


def channel_note(images: Tensor) -> str:
    """Return how channels other than RGB and gray are shown, for a caption; empty for those."""
    channels = images.shape[1]
    if channels == 2:
        return "; channel 1 is red, channel 2 cyan"
    return f"; channels 1–3 of {channels} are shown as red, green, blue" if channels > 3 else ""


def top_of(values: Tensor) -> float:
    """Return the upper end of a color scale for attention values."""
    return values.float().nan_to_num().max().item() or 1.0


def heat(axes: Axes, values: Tensor, size: tuple[int, ...], top: float) -> None:
    """Draw attention (h, w) in colors from 0 to top, stretched over an image of (H, W) pixels."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    pixels = values.float().cpu().numpy()
    axes.imshow(pixels, cmap="viridis", vmin=0, vmax=top, interpolation="nearest", extent=extent)


def outline(axes: Axes, mask: Tensor) -> None:
    """Draw the border of a mask along pixel edges, white on black so that it shows on any image."""
    inside = (mask.float().cpu() > 0.5).float()
    if not inside.any() or inside.all():
        return
    height, width = inside.shape
    fine = inside.repeat_interleave(8, 0).repeat_interleave(8, 1) if max(height, width) <= 96 else inside
    rows, columns = fine.shape
    y = (torch.arange(rows) + 0.5) * height / rows - 0.5
    x = (torch.arange(columns) + 0.5) * width / columns - 0.5
    for color, thickness in (("black", 2.6), ("white", 1.2)):
        axes.contour(x.numpy(), y.numpy(), fine.numpy(), levels=[0.5], colors=[color], linewidths=thickness)
