"""Columns of rows that programs other than the `datasets` library wrote: images, labels, and classes."""

import datetime
import decimal
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq

from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ImageSource, decode_image
from dino_exp.errors import UserError
from tests.data.sources import held_out, labels_of, load
from tests.data.stored import as_rows, by_class, encoded

pytestmark = pytest.mark.usefixtures("cache")
IMAGES = encoded(4)
NAN = float("nan")


def write(path: Path, **columns: Any) -> Path:
    """Write a parquet file whose rows have IMAGES, as pandas would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([{"bytes": content, "path": None} for content in IMAGES])
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }
    pq.write_table(pa.table({"image": images} | arrays), path)
    return path


def train_images(root: Path, **columns: str) -> ImageSource:
    return load("huggingface", root=root, val_root=None, **columns).train


WORDS = ["dog", "cat", "dog", "ant"]
READ: list[tuple[Any, list[str], list[int]]] = [
    (WORDS, ["ant", "cat", "dog"], [2, 1, 2, 0]),
    (pa.array(WORDS).dictionary_encode(), ["ant", "cat", "dog"], [2, 1, 2, 0]),
    (pa.array(WORDS, pa.string_view()), ["ant", "cat", "dog"], [2, 1, 2, 0]),
    ([10, 2, 10, 2], ["2", "10"], [1, 0, 1, 0]),
    (pa.array([0, 7, 0, 7], pa.uint8()), ["0", "7"], [0, 1, 0, 1]),
    ([3.0, 0.0, 0.0, 3.0], ["0", "3"], [1, 0, 0, 1]),
    ([True, False, True, True], ["false", "true"], [1, 0, 1, 1]),
    ([2**62, 2**62 + 1, 5, 5], ["5", str(2**62), str(2**62 + 1)], [1, 2, 0, 0]),
]


@pytest.mark.parametrize(("values", "classes", "labels"), READ, ids=lambda value: str(value)[:30])
def test_numbers_and_texts_are_classes(
    tmp_path: Path, values: Any, classes: list[str], labels: list[int]
) -> None:
    write(tmp_path / "a.parquet", kind=values)
    source = train_images(tmp_path, label_column="kind")
    assert (source.classes, labels_of(source).tolist()) == (classes, labels)
    for index, content in enumerate(IMAGES):
        assert torch.equal(source.read(index), decode_image(content, "", Decoding(3)))


@pytest.mark.parametrize(
    "values",
    [[1, 0, None, 1], [1.0, 0.0, NAN, 1.0], [1, 0, -1, 1], ["a", "b", None, "a"], ["a", "b", " ", "a"]],
    ids=str,
)
def test_an_image_without_a_label_is_said_and_never_a_class(
    tmp_path: Path, values: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train" / "0000.parquet", label=values)
    write(tmp_path / "val" / "0000.parquet", label=[values[0], values[1], values[0], values[1]])
    with caplog.at_level(logging.INFO, "dino_exp"):
        splits = load("huggingface", root=tmp_path / "train", label_column="label")
    assert (splits.train.labels, splits.train.classes, held_out(splits).labels) == (None, None, None)
    assert "1 of 4 images have no label" in caplog.text
    assert "row 2" in caplog.text
    with pytest.raises(UserError, match=r"data\.val_root = .*1 of 4 images have no label \(.*row 2\)"):
        load("huggingface", root=tmp_path / "val", val_root=tmp_path / "train")


@pytest.mark.parametrize("values", [[None] * 4, [NAN] * 4, [-1] * 4, pa.nulls(4, pa.string())], ids=str)
def test_images_that_all_lack_labels_have_none(tmp_path: Path, values: Any) -> None:
    write(tmp_path / "a.parquet", label=values)
    for chosen in ({}, {"label_column": "label"}):
        source = train_images(tmp_path, **chosen)
        assert (len(source), source.labels, source.classes) == (4, None, None)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([3.5, 3.0, 0.0, 1.0], r"the number 3\.5 in row 0, which is no class"),
        ([1.0, float("inf"), 0.0, 1.0], "the number inf in row 1"),
        ([[0, 1], [1], [], [0]], "a list per row"),
        ([{"a": 1}] * 4, "struct<a: int64>"),
        ([datetime.date(2020, 1, 1)] * 4, "date32"),
        ([datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)] * 4, "timestamp"),
        ([decimal.Decimal("1.5")] * 4, "decimal"),
        ([b"ant"] * 4, "binary"),
        (pa.array([2**63] * 4, pa.uint64()), "the number 9223372036854775808, which is too large"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_a_class_is_refused_or_said(
    tmp_path: Path, values: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.parquet", label=values)
    with pytest.raises(UserError, match=rf"the column label has {what}.* data\.label_column"):
        train_images(tmp_path, image_column="image", label_column="label")
    source = train_images(tmp_path, image_column="image")  # nobody asked for these labels
    assert (source.labels, source.classes) == (None, None)
    assert "The images have no labels." in caplog.text


def test_labels_are_found_by_their_type_or_their_usual_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.parquet", target=[5, 5, 5, 6], label=[0, 1, 0, 1], text=["a", "b", "c", "d"])
    with caplog.at_level(logging.INFO, "dino_exp"):
        assert labels_of(train_images(tmp_path)).tolist() == [0, 1, 0, 1]
    assert "the labels are the column label, by its name" in caplog.text
    write(tmp_path / "other" / "a.parquet", text=["a", "b", "c", "d"])
    assert train_images(tmp_path / "other").labels is None
    rows = as_rows(list(zip(IMAGES, [1, 0, 1, 0], strict=True)), ["ant", "bee"])
    rows = rows.rename_column("label", "fine_label").add_column("label", [0, 1, 2, 3])
    rows.save_to_disk(tmp_path / "fine")
    assert train_images(tmp_path / "fine").classes == ["ant", "bee"]
    kind = datasets.ClassLabel(names=["0", "1", "2", "3"])
    rows.cast_column("label", kind).rename_column("label", "coarse_label").save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match=r"data\.label_column from fine_label, coarse_label"):
        train_images(tmp_path / "both")


def test_classes_of_class_labels(tmp_path: Path) -> None:
    images = list(zip(IMAGES, [0, 1, 2, 1], strict=True))
    for name, classes in {"train": ["ant", "bee", "cat"], "val": ["cat", "ant", "bee"]}.items():
        as_rows(images, classes).to_parquet(tmp_path / f"{name}.parquet")
    splits = load("huggingface", root=tmp_path)
    assert (splits.train.classes, labels_of(held_out(splits)).tolist()) == (
        ["ant", "bee", "cat"],
        [2, 0, 1, 0],
    )
    (tmp_path / "train.parquet").rename(tmp_path / "1.parquet")
    (tmp_path / "val.parquet").rename(tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"2\.parquet: the classes of the column label are not those of 1"):
        train_images(tmp_path)

    def noted(file: Path, names: list[str], labels: list[int]) -> ImageSource:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        schema = datasets.Features(image=datasets.Image(), label=datasets.Value("int64")).arrow_schema
        text = str({"info": {"features": features}}).replace("'", '"')
        values = [pa.array([{"bytes": content, "path": None} for content in IMAGES], schema.field(0).type)]
        table = pa.table([*values, pa.array(labels)], schema=schema.with_metadata({"huggingface": text}))
        pq.write_table(table, file)
        return train_images(file)

    twice = noted(tmp_path / "twice.parquet", ["crane", "dog", "crane"], [0, 1, 2, 2])
    assert (twice.classes, labels_of(twice).tolist()) == (["crane (0)", "dog", "crane (2)"], [0, 1, 2, 2])
    with pytest.raises(UserError, match=r"row 2: label 5, but there are only 2 classes"):
        noted(tmp_path / "few.parquet", ["ant", "bee"], [0, 1, 5, 0])


def test_images_as_bytes_paths_and_structs(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number, content in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(content)
    names = [f"{number}.jpg" for number in range(4)]
    kinds = {
        "bytes": pa.array(IMAGES),
        "large": pa.array(IMAGES, pa.large_binary()),
        "view": pa.array(IMAGES, pa.binary_view()),
        "struct": pa.array([{"bytes": content, "width": 3} for content in IMAGES]),
        "paths": pa.array(names),
        "views": pa.array(names, pa.string_view()),
        "both": pa.array([{"path": name, "bytes": None} for name in names]),
    }
    pq.write_table(pa.table(kinds), folder / "a.parquet", row_group_size=3)
    for column in kinds:
        source = train_images(folder, image_column=column)
        for index in (3, 0):
            assert torch.equal(source.read(index), decode_image(IMAGES[index], "", Decoding(3)))
    with pytest.raises(UserError, match=r"4 columns that can be the images; .* from bytes \(binary\), large"):
        train_images(folder)
    pq.write_table(pa.table({"jpg": kinds["bytes"], "paths": kinds["paths"]}), folder / "a.parquet")
    assert torch.equal(train_images(folder).read(3), decode_image(IMAGES[3], "", Decoding(3)))
    pixels = datasets.Features(image=datasets.Array3D((2, 2, 3), "uint8"))
    rows = datasets.Dataset.from_dict({"image": [[[[0] * 3] * 2] * 2]}, features=pixels)
    rows.save_to_disk(tmp_path / "pixels")
    with pytest.raises(UserError, match=r"image: .* has decoded pixels \(Array3D\) there"):
        train_images(tmp_path / "pixels", image_column="image")
    with pytest.raises(UserError, match=r"no column of images; .* data\.image_column from image \(decoded"):
        train_images(tmp_path / "pixels")
    pq.write_table(pa.table({"other": [1]}), folder / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: no column jpg, which a\.parquet has"):
        train_images(folder)


def test_columns_of_held_out_files_are_their_own(tmp_path: Path) -> None:
    train, test = by_class(encoded(6), 2), by_class(encoded(4), 2)
    as_rows(train, ["ant", "bee"]).to_parquet(tmp_path / "train.parquet")
    as_rows(test, ["ant", "bee"]).rename_column("image", "img").to_parquet(tmp_path / "test.parquet")
    assert len(held_out(load("huggingface", root=tmp_path))) == 4
    with pytest.raises(
        UserError, match=r"data\.image_column = image: data\.val_root = .* has the columns img"
    ):
        load("huggingface", root=tmp_path, image_column="image")
