from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dino_exp.data.source import ArraySource
from dino_exp.errors import UserError
from dino_exp.eval.features import extract, normalize, pixels, resize_and_crop
from tests.data.sources import Album
from tests.eval.subjects import ConvNet

SETTINGS: dict[str, Any] = {
    "image_size": 8,
    "crop_ratio": 1.0,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "device": "cpu",
}


def random_images(n: int, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def small_network() -> ConvNet:
    return ConvNet(4, nn.Dropout(0.5))


def test_rows_are_the_network_in_eval_mode_and_nothing_of_it_moves() -> None:
    torch.manual_seed(0)
    network = small_network()
    network.train()
    network[2].eval()  # a part that somebody froze stays frozen, the rest goes back to train mode
    network.get_buffer("1.running_mean").fill_(0.3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = random_images(11)
    got = extract(network, ArraySource("a", images, None, None, 3), range(11), batch_size=4, **SETTINGS)

    assert [module.training for module in network] == [True, True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()((images.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(got.values, expected)
    assert got.values.dtype == torch.float32
    assert got.indices.tolist() == list(range(11))
    (got.values @ nn.Parameter(torch.ones(4))).sum().backward()  # ordinary tensors: a probe can learn on them


def test_modes_come_back_after_an_error_too() -> None:
    network = small_network().train()
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 1"):
        extract(
            network,
            Album(random_images(2, channels=1)),
            [0],
            batch_size=1,
            **SETTINGS | {"mean": [0.5], "std": [1]},
        )
    assert all(module.training for module in network.modules())


def test_unreadable_images_leave_with_their_index() -> None:
    mixed = [*random_images(3, side=8), *random_images(3, side=12), *random_images(2, side=8)]
    asked = [7, 1, 2, 3, 5, 0]
    sound = extract(nn.Flatten(), Album(mixed), asked, batch_size=2, **SETTINGS)
    torn = extract(nn.Flatten(), Album(mixed, unreadable={1, 2, 5}), asked, batch_size=2, **SETTINGS)
    assert sound.indices.tolist() == asked
    assert torn.indices.tolist() == [7, 3, 0]
    assert torch.equal(torn.values, sound.values[[0, 3, 5]])
    with pytest.raises(UserError, match=r"None of 1 images.*album 1"):
        extract(nn.Flatten(), Album(mixed, unreadable={1}), [1], batch_size=2, **SETTINGS)


def test_threads_change_neither_order_nor_values() -> None:
    album = Album([*random_images(9, side=16), *random_images(8, side=11)], unreadable={3})
    alone, ahead = (
        extract(nn.Flatten(), album, range(17), batch_size=3, workers=workers, **SETTINGS)
        for workers in (0, 3)
    )
    assert torch.equal(alone.values, ahead.values)
    assert torch.equal(alone.indices, ahead.indices)


def test_resize_and_crop_is_the_released_codes() -> None:
    # Resize(256, bicubic) and CenterCrop(224) of Pillow, on a smooth image of uneven sides.
    y, x = np.mgrid[0:300, 0:407]
    array = np.stack([x * 0.6, y * 0.8, 127 + 90 * np.sin(x / 9) * np.cos(y / 7)], axis=-1).astype(np.uint8)
    short, long = 256, int(256 * 407 / 300)
    left, top = round((long - 224) / 2), (short - 224) // 2
    resized = Image.fromarray(array).resize((long, short), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)

    got = resize_and_crop(torch.from_numpy(array).permute(2, 0, 1), 224, 0.875).permute(1, 2, 0)
    assert got.dtype == torch.uint8
    assert np.abs(got.numpy().astype(int) - expected).max() <= 1


def test_images_that_have_the_size_are_not_touched() -> None:
    images = random_images(2)
    assert torch.equal(resize_and_crop(images, 8, 1.0), images)
    assert resize_and_crop(images, 8, 0.875).shape == images.shape
    assert not torch.equal(resize_and_crop(images, 8, 0.875), images)


def test_normalize_asks_for_one_value_per_channel() -> None:
    images = torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)
    assert normalize(images, [0.5, 0.0], [0.5, 2.0]).flatten().tolist() == [-1.0, 0.5]
    with pytest.raises(UserError, match=r"have 3 and 3 values.*2 channels"):
        normalize(images, [0.5] * 3, [0.5] * 3)


def test_pixels_are_centered_by_the_bank_alone() -> None:
    bank, queries = random_images(6, channels=2), random_images(3, channels=2, seed=1)
    got_bank, got_queries = pixels(
        Album(bank), range(6), Album(queries), [2, 0], image_size=8, crop_ratio=1.0, batch_size=4
    )
    assert got_bank.values.mean(dim=0).abs().max() < 1e-6
    expected = (queries[[2, 0]].float() - bank.float().mean(dim=0)) / 255
    torch.testing.assert_close(got_queries.values, expected.flatten(1))
