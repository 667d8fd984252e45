"""The evaluation `attention`: where the class token looks, in images, and the overlap with masks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from dino_exp.config.evaluation_schema import AttentionConfig
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.attention import class_maps, videos
from dino_exp.eval.attention.attention_images import (
    FileImages,
    Images,
    SetImages,
    fit,
    image_files,
    together,
)
from dino_exp.eval.attention.attention_overlay import Seen, plot_image, plot_sheet, side_by_side
from dino_exp.eval.attention.jaccard import OBJECT, Overlap, keep_mass
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed

MOST_FRAMES = 16
"""Frames of a video in memory at once."""


class AttentionMaps:
    """Fields as in `AttentionConfig`.

    A single image gives <name>_attention.png with all heads, a folder or data set a sheet, attention.png, a
    video <name>_attention.mp4 (GIF and WebP stay what they are). Networks without class-token attention are
    shown by the length of their features at each place.
    """

    def __init__(self, cfg: AttentionConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Look for the files, and try the network at the size."""
        if self.cfg.source is None:
            if self.cfg.masks is not None:
                raise UserError(
                    f"attention.masks = {self.cfg.masks}: give the folder of their images as attention.source."
                )
            _ = data.splits
        else:
            source = self._place("source", self.cfg.source)
            if source.is_file() and videos.is_video(source):
                self._check_video(source, subject)
            else:
                self._check_files(self._files(source, subject, 1))
        class_maps.place_size(subject, self._side(subject))

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Rank 0 does it all; the others wait for it."""
        main, findings = distributed.is_main(), Findings()
        with distributed.agreed():
            if main:
                self._evaluate(subject, data, folder, findings)
        return findings

    def _evaluate(self, subject: Subject, data: LabeledData, folder: Path, findings: Findings) -> None:
        kind = class_maps.kind_of(subject.backbone)
        findings.details["maps"] = kind
        findings.notes.append(KINDS[kind])
        unit = class_maps.place_size(subject, self._side(subject))
        if self.cfg.source is None:
            splits = data.splits
            source = splits.train if splits.test is None else splits.test
            images: Images = SetImages(source, subject, self._side(subject) // unit * unit)
        else:
            place = self._place("source", self.cfg.source)
            if place.is_file() and videos.is_video(place):
                self._film(subject, place, unit, folder, findings)
                return
            images = self._files(place, subject, unit)
        self._overlap(subject, images, findings)
        self._draw(subject, images, folder, findings)

    def _overlap(self, subject: Subject, images: Images, findings: Findings) -> None:
        overlap, asked = Overlap(self.cfg.mass), images.with_masks()
        for batch in images.batches(asked):
            found = class_maps.maps(subject, batch.images)
            for attention, mask in zip(found, batch.masks, strict=True):
                assert mask is not None
                overlap.add(attention, mask)
        if not asked:
            return
        if not len(overlap):
            raise UserError(f"None of {len(asked)} images could be read and has an object in its mask.")
        findings.figures.update(overlap.figures())
        findings.details.update(images=len(overlap), jaccard_by_head=overlap.by_head())
        for number, what in (
            (len(images) - len(asked) if self.cfg.masks else 0, f"without a mask in {self.cfg.masks}"),
            (len(asked) - len(overlap) - overlap.empty, "that cannot be read"),
            (overlap.empty, "whose mask shows no object"),
        ):
            if number:
                findings.notes.append(f"Left out of the overlap: {number} of {len(images)} images {what}.")

    def _draw(self, subject: Subject, images: Images, folder: Path, findings: Findings) -> None:
        seen, features = [], []
        for batch in images.batches(evenly_spread(len(images), self.cfg.images)):
            found = class_maps.maps(subject, batch.images)
            for image, attention, mask in zip(batch.images, found, batch.masks, strict=True):
                maps = torch.cat([attention.mean(dim=0, keepdim=True), attention])
                features.append(class_maps.place_features(subject, image))
                seen.append((image, attention, keep_mass(maps, self.cfg.mass), mask))
        asked = min(self.cfg.images, len(images))
        if len(seen) < asked:
            findings.notes.append(f"{asked - len(seen)} of the {asked} images to draw could not be read.")
        if not seen:
            raise UserError(f"None of {len(images)} images could be read (the first: {images.name(0)}).")
        axes = class_maps.principal(features)
        shown = [
            Seen(
                image,
                maps,
                kept,
                class_maps.in_colors(places, axes),
                mask == OBJECT if mask is not None else None,
            )
            for (image, maps, kept, mask), places in zip(seen, features, strict=True)
        ]
        kind = class_maps.kind_of(subject.backbone)
        note = (
            f"Maps from 0 to their own maximum; most of it: the patches that hold {self.cfg.mass:.0%} of it, the "
            "others gray; features: their first three principal components as red, green and blue."
        )
        single = self.cfg.source is not None and self._place("source", self.cfg.source).is_file()
        out = folder / (f"{Path(images.name(0)).stem}_attention.png" if single else "attention.png")
        caption = f"{kind.capitalize()}: {subject.name}"
        if single:
            plot_image(shown[0], out, kind=kind, note=note, caption=caption)
        else:
            plot_sheet(shown, out, kind=kind, note=note, caption=caption)
        findings.files.append(out)

    def _film(self, subject: Subject, path: Path, unit: int, folder: Path, findings: Findings) -> None:
        """Twice through the video: for the maps, which wait in a file, and for the images.

        The colors of all frames mean the same: from 0 to the median over the frames of a frame's maximum.
        """
        out = folder / f"{path.stem}_attention{videos.written_suffix(path)}"
        tops: list[float] = []
        with tempfile.TemporaryFile() as store:
            for frames in self._frames(subject, path, unit):
                means = class_maps.maps(subject, frames).mean(dim=1).nan_to_num()
                store.write(means.numpy().tobytes())
                tops += means.amax(dim=(1, 2)).tolist()
            store.seek(0)
            top = float(np.median(tops)) or 1.0
            grid = means.shape[1:]
            videos.write_like(path, out, self._drawn(subject, path, unit, store, grid, top))
        findings.files.append(out)
        findings.details["frames"] = len(tops)
        findings.notes.append(
            f"One color scale for the whole video: from 0 to {top:.3g}, the median of the frames' maxima."
        )

    def _drawn(
        self, subject: Subject, path: Path, unit: int, store: IO[bytes], grid: torch.Size, top: float
    ) -> Iterator[np.ndarray]:
        for frames in self._frames(subject, path, unit):
            content = bytearray(store.read(4 * len(frames) * grid.numel()))
            yield from side_by_side(
                frames, torch.frombuffer(content, dtype=torch.float32).view(-1, *grid), top
            )

    def _frames(self, subject: Subject, path: Path, unit: int) -> Iterator[Tensor]:
        """Frames as the network sees them, uint8 (B, C, H, W)."""
        frames = (self._frame(frame, subject, unit) for frame in videos.frames(path))
        for first in frames:
            more = min(MOST_FRAMES, together(subject, *first.shape[-2:])) - 1
            yield torch.stack([first, *islice(frames, more)])

    def _frame(self, frame: np.ndarray, subject: Subject, unit: int) -> Tensor:
        image = fit(torch.from_numpy(frame).permute(2, 0, 1), self._side(subject), unit)[0]
        return transforms.rgb_to_grayscale(image) if subject.channels == 1 else image

    def _side(self, subject: Subject) -> int:
        return self.cfg.image_size or subject.image_size

    def _files(self, source: Path, subject: Subject, unit: int) -> FileImages:
        masks = None if self.cfg.masks is None else self._place("masks", self.cfg.masks)
        base = source.parent if source.is_file() else source
        return FileImages(image_files(source), base, masks, subject.channels, self._side(subject), unit)

    def _check_files(self, images: FileImages) -> None:
        if len(images) == 1:
            next(images.batches([0]))
        images.check_masks()
        if self.cfg.masks is not None and not images.with_masks():
            raise UserError(
                f"attention.masks = {self.cfg.masks}: no mask of any image of attention.source = "
                f"{self.cfg.source}; that of {images.name(0)} would be {Path(images.name(0)).stem}.png."
            )

    def _check_video(self, path: Path, subject: Subject) -> None:
        if self.cfg.masks is not None:
            raise UserError(
                f"attention.masks = {self.cfg.masks}: {path} is a video, and masks are for images."
            )
        if subject.channels not in (1, 3):
            raise UserError(
                f"attention.source = {path}: a video has 3 channels; the network takes {subject.channels}."
            )
        next(videos.frames(path))

    def _place(self, key: str, value: str) -> Path:
        path = Path(value).expanduser()
        if not path.exists():
            kinds = "an image, a folder of images or a video" if key == "source" else "a folder of masks"
            raise UserError(f"attention.{key} = {value}: there is nothing; give {kinds}.")
        return path


KINDS = {
    class_maps.ATTENTION: "The maps are the attention of the last block's class token, of each head.",
    class_maps.FEATURE_NORM: "The network has no class token whose attention can be read: the maps, and what "
    "is computed of them, are the length (L2 norm) of its features at each place.",
}
