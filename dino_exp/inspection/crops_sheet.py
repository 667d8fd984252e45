"""A sheet of crops of a set of images, by the released scales."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dino_exp.console import Console
from dino_exp.data.crops import MultiCrop
from dino_exp.data.file_sets import absolute_path
from dino_exp.data.stored_values import stored_values
from dino_exp.errors import in_words, warn
from dino_exp.inspection.image_choices import Sides
from dino_exp.inspection.measured import Measured
from dino_exp.inspection.measuring import Inspection
from dino_exp.machine import Hardware
from dino_exp.plots.sheets import plot_crops
from dino_exp.seeding import generator

LOCAL_CROPS = 4
"""Local crops that are shown; a training may cut more."""
SHOWN_PIXELS = 512
"""Longer side of an image on the sheet."""


def write_sheet(inspection: Inspection, console: Console) -> None:
    """Write the sheet of crops and print where it is, or why there is none."""
    out = sheet_path(inspection.measured.place)
    if out is None:
        warn(["No sheet of crops: this is the folder of the images, to which nothing is written."])
        return
    try:
        sides = Sides.fitting(inspection.measured, Hardware.here())
        draw(inspection, (sides.crop, sides.local), out)
    except OSError as error:
        warn([f"No sheet of crops: {in_words(error)}."])
        return
    console.print(f"Global and local crops as the released recipe would cut them: {out}", soft_wrap=True)


def sheet_path(place: str) -> Path | None:
    """Return where the sheet of the images at a path is written; None where that is in their own folder.

    It is below the folder that the program is started in.
    """
    path = absolute_path(place)
    here = Path.cwd()
    if path == here or path in here.parents:
        return None
    name = re.sub(r"[^\w.-]+", "_", "_".join(path.parts[-2:])).strip("_.") or "images"
    return Path("outputs", "inspect", f"{name}.png")


def draw(inspection: Inspection, sizes: tuple[int, int], out: Path) -> None:
    """Write a row of crops for each of some images.

    sizes: sides of global and of local crops in pixels.
    """
    crops = MultiCrop(
        global_size=sizes[0],
        global_scale=[0.4, 1.0],
        local_size=sizes[1],
        local_number=LOCAL_CROPS,
        local_scale=[0.05, 0.4],
    )
    rows = []
    for index in inspection.examples:
        image = _as_bytes(stored_values(inspection.source.encoded(index)).values, inspection.measured)
        uniform = generator(0, 0, index).random((len(crops), MultiCrop.uniforms))
        cut = crops.cut(image, crops.boxes(uniform, *image.shape[1:]))
        rows.append((_reduced(image), cut))
    note = "random global and local crops by the released scales, before flips and changes of color"
    if inspection.measured.value_range is not None:
        note += "; values from percentile 0.1 (black) to 99.9 (white) of each channel"
    plot_crops(rows, out, note=note)


def _as_bytes(values: np.ndarray, measured: Measured) -> torch.Tensor:
    """Return an image (H, W, C) as uint8 (C, H, W)."""
    ranges = measured.value_range
    if ranges is not None:
        low, high = np.array(ranges).T
        scaled = (np.nan_to_num(values.astype(np.float64)) - low) / (high - low)
        values = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).permute(2, 0, 1)


def _reduced(image: torch.Tensor) -> torch.Tensor:
    factor = -(-max(image.shape[1:]) // SHOWN_PIXELS)
    if factor == 1:
        return image
    height, width = (max(1, side // factor) for side in image.shape[1:])
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
