"""Features of a data set are the network's, whatever batch, file or process they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dino_exp.backbone.library import timm_backbone
from dino_exp.backbone.tokens import block_tokens
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ArraySource, CorruptImageError, ImageSource, Shrink, Splits
from dino_exp.errors import UserError
from dino_exp.eval.extraction import Extracted, extract, pixels
from dino_exp.eval.subject import Subject
from tests.data.sources import Album, load
from tests.data.stored import as_files, encoded
from tests.eval.subjects import ConvNet, images, random_images, subject, tiny_vit

pytestmark = pytest.mark.usefixtures("cache")


def extracted(
    source: ImageSource,
    backbone: nn.Module | None = None,
    *,
    blocks: int = 0,
    digest: str = "a",
    image_size: int = 32,
) -> Extracted:
    it = subject(backbone, image_size=image_size)
    object.__setattr__(it, "digest", digest)
    data = Extracted(it, None, blocks=blocks)
    data.__dict__["images"] = Splits(source, None)
    return data


def test_rows_are_class_tokens_of_the_last_blocks_and_the_mean_patch() -> None:
    source, backbone = images([0, 1] * 20), tiny_vit()
    data = extracted(source, backbone, blocks=2)
    features = data.features("train")
    whole = data.subject.normalized(source.images)
    last_two = backbone.intermediate_tokens(whole, 2)
    expected = torch.stack([last_two[0][:, 0], last_two[1][:, 0], last_two[1][:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(features.values, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.final, backbone(whole), rtol=0, atol=1e-5)
    assert features.blocks == 2
    assert features.indices.tolist() == list(range(40))
    alone = extracted(source, backbone, blocks=0).features("train")
    assert torch.equal(alone.values, features.values)  # more than was wanted is at hand
    too_many = extracted(source, backbone, blocks=9, digest="b").features("train")
    assert too_many.blocks == 3  # all that there are


def test_files_are_found_again_by_weights_images_and_size_alone(cache: Path) -> None:
    source = images([0, 1] * 4)
    first = extracted(source, tiny_vit(seed=0)).features("train")
    other = tiny_vit(seed=1)
    assert torch.equal(extracted(source, other).features("train").values, first.values)  # by their name
    assert not torch.equal(extracted(source, other, digest="b").features("train").values, first.values)
    changed = images([0, 1] * 4)
    changed.images[0, 0, 0, 0] ^= 255
    assert not torch.equal(extracted(changed, tiny_vit(seed=0)).features("train").values, first.values)
    assert len(list((cache / "dino_exp" / "features").iterdir())) == 3


def test_features_of_files_follow_the_images(tmp_path: Path) -> None:
    encoded_images, other = encoded(6), tiny_vit(seed=1)

    def features(root: Path, backbone: nn.Module) -> torch.Tensor:
        source = load("image_folder", root=root, val_root=None).train
        return extracted(source, backbone).features("train").values

    first = features(as_files(tmp_path / "here", encoded_images, ["a", "b"]), tiny_vit(seed=0))
    assert torch.equal(features(as_files(tmp_path / "there", encoded_images, ["c", "d"]), other), first)
    (tmp_path / "here" / "a" / "000000.jpg").write_bytes(encoded_images[1])
    assert not torch.equal(features(tmp_path / "here", other), first)


@pytest.mark.parametrize("name", ["values.0", "indices.pt"])
def test_a_flipped_bit_in_a_file_is_noticed_and_the_features_are_extracted_again(
    cache: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = images([0, 1] * 20)
    first = extracted(source, tiny_vit()).features("train")
    values, indices = first.values.clone(), first.indices
    (folder,) = (cache / "dino_exp" / "features").iterdir()
    assert extracted(source, tiny_vit(seed=1)).features("train").values.equal(values)  # found, not extracted
    assert caplog.messages == []
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    again = extracted(source, tiny_vit()).features("train")
    assert torch.equal(again.values, values)
    assert torch.equal(again.indices, indices)
    assert [message.startswith(f"{folder}: damaged features") for message in caplog.messages] == [True]
    assert extracted(source, tiny_vit(seed=1)).features("train").values.equal(values)
    assert len(caplog.messages) == 1


def test_unreadable_images_have_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    source = images([0, 1] * 10)
    whole = extracted(source, tiny_vit(), digest="whole").features("train")
    read = source.read

    def broken(index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if index in (0, 7):
            raise CorruptImageError(f"{index}.png", "cut off")
        return read(index)

    monkeypatch.setattr(source, "read", broken)
    kept = [index for index in range(20) if index not in (0, 7)]
    for _ in range(2):  # made, then found
        features = extracted(source, tiny_vit()).features("train")
        assert features.indices.tolist() == kept
        torch.testing.assert_close(features.values, whole.values[kept], rtol=0, atol=1e-5)


def test_timms_transformers_have_blocks_and_convnets_their_own_feature() -> None:
    options: dict[str, Any] = {"drop_path_rate": 0.0, "in_channels": 3, "image_size": 32}
    transformer = timm_backbone(name="vit_tiny_patch16_224", **options).eval()
    tokens = block_tokens(transformer, torch.randn(2, 3, 32, 32), 2)
    assert tokens is not None
    assert [tuple(each.patches.shape) for each in tokens] == [(2, 4, 192)] * 2
    image = torch.randn(1, 3, 32, 32)
    last = block_tokens(transformer, image, 1)
    assert last is not None
    torch.testing.assert_close(last[0].class_token, transformer(image))
    convnet = timm_backbone(name="resnet10t", **options).eval()
    features = extracted(images([0, 1]), convnet, blocks=4).features("train")
    assert features.blocks == 0
    assert features.final.shape == (2, 512)


def seen_by(network: nn.Module, **changes: Any) -> Subject:
    """The network as it is, in whatever mode, with batches of 4 images of 8 x 8."""
    given: dict[str, Any] = {"batch_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3, **changes}
    return replace(subject(nn.Identity(), image_size=8), backbone=network, **given)


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
    got = extract(seen_by(network), ArraySource("a", images, None, None, 3))

    assert [module.training for module in network] == [True, True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()((images.float() / 255 - 0.5) / 0.25).unsqueeze(1)
    torch.testing.assert_close(got.values, expected)
    assert got.values.dtype == torch.float32
    assert got.indices.tolist() == list(range(11))
    (got.final @ nn.Parameter(torch.ones(4))).sum().backward()  # ordinary tensors: a probe can learn on them


def test_modes_come_back_after_an_error_too() -> None:
    network = small_network().train()
    gray = seen_by(network, decoding=Decoding(1), mean=(0.5,), std=(1.0,))
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 1"):
        extract(gray, Album(random_images(2, channels=1)), [0])
    assert all(module.training for module in network.modules())


def test_unreadable_images_leave_with_their_index() -> None:
    mixed = [*random_images(3, side=8), *random_images(3, side=12), *random_images(2, side=8)]
    asked = [7, 1, 2, 3, 5, 0]
    flat = seen_by(nn.Flatten(), batch_size=2)
    sound = extract(flat, Album(mixed), asked)
    torn = extract(flat, Album(mixed, unreadable={1, 2, 5}), asked)
    assert sound.indices.tolist() == asked
    assert torn.indices.tolist() == [7, 3, 0]
    assert torch.equal(torn.values, sound.values[[0, 3, 5]])
    with pytest.raises(UserError, match=r"None of 1 images.*album 1"):
        extract(flat, Album(mixed, unreadable={1}), [1])


def test_threads_change_neither_order_nor_values() -> None:
    album = Album([*random_images(9, side=16), *random_images(8, side=11)], unreadable={3})
    alone, ahead = (
        extract(seen_by(nn.Flatten(), batch_size=3, workers=workers), album) for workers in (0, 3)
    )
    assert torch.equal(alone.values, ahead.values)
    assert torch.equal(alone.indices, ahead.indices)


def test_pixels_are_centered_by_the_bank_alone() -> None:
    bank, queries = random_images(6, channels=2), random_images(3, channels=2, seed=1)
    got_bank, got_queries = pixels(seen_by(nn.Identity()), Album(bank), range(6), Album(queries), [2, 0])
    assert got_bank.final.mean(dim=0).abs().max() < 1e-6
    expected = (queries[[2, 0]].float() - bank.float().mean(dim=0)) / 255
    torch.testing.assert_close(got_queries.final, expected.flatten(1))
