"""Speed and values of libraries that decode JPEG, compared with our own reading of an image.

    pip install torchcodec simplejpeg imagecodecs opencv-python-headless
    python -m benchmarks.decoders                        # of these, whichever are installed
    python -m benchmarks.decoders --images FOLDER        # on your images

One thread, from bytes in memory to a tensor. Each has the images of which it returns other values than we do,
and what it makes of a file that was cut in half.
"""

from __future__ import annotations

import argparse
import importlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile

from benchmarks.data import photographs
from benchmarks.measure import least_seconds, report
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import decode_image

Decode = Callable[[bytes], torch.Tensor]
OURS = "ours"
BLOCK = ImageFile.MAXBLOCK


def ours(content: bytes, backend: str = "fast") -> torch.Tensor:
    return decode_image(content, "", Decoding(3, backend))


def small_blocks(content: bytes) -> torch.Tensor:
    """Decode by Pillow in its own blocks of 64 KiB."""
    ImageFile.MAXBLOCK = 2**16
    try:
        return ours(content, "pil")
    finally:
        ImageFile.MAXBLOCK = BLOCK


def from_array(values: Any) -> torch.Tensor:
    return torch.from_numpy(values).permute(2, 0, 1)


def opencv(module: Any, content: bytes) -> torch.Tensor:
    how = module.IMREAD_COLOR_RGB | module.IMREAD_IGNORE_ORIENTATION
    return from_array(module.imdecode(np.frombuffer(content, np.uint8), how))


OTHERS: dict[str, Callable[[Any, bytes], torch.Tensor]] = {
    "torchvision.io": lambda module, content: module.decode_jpeg(
        torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=module.ImageReadMode.RGB
    ),
    "torchcodec.decoders": lambda module, content: module.decode_jpeg(content),
    "simplejpeg": lambda module, content: from_array(module.decode_jpeg(content, "RGB")),
    "imagecodecs": lambda module, content: from_array(module.jpeg8_decode(content, outcolorspace="RGB")),
    "cv2": opencv,
}


def installed() -> dict[str, Decode]:
    """Return what decodes a JPEG, by name."""
    found: dict[str, Decode] = {
        OURS: ours,
        "Pillow": partial(ours, backend="pil"),
        "Pillow, 64 KiB": small_blocks,
    }
    for name, decode in OTHERS.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found[name] = partial(decode, module)
    return found


def outcome(decode: Decode, content: bytes) -> str:
    """Return whether the file is read, as a word."""
    try:
        decode(content)
    except Exception:
        return "error"
    return "image"


def compare(contents: list[bytes], repeats: int) -> list[dict[str, Any]]:
    decoders = installed()
    seconds = dict.fromkeys(decoders, 0.0)
    for content in contents:
        turns = {name: partial(decode, content) for name, decode in decoders.items()}
        for name, least in least_seconds(turns, repeats).items():
            seconds[name] += least
    return [
        {
            "decoder": name,
            "ms per image": 1e3 * seconds[name] / len(contents),
            "time against ours": seconds[name] / seconds[OURS],
            "other values": sum(not torch.equal(decode(each), ours(each)) for each in contents),
            "half a file": outcome(decode, contents[0][: len(contents[0]) // 2]),
        }
        for name, decode in decoders.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs in RGB; default: synthetic ones")
    parser.add_argument("--number", type=int, default=32, help="images")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torchvision's decoders are deprecated
    with photographs(arguments.images) as folder:
        contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    contents = [each for each in contents if Image.open(io.BytesIO(each)).mode == "RGB"][: arguments.number]
    rows = compare(contents, arguments.repeats)
    report("decoders", f"JPEG decoders, one thread, {len(contents)} images", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
