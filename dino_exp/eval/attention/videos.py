"""Reading and writing videos and animations frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageSequence

from dino_exp.atomic import write_atomically
from dino_exp.data.pillow_files import opened_image
from dino_exp.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
"""Animations that Pillow reads and writes; a file with one frame is an image."""
CONTAINERS = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg", "protocol_whitelist": "file"}
"""What FFmpeg may take a file for: no playlist, which would name other files and addresses to read."""
DEFAULT_RATE = Fraction(25)
"""Frames per second of a video that states none."""


def is_video(path: Path) -> bool:
    """Return whether a file is a video, or a GIF or WebP with several frames."""
    return path.suffix.lower() in VIDEO_SUFFIXES or _is_animation(path)


def written_suffix(path: Path) -> str:
    """Return the suffix of a video made from this one: animations keep theirs, all others become .mp4."""
    return path.suffix.lower() if _is_animation(path) else ".mp4"


def frames(path: Path) -> Iterator[np.ndarray]:
    """Yield frames uint8 (H, W, 3), upright and all of the first one's size; one at a time is in memory.

    Raises UserError if there is none, or one cannot be decoded.
    """
    decoded = _animation_frames(path) if _is_animation(path) else _video_frames(path)
    for number in count(1):
        try:
            frame = next(decoded, None)
        except UserError:
            raise
        except Exception as error:  # decoders raise every kind of error on damaged bytes
            raise UserError(f"{path}: frame {number} cannot be decoded ({error}).") from error
        if frame is None:
            break
        yield frame
    if number == 1:
        raise UserError(f"{path}: the video has no frames.")


def write_like(source: Path, out: Path, images: Iterator[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3) to `out`, atomically, with the timing of `source`.

    `out` ends in `written_suffix(source)`. An .mp4 is H.264 at the source's mean frame rate; odd sides grow
    by repeating the last row or column. An animation keeps the duration of each frame; Pillow merges equal
    frames, and keeps a GIF in memory.
    """
    if out.suffix == ".mp4":
        rate = _rate(source)
        write_atomically(out, lambda file: _write_mp4(file, images, rate))
    else:
        durations = _durations(source)
        write_atomically(out, lambda file: _write_animation(file, images, durations, ANIMATIONS[out.suffix]))


def _is_animation(path: Path) -> bool:
    if path.suffix.lower() not in ANIMATIONS:
        return False
    try:
        with opened_image(path, tuple(ANIMATIONS.values())) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # decoders raise every kind of error; reading it as an image reports the reason
        return False


def _animation_frames(path: Path) -> Iterator[np.ndarray]:
    with opened_image(path) as image:
        for frame in ImageSequence.Iterator(image):
            yield np.array(frame.convert("RGB"))


def _durations(path: Path) -> list[int]:
    """Return the duration of each frame in milliseconds."""
    with opened_image(path) as image:
        durations = []
        for frame in ImageSequence.Iterator(image):
            frame.load()  # WebP knows the duration only then
            durations.append(int(frame.info.get("duration", 100)))
        return durations


def _write_animation(file: IO[bytes], images: Iterator[np.ndarray], durations: list[int], kind: str) -> None:
    frames = (Image.fromarray(image) for image in images)
    options: dict[str, Any] = {"quality": 90} if kind == "WEBP" else {}
    first = next(frames)
    first.save(file, format=kind, save_all=True, append_images=frames, duration=durations, loop=0, **options)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("PyAV is missing, which videos need; pip install 'dino-exp[eval]'.") from None
    return av


def _open(path: Path) -> Any:
    """Open a container with a video stream. Raises UserError for other files."""
    av = _av()
    try:
        container = av.open(str(path), options=CONTAINERS)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a video ({error}).") from error
    if not container.streams.video:
        container.close()
        raise UserError(f"{path}: the file has no video stream.")
    return container


def _video_frames(path: Path) -> Iterator[np.ndarray]:
    size: dict[str, int] = {}
    with _open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            size = size or {"width": frame.width, "height": frame.height}
            pixels = frame.to_ndarray(format="rgb24", **size)
            # Phones store their orientation beside the frames.
            yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _rate(path: Path) -> Fraction:
    """Return the mean number of frames per second."""
    with _open(path) as container:
        stream = container.streams.video[0]
        return stream.average_rate or stream.guessed_rate or DEFAULT_RATE


def _write_mp4(file: IO[bytes], images: Iterator[np.ndarray], rate: Fraction) -> None:
    av = _av()
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for image in images:
            height, width = image.shape[:2]
            even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("h264", rate=rate, options={"crf": "18"})
                stream.pix_fmt = "yuv420p"  # every player supports it
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
