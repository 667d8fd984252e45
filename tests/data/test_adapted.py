"""Others' data: the same images in every form that they may be given in, and what is refused."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from dino_exp.data import given_items
from dino_exp.data.adapted import as_source, as_splits
from dino_exp.data.content import contents_of, key_of
from dino_exp.data.crops import MultiCrop
from dino_exp.data.loader import BatchOrder, CropBatches, batches
from dino_exp.data.source import CorruptImageError, Splits
from dino_exp.errors import UserError
from tests.data.sources import classes_of, held_out, labels_of, multi_crop, released_augment

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), dtype=np.uint8)
LABELS = np.arange(9) % 3


class Items(Dataset[Any]):
    """A Dataset whose items are made by a function of the index."""

    def __init__(self, make: Callable[[int], Any], count: int = len(IMAGES)) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Named(Items):
    """A Dataset with labels and classes as torchvision's have them."""

    targets = LABELS.tolist()
    classes = ("cat", "dog", "owl")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(IMAGES)


@pytest.fixture
def files(tmp_path: Path, cache: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_the_same_images_in_every_form(files: list[Path]) -> None:
    forms: dict[str, Any] = {
        "array": IMAGES,
        "channels first": IMAGES.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(IMAGES),
        "list of arrays": list(IMAGES),
        "PIL": Items(lambda index: Image.fromarray(IMAGES[index])),
        "RGBA": Items(lambda index: Image.fromarray(IMAGES[index]).convert("RGBA")),
        "with labels": TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
        "paths of a Dataset": Items(lambda index: files[index]),
        "paths": files,
        "texts": list(map(str, files)),
        "folder": files[0].parent,
    }
    for name, form in forms.items():
        source = as_source(form, channels=3)
        read = torch.stack([source.read(index) for index in range(len(source))])
        assert torch.equal(read, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_in_memory_become_the_bytes_of_their_files(mode: str, channels: int, tmp_path: Path) -> None:
    image = Image.fromarray(IMAGES[0]).convert(mode)
    path = tmp_path / f"image.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
    image.save(path)
    (of_file, of_memory) = (as_source([form], channels).read(0) for form in (path, image))
    assert torch.equal(of_file, of_memory)
    if mode in ("L", "LA", "RGB", "RGBA"):
        assert torch.equal(as_source([np.asarray(image)], channels).read(0), of_file)


def test_many_channels_are_taken_as_they_are() -> None:
    bands = np.random.default_rng(1).integers(0, 256, (4, 10, 16, 16), dtype=np.uint8)
    for form in (bands, bands.transpose(0, 2, 3, 1)):
        assert np.array_equal(as_source(form, channels=10).read(3), bands[3])


def test_labels_come_from_attributes_items_or_beside_the_images(files: list[Path]) -> None:
    in_items = Items(lambda index: (IMAGES[index], int(LABELS[index])))
    texts = [("cat", "dog", "owl")[label] for label in LABELS]
    for form in (in_items, (IMAGES, LABELS), (IMAGES, torch.from_numpy(LABELS)), (files, LABELS.tolist())):
        source = as_source(form, channels=3)
        assert labels_of(source).tolist() == LABELS.tolist()
        assert classes_of(source) == ["0", "1", "2"]
    for form in (Named(lambda index: IMAGES[index]), (files, texts)):
        source = as_source(form, channels=3)
        assert labels_of(source).tolist() == LABELS.tolist()
        assert classes_of(source) == ["cat", "dog", "owl"]
    # a target_transform, which the attribute does not know of
    other = Named(lambda index: (IMAGES[index], int(LABELS[index] == 2)))
    assert labels_of(as_source(other, channels=3)).tolist() == (LABELS == 2).tolist()
    for without in (IMAGES, Items(lambda index: (IMAGES[index], {"boxes": []})), (IMAGES, [4] * len(IMAGES))):
        assert as_source(without, channels=3).labels is None


def test_held_out_images_have_the_classes_of_the_training_images() -> None:
    splits = as_splits(((IMAGES, LABELS + 5), (IMAGES[:4], [7, 6, 6, 5])), channels=3)
    assert labels_of(held_out(splits)).tolist() == [2, 1, 1, 0]
    assert as_splits((IMAGES, None), channels=3).test is None
    assert as_splits(splits, channels=3) is splits
    for wrong, message in (
        (((IMAGES, LABELS), IMAGES), "no labels"),
        (((IMAGES, LABELS), (IMAGES, LABELS + 1)), "class '3'"),
    ):
        with pytest.raises(UserError, match=message):
            as_splits(wrong, channels=3)


def test_the_content_changes_with_a_pixel_a_label_or_the_order() -> None:
    def key(data: Any) -> str | None:
        return key_of(contents_of(as_splits(data, channels=3)))

    changed, labels = IMAGES.copy(), LABELS.copy()
    changed[-1, -1, -1, -1] ^= 1
    labels[3] = 2
    keys = [key(data) for data in (IMAGES, changed, IMAGES[::-1], (IMAGES, LABELS), (IMAGES, labels))]
    assert len(set(keys)) == len(keys)
    assert key(Items(lambda index: Image.fromarray(IMAGES[index]))) == keys[0]
    assert as_source(IMAGES, 3).fingerprint() != as_source(changed, 3).fingerprint()


def test_a_fingerprint_of_the_data_spares_reading_all_of_it() -> None:
    read: list[int] = []

    def image(index: int) -> np.ndarray:
        read.append(index)
        return IMAGES[index % len(IMAGES)]

    def source(fingerprint: str) -> Splits:
        items = Items(image, count=1000)
        items.fingerprint = fingerprint  # type: ignore[attr-defined]
        return as_splits(items, channels=3)

    keys = [key_of(contents_of(source(fingerprint))) for fingerprint in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    assert len(set(read)) == given_items.LOOKED_AT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES / 255, "training image 0: float64 values; give the images as uint8"),
        (IMAGES.astype(np.uint16), "training image 0: uint16 values; map those that matter to 0-255"),
        (TensorDataset(torch.zeros(5, 3, 8, 8)), "before ToTensor and Normalize"),
        (IMAGES[..., :2].repeat(3, 3), "neither the first nor the last fits data.channels = 3"),
        (IMAGES[:, :3], "both the first and the last could be the channels"),
        (IMAGES[:0], "length 0"),
        (IMAGES[0, 0], "images are (N, C, H, W)"),
        (IMAGES[:, :0], "image of 24 x 0 pixels"),
        (Stream(), "Stream is an IterableDataset"),
        (DataLoader(Items(IMAGES.__getitem__)), "loader.dataset"),
        (3, "int; give a map-style torch Dataset"),
        ({"a": 1}, "dict; give a map-style torch Dataset"),
        (Items(lambda index: None), "training image 0: NoneType, and not an image"),
        (Items(lambda index: {"image": IMAGES[index]}), "a dict of 1 values"),
        (Items(lambda index: Image.new("I;16", (9, 9))), "mode I;16, more than 8 bits"),
        (Items(lambda index: Image.new("F", (9, 9))), "mode F, more than 8 bits"),
        (Items(lambda index: list[int]()[index]), "training image 0: IndexError: list index out of range ("),
        (Items(lambda index: np.random.default_rng().permutation(IMAGES[index])), "random transforms"),
        (["/nowhere/a.png", "/nowhere/b.png"], "no such file: /nowhere/a.png"),
        ((IMAGES, [1, 2]), "9 images and 2 labels"),
        ((IMAGES, [1, "a", *range(7)]), "do not go together"),
    ],
)
def test_what_cannot_be_images_is_refused_in_words(data: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        as_splits(data, channels=3)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def broken_at(bad: int) -> Items:
    def item(index: int) -> Any:
        if index == bad:
            raise ValueError("torn\nsecond line")
        return IMAGES[index], int(LABELS[index])

    return Items(item)


def test_an_item_that_raises_is_an_unreadable_image_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dino_exp"):
        source = as_source(broken_at(3), channels=3, title="training image")
    assert "1 of 9 items cannot be read" in caplog.text
    assert 'raise ValueError("torn' in caplog.text  # the traceback
    assert labels_of(source).tolist()[4:] == LABELS.tolist()[4:]
    with pytest.raises(
        CorruptImageError, match=r"training image 3: ValueError: torn \(.*test_adapted.py:\d+\)"
    ):
        source.read(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_skip_an_item_that_raises(workers: int) -> None:
    crops: MultiCrop = multi_crop()
    made = CropBatches(as_source(broken_at(3), 3), crops, released_augment(), seed=0, backend="fast")
    order = BatchOrder(len(IMAGES), batch_size=3, seed=0, start_step=0, stop_step=3)
    corrupt = [batch.corrupt.tolist() for batch in batches(made, order, workers, pin_memory=False)]
    assert [index for each in corrupt for index in each] == [3]


def test_what_loader_processes_are_sent_where_they_are_not_forked() -> None:
    copy = pickle.loads(pickle.dumps(as_source(IMAGES, 3)))
    assert torch.equal(copy.read(2), torch.from_numpy(IMAGES[2]).permute(2, 0, 1))
    with pytest.raises(UserError, match=r"Items cannot be sent to loader processes .*num_workers=0"):
        pickle.dumps(as_source(Items(lambda index: IMAGES[index]), 3))
