"""CIFAR-10 and Fashion-MNIST from small files in the real formats, and without a network."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_exp.data import torchvision_sets
from dino_exp.data.content import contents_of, differences, key_of
from dino_exp.data.torchvision_sets import DEBIAN_FASHION_MNIST, cifar10, fashion_mnist
from dino_exp.errors import UserError
from tests.data.sources import classes_of, held_out, labels_of


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", DEBIAN_FASHION_MNIST / "absent")


def idx_files(folder: Path, packed: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 3)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for kind, array in (("images", pixels), ("labels", labels)):
            content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            path = folder / f"{part}-{kind}-idx{array.ndim}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return pixels


@pytest.mark.parametrize(
    ("folder", "packed"), [(".", True), ("FashionMNIST/raw", True), ("FashionMNIST/raw", False)]
)
def test_fashion_mnist_is_found_in_each_folder(
    folder: str, packed: bool, tmp_path: Path, offline: None
) -> None:
    last = idx_files(tmp_path / folder, packed)
    splits = fashion_mnist(root=str(tmp_path), channels=1)
    test = held_out(splits)
    assert (len(splits.train), len(test)) == (7, 3)
    assert np.array_equal(test.read(2), last[2:3])
    assert labels_of(test).tolist() == [0, 1, 2]
    assert labels_of(test).dtype == np.int64
    assert classes_of(splits.train)[9] == "Ankle boot"
    assert test.name(2) == "fashion_mnist test 2"
    rgb = held_out(fashion_mnist(root=str(tmp_path), channels=3)).read(2)
    assert rgb.shape == (3, 28, 28)
    assert torch.equal(rgb[0], rgb[2])
    rgb[0, 0, 0] += 1  # a copy: the planes are apart
    assert rgb[0, 0, 0] != rgb[1, 0, 0]


def test_files_in_the_format_of_fashion_mnist_may_hold_other_images(tmp_path: Path, offline: None) -> None:
    idx_files(tmp_path / "a", packed=True)
    idx_files(tmp_path / "b", packed=False)
    one, other = (contents_of(fashion_mnist(root=str(tmp_path / name), channels=1)) for name in "ab")
    assert key_of(one) == key_of(other)
    file = tmp_path / "b" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    now = contents_of(fashion_mnist(root=str(tmp_path / "b"), channels=3))
    assert differences(one, now) == "1 image replaced (6)"


def test_fashion_mnist_is_found_in_debians_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = idx_files(tmp_path / "debian", packed=True)
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    splits = fashion_mnist(root=str(tmp_path / "mine"), channels=1)
    assert (len(splits.train), len(held_out(splits))) == (7, 3)
    assert np.array_equal(held_out(splits).read(2), last[2:3])
    assert not (tmp_path / "mine").exists()


def test_damaged_idx_files_are_reported(tmp_path: Path, offline: None) -> None:
    idx_files(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    complete = file.read_bytes()
    cut = gzip.compress(gzip.decompress(complete)[:-10])
    for damaged in (complete[:1000], cut, gzip.compress(b"hello"), b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: .*(damaged|truncated)"):
            fashion_mnist(root=str(tmp_path), channels=1)


def test_a_failed_download_says_where_the_files_go(tmp_path: Path, offline: None) -> None:
    with pytest.raises(UserError, match=rf"put train-images-idx3-ubyte\.gz, .* into {tmp_path}"):
        fashion_mnist(root=str(tmp_path), channels=1)
    with pytest.raises(
        UserError, match=rf"data\.root = {tmp_path}.*put cifar-10-python\.tar\.gz.*{tmp_path}"
    ):
        cifar10(root=str(tmp_path), channels=3)


def test_impossible_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.channels = 1: CIFAR-10 has 3"):
        cifar10(root=str(tmp_path), channels=1)
    with pytest.raises(UserError, match=r"data\.channels = 4: Fashion-MNIST has 1"):
        fashion_mnist(root=str(tmp_path), channels=4)
