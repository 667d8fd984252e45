"""Images whose disk is away for a while, and the one image whose file is bad."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino_exp.data import storage
from dino_exp.data.loader import CropBatch, CropBatches
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.data.storage import GIVE_UP_AT_START, GIVE_UP_SECONDS, SURE_SECONDS
from dino_exp.errors import MachineError
from dino_exp.regular_file import read_regular
from tests.data.sources import load, multi_crop, released_augment
from tests.data.stored import as_files, as_shards, by_class, encoded

IMAGES = encoded(12)


class Time:
    """Waiting that takes no time; `after` some seconds of it something happens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waited = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []
        patch.setattr(storage.time, "sleep", self.sleep)

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self.events.append((seconds, act))

    def sleep(self, seconds: float) -> None:
        self.waited += seconds
        for event in [each for each in self.events if each[0] <= self.waited]:
            self.events.remove(event)
            event[1]()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    monkeypatch.setattr(storage, "_has_read", True)
    return Time(monkeypatch)


def files(folder: Path) -> ImageSource:
    return load("image_folder", root=as_files(folder / "set", IMAGES, ["a", "b"]), val_root=None).train


def shards(folder: Path) -> ImageSource:
    return load("webdataset", root=as_shards(folder / "set", by_class(IMAGES, 2)), val_root=None).train


def crops(source: ImageSource) -> CropBatch:
    """Return some crops, as a process makes them that has no file open yet."""
    copy = pickle.loads(pickle.dumps(source))
    return CropBatches(copy, multi_crop(), released_augment(), seed=0, backend="fast")[0, [0, 7, 3]]


def same(first: CropBatch, second: CropBatch) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def failing(patch: pytest.MonkeyPatch, number: int, name: str = "") -> list[int]:
    """Make files whose name contains `name` fail with an error; return a list whose clearing ends that."""
    errors = [number]

    def read(path: str) -> bytes:
        if errors and name in Path(path).name:
            raise OSError(errors[0], "failed", path)
        return read_regular(path)

    patch.setattr("dino_exp.data.source.read_regular", read)
    return errors


@pytest.mark.parametrize("stored", [files, shards])
def test_a_folder_that_is_away_for_two_seconds_changes_nothing(
    stored: Callable[[Path], ImageSource], tmp_path: Path, time: Time
) -> None:
    source = stored(tmp_path)
    undisturbed = crops(source)
    (tmp_path / "set").rename(tmp_path / "away")
    time.after(2, lambda: (tmp_path / "away").rename(tmp_path / "set"))
    assert same(crops(source), undisturbed)
    assert undisturbed.corrupt.tolist() == []
    assert 2 <= time.waited < 5


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_an_error_that_passes_changes_nothing(
    number: int, tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(tmp_path)
    undisturbed = crops(source)
    time.after(2, failing(monkeypatch, number).clear)
    assert same(crops(source), undisturbed)
    assert 2 <= time.waited < 5


def test_a_deleted_image_is_unreadable_without_waiting(tmp_path: Path, time: Time) -> None:
    source = files(tmp_path)
    Path(source.name(7)).unlink()
    assert crops(source).corrupt.tolist() == [7]
    assert time.waited == 0


def test_a_file_on_a_bad_place_of_the_disk_is_unreadable(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(tmp_path)
    failing(monkeypatch, errno.EIO, Path(source.name(7)).name)
    assert crops(source).corrupt.tolist() == [7]
    assert SURE_SECONDS <= time.waited < 2 * SURE_SECONDS + 1


@pytest.mark.parametrize("stored", [files, shards])
def test_a_folder_that_stays_away_is_an_error_and_no_unreadable_image(
    stored: Callable[[Path], ImageSource], tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stored(tmp_path)
    (tmp_path / "set").rename(tmp_path / "away")
    copy = pickle.loads(pickle.dumps(source))
    with pytest.raises(MachineError, match=rf"{tmp_path}/set/.*no such file.* data\.root .*resumes"):
        copy.read(3)
    assert GIVE_UP_SECONDS <= time.waited < GIVE_UP_SECONDS + 6
    monkeypatch.setattr(storage, "_has_read", False)
    time.waited = 0
    with pytest.raises(MachineError):
        copy.read(3)
    assert GIVE_UP_AT_START <= time.waited < GIVE_UP_AT_START + 6


def test_a_single_shard_with_a_bad_place_has_one_unreadable_image(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load("webdataset", root=as_shards(tmp_path / "set", by_class(IMAGES, 2), each=12), val_root=None)
    bad: list[int] = []
    pread = os.pread

    def failing_pread(file: int, length: int, offset: int) -> bytes:
        bad[:] = bad or [offset]
        if offset == bad[0]:
            raise OSError(errno.EIO, "failed")
        return pread(file, length, offset)

    monkeypatch.setattr(os, "pread", failing_pread)
    with pytest.raises(CorruptImageError):
        source.train.read(5)
    assert time.waited >= SURE_SECONDS
    assert source.train.read(6).shape[0] == 3
