"""`dino-exp inspect`: what it finds, prints and writes, for small sets of every kind of trouble."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_exp.console import Console
from dino_exp.inspection.findings import print_findings
from dino_exp.inspection.inspect_command import main
from dino_exp.inspection.measured import Measured
from dino_exp.inspection.measuring import inspect
from tests.data.sources import as_file
from tests.data.stored import as_files, as_shards, encoded


def measured(place: Path, most: int | None = None) -> Measured:
    return inspect(str(place), most, Console(file=io.StringIO())).measured


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def smooth(seed: int, height: int = 64, width: int = 96, cells: int = 6) -> Image.Image:
    """Return an RGB image like no other, which keeps its look when it is scaled or compressed."""
    cells_of = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(cells_of).resize((width, height), Image.Resampling.BICUBIC)


def stored(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "float32"])
def test_the_numbers_are_those_of_numpy_and_every_image_counts_the_same(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    top = 256 if kind == "uint8" else 4096
    low = -500 if kind in ("int16", "float32") else 0
    # many more pixels in one image than in the others, and a constant channel in one
    images = [rng.integers(low, top, (side, side + 2, 2)).astype(kind) for side in (12, 20, 200)]
    images[0] //= 2
    images[1][:, :, 1] = 7
    for number, values in enumerate(images):
        write(tmp_path / f"{number}.npy", stored(values))
    found = measured(tmp_path)
    assert found.value_type == kind
    for channel, result in enumerate(found.channels):
        columns = [values[:, :, channel].ravel().astype(np.float64) for values in images]
        mean = np.mean([column.mean() for column in columns])
        assert result.mean == pytest.approx(mean)
        assert result.std == pytest.approx(
            np.sqrt(np.mean([((column - mean) ** 2).mean() for column in columns]))
        )
        assert (result.low, result.high) == (min(map(np.min, columns)), max(map(np.max, columns)))
        assert result.constant == (1 if channel == 1 else 0)
        ordered = np.concatenate(columns)
        order = ordered.argsort(kind="stable")
        weights = np.concatenate([np.full(len(column), 1 / len(column)) for column in columns])[order]
        up_to = weights.cumsum() / weights.sum()
        tolerance = 60 if kind == "float32" else 0  # of a part of the pixels
        for percentile, value in result.percentiles.items():
            exact = ordered[order][np.searchsorted(up_to, percentile / 100 * (1 - 1e-12))]
            assert value == pytest.approx(exact, abs=tolerance, rel=0)
    # cut at the range that is proposed, as in a training
    for channel, (got_mean, got_std) in enumerate(zip(*found.mean_and_std, strict=True)):
        bottom, ceiling = (found.value_range or [(0, 255)] * 2)[channel]
        cut = [
            ((values[:, :, channel].astype(float) - bottom) / (ceiling - bottom)).clip(0, 1)
            for values in images
        ]
        mean = np.mean([each.mean() for each in cut])
        std = np.sqrt(np.mean([((each - mean) ** 2).mean() for each in cut]))
        assert (got_mean, got_std) == pytest.approx((mean, std), abs=0.02 if kind == "float32" else 2e-3)
    assert Measured.from_json(found.to_json()) == found


def test_nan_and_infinite_values_are_counted_and_left_out(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 20, 3)).astype(np.float32)
    write(tmp_path / "good.npy", stored(values))
    odd = values.copy()
    odd[0, 0, 0], odd[:, :, 2] = np.inf, np.nan
    write(tmp_path / "odd.npy", stored(odd))
    found = measured(tmp_path)
    assert [channel.not_finite for channel in found.channels] == [1, 0, 1]
    assert found.channels[2].mean == pytest.approx(values[:, :, 2].mean(), abs=1e-6)
    assert found.channels[0].high == values[:, :, 0].max()
    assert found.floating


def test_what_is_wrong_with_a_folder_is_found_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "birds"
    for number in range(12):
        folder = "crow" if number < 9 else "owl"
        write(data / folder / f"{number}.png", as_file(smooth(number), "PNG"))
    whole = as_file(smooth(20, 200, 300), "JPEG")
    write(data / "owl/large.jpg", whole)
    write(data / "owl/cut.jpg", whole[: len(whole) // 2])
    write(data / "owl/empty.jpg", b"")
    write(data / "owl/gray.png", as_file(smooth(21).convert("L"), "PNG"))
    write(
        data / "owl/deep.png",
        as_file(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    )
    write(data / "owl/copy.png", (data / "crow/3.png").read_bytes())
    write(data / "crow/saved again.jpg", as_file(smooth(5).resize((150, 100)), "JPEG", quality=60))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "birds"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = measured(data)
    assert (found.images, found.decoded) == (19, 17)
    assert found.classes == {"crow": 10, "owl": 9}
    assert "19 in 2 classes, of 9 (owl) to 10 (crow)" in said
    assert found.formats == {"PNG": 15, "JPEG": 2}
    assert found.channel_counts == {3: 15, 1: 2}
    assert found.bits == {8: 16, 16: 1}
    assert sorted(name for names in found.unreadable.values() for name in names) == [
        "owl/cut.jpg",
        "owl/empty.jpg",
    ]
    assert found.exact_duplicates == [["crow/3.png", "owl/copy.png"]]
    assert found.near_duplicates == [["crow/5.png", "crow/saved again.jpg"]]
    assert "different classes are the same bytes in 1 of the groups (crow/3.png and owl/copy.png)" in said
    assert "1 with 1 channel in uint16 (owl/deep.png), 1 with 1 channel in uint8 (owl/gray.png)" in said
    assert found.shorter_sides == {0.0: 64, 5.0: 64, 50.0: 64, 95.0: 100, 100.0: 200}
    sheet = tmp_path / "outputs/inspect" / f"{tmp_path.name}_birds.png"
    assert str(sheet.relative_to(tmp_path)) in said
    with Image.open(sheet) as image:
        assert np.asarray(image).std() > 20
    assert sorted(path.name for path in data.iterdir()) == ["crow", "owl"]


def test_unrelated_flat_and_alike_images_are_no_near_duplicates(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    disc = (np.hypot(y - 32, x - 32) < 28)[:, :, None]
    for number in range(40):
        write(tmp_path / f"flat{number}.png", as_file(Image.new("RGB", (64, 64), (number, 90, 20)), "PNG"))
        eye = np.where(disc, np.asarray(smooth(number, 64, 64)) // 4 + 150, 0).astype(np.uint8)  # as a retina
        write(tmp_path / f"eye{number}.png", as_file(Image.fromarray(eye), "PNG"))
    bright = Image.fromarray((eye * 0.9).astype(np.uint8))
    write(tmp_path / "darker.png", as_file(bright.resize((90, 90)), "PNG"))
    assert measured(tmp_path).near_duplicates == [["darker.png", "eye39.png"]]


def test_held_out_images_that_are_trained_on_are_said(tmp_path: Path) -> None:
    images = encoded(20)
    as_files(tmp_path / "train", images, ["a", "b"])
    as_files(tmp_path / "val", images[:2] + encoded(4, seed=1), ["a", "b"])
    found = measured(tmp_path / "train")
    assert found.held_out == str(tmp_path / "val")
    assert f"2 of the 6 held-out images in {tmp_path}/val are also training images" in found.notes[0]


def test_a_part_is_decoded_and_all_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, images = tmp_path / "images", encoded(150)
    as_files(data, [*images, images[2]], ["all"])
    listed = write(tmp_path / "list.txt", b"".join(b"images/all/%06d.jpg\n" % i for i in range(151)))
    for place in (data, listed):
        found = measured(place, 10)
        assert (found.images, found.decoded) == (151, 10)
        assert [[name[-10:] for name in group] for group in found.exact_duplicates] == [
            ["000002.jpg", "000150.jpg"]
        ]
        print_findings(found, Console())
        assert "10 were decoded, evenly spread (all with --images 151)" in " ".join(
            capsys.readouterr().out.split()
        )


def test_deep_images_of_many_channels_are_shown_stretched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        values = np.asarray(smooth(number, 48, 48)).astype(np.uint16)[:, :, [0, 1, 2, 0, 1]] + 300
        values[:, :, 4] = number
        write(tmp_path / f"bands/{number}.npy", stored(values))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "bands"]) == 0
    said = capsys.readouterr().out
    assert "channel 5" in said
    assert "data.range" in said
    assert "nothing can be learned from it: channel 5." in said
    (sheet,) = (tmp_path / "outputs/inspect").iterdir()
    with Image.open(sheet) as image:
        shown = np.asarray(image.convert("RGB"))[200:400].reshape(-1, 3)
    assert len(np.unique(shown[:, 0])) > 100  # 16 bits in the upper byte alone would be two grays
    assert np.ptp(shown.astype(int), axis=1).max() > 60


def test_shards_are_looked_at(tmp_path: Path) -> None:
    images = encoded(8)
    as_shards(tmp_path, [(content, number % 2) for number, content in enumerate([*images, images[3]])])
    found = measured(tmp_path)
    assert (found.kind, found.classes) == ("webdataset", {"0": 5, "1": 4})
    assert [[name.rpartition(" ")[2] for name in group] for group in found.exact_duplicates] == [
        ["000003.jpg", "000008.jpg"]
    ]


def test_channels_that_come_first_are_suspected(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", stored(np.random.default_rng(0).integers(0, 9, (3, 40, 50)).astype(np.uint8)))
    assert "a.npy has the shape (3, 40, 50) (1 such)" in measured(tmp_path).notes[0]


def test_one_image_is_looked_at(tmp_path: Path) -> None:
    place = write(tmp_path / "one.png", as_file(smooth(0), "PNG"))
    assert (measured(place).images, measured(place).longer_sides[50.0]) == (1, 96)


def test_nothing_is_written_into_the_folder_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(tmp_path, encoded(4), ["a", "b"])
    monkeypatch.chdir(tmp_path / "a")
    assert main(["inspect", ".."]) == 0
    assert "No sheet of crops" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert len(list((tmp_path / "a").iterdir())) == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no images there"),
        ({"a.jpg": b"not an image", "b.jpg": b""}, "none of its images can be read"),
        (None, "no such folder or file"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    files: dict[str, bytes] | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if files is not None:
        (tmp_path / "data").mkdir()
        for name, content in files.items():
            write(tmp_path / "data" / name, content)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "data"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "data" in error
    assert not (tmp_path / "outputs").exists()


def test_without_a_subcommand_the_programs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "dino-train" in capsys.readouterr().out
