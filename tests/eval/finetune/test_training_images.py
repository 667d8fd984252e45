"""Random crops of training images, the same with any batch size and number of threads."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from dino_exp.errors import UserError
from dino_exp.eval.features import Readable
from dino_exp.eval.finetune.training_images import SingleCrop, Substituting, epoch_order, training_images
from dino_exp.seeding import generator
from tests.data.sources import Album

SETTINGS: dict[str, Any] = dict(seed=3, epoch=1, image_size=16, scale=[0.2, 1.0], batch_size=4, workers=0)


def album(sizes: Sequence[tuple[int, int]], unreadable: Collection[int] = ()) -> Album:
    """Images of different sizes; some cannot be read."""
    drawn = torch.Generator().manual_seed(0)
    return Album(
        [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=drawn) for size in sizes], unreadable
    )


def everything(source: Readable, indices: Sequence[int], **changes: Any) -> tuple[torch.Tensor, list[int]]:
    batches = list(training_images(source, indices, **SETTINGS | changes))
    return torch.cat([batch for batch, _ in batches]), [each for _, indices in batches for each in indices]


def test_each_image_is_torchvisions_crop_of_its_box_and_half_are_flipped() -> None:
    source = album([(20 + n % 7, 30 - n % 5) for n in range(60)])
    images, indices = everything(source, range(60))
    assert indices == list(range(60))
    assert images.shape == (60, 3, 16, 16)
    flipped, shares = 0, []
    for index, image in enumerate(images):
        full = source.read(index)
        uniform = generator(3, 1, index).random(SingleCrop.uniforms + 1)
        box = SingleCrop(16, [0.2, 1.0]).boxes(uniform[None, :-1], *full.shape[1:])[0].tolist()
        crop = resized_crop(full, *box, [16, 16], interpolation=InterpolationMode.BICUBIC, antialias=True)
        flip = uniform[-1] < 0.5
        assert torch.equal(image, crop.flip(-1) if flip else crop)
        flipped += flip
        shares.append(box[2] * box[3] / full[0].numel())
    assert 20 <= flipped <= 40
    assert 0.18 < min(shares) < 0.35
    assert 0.8 < max(shares) <= 1


def test_an_image_depends_on_seed_epoch_and_index_alone() -> None:
    source = album([(20, 24)] * 9)
    images, _ = everything(source, range(9))
    backwards, indices = everything(source, range(9)[::-1], batch_size=2, workers=2)
    assert indices == list(range(9))[::-1]
    assert torch.equal(backwards.flip(0), images)
    for change in ({"epoch": 2}, {"seed": 4}):
        assert not torch.equal(everything(source, range(9), **change)[0], images)


def test_unreadable_images_are_skipped_or_substituted_by_the_next_one() -> None:
    sizes = [(16, 16)] * 10
    source = album(sizes, unreadable=[0, 4, 5, 6, 7, 9])
    images, indices = everything(source, range(10))
    assert indices == [1, 2, 3, 8]
    assert torch.equal(images, everything(album(sizes), indices)[0])

    substituting = Substituting(source)
    full, indices = everything(substituting, range(10), scale=[1.0, 1.0])
    assert indices == list(range(10))
    read = [substituting.index_read(index) for index in indices]
    assert read == [1, 1, 2, 3, 8, 8, 8, 8, 8, 1]
    for index, image in zip(read, full, strict=True):
        assert any(torch.equal(each, source.read(index)) for each in (image, image.flip(-1)))
    assert substituting.unreadable == source.unreadable
    with pytest.raises(UserError, match=r"None of the training images can be read; is data\.root"):
        Substituting(album(sizes, unreadable=range(10))).read(3)


def test_the_order_of_an_epoch() -> None:
    order = epoch_order(50, seed=0, epoch=0)
    assert sorted(order) == list(range(50))
    assert order == epoch_order(50, seed=0, epoch=0)
    assert order not in (list(range(50)), epoch_order(50, seed=0, epoch=1), epoch_order(50, seed=1, epoch=0))
