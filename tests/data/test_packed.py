"""Packed images: the same pixels, packed once, and damage that is detected."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dino_exp.data import packed
from dino_exp.data.source import CorruptImageError, Splits
from dino_exp.errors import UserError
from tests.data.sources import held_out, labels_of, load
from tests.data.stored import as_files, encoded
from tests.programs import in_two_processes

CLASSES = ["ant", "bee", "cat"]


def packed_folder(
    root: Path, pack: bool = True, side: int | None = None, val_root: str | None = None
) -> Splits:
    return load("image_folder", root=root, val_root=val_root, packed=pack, packed_side=side)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = as_files(tmp_path / "train", encoded(30), CLASSES)
    (root / "bee" / "000013.jpg").write_bytes(b"not an image")
    return root


@pytest.mark.usefixtures("cache")
def test_packed_images_equal_the_originals(images: Path) -> None:
    plain, source = packed_folder(images, pack=False).train, packed_folder(images).train
    assert (len(source), source.classes) == (30, CLASSES)
    assert labels_of(source).tolist() == labels_of(plain).tolist()
    for index in reversed(range(30)):
        assert source.name(index) == plain.name(index)
        if "000013" in source.name(index):
            with pytest.raises(CorruptImageError, match=r"000013\.jpg: not an image"):
                source.read(index)
        else:
            assert torch.equal(source.read(index), plain.read(index))
    source.read(0)[:] = 0  # a copy
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(0), plain.read(0))


@pytest.mark.usefixtures("cache")
def test_larger_images_are_made_smaller(images: Path) -> None:
    plain, source = packed_folder(images, pack=False).train, packed_folder(images, side=38).train
    shorter = [min(plain.read(i).shape[1:]) for i in range(9)]
    assert min(shorter) < 38 < max(shorter)
    for index in range(9):
        expected = plain.read(index)
        if shorter[index] > 38:
            expected = transforms.resize(expected, [38], InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(source.read(index), expected)


def test_packing_happens_once_and_again_when_a_file_changes(
    images: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        packed_folder(images)
        assert "Packing 30 images" in caplog.text
        assert "1 unreadable" in caplog.text
        caplog.clear()
        packed_folder(images)
        assert caplog.text == ""
        os.utime(images / "ant" / "000000.jpg", ns=(0, 0))
        packed_folder(images)
        assert caplog.text == ""
        (images / "ant" / "000000.jpg").write_bytes(encoded(1, seed=1)[0])
        packed_folder(images)
        packed_folder(images, side=20)
        assert caplog.text.count("Packing 30 images") == 2
    assert len(list(cache.glob("packed-*.pixels"))) == 3


def test_damage_is_detected(images: Path, cache: Path) -> None:
    plain = packed_folder(images, pack=False).train
    packed_folder(images)
    (pixels,), (index,) = cache.glob("*.pixels"), cache.glob("packed-*.npz")
    values, places = pixels.read_bytes(), index.read_bytes()
    for damaged in ((values[:-1], places), (values, places[:300]), (values, b""), (b"", places)):
        pixels.write_bytes(damaged[0])
        index.write_bytes(damaged[1])
        assert torch.equal(packed_folder(images).train.read(29), plain.read(29))
        assert pixels.read_bytes() == values
    pixels.write_bytes(values[:50] + bytes(50) + values[100:])
    source = packed_folder(images).train
    with pytest.raises(CorruptImageError, match=rf"its pixels in {pixels} are damaged; delete that file"):
        source.read(0)
    assert torch.equal(source.read(1), plain.read(1))
    pixels.unlink()
    assert torch.equal(packed_folder(images).train.read(0), plain.read(0))


def read_all(rank: int, root: Path, sums: Path) -> None:
    source = packed_folder(root).train
    (sums / str(rank)).write_text(str(sum(int(source.read(i).sum()) for i in range(10))))


def test_processes_that_start_together_pack_once(images: Path, cache: Path, tmp_path: Path) -> None:
    in_two_processes(read_all, images, tmp_path)
    sums = {(tmp_path / str(rank)).read_text() for rank in range(2)}
    assert len(sums) == 1
    (pixels,) = cache.glob("*.pixels")
    written = pixels.stat().st_mtime_ns
    packed_folder(images)
    assert pixels.stat().st_mtime_ns == written


@pytest.mark.usefixtures("cache")
def test_a_disk_that_is_too_small_is_reported_with_the_size_needed(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = packed_folder(images, pack=False).train
    needed = sum(plain.read(i).numel() for i in range(30) if "000013" not in plain.name(i))
    usage = packed.shutil.disk_usage(images)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=rf"take about {needed / 1e6:.1f} MB, and .* has 0\.1 MB left"):
        packed_folder(images)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert len(packed_folder(images).train) == 30


def test_a_cache_that_cannot_be_written_is_reported(images: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, so that no folder can be made here")
    with pytest.raises(UserError, match=r"data\.packed = true: .*has this name\. Set XDG_CACHE_HOME"):
        packed_folder(images)


@pytest.mark.usefixtures("cache")
def test_the_held_out_images_are_packed_too(tmp_path: Path) -> None:
    files = encoded(12)
    as_files(tmp_path / "train", files, CLASSES)
    as_files(tmp_path / "val", files[:6], CLASSES)
    splits = packed_folder(tmp_path / "train", val_root="auto")
    assert isinstance(splits.test, packed.PackedSource)
    assert labels_of(held_out(splits)).tolist() == [0, 0, 1, 1, 2, 2]
