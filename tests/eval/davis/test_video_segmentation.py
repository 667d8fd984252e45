"""A small DAVIS: squares that move by a patch per frame, and a network that sees colors."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino_exp.config.evaluation_schema import VideoSegmentationConfig
from dino_exp.errors import UserError
from dino_exp.eval.davis.video_segmentation import VideoSegmentation, _network_size
from dino_exp.eval.subject import Findings
from dino_exp.parallel import distributed
from tests.eval import published_layouts as layouts
from tests.eval.subjects import NO_DATA, subject, tiny_vit

HEIGHT, WIDTH, SIDE, PATCH = 64, 128, 24, 8
COLORS = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
PAIR = "Annotations/480p/pair/{:05}.png"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 128 64\n%%EndComments\n%%EOF\n"
PALETTE = [*range(200, 206), *([9] * 762)]

# A square of entire patches is propagated exactly. Enlarging rounds its corners: 0.5, 1.5, 2.5 and 3.5 pixels
# within the outline the object's share is 9, 11, 13 and 15 sixteenths, and the products of two of them are
# below one half for six pairs of rows and columns, so six pixels of each corner become background.
REGION = 100 * (SIDE**2 - 4 * 6) / SIDE**2


class Colors(nn.Module):
    """Mean color of each patch of 8 pixels; without tokens, its spatial features are the layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images).mean(dim=(2, 3))


class Square(NamedTuple):
    label: int
    top: int
    left: int
    step: int


def make_video(root: Path, name: str, squares: list[Square], count: int) -> None:
    for index in range(count):
        labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for label, top, left, step in squares:
            labels[top : top + SIDE, left + step * index :][:, :SIDE] = label
        frame = Image.fromarray(np.array(COLORS, dtype=np.uint8)[labels])
        labels[:3, :3] = 255  # void, which counts as background
        annotation = Image.fromarray(labels)
        annotation.putpalette(PALETTE)
        for folder, image, suffix in (("JPEGImages", frame, "jpg"), ("Annotations", annotation, "png")):
            path = root / folder / "480p" / name / f"{index:05}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95, subsampling=0)  # PNG ignores both


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    make_video(root, "alone", [Square(1, 16, 16, 8)], 6)
    make_video(root, "pair", [Square(1, 8, 8, 8), Square(2, 32, 104, -8)], 5)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("alone\npair\n")
    return root


def segmentation(folder: Path, **changes: Any) -> VideoSegmentation:
    settings: dict[str, Any] = dict(root=str(folder), image_size=64, frames=2, neighborhood=3)
    return VideoSegmentation(VideoSegmentationConfig(**settings | changes))


def test_moving_squares_are_tracked(davis: Path, tmp_path: Path) -> None:
    evaluation, seen = segmentation(davis), subject(Colors())
    evaluation.check(seen, NO_DATA)
    findings = evaluation.evaluate(seen, NO_DATA, tmp_path / "video_segmentation")
    names = ["jf_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay"]
    assert list(findings.figures) == names
    assert findings.figures["j_mean"] == pytest.approx(REGION)
    # of a corner's contour the middle pixel is more than the 2 pixels of tolerance away from the rounded one
    assert 95 < findings.figures["f_mean"] < 100
    assert findings.figures["jf_mean"] == pytest.approx(
        (findings.figures["j_mean"] + findings.figures["f_mean"]) / 2
    )
    assert (findings.figures["j_recall"], findings.figures["f_recall"]) == (100, 100)
    assert findings.figures["j_decay"] == pytest.approx(0)
    assert (findings.details["videos"], findings.details["objects"]) == (2, 3)
    assert findings.details["per_object"]["pair"]["2"]["j_mean"] == pytest.approx(REGION)

    predictions = tmp_path / "video_segmentation/predictions"
    assert findings.files == [predictions]
    assert sorted(path.name for path in (predictions / "pair").iterdir()) == [f"{n:05}.png" for n in range(5)]
    with Image.open(predictions / "pair/00004.png") as last:
        assert last.mode == "P"
        assert last.getpalette() == PALETTE
        labels = np.array(last)
    assert labels[20, 52] == 1  # the middle of each square after four steps
    assert labels[44, 84] == 2
    assert np.bincount(labels.flat).tolist() == [HEIGHT * WIDTH - 2 * 552, 552, 552]
    with (
        Image.open(davis / "Annotations/480p/alone/00000.png") as given,
        Image.open(predictions / "alone/00000.png") as written,
    ):
        np.testing.assert_array_equal(np.array(written), np.array(given))


def test_what_systems_leave_is_no_frame(davis: Path, tmp_path: Path) -> None:
    root = shutil.copytree(davis, tmp_path / "davis")
    before = [[path.stem for path in video.frames] for video in segmentation(root)._videos()]
    for name in ("alone", "pair"):
        layouts.leave_litter(root / "JPEGImages/480p" / name)
    segmentation(root).check(subject(Colors()), NO_DATA)
    assert [[path.stem for path in video.frames] for video in segmentation(root)._videos()] == before


def test_a_network_that_does_not_see_the_objects_loses_them(davis: Path, tmp_path: Path) -> None:
    class Blind(Colors):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(torch.ones_like(images))

    figures = segmentation(davis, neighborhood=0).evaluate(subject(Blind()), NO_DATA, tmp_path).figures
    assert figures["j_mean"] < 30


def test_a_transformer_takes_the_frames(davis: Path, tmp_path: Path) -> None:
    evaluation, seen = segmentation(davis), subject(tiny_vit())
    evaluation.check(seen, NO_DATA)
    assert 0 < evaluation.evaluate(seen, NO_DATA, tmp_path).figures["jf_mean"] < 100


def test_two_processes_share_the_videos(davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, barrier, sent = threading.local(), threading.Barrier(2), [None, None]

    def from_all(value: Any) -> list[Any]:
        sent[here.rank] = value
        barrier.wait(timeout=60)
        values = list(sent)
        barrier.wait(timeout=60)
        return values

    monkeypatch.setattr(distributed, "rank", lambda: here.rank)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "from_all", from_all)

    def process(rank: int) -> Findings:
        here.rank = rank
        return segmentation(davis).evaluate(subject(Colors()), NO_DATA, tmp_path / str(rank))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(process, range(2), timeout=60))
    assert found[0].figures == found[1].figures
    assert found[0].figures["j_mean"] == pytest.approx(REGION)
    written = [[path.name for path in (tmp_path / str(rank) / "predictions").iterdir()] for rank in range(2)]
    assert written == [["alone"], ["pair"]]


def test_frames_have_the_size_of_the_released_code() -> None:
    assert _network_size((480, 854), 480, 8) == (480, 832)
    assert _network_size((480, 910), 480, 16) == (480, 896)
    assert _network_size((1920, 1080), 480, 16) == (832, 480)
    assert _network_size((300, 300), 480, 16) == (480, 448)
    assert _network_size((480, 854), 490, 14) == (490, 840)  # 64 is not a multiple of 14, but 56 is


@pytest.mark.parametrize(
    ("pattern", "content", "message"),
    [
        ("ImageSets/2017/val.txt", None, "lists the videos"),
        ("ImageSets/2017/val.txt", b"\n", "val.txt: empty"),
        ("ImageSets/2017/val.txt", b"pair\n/victim\n", "val.txt: '/victim' is a path"),
        (
            "ImageSets/2017/val.txt",
            b"pair\n../480p/pair\n",
            "val.txt: '../480p/pair' is a path; .* name of a",
        ),
        ("ImageSets/2017/val.txt", b"..\n", r"val.txt: '\.\.' is a path"),
        (
            "JPEGImages/480p/pair",
            None,
            "JPEGImages/480p/pair: no images there.*DAVIS 2017 has JPEGImages/480p/<video>/00000.jpg",
        ),
        ("JPEGImages/480p/pair/0000[012].jpg", None, "pair: 2 frames, but a video needs at least 3"),
        (PAIR.format(2), None, "pair/00002.png: missing, although its frame exists"),
        (PAIR.format(2), np.zeros((32, 64)), "00002.png: 64x32 pixels, but .*00000.jpg has 128x64"),
        ("JPEGImages/480p/pair/00000.jpg", np.zeros((8, 65)), "00000.jpg: 65x8 pixels; the longer side"),
        (PAIR.format(0), np.full((HEIGHT, WIDTH), 255), "pair/00000.png: no object to track"),
        (PAIR.format(0), np.zeros((HEIGHT, WIDTH, 3)), r"00000.png: colors \(RGB\) instead of labels"),
        (PAIR.format(3), b"no", "pair/00003.png: cannot be read as an image"),
        (PAIR.format(0), EPS, "pair/00000.png: cannot be read as an image"),
    ],
)
def test_wrong_files_are_named(
    davis: Path, tmp_path: Path, pattern: str, content: bytes | np.ndarray | None, message: str
) -> None:
    root = shutil.copytree(davis, tmp_path / "davis")
    for path in root.glob(pattern):
        if isinstance(content, np.ndarray):
            Image.fromarray(content.astype(np.uint8)).save(path)
        elif content is not None:
            path.write_bytes(content)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        segmentation(root).check(subject(Colors()), NO_DATA)


def test_damaged_frames_are_named(davis: Path, tmp_path: Path) -> None:
    root = shutil.copytree(davis, tmp_path / "davis")
    frame = root / "JPEGImages/480p/alone/00002.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(UserError, match=r"alone/00002\.jpg.*cannot be segmented"):
        segmentation(root).evaluate(subject(Colors()), NO_DATA, tmp_path)


@pytest.mark.parametrize(
    ("changes", "backbone", "message"),
    [
        ({"root": None}, Colors(), "root = null: give the folder of DAVIS 2017"),
        ({"root": "/nowhere"}, Colors(), "/nowhere: no such folder"),
        ({"image_size": 66}, tiny_vit(), "image_size = 66: .* patch size 4, such as 68"),
        ({"image_size": 32}, Colors(), "image_size = 32: must be at least 64"),
        ({"image_size": 68}, Colors(), "image_size = 68: makes frames of 128x68, on which .* 16x8 features"),
        ({}, nn.Linear(3, 3), "The network cannot take frames such as .*00000.jpg"),
    ],
)
def test_wrong_settings_are_named(
    davis: Path, changes: dict[str, Any], backbone: nn.Module, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        segmentation(davis, **changes).check(subject(backbone), NO_DATA)
