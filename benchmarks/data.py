"""Speed of the data path, in stages and as a whole, compared to the released pipeline in PIL.

    python -m benchmarks.data                        # on synthetic photographs
    python -m benchmarks.data --images FOLDER        # on yours

Crops are 2 x 224 + 8 x 96 pixels, with one thread per process. Both of our backends make the same crops from
the same random numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import least_seconds, report
from benchmarks.released_crops import ReleasedCrops
from dino_exp import machine
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.data.loader import BatchOrder, CropBatch, batches
from dino_exp.training.trainer import Trainer

CPU = torch.device("cpu")


def make_photographs(folder: Path, number: int = 200, first: int = 0) -> None:
    """Write JPEGs of about 110 KB and 460 x 390 pixels with a photograph's spectrum (power falls as 1/f²).

    Their names are numbers from `first`, on which the images depend.
    """
    for index in range(first, first + number):
        random = np.random.default_rng(index)
        height, width = int(random.integers(330, 450)), int(random.integers(400, 520))
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
        shape = (3, *frequency.shape)
        spectrum = (random.normal(size=shape) + 1j * random.normal(size=shape)) / frequency
        planes = np.fft.irfft2(spectrum, (height, width))
        planes = 128 + 45 * (planes - planes.mean()) / planes.std()
        image = Image.fromarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        image.save(folder / f"{index:04d}.jpg", quality=92)


@contextmanager
def photographs(folder: Path | None) -> Iterator[Path]:
    """Yield the given folder, or a temporary one with synthetic photographs."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        make_photographs(Path(temporary))
        yield Path(temporary)


def data_trainer(folder: Path, backend: str, batch: int, fuse: bool) -> Trainer:
    """Build a trainer with the real data path, and a small network because it is not used."""
    released = ["augment=released", "crops=multicrop", f"trainer.batch_size={batch}"]
    small = ["backbone=vit_tiny", "head.out_dim=16", "trainer.precision=fp32"]
    images = ["data=image_folder", f"data.root={folder}", f"data.backend={backend}"]
    cfg = compose([*images, *released, *small])
    trainer = Trainer(cfg, build(cfg.data), CPU)
    if fuse:
        trainer.augment.fuse()
    return trainer


def stages(trainers: dict[str, Trainer], images: int, repeats: int) -> list[dict[str, Any]]:
    """Measure ms per image and images/s per core of each stage, in one process with one thread."""
    fast, pil = trainers["fast"], trainers["pil"]
    indices = list(range(images))
    size = fast.cfg.trainer.batch_size
    chunks = [indices[start : start + size] for start in range(0, images, size)]

    def each(work: Callable[[list[int]], object]) -> Callable[[], object]:
        return lambda: [work(chunk) for chunk in chunks]

    def read(trainer: Trainer) -> Callable[[list[int]], object]:
        return lambda chunk: [trainer.splits.train.read(index) for index in chunk]

    ready: list[CropBatch] = [fast.crop_batches[0, chunk] for chunk in chunks]

    def color() -> None:
        for batch in ready:
            fast.augmented(batch)

    released = ReleasedCrops()

    def as_released(chunk: list[int]) -> list[list[torch.Tensor]]:
        each_crop = []
        for index in chunk:
            with Image.open(pil.splits.train.name(index)) as photograph:
                each_crop.append(released(photograph.convert("RGB")))
        return [[torch.stack(crop) for crop in zip(*each_crop, strict=True)]]

    variants: dict[str, Callable[[], object]] = {
        "decode, PIL": each(read(pil)),
        "decode, fast": each(read(fast)),
        "fast, color elsewhere": each(lambda chunk: fast.crop_batches[0, chunk]),
        "color of ten crops, fast": color,
        "fast, all on the CPU": each(lambda chunk: fast.augmented(fast.crop_batches[0, chunk])),
        "data.backend=pil": each(lambda chunk: pil.augmented(pil.crop_batches[0, chunk])),
        "the released transforms": each(as_released),
    }
    seconds = least_seconds(variants, repeats)
    return [
        {
            "stage": name,
            "ms per image": 1e3 * spent / images,
            "images/s per core": images / spent,
            "against data.backend=pil": seconds["data.backend=pil"] / spent,
            "against the released": seconds["the released transforms"] / spent,
        }
        for name, spent in seconds.items()
    ]


def with_loader(trainers: dict[str, Trainer], workers: list[int], images: int) -> list[dict[str, Any]]:
    """Measure the images/s that the training process gets from loader processes, and the time to start."""
    rows = []
    for number in workers:
        for name, trainer in trainers.items():
            size = trainer.cfg.trainer.batch_size
            total = len(trainer.splits.train)
            order = BatchOrder(total, size, 0, 0, max(2, 2 * images // size))
            start = time.perf_counter()
            loader = iter(batches(trainer.crop_batches, order, number, pin_memory=False))
            next(loader)
            first = time.perf_counter() - start
            count = sum(1 for _ in loader)
            spent = time.perf_counter() - start - first
            row = {"loader processes": str(number), "backend": name, "first batch, s": first}
            rows.append(row | {"images/s, color elsewhere": count * size / spent})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs; default: synthetic ones")
    parser.add_argument("--number", type=int, default=96, help="images per measurement")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="loader processes to try")
    arguments = parser.parse_args()
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    with photographs(arguments.images) as folder:
        trainers = {
            name: data_trainer(folder, name, arguments.batch, fuse=name == "fast") for name in ("fast", "pil")
        }
        number = min(arguments.number, len(trainers["fast"].splits.train))
        number -= number % arguments.batch
        where = arguments.images.name if arguments.images else "synthetic photographs"
        rows = stages(trainers, number, arguments.repeats)
        report("data", f"Data path, one thread, {number} of {where}", rows, CPU)
        rows = with_loader(trainers, arguments.workers, number)
        report("data_loader", "Loader processes, one thread each", rows, CPU)


if __name__ == "__main__":
    main()
