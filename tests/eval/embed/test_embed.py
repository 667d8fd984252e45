"""The files, neighbors and map of `embed` against the network's own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dino_exp.config.evaluation_schema import EmbedConfig
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import Splits, read_image
from dino_exp.errors import UserError
from dino_exp.eval.embed import embedding as embed_module
from dino_exp.eval.embed.embedding import Embed
from dino_exp.eval.embed.feature_files import printable
from dino_exp.eval.embed.neighborhoods import agreement, map_coordinates, nearest_others
from tests.eval.subjects import NO_DATA, GivenData, block_features, images, subject, tiny_vit

pytestmark = pytest.mark.usefixtures("cache")


def embed(**settings: Any) -> Embed:
    return Embed(EmbedConfig(**{"map": "none", **settings}))


def folder(root: Path, classes: list[str], each: int) -> list[Path]:
    """Write noise of 32 x 32 pixels, in a folder per class."""
    generator = np.random.default_rng(0)
    files = [root / name / f"{number}.png" for name in classes for number in range(each)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    return files


def test_the_files_hold_the_networks_features_by_name(tmp_path: Path) -> None:
    files = folder(tmp_path / "in", ["cat", "dog", "owl"], 7)
    files[9].write_bytes(b"no image")
    network, out = subject(), tmp_path / "out"
    settings = {"source": str(tmp_path / "in"), "map": "tsne"}
    embed(**settings).check(network, NO_DATA)
    findings = embed(**settings).evaluate(network, NO_DATA, out)
    assert findings.files == [out / name for name in ("features.parquet", "neighbors.png", "map.html")]
    assert findings.details["images"] == 20
    assert findings.details["dimensions"] == 16
    assert findings.details["unreadable_names"] == [str(files[9])]

    table = pq.read_table(out / "features.parquet")
    assert table.schema.metadata[b"weights"] == b"tiny"
    assert table.schema.metadata[b"crop_ratio"] == b"1.0"
    rows = table.to_pylist()
    assert [row["name"] for row in rows] == [str(file) for file in files if file != files[9]]
    assert [row["label"] for row in rows] == ["cat"] * 7 + ["dog"] * 6 + ["owl"] * 7
    for row in rows[::5]:
        expected = network.backbone(network.normalized(read_image(row["name"], Decoding(3))[None]))[0]
        torch.testing.assert_close(torch.tensor(row["feature"]), expected, rtol=1e-5, atol=1e-5)
    with Image.open(out / "neighbors.png") as sheet:
        assert sheet.width > 1000

    embed(**settings | {"format": "npz", "map": "none"}).evaluate(network, NO_DATA, out)
    with np.load(out / "features.npz") as arrays:
        assert arrays["names"].tolist() == [row["name"] for row in rows]
        assert arrays["labels"].tolist() == [row["label"] for row in rows]
        assert arrays["features"].dtype == np.float32
        assert arrays["features"].tolist() == [row["feature"] for row in rows]
        assert str(arrays["digest"]) == "0" * 64


def test_a_list_of_paths_has_no_labels(tmp_path: Path) -> None:
    files = folder(tmp_path, ["a", "b"], 2)
    (tmp_path / "list.txt").write_text("\n".join(str(file) for file in files[:3]))
    findings = embed(source=str(tmp_path / "list.txt")).evaluate(subject(), NO_DATA, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "features.parquet").names == ["name", "feature"]
    assert findings.figures == {}


class Never(nn.Module):
    """A network whose forward pass fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_features_of_the_data_are_not_computed_again(tmp_path: Path) -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.1, 2.4])
    values = torch.stack([angles.cos(), angles.sin()], dim=1)
    test = images([0, 0, 1, 1, 1, 0], classes=["x", "y"])
    data = GivenData(Splits(images([0, 1]), test), {"test": block_features(values)})
    findings = embed(format="npz").evaluate(subject(Never()), data, tmp_path)
    # Nearest of 0 is 1 (same), 1: 0 (same), 2: 1 (other), 3: 4 (same), 4: 3 (same), 5: 4 (other).
    assert findings.figures == {"same_class_k1": pytest.approx(100 * 4 / 6)}
    assert findings.details["same_class_by_chance"] == pytest.approx(100 * 2 / 5)
    with np.load(tmp_path / "features.npz") as arrays:
        assert np.array_equal(arrays["features"], values.numpy())
        assert arrays["labels"].tolist() == ["x", "x", "y", "y", "y", "x"]
    data = GivenData(Splits(test, None), {"train": block_features(values)})
    assert embed().evaluate(subject(Never()), data, tmp_path).figures == findings.figures


def test_an_image_is_not_its_own_neighbor() -> None:
    features = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    features[10:30] = features[10]  # more equal features than neighbors
    rows = torch.tensor([3, 12, 29, 40])
    found = nearest_others(features, rows, 4, torch.device("cpu"))
    cosines = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    cosines.fill_diagonal_(-2)
    expected = cosines[rows].topk(4, dim=1)
    torch.testing.assert_close(found.cosines, expected.values)
    assert found.nearest[0].tolist() == expected.indices[0].tolist()
    assert not (found.nearest == rows[:, None]).any()
    assert all(10 <= row < 30 for row in found.nearest[1].tolist())
    assert nearest_others(features[:3], torch.arange(3), 10, torch.device("cpu")).nearest.shape == (3, 2)


def test_share_of_neighbors_of_the_same_class() -> None:
    features = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(50) // 10) % 2  # 30 of class 0, 20 of class 1
    shares, chance = agreement(labels, nearest_others(features, torch.arange(50), 10, torch.device("cpu")))
    cosines = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    same = labels[cosines.fill_diagonal_(-2).topk(10, dim=1).indices] == labels[:, None]
    by_hand = {k: 100 * same[:, :k].double().mean().item() for k in (1, 10)}
    assert shares == {f"same_class_k{k}": pytest.approx(share) for k, share in by_hand.items()}
    assert chance == pytest.approx(100 * (30 * 29 + 20 * 19) / (50 * 49))


def test_the_map_keeps_neighbors_together_and_is_reproducible() -> None:
    generator = np.random.default_rng(0)
    centers = np.repeat(np.eye(3, 8), 20, axis=0)
    features = (centers + 0.05 * generator.normal(size=(60, 8))).astype(np.float32)
    points, words = map_coordinates(features, "tsne", seed=3)
    assert words == "t-SNE (cosine, perplexity 19.7, seed 3)"
    distances = ((points[:, None] - points[None]) ** 2).sum(-1) + np.diag([np.inf] * 60)
    assert (distances.argmin(axis=1) // 20 == np.arange(60) // 20).all()
    assert np.array_equal(points, map_coordinates(features, "tsne", seed=3)[0])


@pytest.mark.parametrize(("count", "written"), [(1, 1), (3, 2), (4, 3)])
def test_few_images_make_no_map_and_a_single_one_no_sheet(tmp_path: Path, count: int, written: int) -> None:
    data = GivenData(Splits(images([0] * count), None), {"train": block_features(torch.randn(count, 8))})
    findings = embed(map="tsne").evaluate(subject(), data, tmp_path)
    assert len(findings.files) == written == len(list(tmp_path.iterdir()))
    assert len(findings.notes) == (written < 3)


def test_equal_features_have_no_map(tmp_path: Path) -> None:
    data = GivenData(Splits(images([0, 1] * 5), None), {"train": block_features(torch.ones(10, 8))})
    findings = embed(map="tsne").evaluate(subject(), data, tmp_path)
    assert findings.notes == ["All images have the same feature, so no map was made."]


def test_the_map_shows_some_of_many_images(tmp_path: Path) -> None:
    values = torch.randn(40, 8)
    data = GivenData(Splits(images([0, 1] * 20), None), {"train": block_features(values)})
    findings = embed(map="tsne", map_size=8).evaluate(subject(), data, tmp_path)
    assert findings.details["images_compared"] == 8
    assert findings.notes == ["The map shows 8 of 40 images, evenly distributed."]
    assert pq.read_metadata(tmp_path / "features.parquet").num_rows == 40


def test_wrong_sources_features_and_missing_libraries_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^embed.source = .*/none: no such folder or file"):
        embed(source=str(tmp_path / "none")).check(subject(), NO_DATA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^embed.source = .*/empty: no images there"):
        embed(source=str(tmp_path / "empty")).check(subject(), NO_DATA)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"None of 1 images could be read"):
        embed(source=str(tmp_path / "bad")).evaluate(subject(tiny_vit()), NO_DATA, tmp_path / "out")
    values = torch.randn(5, 4)
    values[2, 1] = torch.nan
    data = GivenData(Splits(images([0] * 5), None), {"train": block_features(values)})
    with pytest.raises(UserError, match=r"1 of 5 features are not finite, the first that of noise 2\."):
        embed().evaluate(subject(), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(embed_module, "find_spec", lambda name: None if name == "vl_convert" else name)
    with pytest.raises(
        UserError, match=r"vl_convert is missing; pip install 'dino-exp\[report\]', or use embed.map"
    ):
        embed(map="tsne").check(subject(), NO_DATA)
    embed(map="none").check(subject(), NO_DATA)


def test_names_that_are_not_utf8() -> None:
    assert printable("caf\udce9.jpg") == "caf\\xe9.jpg"
    assert printable("café 東京.jpg") == "café 東京.jpg"
