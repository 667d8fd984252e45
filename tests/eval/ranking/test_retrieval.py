import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_exp.config.evaluation_schema import RetrievalConfig
from dino_exp.errors import UserError
from dino_exp.eval.ranking.image_files import features_of
from dino_exp.eval.ranking.retrieval import LEVELS, Retrieval
from tests.eval import published_layouts as layouts
from tests.eval.subjects import NO_DATA, subject, tiny_vit


def retrieval(root: Path | None, **changes: Any) -> Retrieval:
    fields: dict[str, Any] = dict(root=root and str(root), datasets=["roxford5k"], image_size=12)
    return Retrieval(RetrievalConfig(**fields | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Database rows 0 ... 7 are 10, 20, ... 80 degrees from the first query, in reverse from the second."""
    database = [layouts.flat(10 * (row + 1), (24, 16) if row % 2 else (16, 24)) for row in range(8)]
    second = layouts.flat(0)  # uncropped it is nearly the first, and its box is at 90 degrees
    second.paste(layouts.flat(90, (6, 6)), (0, 0))
    gnd = [layouts.entry([1], [4], [0, 2]), layouts.entry([7], [], [5, 6], bbx=[0.4, 0.4, 5.6, 5.6])]
    layouts.revisited(tmp_path, "roxford5k", database, [layouts.flat(0), second], gnd)
    layouts.revisited(tmp_path, "rparis6k", database[:4], [layouts.flat(0)], [layouts.entry([0], [1], [])])
    return tmp_path


def test_what_systems_leave_is_no_image(root: Path, tmp_path: Path) -> None:
    evaluation, chosen = retrieval(root), subject(layouts.MeanColor())
    before = evaluation.evaluate(chosen, NO_DATA, tmp_path / "out").figures
    layouts.leave_litter(root / "roxford5k" / "jpg")
    evaluation.check(chosen, NO_DATA)
    assert evaluation.evaluate(chosen, NO_DATA, tmp_path / "out").figures == before


@pytest.mark.parametrize("workers", [0, 2])
def test_figures_are_those_of_the_known_order(root: Path, tmp_path: Path, workers: int) -> None:
    chosen = dataclasses.replace(subject(layouts.MeanColor()), batch_size=3, workers=workers)
    evaluation = retrieval(root, datasets=["roxford5k", "rparis6k"])
    evaluation.check(chosen, NO_DATA)
    found = evaluation.evaluate(chosen, NO_DATA, tmp_path / "out")
    # First query: rank 1 of the easy one becomes 0 without junk 0; rank 4 of the hard one 2, or 1 where the
    # easy one is junk too. Second query, uncropped: row 7 is last, behind 5 or 7 that count.
    medium = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert found.figures == pytest.approx(
        {
            "roxford5k_map_easy": 100 * (1 + (0 + 1 / 6) / 2) / 2,
            "roxford5k_map_medium": 100 * (medium + (0 + 1 / 6) / 2) / 2,
            "roxford5k_map_hard": 100 * (0 + 1 / 2) / 2,
            "roxford5k_mp10_easy": 100 * (1 + 1 / 6) / 2,
            "roxford5k_mp10_medium": 100 * (2 / 3 + 1 / 6) / 2,
            "roxford5k_mp10_hard": 100 / 2,
        }
        | {f"rparis6k_{kind}_{level}": 100 for kind in ("map", "mp10") for level in LEVELS}
    )
    details = found.details["roxford5k"]
    assert (details["images"], details["queries"], details["queries_hard"]) == (8, 2, 1)
    assert details["mp1_medium"] == pytest.approx(50)
    assert "were not cropped" in found.notes[-1]


def test_queries_may_be_cropped_to_their_boxes(root: Path, tmp_path: Path) -> None:
    found = retrieval(root, crop_queries=True).evaluate(subject(layouts.MeanColor()), NO_DATA, tmp_path)
    assert found.figures["roxford5k_map_easy"] == pytest.approx(100)
    assert "were cropped to their boxes" in found.notes[-1]


@pytest.mark.parametrize("multiscale", [False, True])
def test_a_transformer_sees_images_reduced_as_in_the_released_code(tmp_path: Path, multiscale: bool) -> None:
    """Odd shapes in mixed batches have the features that each image has by itself, step by step."""
    sizes = [(50, 38), (38, 50), (50, 38), (64, 64), (30, 22)]
    files = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        layouts.save(layouts.noise(number, size), file)
    chosen = dataclasses.replace(subject(tiny_vit()), batch_size=2)
    evaluation = retrieval(tmp_path, image_size=45, multiscale=multiscale)
    prepare = evaluation._prepare(None, files, chosen)
    found = features_of(files, prepare, evaluation._forward(chosen), chosen)
    for file, feature in zip(files, found, strict=True):
        with Image.open(file) as image:
            image.thumbnail((45, 45), Image.Resampling.LANCZOS)
            values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        normalized = values / 255 * 2 - 1
        seen = [normalized]
        if multiscale:
            seen += [F.interpolate(normalized, scale_factor=s, mode="bilinear") for s in (0.5**0.5, 0.5)]
        expected = torch.stack([chosen.backbone(each)[0] for each in seen]).mean(dim=0)
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)


def refused(evaluation: Retrieval, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation.check(subject(tiny_vit()), NO_DATA)


def test_bad_layouts_are_named(root: Path) -> None:
    refused(retrieval(None), r"retrieval.root = null.*<name>/jpg")
    refused(
        retrieval(root, datasets=["oxford5k"]), r"retrieval.datasets = \['oxford5k'\].*roxford5k, rparis6k"
    )
    refused(retrieval(root, image_size=3), r"retrieval.image_size = 3.*patch of 4 pixels; use at least 4")
    refused(retrieval(root, image_size=7, multiscale=True), "at half the size; use at least 8")
    refused(retrieval(root / "jpg"), re.escape(str(root / "jpg/roxford5k/gnd_roxford5k.pkl")) + r": missing")
    folder = root / "roxford5k"
    (folder / "jpg/all_souls_000003.jpg").unlink()
    refused(retrieval(root), r"all_souls_000003.jpg: missing \(1 of 10 .*The layout is root/")


NESTED: list = [0, 1]
for _ in range(60):
    NESTED = [NESTED, NESTED]  # 2^60 numbers for whoever walks through them


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gnd": [layouts.entry([8], [], [])] * 2}, "indices from 0 to 7"),
        ({"gnd": [layouts.entry([0.5], [], [])] * 2}, "indices from 0 to 7"),
        ({"gnd": [layouts.entry([0], [], [])]}, "2 queries and 1 entries"),
        ({"gnd": [{"bbx": [0, 0, 1, 1]}] * 2}, "KeyError: 'easy'"),
        ({"imlist": 3}, "TypeError"),
        ({"imlist": ["../../private/a"]}, "'../../private/a' is not the name of an image"),
        ({"imlist": [["a"]]}, "an image's name is not text"),
        ({"gnd": [layouts.entry([], NESTED, [])] * 2}, "indices from 0 to 7"),
    ],
)
def test_other_ground_truth_is_refused(root: Path, change: dict, reason: str) -> None:
    file = root / "roxford5k/gnd_roxford5k.pkl"
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | change))
    refused(retrieval(root), rf"gnd_roxford5k.pkl: not the published list.*{reason}.*imlist, qimlist and gnd")


def test_an_unreadable_image_is_an_error(root: Path, tmp_path: Path) -> None:
    image = root / "roxford5k/jpg/all_souls_000002.jpg"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(UserError, match=r"all_souls_000002.jpg: damaged .*Replace the file"):
        retrieval(root).evaluate(subject(layouts.MeanColor()), NO_DATA, tmp_path)
    layouts.save(layouts.flat(0, (400, 9)), image)
    with pytest.raises(UserError, match=r"all_souls_000002.jpg: 12x\d pixels at retrieval.image_size = 12"):
        retrieval(root).evaluate(subject(tiny_vit()), NO_DATA, tmp_path)
