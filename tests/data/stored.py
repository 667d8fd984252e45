"""Writers of the same images as files, tar shards and rows of a data set."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from tests.data.sources import as_file


def encoded(count: int, seed: int = 0) -> list[bytes]:
    """Return JPEG files of several sizes with random smooth colors."""
    rng = np.random.default_rng(seed)
    files = []
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image = small.resize((40 + index % 7, 36 + index % 5), Image.Resampling.BICUBIC)
        files.append(as_file(image, "JPEG", quality=92))
    return files


def as_files(root: Path, images: list[bytes], classes: list[str]) -> Path:
    """Write class folders; image i has class i % len(classes), and i as its name."""
    for index, content in enumerate(images):
        folder = root / classes[index % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:06d}.jpg").write_bytes(content)
    return root


def by_class(images: list[bytes], classes: int) -> list[tuple[bytes, int]]:
    """Return images and labels in the order of their class folders."""
    return sorted(((content, index % classes) for index, content in enumerate(images)), key=lambda p: p[1])


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar file as the webdataset package does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            shard.addfile(member, io.BytesIO(content))
    return path


def as_shards(folder: Path, images: list[tuple[bytes, int]], each: int = 7, stem: str = "train") -> Path:
    """Write shards `train-000000.tar`, ... of `each` samples with .cls and .jpg."""
    for start in range(0, len(images), each):
        members = []
        for number, (content, label) in enumerate(images[start : start + each], start):
            members += [(f"{number:06d}.cls", str(label).encode()), (f"{number:06d}.jpg", content)]
        write_shard(folder / f"{stem}-{start // each:06d}.tar", members)
    return folder


def as_rows(images: list[tuple[bytes, int]], classes: list[str]) -> datasets.Dataset:
    """Return a `datasets.Dataset` with the columns of the hub's image sets."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    encoded = [{"bytes": content, "path": f"{i}.jpg"} for i, (content, _) in enumerate(images)]
    return datasets.Dataset.from_dict(
        {"image": encoded, "label": [label for _, label in images]}, features=features
    )
