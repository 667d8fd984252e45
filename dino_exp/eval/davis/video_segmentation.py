"""Objects tracked through videos by patch similarity: DAVIS 2017, semi-supervised (the paper's Table 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dino_exp.atomic import write_atomically
from dino_exp.backbone.tokens import spatial_features
from dino_exp.config.evaluation_schema import VideoSegmentationConfig
from dino_exp.data.file_sets import existing_path
from dino_exp.data.image_scan import images_in
from dino_exp.data.pillow_files import opened_image
from dino_exp.data.source import CorruptImageError, read_image
from dino_exp.errors import UserError
from dino_exp.eval.davis.label_propagation import label_map, propagate_through
from dino_exp.eval.davis.region_and_contour import (
    Statistics,
    check_scipy,
    contour_accuracy,
    region_similarity,
    statistics,
)
from dino_exp.eval.features import LONGEST, evaluating
from dino_exp.eval.network_input import network_errors, patch_side
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed
from dino_exp.regular_file import is_plain_name

FRAMES, ANNOTATIONS, LISTS = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017"
LAYOUT = f"DAVIS 2017 has {FRAMES}/<video>/00000.jpg, {ANNOTATIONS}/<video>/00000.png and {LISTS}/val.txt"
STEP = 64
"""The longer side of a frame is reduced to a multiple of this many pixels."""
VOID = 255
"""Label of pixels that are not annotated; the challenge's code counts them as background."""


class Video(NamedTuple):
    """The files of one video, in order."""

    name: str
    frames: list[Path]
    annotations: list[Path]


class ObjectScores(NamedTuple):
    """J and F of one object in one video, over all frames but the first, which is given, and the last."""

    region: Statistics
    contour: Statistics

    def percent(self) -> dict[str, float]:
        """Return the figures by name, in percent."""
        j, f = self
        values = {"jf_mean": (j.mean + f.mean) / 2}
        values |= {f"j_{name}": value for name, value in j._asdict().items()}
        values |= {f"f_{name}": value for name, value in f._asdict().items()}
        return {name: 100 * value for name, value in values.items()}


class VideoSegmentation:
    """J and F of masks that are propagated from the first frame by the released protocol.

    Two things differ from the released code: images are normalized as in training (the released code has
    0.228 for 0.229), and void pixels of the first frame are background (the released code's videos have
    none). Networks other than transformers are compared by their last spatial features.
    """

    def __init__(self, cfg: VideoSegmentationConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError if files are missing or do not match, or the network does not take the frames."""
        check_scipy()
        patch, side = patch_side(subject.backbone), self.cfg.image_size
        if side < STEP or side % patch:
            raise UserError(
                f"video_segmentation.image_size = {side}: must be at least {STEP} and a multiple of the "
                f"network's patch size {patch}, such as {math.ceil(max(side, STEP) / patch) * patch}."
            )
        videos = self._videos()
        for video in videos:
            _check_files(video)
        path = videos[0].frames[0]
        problem = f"The network cannot take frames such as {path}"
        with network_errors(problem, "."), evaluating(subject.backbone):
            height, width = self._features(subject, path).shape[1:]
        shape = _network_size(_size(path), side, patch)
        if shape[0] % height or shape[1] % width or shape[0] // height != shape[1] // width:
            raise UserError(
                f"video_segmentation.image_size = {side}: makes frames of {shape[1]}x{shape[0]}, on which "
                f"the network's {width}x{height} features are not an even grid; use a multiple of its "
                "stride, for example of 64."
            )

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Segment the videos, which the processes share, write one PNG per frame, and return J and F."""
        videos = self._videos()
        predictions = folder / "predictions"
        console = distributed.console_for_a_run()
        mine: dict[str, list[dict[str, float]]] = {}
        with distributed.agreed(), evaluating(subject.backbone):
            for number in range(distributed.rank(), len(videos), distributed.count()):
                video = videos[number]
                scored = self._segment(subject, video, predictions / video.name)
                mine[video.name] = scores = [each.percent() for each in scored]
                mean = np.mean([each["jf_mean"] for each in scores])
                console.print(
                    f"video {number + 1}/{len(videos)}, {video.name}: {len(video.frames)} frames, "
                    f"{len(scores)} objects, J&F {mean:.1f} %"
                )
        found = {name: scores for part in distributed.from_all(mine) for name, scores in part.items()}
        per_object = {
            video.name: {str(n): figures for n, figures in enumerate(found[video.name], 1)}
            for video in videos
        }
        every = [figures for objects in per_object.values() for figures in objects.values()]
        return Findings(
            figures={name: float(np.mean([figures[name] for figures in every])) for name in every[0]},
            details={"videos": len(videos), "objects": len(every), "per_object": per_object},
            notes=[
                f"Means over the {len(every)} objects of the {len(videos)} videos in {self.cfg.split}.txt. "
                "davis2017-evaluation, which computes the same figures, accepts the folder predictions/."
            ],
            files=[predictions],
        )

    def _videos(self) -> list[Video]:
        """Return the videos of the split, with their files."""
        if self.cfg.root is None:
            raise UserError(f"video_segmentation.root = null: give the folder of DAVIS 2017. {LAYOUT}.")
        root = existing_path("video_segmentation.root", self.cfg.root, f"the folder of DAVIS 2017 ({LAYOUT})")
        names = root / LISTS / f"{self.cfg.split}.txt"
        if not names.is_file():
            raise UserError(f"{names}: missing; it lists the videos, one per line. {LAYOUT}.")
        videos = []
        for name in filter(None, map(str.strip, names.read_text("utf-8", "replace").splitlines())):
            if not is_plain_name(name):
                raise UserError(
                    f"{names}: {name!r} is a path; each line must be the name of a folder in {root / FRAMES}."
                )
            frames = images_in(root / FRAMES / name)
            if not frames:
                raise UserError(
                    f"{root / FRAMES / name}: no images there, but the video is in {names}. {LAYOUT}."
                )
            folder = root / ANNOTATIONS / name
            videos.append(Video(name, frames, [folder / f"{frame.stem}.png" for frame in frames]))
        if not videos:
            raise UserError(f"{names}: empty; it must list the videos, one per line.")
        return videos

    def _features(self, subject: Subject, path: Path) -> Tensor:
        """Return the features of one frame, (D, h, w) float32."""
        try:
            frame = read_image(path, subject.decoding)
        except CorruptImageError as error:
            raise UserError(f"{error}; the video cannot be segmented without this frame.") from error
        size = _network_size(frame.shape[1:], self.cfg.image_size, patch_side(subject.backbone))
        # OpenCV's linear interpolation, which the released code uses, is not antialiased.
        frame = transforms.resize(frame, list(size), InterpolationMode.BILINEAR, antialias=False)
        with subject.autocast():
            features = spatial_features(subject.backbone, subject.normalized(frame.unsqueeze(0)))[0]
        if not features.isfinite().all():
            raise UserError(f"{path}: the network's features of this frame are not finite numbers.")
        return features.float()

    def _segment(self, subject: Subject, video: Video, folder: Path) -> list[ObjectScores]:
        """Propagate the first annotation through the video, write all masks, and score each object."""
        labels, palette = _read_labels(video.annotations[0])
        size = labels.shape
        objects = range(1, _background_for_void(labels).max() + 1)
        first = self._features(subject, video.frames[0])
        frame_size = _network_size(size, self.cfg.image_size, patch_side(subject.backbone))
        small = _resized(_background_for_void(labels), first.shape[1:])
        one_hot = F.one_hot(torch.from_numpy(small).long(), len(objects) + 1).permute(2, 0, 1).float()
        others: Iterator[Tensor] = (self._features(subject, path) for path in video.frames[1:])
        masks = propagate_through(
            first,
            one_hot.to(first.device),
            others,
            frames=self.cfg.frames,
            neighborhood=self.cfg.neighborhood,
            neighbors=self.cfg.neighbors,
            temperature=self.cfg.temperature,
        )
        _write_labels(folder / video.annotations[0].name, labels, palette)
        values: list[list[tuple[float, float]]] = [[] for _ in objects]
        for path, soft in zip(video.annotations[1:], masks, strict=True):
            found = _resized(label_map(soft, frame_size).cpu().numpy(), size)
            _write_labels(folder / path.name, found, palette)
            if path == video.annotations[-1]:
                continue
            true = _background_for_void(_read_labels(path)[0])
            for number, row in zip(objects, values, strict=True):
                pair = found == number, true == number
                row.append((region_similarity(*pair), contour_accuracy(*pair)))
        return [ObjectScores(*(statistics(each) for each in zip(*row, strict=True))) for row in values]


def _network_size(size: tuple[int, ...], shorter: int, patch: int) -> tuple[int, int]:
    """Return the (height, width) at which the network sees frames of `size`, which is (height, width).

    The shorter side is as given. The longer one is in proportion, and reduced to a multiple of 64, or of the
    largest multiple of the patch below 64; of squares it is the width.
    """
    height, width = size
    step = max(STEP // patch, 1) * patch
    longer = int(shorter * max(size) / min(size) // step * step)
    return (longer, shorter) if height > width else (shorter, longer)


def _size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image, from its header."""
    try:
        with opened_image(path) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise UserError(f"{path}: cannot be read as an image ({error}).") from error


def _check_files(video: Video) -> None:
    """Raise UserError unless there are at least three annotated frames of one size."""
    if len(video.frames) < 3:
        raise UserError(
            f"{video.frames[0].parent}: {len(video.frames)} frames, but a video needs at least 3, because "
            "the first and the last are not scored."
        )
    height, width = _size(video.frames[0])
    if max(height, width) > LONGEST * min(height, width):
        raise UserError(
            f"{video.frames[0]}: {width}x{height} pixels; the longer side of a frame may be {LONGEST} times "
            "the shorter."
        )
    for path in (*video.frames, *video.annotations):
        if not path.exists():
            raise UserError(f"{path}: missing, although its frame exists. {LAYOUT}.")
        found = _size(path)
        if found != (height, width):
            raise UserError(
                f"{path}: {found[1]}x{found[0]} pixels, but {video.frames[0]} has {width}x{height}; frames "
                "and annotations of a video must have the same size."
            )
    if not _background_for_void(_read_labels(video.annotations[0])[0]).any():
        raise UserError(f"{video.annotations[0]}: no object to track; objects have the labels 1, 2, ...")


def _read_labels(path: Path) -> tuple[NDArray[np.uint8], bytes | None]:
    """Return labels uint8 (H, W) and the palette."""
    try:
        with opened_image(path) as image:
            if image.mode not in ("P", "L"):
                raise UserError(f"{path}: colors ({image.mode}) instead of labels; DAVIS has palette PNGs.")
            return np.array(image), bytes(image.getpalette() or []) or None
    except UserError:
        raise
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise UserError(f"{path}: cannot be read as an image ({error}).") from error


def _write_labels(path: Path, labels: NDArray[np.uint8], palette: bytes | None) -> None:
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(palette)
    write_atomically(path, lambda out: image.save(out, format="PNG"))


def _background_for_void(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(labels == VOID, np.uint8(0), labels)


def _resized(labels: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Resize labels to (height, width) by nearest neighbor."""
    height, width = size
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
