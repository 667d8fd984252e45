"""Class folders, flat folders and lists of files."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from dino_exp.data import image_lists
from dino_exp.data.labeled import LabeledSource
from dino_exp.data.source import CorruptImageError, ImageSource, Splits
from dino_exp.errors import UserError
from tests.data.sources import held_out, labels_of, load


def folder(root: Path | None, val_root: Path | str | None = "auto", channels: int = 3) -> Splits:
    return load("image_folder", root=root, val_root=val_root, channels=channels)


def images(root: Path, *names: str) -> Path:
    """Write small PNG files whose gray value is their position in the list."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), value).save(path, "PNG")
    return root


def path_of(source: ImageSource) -> Path:
    assert isinstance(source, LabeledSource)
    return source.path


def names(source: ImageSource) -> list[str]:
    return [os.path.relpath(source.name(index), path_of(source)) for index in range(len(source))]


def test_class_folders_give_sorted_images_and_labels(tmp_path: Path) -> None:
    root = images(
        tmp_path / "birds", "wren/b.jpg", "wren/a.png", "owl/deep/er/c.JPEG", "owl/z.webp", "owl/.hidden.jpg"
    )
    (root / "owl" / "notes.txt").write_text("not an image")
    splits = folder(root)
    assert names(splits.train) == ["owl/z.webp", "owl/deep/er/c.JPEG", "wren/a.png", "wren/b.jpg"]
    assert splits.train.classes == ["owl", "wren"]
    assert labels_of(splits.train).tolist() == [0, 0, 1, 1]
    assert [int(splits.train.read(i)[0, 0, 0]) for i in range(4)] == [3, 2, 1, 0]
    assert splits.test is None
    assert not splits.train.has_masks
    copy = pickle.loads(pickle.dumps(splits.train))
    assert (names(copy), labels_of(copy).tolist()) == (names(splits.train), [0, 0, 1, 1])


def test_a_flat_folder_and_a_single_class_have_no_labels(tmp_path: Path) -> None:
    flat = folder(images(tmp_path / "flat", "b.png", "a.png", "ü.png")).train
    assert (names(flat), flat.labels, flat.classes) == (["a.png", "b.png", "ü.png"], None, None)
    assert flat.read(2).shape == (3, 2, 2)
    single = folder(images(tmp_path / "single", "all/a.png", "all/b.png")).train
    assert (len(single), single.labels, single.classes) == (2, None, None)


def test_a_file_list_gives_paths_and_labels(tmp_path: Path) -> None:
    images(tmp_path / "data", "a.png", "b c.png", "d.png")
    listing = tmp_path / "train.txt"
    absolute = tmp_path / "data" / "d.png"
    listing.write_text(f"data/b c.png\t10\r\n\ndata/a.png\t9\n{absolute}\t10")
    source = folder(listing).train
    assert [source.name(i) for i in range(3)] == [
        str(tmp_path / "data" / "b c.png"),
        str(tmp_path / "data" / "a.png"),
        str(absolute),
    ]
    assert (source.classes, labels_of(source).tolist()) == (["9", "10"], [1, 0, 1])
    (tmp_path / "plain.txt").write_text("data/a.png\ndata/gone.png\n")
    plain = folder(tmp_path / "plain.txt").train
    assert (len(plain), plain.labels) == (2, None)
    with pytest.raises(CorruptImageError, match=r"gone\.png: No such file"):
        plain.read(1)


@pytest.mark.parametrize("name", ["val", "test"])
def test_auto_is_the_folder_next_to_train_with_its_classes(name: str, tmp_path: Path) -> None:
    images(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/emu/1.png", f"{name}/emu/1.png")
    images(tmp_path, f"{name}/cat/1.png")
    splits = folder(tmp_path / "train")
    assert labels_of(held_out(splits)).tolist() == [0, 2]
    assert held_out(splits).classes == ["cat", "dog", "emu"]
    assert folder(tmp_path / "train", val_root=None).test is None
    assert folder(tmp_path / name).test is None  # not named train


def test_held_out_images_of_an_unlabeled_set_have_no_labels(tmp_path: Path) -> None:
    images(tmp_path, "train/1.png", "val/cat/1.png", "val/dog/1.png")
    assert held_out(folder(tmp_path / "train")).labels is None


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path: Path) -> None:
    root = images(tmp_path / "set", "a/1.png", "b/1.png")
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    assert len(folder(root).train) == 2


def test_a_class_without_images_is_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = images(tmp_path / "set", "a/1.png", "c/1.png")
    (root / "b").mkdir()
    with caplog.at_level(logging.WARNING):
        source = folder(root).train
    assert (source.classes, labels_of(source).tolist()) == (["a", "b", "c"], [0, 2])
    assert f"class folder {root / 'b'} has no images" in caplog.text


def test_mistakes_are_reported(tmp_path: Path) -> None:
    images(tmp_path, "ok/a/1.png", "ok/b/1.png", "mixed/1.png", "mixed/a/1.png", "train/a/1.png")
    images(tmp_path, "train/b/1.png", "val/a/1.png", "val/x/1.png", "flat/1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.txt").write_text("nowhere/1.png\n")
    (tmp_path / "half.txt").write_text("ok/a/1.png\t1\nok/b/1.png\n")
    (tmp_path / "blank.txt").write_text("\n\n")
    mistakes: list[tuple[tuple[Path | None] | tuple[Path, Path], str]] = [
        ((None,), r"data\.root is null: give .*class folders"),
        ((tmp_path / "gone" / "x",), rf"data\.root = {tmp_path}/gone/x: no such .*\({tmp_path} exists\)"),
        ((tmp_path / "empty",), r"data\.root = .*empty: no images there\. .*\.jpg"),
        ((tmp_path / "blank.txt",), r"blank\.txt: no images there"),
        ((tmp_path / "mixed",), r"mixed: has images \(1\.png, 1 in all\) as well as folders"),
        ((tmp_path / "lost.txt",), r"lost\.txt, line 1: no such file: .*nowhere/1\.png"),
        ((tmp_path / "half.txt",), r"half\.txt, line 2: no label"),
        ((tmp_path / "ok" / "a" / "1.png",), r"not a text file"),
        ((tmp_path / "ok", tmp_path / "gone"), r"data\.val_root = .*gone: no such"),
        ((tmp_path / "ok", tmp_path / "ok"), r"data\.val_root = .*ok: these are the training images"),
        ((tmp_path / "train",), r"data\.val_root = auto .*val\): class 'x' .*not among the 2 classes"),
        ((tmp_path / "ok", tmp_path / "flat"), r"data\.val_root = .*flat.*fewer than two classes"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(UserError, match=message):
            folder(*arguments)


def test_paths_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lists, "LOOKED_AT", 1)
    listing = tmp_path / "many.txt"
    images(tmp_path, "0.png")
    listing.write_text("0.png\n" + "".join(f"n{i:08d}.png\n" for i in range(100_000)))
    source = folder(listing).train
    assert source.name(100_000) == str(tmp_path / "n00099999.png")
    held = sum(v.nbytes for v in vars(source).values() if isinstance(v, torch.Tensor))
    assert held < 22 * 100_001
    with pytest.raises(IndexError, match="image 100001 of 100001"):
        source.name(100_001)
