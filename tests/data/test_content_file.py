"""The file that holds what images a run was trained on: whole, small, and refused if it is anything else."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dino_exp.data import digests
from dino_exp.data.content import Content, key_of, read, write
from dino_exp.data.labeled import NameTable
from dino_exp.errors import UserError
from tests.data.stored import encoded
from tests.data.test_content import of

IMAGES = encoded(1)


def test_a_file_holds_the_contents_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert read(path) == {}
    train = of(("caf\udce9.jpg", b"abc", 3), ("b/\u00fc", b"", 0), ("", IMAGES[0], 2**40))["train"]
    test = Content(train.names, train.digests, None)
    write(path, {"train": train, "test": test})
    found = read(path)
    assert list(found) == ["train", "test"]
    assert [found["test"].names[index] for index in range(3)] == ["caf\udce9.jpg", "b/\u00fc", ""]
    assert found["train"].digests.tolist() == train.digests.tolist()
    assert found["train"].labels is not None
    assert found["train"].labels.tolist() == [3, 0, 2**40]
    assert key_of(found) == key_of({"train": train, "test": test})
    write(path, {})
    assert read(path) == {}


def test_a_file_takes_few_bytes_per_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = NameTable.of(
        [b"n%08d/n%08d_%05d.JPEG" % (i // 1300, i // 1300, i * 7 % 99991) for i in range(20_000)]
    )
    sizes = random.integers(5_000, 200_000, 20_000, dtype=np.uint64)
    hashes = random.integers(1, 2**32, 20_000, dtype=np.uint64)
    labels = np.arange(20_000) // 1300
    write(tmp_path / "data.npz", {"train": Content(names, sizes | hashes << digests.HASH, labels)})
    assert (tmp_path / "data.npz").stat().st_size < 15 * 20_000


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "another version": lambda arrays: arrays.update(version=np.array(99)),
    "no version": lambda arrays: arrays.pop("version"),
    "objects": lambda arrays: arrays.update({"train.names": np.array([{}], dtype=object)}),
    "fewer sizes": lambda arrays: arrays.update({"train.sizes": arrays["train.sizes"][1:]}),
    "fewer labels": lambda arrays: arrays.update({"train.labels": arrays["train.labels"][1:]}),
    "a missing array": lambda arrays: arrays.pop("train.hashes"),
    "names of other lengths": lambda arrays: arrays.update({"train.lengths": arrays["train.lengths"] + 1}),
    "lengths that are negative": lambda arrays: arrays.update({"train.lengths": np.array([20, 20, -36])}),
    "labels that are no numbers": lambda arrays: arrays.update({"train.labels": np.array([0.5] * 3)}),
    "a table of sizes": lambda arrays: arrays.update({"train.sizes": arrays["train.sizes"][:, None]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_what_was_written_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    write(path, of(("a", b"a", 0), ("b", b"b", 0), ("cc", b"c", 1)))
    arrays = arrays_of(path)
    DAMAGES[damage](arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: damaged \("):
        read(path)


def test_damaged_and_enormous_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    write(path, of(("a", b"a", 0)))
    complete = path.read_bytes()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (2**40,)}
        )
        archive.writestr("version.npy", header.getvalue() + bytes(1000))
    for content in (
        b"",
        b"\0" * 500,
        complete[:-10],
        complete[:300] + b"??" + complete[302:],
        bomb.getvalue(),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}: damaged \("):
            read(path)
    path.write_bytes(complete)
    monkeypatch.setattr("dino_exp.data.content.MOST_BYTES", 100)
    with pytest.raises(
        UserError, match=r"data\.npz: damaged \([0-9,]+ bytes, more than the 100 that are read"
    ):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"data\.npz: "):
        read(path)
