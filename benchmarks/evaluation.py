"""Cost of evaluations beyond the necessary: feature extraction, k-NN, and the sweep of linear classifiers.

python -m benchmarks.evaluation extraction [--photos FOLDER] [--threads 2] [--device cpu]
python -m benchmarks.evaluation knn [--queries 50000] [--keys 1281167] [--dim 384] [--threads 2]
python -m benchmarks.evaluation linear [--images 12000] [--dim 384] [--classes 10] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import least_seconds, report, status_kib
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.config.evaluation_schema import LinearConfig
from dino_exp.data.decoding import Decoding
from dino_exp.data.folder import load as load_folder
from dino_exp.data.shapes import load as load_shapes
from dino_exp.data.source import ImageSource, Splits
from dino_exp.eval.extraction import Extracted
from dino_exp.eval.features import evaluating, still_images
from dino_exp.eval.linear.linear_data import Choice, LabeledRows, choices
from dino_exp.eval.linear.linear_sweep import Classifiers, train
from dino_exp.eval.neighbors import nearest
from dino_exp.eval.subject import Subject

BATCH = 64
NUMBERS = dict(queries=50_000, keys=1_281_167, dim=384, images=12_000, classes=10, epochs=10)
NUMBERS |= dict(threads=2, repeats=3)
"""Defaults of the command line."""
MICRO: dict[str, Any] = dict(patch_size=4, embed_dim=64, depth=3, num_heads=2, mlp_ratio=2.0, stem="conv")
SMALL: dict[str, Any] = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["extraction", "knn", "linear"])
    parser.add_argument("--photos", type=Path, help="folder of photographs for ViT-S/16 at 224")
    for name, number in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"extraction": extraction, "knn": knn, "linear": linear}[arguments.what](arguments)


def make_subject(backbone: nn.Module, size: int, device: torch.device) -> Subject:
    """Return a network as evaluations take it."""
    return Subject(
        name="benchmark",
        digest="benchmark",
        backbone=backbone.to(device).eval().requires_grad_(False),
        device=device,
        autocast_type=None,
        image_size=size,
        crop_ratio=0.875 if size == 224 else 1.0,
        decoding=Decoding(3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        batch_size=BATCH,
        workers=0 if device.type == "cpu" else max(1, min(16, (os.cpu_count() or 2) - 1)),
        seed=0,
    )


class ExtractedFromSource(Extracted):
    """Extraction from a given source of images instead of a configured data set."""

    def __init__(self, subject: Subject, source: ImageSource, blocks: int) -> None:
        super().__init__(subject, None, blocks=blocks)
        self.__dict__["images"] = Splits(source, None)


def extraction(arguments: argparse.Namespace) -> None:
    """Measure extraction, from images to the file of features, against the forward pass alone."""
    device = torch.device(arguments.device)
    shapes = load_shapes(root=None, channels=3, image_size=32, train_size=12_000, test_size=3_000, seed=0)
    assert shapes.test is not None
    cases: list[tuple[str, VisionTransformer, int, ImageSource]] = [
        ("vit_micro, 3,000 shapes of 32", VisionTransformer(image_size=32, **MICRO), 32, shapes.test)
    ]
    if arguments.photos:
        photos = load_folder(root=str(arguments.photos), val_root=None, channels=3, backend="fast").train
        title = f"ViT-S/16, {len(photos)} photographs at 224"
        cases.append((title, VisionTransformer(**SMALL), 224, photos))
    rows = []
    for title, backbone, size, source in cases:
        subject = make_subject(backbone, size, device)
        batches = [
            subject.normalized(images)
            for images, _ in still_images(
                source, range(len(source)), image_size=size, crop_ratio=subject.crop_ratio, batch_size=BATCH
            )
        ]
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache  # without features of earlier calls
            variants = {
                "bare forward": partial(forward, subject, batches),
                "extraction": partial(extract_again, subject, source, 0, cache),
                "extraction, 4 blocks": partial(extract_again, subject, source, 4, cache),
            }
            seconds = least_seconds(variants, arguments.repeats, device)
        for name, spent in seconds.items():
            row = {"network and images": title, "variant": name, "images/s": len(source) / spent}
            rows.append(row | {"times the bare forward": spent / seconds["bare forward"]})
    report("evaluation_extraction", f"Features, batches of {BATCH}", rows, device)


def forward(subject: Subject, batches: list[Tensor]) -> None:
    """Run the network on prepared images."""
    with evaluating(subject.backbone):
        for batch in batches:
            subject.backbone(batch).cpu()


def extract_again(subject: Subject, source: ImageSource, blocks: int, cache: str) -> None:
    """Extract features into an empty cache."""
    for file in Path(cache).rglob("about.json"):
        file.unlink()
    ExtractedFromSource(subject, source, blocks).features("train")


def knn(arguments: argparse.Namespace) -> None:
    """Measure the search for 200 neighbors in a memory-mapped bank, against the plain matrix product."""
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(arguments.queries, arguments.dim, generator=generator)
    shape = (arguments.keys, arguments.dim)
    with tempfile.NamedTemporaryFile() as file:
        for start in range(0, arguments.keys, 65536):
            block = torch.randn(min(65536, arguments.keys - start), arguments.dim, generator=generator)
            file.write(block.numpy().tobytes())
        file.flush()
        bank = torch.from_numpy(np.memmap(file.name, np.float32, "c", shape=shape))
        before = anonymous_mib()
        peak = PeakMemory()
        began = time.perf_counter()
        nearest(bank, queries.to(device), 200)
        ours = time.perf_counter() - began
        memory = peak.stop() - before
        began = time.perf_counter()
        product(bank, queries.to(device))
        plain = time.perf_counter() - began
    work = 2 * arguments.queries * arguments.keys * arguments.dim
    rows: list[dict[str, Any]] = [
        {"what": what, "seconds": spent, "GFLOP/s": work / spent / 1e9, "share": plain / spent}
        for what, spent in (("plain matrix product", plain), ("200 nearest neighbors", ours))
    ]
    rows[1]["extra MiB"] = memory
    title = f"{arguments.queries:,} queries against {arguments.keys:,} keys of {arguments.dim}"
    report("evaluation_knn", title, rows, device)


def linear(arguments: argparse.Namespace) -> None:
    """Measure an epoch of all settings of the sweep against one of them, on features in memory."""
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(arguments.images, 5 * arguments.dim, generator=generator)
    labels = torch.randint(arguments.classes, (arguments.images,), generator=generator)
    rows = LabeledRows(values, labels, np.arange(len(labels)), arguments.dim, device)
    lrs, every = LinearConfig().lrs, choices([1, 4], [False, True], 4)
    variants = {
        "one": partial(trained, rows, every[-1:], lrs[6:7], arguments),
        f"{len(lrs)} learning rates": partial(trained, rows, every[-1:], lrs, arguments),
        f"{len(lrs)} learning rates x {len(every)} features": partial(trained, rows, every, lrs, arguments),
    }
    seconds = least_seconds(variants, arguments.repeats, device)
    table = [
        {
            "classifiers": name,
            "ms per epoch": 1e3 * spent / arguments.epochs,
            "times one": spent / seconds["one"],
        }
        for name, spent in seconds.items()
    ]
    title = f"{arguments.images:,} x 5 x {arguments.dim}, {arguments.classes} classes"
    report("evaluation_linear", title, table, device)


def trained(
    rows: LabeledRows, chosen: Sequence[Choice], lrs: Sequence[float], arguments: argparse.Namespace
) -> None:
    """Train classifiers for each feature and learning rate."""
    how: dict[str, Any] = dict(momentum=0.9, weight_decay=0.0, seed=0, device=rows.device)
    classifiers = [
        Classifiers(rows.columns(choice), lrs, classes=arguments.classes, **how) for choice in chosen
    ]
    train(classifiers, lambda epoch: rows.epoch(epoch, 0, 1024), epochs=arguments.epochs, batch_size=1024)


def product(bank: Tensor, queries: Tensor, block: int = 16384) -> None:
    """Compute all similarities block by block, and discard them."""
    for start in range(0, len(bank), block):
        keys = bank[start : start + block].to(queries.device).t()
        for first in range(0, len(queries), 1024):
            queries[first : first + 1024] @ keys
    if queries.device.type == "cuda":
        torch.cuda.synchronize()


class PeakMemory:
    """Peak of this process's anonymous memory until `stop`; pages of mapped files do not count."""

    def __init__(self) -> None:
        self._peak, self._stopped = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.02):
            self._peak = max(self._peak, anonymous_mib())

    def stop(self) -> float:
        """Stop, and return the peak in MiB."""
        self._stopped.set()
        self._thread.join()
        return self._peak


def anonymous_mib() -> float:
    return status_kib("RssAnon") / 2**10


if __name__ == "__main__":
    main()
