"""The evaluation `attention`: figures of the class token's attention, and its overlap with masks."""

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
from dino_exp.data.file_sets import existing_path
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.attention import class_maps, videos
from dino_exp.eval.attention.attention_images import (
    DataSetImages,
    FileImages,
    MaskedImages,
    fit,
    image_files,
    images_at_once,
)
from dino_exp.eval.attention.attention_overlay import ImageMaps, plot_image, plot_sheet, side_by_side
from dino_exp.eval.attention.jaccard import OBJECT, Overlap, keep_mass
from dino_exp.eval.features import LONGEST
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed

MOST_FRAMES = 16
"""Most frames of a video in memory at once."""


class AttentionMaps:
    """Figures of attention and its overlap with masks.

    A single image gives <name>_attention.png with all heads; a folder or data set gives a sheet,
    attention.png; a video gives <name>_attention.mp4 (or .gif or .webp, like the source). Networks without
    class-token attention are shown by the norm of their features at each position.
    """

    def __init__(self, cfg: AttentionConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError if files are missing, or the network does not take images of this size."""
        if self.cfg.source is None:
            if self.cfg.masks is not None:
                raise UserError(
                    f"attention.masks = {self.cfg.masks}: also give the folder of the images as "
                    "attention.source."
                )
            _ = data.splits
        else:
            source = self._path("source", self.cfg.source)
            if source.is_file() and videos.is_video(source):
                self._check_video(source, subject)
            else:
                self._check_files(self._files(source, subject, 1))
        class_maps.map_stride(subject, self._side(subject))

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Draw the figures and compare with masks, on rank 0; other processes wait."""
        main, findings = distributed.is_main(), Findings()
        with distributed.agreed():
            if main:
                self._evaluate(subject, data, folder, findings)
        return findings

    def _evaluate(self, subject: Subject, data: LabeledData, folder: Path, findings: Findings) -> None:
        kind = class_maps.kind_of(subject.backbone)
        findings.details["maps"] = kind
        findings.notes.append(KINDS[kind])
        stride = class_maps.map_stride(subject, self._side(subject))
        if self.cfg.source is None:
            splits = data.splits
            source = splits.train if splits.test is None else splits.test
            images: MaskedImages = DataSetImages(source, subject, self._side(subject) // stride * stride)
        else:
            path = self._path("source", self.cfg.source)
            if path.is_file() and videos.is_video(path):
                self._draw_video(subject, path, stride, folder, findings)
                return
            images = self._files(path, subject, stride)
        self._overlap(subject, images, findings)
        self._draw(subject, images, folder, findings)
        if isinstance(images, FileImages) and images.strips:
            findings.notes.append(
                f"Cut off at {LONGEST} times the shorter side: {len(images.strips)} of {len(images)} images "
                f"({min(images.strips)})."
            )

    def _overlap(self, subject: Subject, images: MaskedImages, findings: Findings) -> None:
        overlap, asked = Overlap(self.cfg.mass), images.with_masks()
        for batch in images.batches(asked):
            found = class_maps.maps(subject, batch.images)
            for attention, mask in zip(found, batch.masks, strict=True):
                assert mask is not None
                overlap.add(attention, mask)
        if not asked:
            return
        if not len(overlap):
            raise UserError(f"None of {len(asked)} images is readable and has an object in its mask.")
        findings.figures.update(overlap.figures())
        findings.details.update(images=len(overlap), jaccard_by_head=overlap.by_head())
        for number, what in (
            (len(images) - len(asked) if self.cfg.masks else 0, f"no mask in {self.cfg.masks}"),
            (len(asked) - len(overlap) - overlap.empty, "unreadable"),
            (overlap.empty, "no object in the mask"),
        ):
            if number:
                findings.notes.append(f"Not in the overlap: {number} of {len(images)} images ({what}).")

    def _draw(self, subject: Subject, images: MaskedImages, folder: Path, findings: Findings) -> None:
        seen, features = [], []
        for batch in images.batches(evenly_spread(len(images), self.cfg.images)):
            found = class_maps.maps(subject, batch.images)
            for image, attention, mask in zip(batch.images, found, batch.masks, strict=True):
                maps = torch.cat([attention.mean(dim=0, keepdim=True), attention])
                features.append(class_maps.features_by_position(subject, image))
                seen.append((image, attention, keep_mass(maps, self.cfg.mass), mask))
        asked = min(self.cfg.images, len(images))
        if len(seen) < asked:
            findings.notes.append(f"{asked - len(seen)} of the {asked} images to draw could not be read.")
        if not seen:
            raise UserError(f"None of {len(images)} images could be read (the first: {images.name(0)}).")
        principal = class_maps.principal(features)
        shown = [
            ImageMaps(
                image,
                maps,
                kept,
                class_maps.in_colors(of_image, principal),
                mask == OBJECT if mask is not None else None,
            )
            for (image, maps, kept, mask), of_image in zip(seen, features, strict=True)
        ]
        kind = class_maps.kind_of(subject.backbone)
        note = (
            "Each map from 0 to its own maximum. Most of it: the patches that hold "
            f"{self.cfg.mass:.0%} of the map, others gray. Features: the first three principal components as "
            "red, green and blue."
        )
        single = self.cfg.source is not None and self._path("source", self.cfg.source).is_file()
        out = folder / (f"{Path(images.name(0)).stem}_attention.png" if single else "attention.png")
        caption = f"{kind.capitalize()}: {subject.name}"
        if single:
            plot_image(shown[0], out, kind=kind, note=note, caption=caption)
        else:
            plot_sheet(shown, out, kind=kind, note=note, caption=caption)
        findings.files.append(out)

    def _draw_video(
        self, subject: Subject, path: Path, stride: int, folder: Path, findings: Findings
    ) -> None:
        """Write the video of a video: a first pass stores the maps in a file, a second draws the frames.

        All frames have one color scale, from 0 to the median of the frames' maxima.
        """
        out = folder / f"{path.stem}_attention{videos.written_suffix(path)}"
        tops: list[float] = []
        with tempfile.TemporaryFile() as store:
            for frames in self._frames(subject, path, stride):
                means = class_maps.maps(subject, frames).mean(dim=1).nan_to_num()
                store.write(means.numpy().tobytes())
                tops += means.amax(dim=(1, 2)).tolist()
            store.seek(0)
            top = float(np.median(tops)) or 1.0
            grid = means.shape[1:]
            videos.write_like(path, out, self._drawn(subject, path, stride, store, grid, top))
        findings.files.append(out)
        findings.details["frames"] = len(tops)
        findings.notes.append(
            f"All frames have one color scale, from 0 to {top:.3g}, the median of the frames' maxima."
        )

    def _drawn(
        self, subject: Subject, path: Path, stride: int, store: IO[bytes], grid: torch.Size, top: float
    ) -> Iterator[np.ndarray]:
        for frames in self._frames(subject, path, stride):
            content = bytearray(store.read(4 * len(frames) * grid.numel()))
            yield from side_by_side(
                frames, torch.frombuffer(content, dtype=torch.float32).view(-1, *grid), top
            )

    def _frames(self, subject: Subject, path: Path, stride: int) -> Iterator[Tensor]:
        """Yield batches of frames as the network sees them, uint8 (B, C, H, W)."""
        frames = (self._frame(frame, subject, stride) for frame in videos.frames(path))
        for first in frames:
            more = min(MOST_FRAMES, images_at_once(subject, *first.shape[-2:])) - 1
            yield torch.stack([first, *islice(frames, more)])

    def _frame(self, frame: np.ndarray, subject: Subject, stride: int) -> Tensor:
        image = fit(torch.from_numpy(frame).permute(2, 0, 1), self._side(subject), stride)[0]
        return transforms.rgb_to_grayscale(image) if subject.channels == 1 else image

    def _side(self, subject: Subject) -> int:
        return self.cfg.image_size or subject.image_size

    def _files(self, source: Path, subject: Subject, stride: int) -> FileImages:
        masks = None if self.cfg.masks is None else self._path("masks", self.cfg.masks)
        base = source.parent if source.is_file() else source
        return FileImages(image_files(source), base, masks, subject.decoding, self._side(subject), stride)

    def _check_files(self, images: FileImages) -> None:
        if len(images) == 1:
            next(images.batches([0]))
        images.check_masks()
        if self.cfg.masks is not None and not images.with_masks():
            raise UserError(
                f"attention.masks = {self.cfg.masks}: no mask for any image of attention.source = "
                f"{self.cfg.source}; the mask of {images.name(0)} would be {Path(images.name(0)).stem}.png."
            )

    def _check_video(self, path: Path, subject: Subject) -> None:
        if self.cfg.masks is not None:
            raise UserError(
                f"attention.masks = {self.cfg.masks}: {path} is a video, but masks are for images."
            )
        if subject.channels not in (1, 3):
            raise UserError(
                f"attention.source = {path}: a video has 3 channels; the network takes {subject.channels}."
            )
        next(videos.frames(path))

    def _path(self, key: str, value: str) -> Path:
        kinds = "an image, a folder of images or a video" if key == "source" else "a folder of masks"
        return existing_path(f"attention.{key}", value, kinds)


KINDS = {
    class_maps.ATTENTION: "The maps are the attention of the last block's class token, one per head.",
    class_maps.FEATURE_NORM: "The network has no class-token attention that can be read. The maps, and the "
    "figures from them, are the L2 norm of its features at each position.",
}
