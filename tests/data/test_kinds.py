"""Images at a path, whatever they are stored in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_exp.data import folder, webdataset
from dino_exp.data.decoding import Decoding
from dino_exp.data.kinds import kind_of, open_images
from dino_exp.errors import UserError
from tests.data.stored import as_files, as_rows, as_shards, by_class, encoded, write_shard

CLASSES = ["cat", "dog"]
IMAGES = encoded(6)


@pytest.fixture
def everything(tmp_path: Path, cache: Path) -> Path:
    """Write the same images in every kind of files."""
    images = by_class(IMAGES, 2)
    files = as_files(tmp_path / "files", IMAGES, CLASSES)
    paths = sorted(files.rglob("*.jpg"))
    lines = "\n".join(f"{path}\t{path.parent.name}" for path in paths)
    (tmp_path / "images.csv").write_text(lines.replace("\t", ","))
    (tmp_path / "images.txt").write_text(lines)
    (tmp_path / "flat").mkdir()
    for path in paths:
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    as_shards(tmp_path / "shards", images, each=4)
    (tmp_path / "shards.txt").write_text("shards/train-000000.tar\nshards/train-000001.tar\n")
    rows = as_rows(images, CLASSES)
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "hub" / "data" / "train-00000.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("files", "image_folder"),
        ("images.csv", "image_folder"),
        ("images.txt", "image_folder"),
        ("shards", "webdataset"),
        ("shards.txt", "webdataset"),
        ("shards/train-{000000..000001}.tar", "webdataset"),
        ("shards/*.tar", "webdataset"),
        ("saved", "huggingface"),
        ("hub", "huggingface"),
        ("hub/data/train-00000.parquet", "huggingface"),
        ("hub/data/train-*.parquet", "huggingface"),
    ],
)
def test_the_same_images_are_opened_from_every_kind_of_files(everything: Path, where: str, kind: str) -> None:
    path = f"{everything}/{where}"
    assert kind_of(path) == kind
    found, files = (
        open_images("path", path, Decoding(3)),
        open_images("path", f"{everything}/files", Decoding(3)),
    )
    assert len(found) == len(files) == 6
    assert torch.equal(found.read(5), files.read(5))
    labels = [found.labels, files.labels]
    assert all(each is not None and np.array_equal(each, [0, 0, 0, 1, 1, 1]) for each in labels)


def test_a_flat_folder_has_no_labels_and_one_shard_is_enough(everything: Path) -> None:
    assert open_images("path", f"{everything}/flat", Decoding(3)).labels is None
    assert len(open_images("path", f"{everything}/shards/train-000001.tar", Decoding(3))) == 2


def test_held_out_images_are_told_from_the_others_by_their_names(everything: Path) -> None:
    as_shards(everything / "shards", [(IMAGES[0], 0), (IMAGES[1], 1)], stem="val")
    path = f"{everything}/shards"
    assert len(open_images("path", path, Decoding(3))) == 6
    assert len(open_images("path", path, Decoding(3), held_out=True)) == 2


def test_what_is_not_one_kind_of_images_is_refused(everything: Path) -> None:
    write_shard(everything / "files" / "all.tar", [("a.jpg", IMAGES[0])])
    (everything / "empty").mkdir()
    (everything / "empty" / "notes.md").write_text("nothing")
    mistakes = {
        "files": r"tar shards \(all.tar\) and image files \(cat/000000.jpg\)",
        "empty": "path = .*empty: no images there. Give class folders",
        "missing": r"path = .*missing: no such folder or file \(.* exists\)",
        "missing-*.jpg": "no such folder or file",
    }
    for where, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            kind_of(f"{everything}/{where}")


@pytest.mark.parametrize("where", ["shards", "shards.txt", "shards/train-000000.tar"])
def test_image_files_are_not_looked_for_in_shards(everything: Path, where: str) -> None:
    with pytest.raises(UserError, match="It holds tar shards: add data=webdataset"):
        folder.find("data.root", f"{everything}/{where}", Decoding(3))


def test_shards_are_not_looked_for_among_image_files(everything: Path) -> None:
    with pytest.raises(UserError, match=r"no \.tar files in that folder\. It holds image files"):
        webdataset.files_of("data.root", f"{everything}/flat")
