"""Class folders, flat folders and lists of files."""

import errno
import logging
import os
import pickle
from pathlib import Path
from typing import Any

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


def test_links_other_files_and_what_systems_leave_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = images(tmp_path / "set", "cat.png/1.jpg", "dog/2.JPG", "dog/3e5f", "dog/4.jpg?w=8", "other/5.png")
    images(root, "dog/@eaDir/2.JPG/SYNO_M.jpg", "dog/.@__thumb/2.jpg", "dog/._2.JPG", "#recycle/dog/1.jpg")
    images(root, "__MACOSX/dog/1.jpg", "lost+found/1.jpg", "dog/.ipynb_checkpoints/2.jpg", "@Recycle/1.jpg")
    for name in ("dog/Thumbs.db", "dog/1.txt", "README", "dog/LICENSE", "dog/empty"):
        (root / name).write_text("" if name.endswith("empty") else "text")
    for name in ("dog/b.nef", "dog/a.nef", "cat.png/c.NEF", "shard.tar", "dog/scan"):
        (root / name).write_bytes(bytes(200))
    (root / "dog" / "self").symlink_to("self")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "linked").symlink_to(root / "other")
    (root / "dog" / "2021.06.12_7").symlink_to(root / "dog" / "3e5f")
    os.mkfifo(root / "dog" / "pipe")
    source = folder(root).train
    assert names(source) == [
        "cat.png/1.jpg",
        *("dog/2.JPG", "dog/2021.06.12_7", "dog/3e5f", "dog/4.jpg?w=8"),
        *("linked/5.png", "other/5.png"),
    ]
    assert source.classes == ["cat.png", "dog", "linked", "other"]
    assert caplog.messages == [
        f"data.root = {root}: skipped 3 .nef (cat.png/c.NEF), 2 that lead nowhere (dog/self), "
        "2 without an ending (dog/pipe), 1 .tar (shard.tar); data=webdataset reads .tar."
    ]


def test_the_order_depends_on_the_bytes_of_names_alone(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in (b"a/\xff.png", "a/\U0001f600.png".encode(), b"a/Z.png", b"a/a.png", "b/é.png".encode()):
        images(root, os.fsdecode(name))
    found = [os.fsencode(name) for name in names(folder(root).train)]
    assert found == [b"a/Z.png", b"a/a.png", "a/\U0001f600.png".encode(), b"a/\xff.png", "b/é.png".encode()]


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000", "HEIF"])
def test_further_formats_are_read(file_format: str, tmp_path: Path) -> None:
    ending = {"AVIF": "avif", "JPEG2000": "jp2", "HEIF": "HEIC"}[file_format]
    for path in (tmp_path / f"a.{ending}", tmp_path / "b"):
        Image.new("RGB", (32, 48), (200, 100, 50)).save(path, file_format)
    source = folder(tmp_path, val_root=None).train
    assert [source.read(index).shape for index in range(2)] == [(3, 48, 32)] * 2
    color = source.read(0).float().mean(dim=(1, 2))
    torch.testing.assert_close(color, torch.tensor([200.0, 100.0, 50.0]), atol=3, rtol=0)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = images(tmp_path / "set", "a/1.png", "b/inner/1.png"), os.scandir

    def refusing(path: bytes) -> Any:
        if path.endswith(b"/inner/"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"data\.root = .*set: cannot be read: .*set/b/inner/: no permission"):
        folder(root)


@pytest.mark.parametrize(
    ("parts", "proposed"),
    [
        ("train/a train/b val/a devkit/", "train"),
        ("Train/a Test/a", "Train"),
        ("training/ validation/ test/ unlabeled/", "training"),
        ("train2017/ val2017/ annotations/", "train2017"),
        ("images/train images/val labels/train/", "images/train"),
        ("bottle/train/good bottle/test/good cable/train/good", "bottle/train"),
    ],
)
def test_a_root_above_training_and_held_out_images_is_refused(
    parts: str, proposed: str, tmp_path: Path
) -> None:
    for part in parts.split():
        if part in ("devkit/", "annotations/", "labels/train/"):
            (tmp_path / part).mkdir(parents=True)
        else:
            images(tmp_path, f"{part}/1.png")
    with pytest.raises(UserError, match=rf"data\.root = .* Give data\.root={tmp_path}/{proposed}, or a text"):
        folder(tmp_path)


def test_held_out_images_beside_the_classes_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.png", "dog/1.png", "val/cat/2.png", "val/dog/2.png")
    with pytest.raises(UserError, match=r"/val has the classes of the folders beside it \(cat, \.\.\.\)"):
        folder(tmp_path)


@pytest.mark.parametrize("classes", ["bus car train", "apple book cat test train", "dev test val"])
def test_classes_may_have_names_of_parts(classes: str, tmp_path: Path) -> None:
    images(tmp_path, *(f"{name}/1.png" for name in classes.split()))
    assert folder(tmp_path).train.classes == classes.split()


def test_a_root_above_the_class_folders_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = folder(images(tmp_path, "train/cat/1.png", "train/dog/1.png")).train
    assert source.labels is None
    assert f"data.root={tmp_path}/train has the class folders cat, dog" in caplog.text
    labeled = folder(images(tmp_path / "a", "cat/1.png", "cat/2.png")).train
    (tmp_path / "a" / "empty").mkdir()
    assert (labeled.labels, folder(tmp_path / "a").train.labels) == (None, None)


def test_held_out_images_are_never_training_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = images(tmp_path / "all", "cat/1.png", "dog/1.png", "held/cat/2.png", "held/dog/2.png")
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "held.txt").write_text("link/held/dog/2.png\tdog\nlink/../all/cat/1.png\tcat\n")
    for train, test, shared in (
        (root, root / "held", r"2 of these 2 images are also training images.*held/cat/2\.png"),
        (root / "held", root, "2 of these 4"),
        (root / "held", tmp_path / "held.txt", "1 of these 2"),
        (root, tmp_path / "link", "these are the training images"),
    ):
        with pytest.raises(UserError, match=rf"data\.val_root = {test}: {shared}"):
            folder(train, test)


def test_auto_takes_no_held_out_images_that_are_of_no_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/1.png", "test/cat/2.png", "test/dog/2.png")
    (tmp_path / "dev").mkdir()
    assert path_of(held_out(folder(tmp_path / "train"))) == tmp_path / "test"
    assert f"auto: {tmp_path}/val has no labels and is not used" in caplog.text
    assert f"auto: not used: data.val_root = {tmp_path}/dev: no images there" in caplog.text
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    assert folder(tmp_path / "train").test is None


@pytest.mark.parametrize(
    ("content", "found", "classes"),
    [
        ("a.png 65\nb c.png 3\n", [1, 0], ["3", "65"]),
        ("a.png,cat\r\nb c.png,dog\r\n", [0, 1], ["cat", "dog"]),
        ('"a.png","x"\n"b c.png",y\n', [0, 1], ["x", "y"]),
        ("\ufeff a.png \t 03 \r\nb c.png\t10 \r\n", [0, 1], ["03", "10"]),
        ("~/a.png\t1\n~/b c.png\t2\n", [0, 1], ["1", "2"]),
    ],
)
def test_lists_as_they_are_published(
    content: str, found: list[int], classes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(images(tmp_path, "a.png", "b c.png")))
    (tmp_path / "list.txt").write_bytes(content.encode())
    source = folder(tmp_path / "list.txt").train
    assert [source.name(index) for index in range(2)] == [f"{tmp_path}/a.png", f"{tmp_path}/b c.png"]
    assert (labels_of(source).tolist(), source.classes) == (found, classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\t3\na.png\t03\n", "3 and 03 are one number"),
        (b"a.png\t1\na.png\tNaN\n", "some labels are NaN"),
        (b"a.png,\na.png,1\n", "some labels are empty"),
        (b"path,label\na.png,1\n", r"line 1: no such file: .*path,label\. .* no header"),
        (b"a.png\nx.png\ny.png\nz.png\n", r"3 of 4 lines that were looked at name no file \(x\.png\)"),
        ("a.png\n".encode("utf-16"), "encoded as UTF-16"),
        (b"a.png\n" * 1000 + b"a\0/b.png\n" * 2000, "166 of 250 lines"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        folder(tmp_path / "list.txt")


def test_mistakes_are_reported(tmp_path: Path) -> None:
    images(tmp_path, "ok/a/1.png", "ok/b/1.png", "mixed/1.png", "mixed/a/1.png", "train/a/1.png")
    images(tmp_path, "train/b/1.png", "val/a/1.png", "val/x/1.png", "flat/1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.svg", "b.txt"):
        (tmp_path / "other" / name).write_text("text")
    (tmp_path / "lost.txt").write_text("nowhere/1.png\n")
    (tmp_path / "half.txt").write_text("ok/a/1.png\t1\nok/b/1.png\n")
    (tmp_path / "blank.txt").write_text("\n\n")
    mistakes: list[tuple[tuple[Path | None] | tuple[Path, Path], str]] = [
        ((None,), r"data\.root is null: give .*class folders"),
        ((tmp_path / "gone" / "x",), rf"data\.root = {tmp_path}/gone/x: no such .*\({tmp_path} exists\)"),
        ((tmp_path / "empty",), r"data\.root = .*empty: no images there\. .*\.jpg"),
        ((tmp_path / "blank.txt",), r"blank\.txt: no images there"),
        ((tmp_path / "other",), r"other: no images there, but 1 \.svg \(a\.svg\), 1 \.txt \(b\.txt\)\. Give"),
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
