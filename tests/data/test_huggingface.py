"""Data sets on the disk as the `datasets` library writes them."""

import errno
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq

from dino_exp.data.decoding import Decoding
from dino_exp.data.source import CorruptImageError, ImageSource, Splits, decode_image
from dino_exp.errors import UserError
from tests.data.sources import held_out, labels_of, load
from tests.data.stored import as_rows, by_class, encoded

pytestmark = pytest.mark.usefixtures("cache", "no_network")
CLASSES = ["ant", "bee", "cat"]
ARROW = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
IMAGES = by_class(encoded(21), 3)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def hugging_face(root: Path | None, val_root: Path | str | None = "auto", **columns: str | None) -> Splits:
    return load("huggingface", root=root, val_root=val_root, **columns)


def assert_holds(source: ImageSource, images: list[tuple[bytes, int]]) -> None:
    assert (len(source), source.classes) == (len(images), CLASSES)
    assert labels_of(source).tolist() == [label for _, label in images]
    for index in (len(images) - 1, 0, 2):
        assert torch.equal(source.read(index), decode_image(images[index][0], "", Decoding(3)))


def test_saved_data_sets_with_and_without_splits(tmp_path: Path) -> None:
    train, test = as_rows(IMAGES, CLASSES), as_rows(IMAGES[::4], CLASSES)
    train.save_to_disk(tmp_path / "alone", num_shards=3)
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    assert hugging_face(tmp_path / "alone").test is None
    assert_holds(hugging_face(tmp_path / "alone").train, IMAGES)
    for root in (tmp_path / "both", tmp_path / "both" / "train"):
        splits = hugging_face(root)
        assert_holds(splits.train, IMAGES)
        assert_holds(held_out(splits), IMAGES[::4])
    assert hugging_face(tmp_path / "both", val_root=None).test is None
    assert_holds(held_out(hugging_face(tmp_path / "alone", tmp_path / "both")), IMAGES[::4])
    copy = pickle.loads(pickle.dumps(splits.train))
    assert_holds(copy, IMAGES)
    assert copy.name(3) == f"{tmp_path / 'both' / 'train'}: row 3"
    with pytest.raises(UserError, match=r"is among the training files"):
        hugging_face(tmp_path / "alone", tmp_path / "alone")


def test_parquet_in_the_hubs_layout(tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for part in range(2):
        rows = as_rows(IMAGES[part * 11 : (part + 1) * 11], CLASSES)
        rows.to_parquet(data / f"train-0000{part}-of-00002.parquet")
    as_rows(IMAGES[::4], CLASSES).to_parquet(data / "validation-00000-of-00001.parquet")
    as_rows([(IMAGES[0][0], -1)] * 2, CLASSES).to_parquet(data / "test-00000-of-00001.parquet")
    for root in (tmp_path / "set", data, data / "train-*.parquet", data / "train-0000{0,1}-of-00002.parquet"):
        splits = hugging_face(root)
        assert_holds(splits.train, IMAGES)
        assert_holds(held_out(splits), IMAGES[::4])
    unlabeled = hugging_face(data / "test-00000-of-00001.parquet", val_root=None).train
    assert (len(unlabeled), unlabeled.labels, unlabeled.classes) == (2, None, None)
    made = list(cache.rglob("*.arrow"))
    assert len(made) == 4
    as_rows(IMAGES[::5], CLASSES).to_parquet(data / "validation-00000-of-00001.parquet")
    assert_holds(held_out(hugging_face(data)), IMAGES[::5])  # not those of the file before


def test_columns_are_found_by_type_or_named(tmp_path: Path) -> None:
    rows = as_rows(IMAGES, CLASSES)
    two = rows.add_column("fine", [i % 5 for i in range(21)]).add_column(
        "thumbnail", [{"bytes": IMAGES[0][0], "path": None}] * 21
    )
    two.save_to_disk(tmp_path / "plain")
    assert_holds(hugging_face(tmp_path / "plain").train, IMAGES)
    fine = hugging_face(tmp_path / "plain", label_column="fine", image_column="thumbnail").train
    assert (fine.classes, labels_of(fine).tolist()) == ([*"01234"], [i % 5 for i in range(21)])
    assert torch.equal(fine.read(20), decode_image(IMAGES[0][0], "", Decoding(3)))
    two.cast_column("thumbnail", datasets.Image()).save_to_disk(tmp_path / "two")
    rows.remove_columns("image").save_to_disk(tmp_path / "none")
    lists = datasets.Features(images=datasets.List(datasets.Image()))
    datasets.Dataset.from_dict({"images": [[]]}, features=lists).save_to_disk(tmp_path / "listed")
    mistakes = [
        (
            ("two", None),
            r"2 columns .* choose with data\.image_column from image \(Image\), thumbnail \(Image\)",
        ),
        (("none", None), r"no column of images; choose with data\.image_column from label"),
        (
            ("two", "pixels"),
            r"data\.image_column = pixels: .*/two has the columns image, label, fine, thumbnail",
        ),
        (("two", "fine"), r"data\.image_column = fine: .*/two has int64 there, not one image per row"),
        (("listed", "images"), r"images: .* has a list per row \(list<.* there, not one image per row"),
    ]
    for (name, column), message in mistakes:
        with pytest.raises(UserError, match=message):
            hugging_face(tmp_path / name, image_column=column)
    assert hugging_face(tmp_path / "two", image_column="image", label_column="label").train.classes == CLASSES


def test_rows_without_a_readable_image_are_reported(tmp_path: Path) -> None:
    kind = datasets.Features(image=datasets.Image())
    images = [{"bytes": b"no image", "path": None}, None]
    datasets.Dataset.from_dict({"image": images}, features=kind).to_parquet(tmp_path / "a.parquet")
    source = hugging_face(tmp_path).train
    for index, reason in enumerate(("not an image", "the row has no image")):
        with pytest.raises(CorruptImageError, match=rf"row {index}: {reason}"):
            source.read(index)


def test_rows_name_files_of_their_own_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere.jpg"
    (folder / "images").mkdir(parents=True)
    for file in (elsewhere, folder / "images" / "a.jpg"):
        file.write_bytes(IMAGES[0][0])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    rows = {
        "images/a.jpg": "",
        str(folder / "images" / "a.jpg"): "",
        str(elsewhere): "names a file outside of .*set, which is not read: .*elsewhere.jpg",
        "../elsewhere.jpg": r"outside of .*\.\./elsewhere.jpg",
        "/dev/zero": "outside of .*/dev/zero",
        "https://127.0.0.1:9/x.png": "no such file or folder",
        "pipe.jpg": "a pipe, socket, device or folder",
        "zero.jpg": "a pipe, socket, device or folder",
        "images": "a pipe, socket, device or folder",
    }
    image = pa.array([{"bytes": None, "path": path} for path in rows])
    kinds = datasets.Features(image=datasets.Image()).arrow_schema
    pq.write_table(pa.table([image], schema=kinds), folder / "train.parquet")
    monkeypatch.chdir(tmp_path)
    source = hugging_face(folder).train
    for index, reason in enumerate(rows.values()):
        if not reason:
            assert torch.equal(source.read(index), decode_image(IMAGES[0][0], "", Decoding(3)))
            continue
        with pytest.raises(CorruptImageError, match=f"row {index}: .*{reason}"):
            source.read(index)
    monkeypatch.setattr("dino_exp.data.huggingface.MOST_BYTES", 10)
    as_rows(IMAGES, CLASSES).save_to_disk(tmp_path / "large")
    with pytest.raises(CorruptImageError, match="bytes, more than the"):
        hugging_face(tmp_path / "large").train.read(0)


def test_a_saved_data_set_has_its_files_in_its_folder(tmp_path: Path) -> None:
    as_rows(IMAGES, CLASSES).save_to_disk(tmp_path / "private")
    datasets.DatasetDict(train=as_rows(IMAGES, CLASSES)).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["../private"]}')
    with pytest.raises(UserError, match=r"dataset_dict\.json.*not names of folders"):
        hugging_face(tmp_path / "set")
    for content in ("[" * 100_000, '{"splits": 3}', "{}", ""):
        (tmp_path / "set" / "dataset_dict.json").write_text(content)
        with pytest.raises(UserError, match=r"dataset_dict\.json: half-written"):
            hugging_face(tmp_path / "set")
    state = tmp_path / "set" / "train" / "state.json"
    name = next((tmp_path / "private").glob("*.arrow")).name
    state.write_text(state.read_text().replace('"data-', '"../../private/data-'))
    assert (state.parent / "../../private" / name).exists()
    with pytest.raises(UserError, match=r"state\.json names files of other folders"):
        hugging_face(tmp_path / "set" / "train")


def test_half_written_files_are_reported(tmp_path: Path) -> None:
    rows = as_rows(IMAGES, CLASSES)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_parquet(tmp_path / "b.parquet")
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    for name, root in (("b.parquet", "."), ("saved/data-00001-of-00002.arrow", "saved")):
        file = tmp_path / name
        complete = file.read_bytes()
        for content in (b"", complete[:-8], complete[: len(complete) // 2], b"<html>" * 100):
            file.write_bytes(content)
            with pytest.raises(UserError, match=rf"{file}: half-written"):
                hugging_face(tmp_path / root)
        file.write_bytes(complete)
    (tmp_path / "saved" / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00002\.arrow"):
        hugging_face(tmp_path / "saved")


def test_mistakes_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rows = as_rows(IMAGES, CLASSES)
    datasets.DatasetDict(a=rows, b=rows).save_to_disk(tmp_path / "parts")
    mistakes = [
        (None, r"data\.root is null: give a folder written by save_to_disk"),
        (tmp_path / "nowhere", r"no such folder or file"),
        (tmp_path / "empty", r"no \.parquet files in that folder"),
        (tmp_path / "parts", r"none of its splits \(a, b\) is named train; .*data\.root=.*parts/a"),
    ]
    for root, message in mistakes:
        with pytest.raises(UserError, match=message):
            hugging_face(root)


def part(path: Path, images: list[tuple[bytes, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_rows(images, CLASSES).to_parquet(path)


@pytest.mark.parametrize(
    "names",
    [
        ("default/train/0000.parquet", "default/test/0000.parquet", "default/validation/0000.parquet"),
        ("train/0000.parquet", "test/0000.parquet", "validation/0000.parquet"),
        ("plain/train-00000-of-00001.parquet", "plain/test-0.parquet", "plain/validation-0.parquet"),
        ("data/train-0.parquet", "extra/0.parquet", "data/val-0.parquet"),
        ("data/plain/train/a.parquet", "data/plain/test/a.parquet", "data/plain/dev/a.parquet"),
    ],
    ids=lambda names: names[0],
)
def test_layouts_of_the_hub(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, images in zip(names, (IMAGES, IMAGES[:2], IMAGES[::4]), strict=True):
        part(tmp_path / name, images)
    splits = hugging_face(tmp_path)
    assert_holds(splits.train, IMAGES)
    assert_holds(held_out(splits), IMAGES[::4])
    assert_holds(held_out(hugging_face(tmp_path / names[0], tmp_path)), IMAGES[::4])


def test_held_out_files_that_nobody_named_need_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part(tmp_path / "train.parquet", IMAGES)
    part(tmp_path / "test.parquet", [(IMAGES[0][0], -1)] * 3)
    splits = hugging_face(tmp_path)
    assert_holds(splits.train, IMAGES)
    assert splits.test is None
    assert f"data.val_root = auto: {tmp_path}/test.parquet has no labels and is not used" in caplog.text
    with pytest.raises(UserError, match=r"fewer than two classes, and those of data\.root .* have 3 classes"):
        hugging_face(tmp_path, tmp_path / "test.parquet")


def test_a_folder_that_is_not_one_set_is_refused(tmp_path: Path) -> None:
    for name in (
        "fine/train/0.parquet",
        "coarse/train/0.parquet",
        "parts/a_train/0.parquet",
        "parts/b_train/0.parquet",
    ):
        part(tmp_path / name, IMAGES[:2])
    (tmp_path / "files" / "train").mkdir(parents=True)
    (tmp_path / "files" / "train" / "a.JPG").write_bytes(IMAGES[0][0])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").touch()
    mistakes = [
        (tmp_path, r"several data sets \(coarse, fine, parts\); .*data\.root=.*/coarse"),
        (tmp_path / "parts", r"none of its splits \(a_train, b_train\) is named train"),
        (tmp_path / "files", r"It holds image files: add data=image_folder"),
        (tmp_path / "shards", r"It holds tar shards: add data=webdataset"),
    ]
    for root, message in mistakes:
        with pytest.raises(UserError, match=message):
            hugging_face(root)


def test_what_is_no_damage_is_not_called_damage(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = as_rows(IMAGES, CLASSES)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    cache.parent.touch()
    with pytest.raises(
        UserError, match=r"a part of the path is a file\. Parquet is unpacked.*XDG_CACHE_HOME"
    ):
        hugging_face(tmp_path / "a.parquet")
    cache.parent.unlink()

    def fail(error: Exception) -> Any:
        def failing(*_: object, **__: object) -> None:
            raise error

        return failing

    causes = [
        (OSError(errno.EACCES, "x"), "no permission"),
        (OSError(errno.EIO, "x"), "the disk or network file system failed"),
        (pa.ArrowMemoryError("x"), "not enough memory"),
    ]
    for error, words in causes:
        for name, root in (("parquet.read_schema", "a.parquet"), ("pa.memory_map", "saved")):
            with monkeypatch.context() as patch:
                patch.setattr(f"dino_exp.data.arrow_files.{name}", fail(error))
                with pytest.raises(UserError, match=rf"^{tmp_path}/{root}[^:]*: {words}\.$"):
                    hugging_face(tmp_path / root)
    with monkeypatch.context() as patch:
        patch.setattr("dino_exp.data.arrow_files.pa.ipc.new_stream", fail(OSError(errno.ENOSPC, "x")))
        with pytest.raises(UserError, match=r"\.arrow: the disk is full\. Parquet is unpacked"):
            hugging_face(tmp_path / "a.parquet")
    assert not list(cache.rglob("*.arrow*"))
    assert_holds(hugging_face(tmp_path / "a.parquet").train, IMAGES)
    made = next(cache.rglob("*.arrow"))
    made.write_bytes(made.read_bytes()[:-100])
    assert_holds(hugging_face(tmp_path / "a.parquet").train, IMAGES)


def test_rows_cannot_lead_out_of_their_file(tmp_path: Path) -> None:
    as_rows(IMAGES, CLASSES).save_to_disk(tmp_path)
    file = tmp_path / "data-00000-of-00001.arrow"
    lengths = [len(content) for content, _ in IMAGES]
    offsets = np.cumsum([0, *lengths]).astype("<i4").tobytes()
    content = file.read_bytes()
    assert content.count(offsets) == 1
    for wrong in (2**30, -5):
        ends = np.frombuffer(offsets, "<i4").copy()
        ends[-1 if wrong > 0 else 3] = wrong
        file.write_bytes(content.replace(offsets, ends.tobytes()))
        with pytest.raises(UserError, match=rf"{file}: half-written, damaged .*(Length|offset|lead out)"):
            hugging_face(tmp_path)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(file), "wb") as output, pa.ipc.new_stream(output, ARROW, options=options) as writer:
        writer.write_table(pa.table([[{"bytes": bytes(1000), "path": None}]], schema=ARROW))
    with pytest.raises(UserError, match="compressed rows, which are not read"):
        hugging_face(tmp_path, image_column="image", label_column=None)


def test_damaged_names_of_columns_and_texts_are_refused(tmp_path: Path) -> None:
    rows = as_rows(IMAGES, CLASSES).add_column("text", ["long word"] * len(IMAGES))
    rows.save_to_disk(tmp_path)
    file = tmp_path / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    offsets = np.arange(len(IMAGES) + 1, dtype="<i4") * 9
    for right, wrong in ((b"text", b"tex\0"), (b"text", b"tex\xd1"), (offsets[:9], offsets[8::-1])):
        file.write_bytes(content.replace(bytes(right), bytes(wrong)))
        with pytest.raises(UserError, match=rf"{file}: half-written, damaged"):
            hugging_face(tmp_path, label_column="text")


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    as_rows(IMAGES, CLASSES).save_to_disk(tmp_path)
    source = hugging_face(tmp_path).train
    file = tmp_path / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptImageError, match="row 0: the file was changed after the run began"):
        source.read(0)


def test_a_selection_of_an_old_version_is_refused(tmp_path: Path) -> None:
    as_rows(IMAGES, CLASSES).save_to_disk(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"its rows are a selection, which is not read; .*flatten_indices"):
        hugging_face(tmp_path)
