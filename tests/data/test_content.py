"""What images a set holds: the same in every format and place, any change noticed and said."""

import errno
import io
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dino_exp.data import digests, storage
from dino_exp.data.content import Content, contents_of, differences, key_of, read, write
from dino_exp.data.labeled import NameTable
from dino_exp.data.packed import PackedSource
from dino_exp.data.source import Splits
from dino_exp.errors import MachineError, UserError
from tests.data.sources import load
from tests.data.stored import as_files, as_rows, as_shards, by_class, encoded

CLASSES = ["ant", "bee", "cat"]
IMAGES = encoded(30)

pytestmark = pytest.mark.usefixtures("cache")


def files(folder: Path) -> Splits:
    return load("image_folder", root=folder, val_root=None)


def contents(folder: Path) -> dict[str, Content]:
    return contents_of(files(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return as_files(tmp_path / "set", IMAGES, CLASSES)


def _digest(image: bytes) -> int:
    return digests.digest(len(image), lambda at, count: image[at : at + count])


def of(*images: tuple[str, bytes, int]) -> dict[str, Content]:
    """Return the content of images that are given by name, bytes and label."""
    found = [_digest(image) for _, image, _ in images]
    names = NameTable.of([os.fsencode(name) for name, _, _ in images])
    return {"train": Content(names, np.array(found, np.uint64), np.array([label for *_, label in images]))}


# ---- one key for the same images -----------------------------------------------------------------------


def test_the_same_images_have_one_key_in_every_format_and_place(folder: Path, tmp_path: Path) -> None:
    images = by_class(IMAGES, len(CLASSES))
    rows = as_rows(images, CLASSES)
    rows.save_to_disk(str(tmp_path / "rows"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    paths = sorted(folder.rglob("*.jpg"))
    listed = "".join(f"{path.relative_to(tmp_path)}\t{path.parent.name}\n" for path in paths)
    (tmp_path / "list.txt").write_text(listed)
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    (copy / "bee").rename(copy / "bumblebee")
    sets = [
        files(folder),
        files(copy),
        files(tmp_path / "list.txt"),
        load("webdataset", root=as_shards(tmp_path / "shards", images), val_root=None),
        load("huggingface", root=tmp_path / "rows", val_root=None),
        load("huggingface", root=tmp_path / "rows.parquet", val_root=None),
        load("image_folder", root=folder, val_root=None, packed=True),
    ]
    found = [contents_of(each) for each in sets]
    assert len({key_of(each) for each in found}) == 1
    assert {differences(found[0], each) for each in found} == {""}
    assert len({each.train.fingerprint() for each in sets[:-1]}) == 1
    assert [found[number]["train"].names[29] for number in (0, 2, 3)] == [
        "cat/000029.jpg",
        "set/cat/000029.jpg",
        "000029.jpg",
    ]
    gray = load("image_folder", root=folder, val_root=None, channels=1).train
    assert gray.fingerprint() != sets[0].train.fingerprint()


def test_held_out_images_count_and_generated_ones_have_no_content(tmp_path: Path) -> None:
    as_files(tmp_path / "train", IMAGES[:20], CLASSES)
    as_files(tmp_path / "val", IMAGES[20:], CLASSES)
    both = contents_of(load("image_folder", root=tmp_path / "train", val_root="auto"))
    assert key_of(both) != key_of({"train": both["train"]})
    assert differences(both, {"train": both["train"]}).startswith(
        "of the held-out images: 10 images removed ("
    )
    shapes = contents_of(load("shapes", root=tmp_path, train_size=4, test_size=2))
    assert (shapes, key_of(shapes)) == ({}, None)


# ---- changes -------------------------------------------------------------------------------------------


def write_over(path: Path, content: bytes) -> None:
    """Write a file anew with the size and time that it had."""
    before = path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def replace(folder: Path) -> None:
    path = folder / "bee" / "000001.jpg"
    write_over(path, path.read_bytes()[:-3] + b"abc")


def swap(folder: Path) -> None:
    one, other = folder / "ant" / "000003.jpg", folder / "ant" / "000006.jpg"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def add(folder: Path) -> None:
    for name in ("0", "1", "2", "3"):
        shutil.copy(folder / "cat" / "000002.jpg", folder / "cat" / f"{name}.jpg")


def remove(folder: Path) -> None:
    (folder / "bee" / "000004.jpg").unlink()
    replace(folder)


def relabel(folder: Path) -> None:
    (folder / "ant" / "000027.jpg").rename(folder / "bee" / "000000.jpg")  # of the same place in the order


def mend(folder: Path) -> None:
    path = folder / "bee" / "000001.jpg"
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace, "1 image replaced (bee/000001.jpg)"),
        (mend, "1 image replaced (bee/000001.jpg)"),
        (swap, "the same images in another order (from ant/000003.jpg on)"),
        (add, "4 images added (cat/0.jpg, cat/1.jpg, cat/2.jpg, ...)"),
        (remove, "1 image removed (bee/000004.jpg), 1 replaced (bee/000001.jpg)"),
        (relabel, "labels of 1 image changed (bee/000000.jpg: 0, now 1)"),
        (lambda folder: (folder / "bee" / "000001.jpg").rename(folder / "bee" / "000002.jpg"), ""),
    ],
    ids=["replaced", "mended", "swapped", "added", "removed", "relabeled", "renamed"],
)
def test_changes_of_a_folder_are_noticed_and_said(
    folder: Path, change: Callable[[Path], object], words: str
) -> None:
    before = contents(folder)
    assert key_of(contents(folder)) == key_of(before)
    change(folder)
    now = contents(folder)
    assert differences(before, now) == words
    assert (key_of(now) == key_of(before)) == (words == "")


def test_a_shard_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    images = by_class(IMAGES, 3)
    root = as_shards(tmp_path / "set", images)
    before = contents_of(load("webdataset", root=root, val_root=None))
    changed = [*images[:8], (images[8][0][:-3] + b"abc", 0), *images[9:]]
    write_over(
        root / "train-000001.tar", (as_shards(tmp_path / "new", changed) / "train-000001.tar").read_bytes()
    )
    now = contents_of(load("webdataset", root=root, val_root=None))
    assert differences(before, now) == "1 image replaced (000008.jpg)"


def test_images_in_another_format_are_compared_by_what_they_are() -> None:
    images = [(f"a/{number}", content, number % 2) for number, content in enumerate(IMAGES)]
    rows = [(f"row {number}", content, label) for number, (_, content, label) in enumerate(images)]
    without = [*rows[:3], *rows[4:]]
    assert differences(of(*images), of(*without)) == "1 image removed (a/3)"
    assert differences(of(*without), of(*images)) == "1 image added (a/3)"
    turned = differences(of(*images), of(*without[1:], without[0]))
    assert turned == "1 image removed (a/3), the others in another order (from row 1 on)"
    unlabeled = {"train": Content(of(*rows)["train"].names, of(*rows)["train"].digests, None)}
    assert differences(of(*images), unlabeled) == "the images have no labels any more"
    assert differences(of(*images, images[0]), of(*images)) == "1 image removed (a/0)"  # twice the same


def test_a_change_inside_a_large_image_is_noticed() -> None:
    content = bytearray(np.random.default_rng(0).bytes(digests.WHOLE + 1))
    before = of(("a", bytes(content), 0))
    for place in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        assert differences(before, of(("a", bytes(changed), 0))) == "1 image replaced (a)"
    small = bytearray(content[: digests.WHOLE])
    for place in range(0, len(small), 997):
        changed = bytearray(small)
        changed[place] ^= 1
        assert key_of(of(("a", bytes(small), 0))) != key_of(of(("a", bytes(changed), 0)))


def test_caches_know_all_bytes_of_large_images(tmp_path: Path) -> None:
    content = bytearray(np.random.default_rng(0).bytes(digests.WHOLE + 1))
    (tmp_path / "a.jpg").write_bytes(content)
    before, fingerprint = contents(tmp_path), files(tmp_path).train.fingerprint()
    assert files(tmp_path).train.fingerprint() == fingerprint
    content[digests.PIECE] ^= 1  # in no piece
    (tmp_path / "a.jpg").write_bytes(content)
    assert key_of(contents(tmp_path)) == key_of(before)
    assert files(tmp_path).train.fingerprint() != fingerprint


def test_of_a_large_set_a_part_is_read_and_all_sizes_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "HASHED", 8)
    before, fingerprint = contents(folder), files(folder).train.fingerprint()
    hashed = before["train"].digests >> digests.HASH != 0
    assert hashed.sum() == 8
    names = [before["train"].names[int(index)] for index in np.flatnonzero(~hashed)]
    path = folder / names[0]
    write_over(path, path.read_bytes()[:-3] + b"abc")
    assert key_of(contents(folder)) == key_of(before)
    assert files(folder).train.fingerprint() != fingerprint  # caches need to know all of them
    (folder / names[1]).write_bytes(IMAGES[0] + b"more")
    shutil.copy(folder / "cat" / "000002.jpg", folder / "ant" / "0.jpg")
    now = contents(folder)
    assert differences(before, now) == f"1 image added (ant/0.jpg), 1 replaced ({names[1]})"
    (folder / names[2]).unlink()
    rows = NameTable.of([b"row %d" % index for index in range(30)])
    other = {"train": Content(rows, contents(folder)["train"].digests, contents(folder)["train"].labels)}
    assert differences(now, other) == "1 image removed"  # by their sizes it is not known which


# ---- reading -------------------------------------------------------------------------------------------


def test_digests_are_read_once_and_damaged_ones_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_of(contents(folder))
    reads: list[str] = []
    original = digests.file_digest

    def counted(path: str, whole: int) -> int:
        reads.append(path)
        return original(path, whole)

    monkeypatch.setattr("dino_exp.data.folder.file_digest", counted)
    assert (key_of(contents(folder)), reads) == (key, [])
    (kept,) = cache.glob("digests-*.npz")
    complete = kept.read_bytes()
    for damaged in (b"", complete[:100], complete[:-30]):
        kept.write_bytes(damaged)
        reads.clear()
        assert (key_of(contents(folder)), len(reads)) == (key, 30)
        assert kept.read_bytes() == complete
    assert caplog.text.count("damaged") == 3
    shutil.rmtree(cache)
    cache.write_text("a file, so that nothing can be kept here")
    assert key_of(contents(folder)) == key
    assert "is not kept: " in caplog.text


def test_an_image_that_cannot_be_read_is_one_of_its_own(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in [*paths, tmp_path / "absent.jpg"]))
    before = contents(tmp_path / "list.txt")
    assert key_of(contents(tmp_path / "list.txt")) == key_of(before)
    (tmp_path / "absent.jpg").write_bytes(IMAGES[0])
    now = contents(tmp_path / "list.txt")
    assert differences(before, now) == f"1 image replaced ({tmp_path / 'absent.jpg'})"
    assert differences(now, before) == f"1 image replaced ({tmp_path / 'absent.jpg'})"


def away(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make the files of images fail to open until somebody has waited so long."""
    waited = [0.0]
    patch.setattr(storage.time, "sleep", lambda some: waited.__setitem__(0, waited[0] + some))
    opened = os.open

    def fail(path: str | bytes, flags: int, *mode: int) -> int:
        if waited[0] < seconds and os.fsdecode(path).endswith(".jpg"):
            raise OSError(errno.ESTALE, "stale", path)
        return opened(path, flags, *mode)

    patch.setattr(os, "open", fail)


def test_a_disk_that_is_away_makes_no_other_images(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files(folder)
    monkeypatch.setattr(storage, "_has_read", False)
    with monkeypatch.context() as patch:
        away(patch, seconds=1000)
        with pytest.raises(
            MachineError, match=r"\.jpg: the network file system lost the file\. It could not be"
        ):
            contents_of(source)
    assert not list(cache.glob("digests-*.npz"))
    with monkeypatch.context() as patch:
        away(patch, seconds=5)
        found = contents_of(source)
    shutil.rmtree(cache)
    assert key_of(found) == key_of(contents(folder))


# ---- the file ------------------------------------------------------------------------------------------


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


# ---- caches --------------------------------------------------------------------------------------------


def test_packed_pixels_follow_the_images(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    load("image_folder", root=folder, val_root=None, packed=True)
    folder.rename(tmp_path / "elsewhere")
    load("image_folder", root=tmp_path / "elsewhere", val_root=None, packed=True)
    shards = as_shards(tmp_path / "shards", by_class(IMAGES, 3))
    load("webdataset", root=shards, val_root=None, packed=True)
    assert caplog.text.count("Packing 30 images") == 1
    replace(tmp_path / "elsewhere")
    load("image_folder", root=tmp_path / "elsewhere", val_root=None, packed=True)
    assert caplog.text.count("Packing 30 images") == 2


def test_images_that_change_while_they_are_packed_are_not_kept(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PackedSource.__init__.__globals__["_pack"]

    def pack(*arguments: object) -> object:
        replace(folder)
        return original(*arguments)

    monkeypatch.setattr("dino_exp.data.packed._pack", pack)
    with pytest.raises(UserError, match=rf"images of {folder} changed while they were packed"):
        load("image_folder", root=folder, val_root=None, packed=True)
    assert not list(cache.glob("packed-*.npz"))
