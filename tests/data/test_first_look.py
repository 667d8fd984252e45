"""A few images are looked at before anything is made of a set, and ranges that do not fit are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_exp.errors import UserError
from tests.data.image_files import TWELVE, npy, png16
from tests.data.sources import load
from tests.programs import run_program


def test_a_deep_set_is_refused_before_anything_exists(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(png16(TWELVE + number, 2))
    words = "experiment=debug data=image_folder data.root=images data.val_root=null output_root=out"
    run = run_program("train.py", *words.split(), folder=tmp_path)
    assert run.returncode == 2, run.output
    assert len(run.stderr.splitlines()) == 1
    assert "has 16 bits per value (values 160 to 3,21" in run.stderr
    assert "set data.range=[0,4095] (12 bits)" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"range": [0, 65535]}, ["becomes 1 to 12 of 0 to 255", "becomes 2 to 11 ", "becomes 1 to 4 "]),
        ({"range": [0, 4095], "bands": [1, 4, 3]}, ["Band 4 has a single value in each of the 3 images"]),
        ({"range": [0, 4095]}, []),
    ],
)
def test_what_is_odd_about_a_range_is_said(
    settings: dict[str, Any], said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        constant = np.full((16, 32, 1), 70 * number, np.uint16)
        (tmp_path / f"{number}.npy").write_bytes(npy(np.concatenate([TWELVE, constant], axis=2)))
    load("image_folder", root=tmp_path, val_root=None, **({"bands": [1, 2, 3]} | settings))
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))


def test_a_range_by_which_all_images_are_one_color_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(TWELVE, 2))
    with pytest.raises(UserError, match=r"data.range = \[50000,60000\]: each of the 1 images .* one color"):
        load("image_folder", root=tmp_path, val_root=None, range=[50_000, 60_000])


def test_a_sweep_over_ranges_looks_at_the_images_for_each(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(20):
        (tmp_path / "images" / f"{number}.png").write_bytes(png16(TWELVE, 2))
    words = "-m experiment=debug data=image_folder data.val_root=null trainer.batch_size=8 output_root=out"
    ranges = "data.range=[0,4095],[50000,60000]"
    run = run_program("train.py", *words.split(), "data.root=images", ranges, folder=tmp_path)
    assert run.returncode == 2, run.output
    assert "data.range = [50000,60000]: each of" in run.stderr
    assert not (tmp_path / "out").exists()
