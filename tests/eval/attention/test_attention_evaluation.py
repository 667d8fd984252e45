import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn

from dino_exp.backbone.tokens import spatial_features
from dino_exp.backbone.vit import Block
from dino_exp.config.evaluation_schema import AttentionConfig
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import Splits
from dino_exp.errors import UserError
from dino_exp.eval.attention import class_maps
from dino_exp.eval.attention.attention_images import FileImages
from dino_exp.eval.attention.attention_maps import AttentionMaps
from dino_exp.eval.attention.videos import frames
from dino_exp.eval.subject import Findings, Subject
from tests.eval.attention.test_videos import film
from tests.eval.subjects import NO_DATA, GivenData, Lit, Looker, images, subject, tiny_vit


def attention(**fields: Any) -> AttentionMaps:
    return AttentionMaps(AttentionConfig(**fields))


def run(
    evaluation: AttentionMaps, folder: Path, network: Subject | None = None, data: GivenData = NO_DATA
) -> Findings:
    network = network or subject(Looker(), image_size=8)
    evaluation.check(network, data)
    return evaluation.evaluate(network, data, folder)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_attention_of_the_class_token_by_hand() -> None:
    network = tiny_vit()
    for value in network.parameters():  # biases and norms that differ from their initial values
        nn.init.normal_(value, std=0.3)
    given = subject(network)
    batch = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    got = class_maps.maps(given, batch)
    assert got.shape == (2, 2, 6, 8)
    with torch.no_grad():
        x = network.tokens(batch.float() / 127.5 - 1)
        for block in network.blocks[:-1]:
            x = block(x.flatten(0, 1), ((2, 49),)).unflatten(0, (2, 49))
    block = network.blocks[-1]
    assert isinstance(block, Block)
    values = x.numpy()
    values = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-6)
    values = values * block.norm1.weight.numpy() + block.norm1.bias.numpy()
    qkv = values @ block.attn.qkv.weight.numpy().T + block.attn.qkv.bias.numpy()
    for head in range(2):
        query, key = qkv[..., 8 * head : 8 * head + 8], qkv[..., 16 + 8 * head : 16 + 8 * head + 8]
        weights = softmax(np.einsum("bqd,bkd->bqk", query, key) / np.sqrt(8))
        np.testing.assert_allclose(got[:, head].flatten(1), weights[:, 0, 1:], rtol=1e-4, atol=1e-7)


def test_attention_of_a_timm_network_equals_its_unfused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0, reg_tokens=3,
        qk_norm=True, dynamic_img_size=True,
    )  # fmt: skip
    for value in network.parameters():
        nn.init.normal_(value, std=0.5)
    given = subject(network)
    batch = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    last = network.get_submodule("blocks.1.attn")
    assert isinstance(last, Attention)
    seen: list[torch.Tensor] = []
    hook = last.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with monkeypatch.context() as unfused:
        unfused.setattr(last, "fused_attn", False)
        network(given.normalized(batch))
    hook.remove()
    assert class_maps.kind_of(network) == class_maps.ATTENTION
    got = class_maps.maps(given, batch)
    assert got.shape == (2, 4, 4, 6)
    torch.testing.assert_close(got.flatten(2), seen[0][:, :, 0, 4:])


@pytest.mark.parametrize(("name", "stride"), [("resnet10t", 32), ("xcit_nano_12_p16_224", 16)])
def test_networks_without_a_readable_class_token(name: str, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0)
    given = subject(network, image_size=64)
    assert class_maps.kind_of(network) == class_maps.FEATURE_NORM
    batch = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = spatial_features(network, given.normalized(batch)).pow(2).sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(class_maps.maps(given, batch), expected)
    assert class_maps.map_stride(given, 64) == stride
    findings = run(attention(), tmp_path, given)
    assert "are the L2 norm" in findings.notes[0]
    assert findings.files[0].name == "attention.png"


def test_features_as_colors() -> None:
    features = [torch.randn(6, 3, 4), torch.randn(6, 2, 5)]
    of = class_maps.principal(features)
    rows = torch.cat([each.flatten(1).t() for each in features])
    _, _, directions = np.linalg.svd((rows - rows.mean(0)).numpy())
    np.testing.assert_allclose(np.abs(directions[:3] @ of.directions.numpy()), np.eye(3), atol=1e-3)
    colors = torch.cat([class_maps.in_colors(each, of).flatten(1) for each in features], dim=1)
    assert colors.shape == (3, 22)
    assert colors.min() == 0
    assert colors.max() == 1


def test_overlap_with_the_masks_of_a_data_set(tmp_path: Path) -> None:
    # Head 1 has all on the upper left patch; head 2 is uniform, and of equal patches the last three are kept.
    # The mean has 0.625 there. The object is the left half, and one image has none.
    source = Lit(5, half=True)
    source.images[1] = 0
    findings = run(attention(), tmp_path / "new", data=GivenData(Splits(images([0]), source)))
    assert findings.figures == pytest.approx(
        {
            "jaccard_mean": 100 / 2,
            "jaccard_best_head": 100 / 2,
            "jaccard_even": 100 / 2,
            "jaccard_center": 100 / 4,
            "mass": 100 * (0.625 + 0.125),
            "area": 100 / 2,
            "gaussian_mass": 100 / 2,
            "auc": 100 * (1 + 0.5) / 2,
            "gaussian_auc": 50,
        }
    )
    assert findings.details == {"maps": "attention", "images": 4, "jaccard_by_head": [50, 25]}
    assert findings.notes[1:] == ["Not in the overlap: 1 of 5 images (no object in the mask)."]
    assert findings.files == [tmp_path / "new/attention.png"]
    with Image.open(findings.files[0]) as sheet:
        assert min(sheet.size) > 300


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def test_images_in_files_keep_their_shape(tmp_path: Path) -> None:
    # 16 x 27 pixels become 8 x 13, and 8 x 12 in entire patches: 12/13 of the mask's 27 columns are 25.
    image, mask = np.zeros((16, 27, 3)), np.zeros((16, 27))
    image[:, :8] = 255
    mask[:, :5] = 7
    mask[:, 25:] = 9
    mask[8:, 5:8] = 255
    save(tmp_path / "in/deep/one.png", image)
    save(tmp_path / "in/two.png", image)
    save(tmp_path / "in/none.png", image)
    (tmp_path / "in/broken.png").write_bytes(b"")
    for name in ("deep/one", "two", "broken"):
        save(tmp_path / f"masks/{name}.png", mask)
    given = attention(source=str(tmp_path / "in"), masks=str(tmp_path / "masks"), images=2)
    files = FileImages([tmp_path / "in/two.png"], tmp_path / "in", tmp_path / "masks", Decoding(), 8, 4)
    [batch] = files.batches([0])
    assert batch.images.shape == (1, 3, 8, 12)
    assert batch.masks is not None
    assert batch.masks[0] is not None
    assert batch.masks[0].shape == (16, 25)

    findings = run(given, tmp_path / "out")
    # The mean keeps the two patches on the left, columns 0 to 7 of 25 (nearest): all 80 pixels of the object,
    # and 24 others of the upper half, for those of the lower are void.
    assert findings.figures["jaccard_mean"] == pytest.approx(100 * 80 / (80 + 24))
    assert findings.figures["jaccard_even"] == pytest.approx(100 * 80 / (16 * 25 - 24))
    assert findings.details["images"] == 2
    assert findings.notes[1:] == [
        f"Not in the overlap: 1 of 4 images (no mask in {tmp_path / 'masks'}).",
        "Not in the overlap: 1 of 4 images (unreadable).",
        "1 of the 2 images to draw could not be read.",
    ]
    assert [path.name for path in findings.files] == ["attention.png"]

    save(tmp_path / "masks/two.png", mask[:, 1:])
    with pytest.raises(UserError, match=r"two\.png has 26x16 pixels, but .*in/two\.png has 27x16"):
        run(given, tmp_path / "out")


def test_only_the_beginning_of_a_strip_is_seen(tmp_path: Path) -> None:
    mask = np.zeros((60_000, 2))
    mask[:4] = 7
    strip = save(tmp_path / "in/strip.png", mask * 20)
    save(tmp_path / "in/square.png", np.zeros((16, 16, 3)))
    save(tmp_path / "masks/strip.png", mask)
    [batch] = FileImages([strip], tmp_path / "in", tmp_path / "masks", Decoding(), 8, 4).batches([0])
    assert batch.images.shape == (1, 3, 64, 8)
    assert batch.masks[0] is not None
    assert batch.masks[0].shape == (16, 2)
    given = attention(source=str(tmp_path / "in"), masks=str(tmp_path / "masks"))
    findings = run(given, tmp_path / "out")
    assert findings.figures["jaccard_even"] == pytest.approx(100 * 4 / 16)
    assert findings.notes[-1] == f"Cut off at 8 times the shorter side: 1 of 2 images ({strip})."


def test_a_single_image(tmp_path: Path) -> None:
    source = save(tmp_path / "my cat.jpg", np.random.default_rng(0).integers(0, 256, (40, 60, 3)))
    findings = run(attention(source=str(source), image_size=32), tmp_path / "out", subject())
    assert findings.files == [tmp_path / "out/my cat_attention.png"]
    assert findings.figures == {}
    with Image.open(findings.files[0]) as image:
        assert image.width == 1200
    source.rename(tmp_path / "3e5f")  # an image by its content
    findings = run(attention(source=str(tmp_path / "3e5f"), image_size=32), tmp_path / "out", subject())
    assert findings.files == [tmp_path / "out/3e5f_attention.png"]


def test_the_video_of_a_video_has_as_many_frames(tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    shots = np.zeros((20, 32, 44, 3), dtype=np.uint8)
    for number, shot in enumerate(shots):
        shot[:16, : 2 * number + 2] = 255
    film(source, shots, rate=12)
    findings = run(attention(source=str(source), image_size=32), tmp_path / "out")
    assert findings.files == [tmp_path / "out/clip_attention.mp4"]
    assert findings.details["frames"] == 20  # more than one batch
    with av.open(str(findings.files[0])) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (20, 12)
        assert (stream.height, stream.width) == (8 * 32, 8 * 88)
    last = list(frames(findings.files[0]))[-1]
    assert last[64, 64].min() > 200 > 40 > last[200, 64].max()  # the frame on the left
    bright, dark = last[64, 352 + 64].astype(int), last[200, 352 + 64].astype(int)
    assert bright.sum() > 100 + dark.sum()  # its map on the right

    gray = dataclasses.replace(subject(Looker(), image_size=8, channels=1))
    assert run(attention(source=str(source), image_size=32), tmp_path / "gray", gray).details["frames"] == 20


def test_an_animation_stays_one(tmp_path: Path) -> None:
    source = tmp_path / "clip.gif"
    first, *others = (Image.new("RGB", (20, 16), (60 * number, 0, 99)) for number in range(3))
    first.save(source, save_all=True, append_images=others, duration=80)
    findings = run(attention(source=str(source)), tmp_path / "out")
    assert findings.files == [tmp_path / "out/clip_attention.gif"]
    with Image.open(findings.files[0]) as image:
        assert (image.n_frames, image.info["duration"], image.size) == (3, 80, (30 * 16, 30 * 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "nowhere"}, "attention.source = nowhere: "),
        ({"source": "text.txt"}, "text.txt: neither image nor video"),
        ({"source": "empty"}, "empty: no images there"),
        ({"source": "broken.png"}, "attention.source = .*broken.png: "),
        ({"source": "film.mp4"}, "film.mp4: cannot be read as a video"),
        ({"masks": "empty"}, "attention.masks = .*empty: also give the folder of the images as"),
        ({"source": "good.png", "masks": "nowhere"}, "attention.masks = nowhere: "),
        ({"source": "good.png", "masks": "empty"}, "no mask for any image .* would be good.png"),
        ({"source": "moves.gif", "masks": "empty"}, "moves.gif is a video, but masks are for images"),
        ({"image_size": 3}, "attention.image_size = 3: less than one patch of the network; use at least 4"),
        ({"image_size": 4}, "a single position in such images, which makes no map; use 16 or more"),
    ],
)
def test_wrong_settings_are_refused_before_the_work(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("text.txt", "broken.png", "film.mp4"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    save(tmp_path / "good.png", np.zeros((9, 9)))
    shots = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    shots[0].save(tmp_path / "moves.gif", save_all=True, append_images=shots[1:])
    fields = {
        key: str(tmp_path / value) if isinstance(value, str) and (tmp_path / value).exists() else value
        for key, value in fields.items()
    }
    with pytest.raises(UserError, match=message):
        attention(**fields).check(subject(Looker(), image_size=8), NO_DATA)


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"None of 2 images could be read \(the first: .*a\.png\)"):
        run(attention(source=str(tmp_path)), Path(tmp_path / "out"))
