"""Tar shards: their samples in any order, and incomplete shards."""

import bz2
import gzip
import logging
import lzma
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from dino_exp.data import file_ranges, webdataset
from dino_exp.data.decoding import Decoding
from dino_exp.data.file_sets import expand_braces
from dino_exp.data.source import CorruptImageError, Splits, decode_image
from dino_exp.errors import UserError
from tests.data.sources import classes_of, held_out, labels_of, load
from tests.data.stored import as_shards, by_class, encoded, write_shard

pytestmark = pytest.mark.usefixtures("cache")
IMAGES = by_class(encoded(20), 3)


def shards(root: Path | str | None, val_root: Path | str | None = "auto") -> Splits:
    return load("webdataset", root=root, val_root=val_root)


def decoded(content: bytes) -> torch.Tensor:
    return decode_image(content, "expected", Decoding(3))


def test_folder_pattern_and_list_hold_the_same_samples_in_any_order(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "set", IMAGES)
    (folder / "list.txt").write_text(f"train-000000.tar\n\ntrain-000001.tar\n{folder}/train-000002.tar")
    for root in (folder, folder / "train-{000000..000002}.tar", folder / "train-*.tar", folder / "list.txt"):
        source = shards(root).train
        assert (len(source), source.classes) == (20, ["0", "1", "2"])
        assert labels_of(source).tolist() == [label for _, label in IMAGES]
        for index in (19, 0, 7, 6, 13):
            assert torch.equal(source.read(index), decoded(IMAGES[index][0]))
        assert source.name(7) == f"{folder / 'train-000001.tar'}: 000007.jpg"
        with pytest.raises(IndexError, match="image 20 of 20"):
            source.name(20)


def test_images_have_the_labels_of_their_names(tmp_path: Path) -> None:
    (one, _), (two, _) = IMAGES[:2]
    long = "n01440764/" + "x" * 120
    write_shard(
        tmp_path / "0.tar",
        [
            (f"{long}.json", b'{"label": 7, "caption": "a tench"}'),
            (f"{long}.JPEG", one),
            ("b/2.cls", b"12\n"),
            ("b/2.jpg", two),
            ("b/3.txt", b"no image in this sample"),
            ("b/.hidden.jpg", two),
        ],
    )
    source = shards(tmp_path).train
    assert (len(source), source.classes, labels_of(source).tolist()) == (2, ["7", "12"], [0, 1])
    assert [source.name(i).split(": ")[1] for i in range(2)] == [f"{long}.JPEG", "b/2.jpg"]
    assert torch.equal(source.read(1), decoded(two))
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(13)))
    named = shards(tmp_path).train
    assert [classes_of(named)[label] for label in labels_of(named)] == ["kind 7", "kind 12"]
    (tmp_path / "classes.txt").write_text("a\nb")
    with pytest.raises(UserError, match=r"classes\.txt: 2 names, but a sample has label 12"):
        shards(tmp_path)


def test_held_out_shards_are_found_and_never_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    together = as_shards(tmp_path / "together", IMAGES, stem="imagenet-train")
    as_shards(together, IMAGES[::4], stem="imagenet-val")
    as_shards(tmp_path / "apart" / "train", IMAGES)
    as_shards(tmp_path / "apart" / "val", IMAGES[::4])
    with caplog.at_level(logging.INFO):
        pattern = together / "imagenet-train-{000000..000002}.tar"
        for root in (together, pattern, tmp_path / "apart" / "train"):
            splits = shards(root)
            assert (len(splits.train), len(held_out(splits))) == (20, 5)
            assert held_out(splits).classes == splits.train.classes
            assert labels_of(held_out(splits)).tolist() == [label for _, label in IMAGES[::4]]
    assert len([r for r in caplog.records if "Held-out images" in r.message]) == 3
    assert shards(together, val_root=None).test is None
    assert len(shards(together, val_root=None).train) == 20
    assert len(shards(together / "imagenet-val-*.tar", val_root=None).train) == 5
    with pytest.raises(UserError, match=r"is among the training files"):
        shards(tmp_path / "apart" / "train", tmp_path / "apart" / "train")
    as_shards(tmp_path / "other", [(IMAGES[0][0], 0), (IMAGES[1][0], 9)])
    with pytest.raises(UserError, match=r"class '9' \(1 such\) is not among the 3 classes"):
        shards(together, tmp_path / "other")


def test_the_headers_are_read_once_and_a_damaged_index_is_rebuilt(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = as_shards(tmp_path / "set", IMAGES)
    first = shards(folder).train
    (index,) = cache.glob("webdataset-*.npz")
    complete = index.read_bytes()
    for damaged in (b"", complete[:100], complete[:-30], complete[:400] + bytes(50) + complete[450:]):
        index.write_bytes(damaged)
        again = shards(folder).train
        assert [again.name(i) for i in range(20)] == [first.name(i) for i in range(20)]
        assert index.read_bytes() == complete
    caplog.clear()
    with caplog.at_level(logging.INFO):
        shards(folder)
        assert caplog.text == ""
        as_shards(folder, IMAGES[:8])  # other content, so another index
        assert (len(shards(folder).train), "Reading the headers of 3 shards" in caplog.text) == (14, True)
    assert len(list(cache.glob("webdataset-*.npz"))) == 2
    cache.rename(tmp_path / "gone")
    cache.write_text("a file, so that no index can be kept here")
    assert len(shards(folder).train) == 14


def test_an_unreadable_shard_is_reported_before_training(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "set", IMAGES)
    shard = folder / "train-000001.tar"
    complete = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    header = members[4].offset
    broken = [
        (complete[: members[-1].offset_data + 50], "half-written .*unexpected end of data"),
        (complete[:end], "half-written .*no end marker"),
        (complete[: members[5].offset], "no end marker"),
        (complete[: members[5].offset + 100], "half-written"),
        (complete[: header + 100] + b"?" + complete[header + 101 :], rf"a damaged header at byte {header:,}"),
        (b"", "half-written .*empty file"),
        (b"<html>" * 200, "half-written .*begins with b'<html>"),
        (bytes(20480), "half-written .*only zeros"),
        (complete + b"?" * 600, "half-written .*no tar archive behind its end"),
        (complete + complete[:800], "half-written .*unexpected end"),
        (gzip.compress(complete), "compressed with gzip.*gunzip"),
        (bz2.compress(complete), "compressed with bzip2.*bunzip2"),
        (lzma.compress(complete), "compressed with xz.*unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd.*unzstd"),
    ]
    for content, reason in broken:
        shard.write_bytes(content)
        with pytest.raises(UserError, match=rf"shard {shard}: .*{reason}"):
            shards(folder)
    shard.unlink()
    for root in (folder / "train-{000000..000002}.tar", folder / "list.txt"):
        (folder / "list.txt").write_text("train-000000.tar\ntrain-000001.tar\ntrain-000002.tar\n")
        with pytest.raises(UserError, match=rf"1 of the 3 files are missing, the first is {shard}"):
            shards(root)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, "elsewhere"
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (
            header("a.cls", 3 << 30),
            r"a\.cls is no label: it has 3,221,225,472 bytes, more than the 16,777,216",
        ),
        (header("a.json", 3 << 30), r"a\.json is no label"),
        (header("a", 3 << 30, tarfile.GNUTYPE_LONGNAME), "damaged .*a header of 3,221,225,472 bytes"),
        (header("a", 3 << 30, tarfile.XHDTYPE), "damaged .*a header of 3,221,225,472 bytes"),
        (header("a.txt", -512), r"damaged .*a\.txt has a negative size"),
        (header("a.txt", -512, tarfile.XHDTYPE), "damaged .*a header of -512 bytes"),
        (header("a.txt", 2**80), "damaged"),
        (header("a.txt", 0, tarfile.SYMTYPE) + header("a." * 2100 + "jpg", 0), r"a name of 4,203 characters"),
        (b"".join([header("a", 0, tarfile.GNUTYPE_LONGNAME)] * 5000), "damaged"),
    ],
)
def test_headers_that_lie_take_neither_time_nor_memory(tmp_path: Path, start: bytes, reason: str) -> None:
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(start)
        file.truncate(4 << 30)  # sparse, so that all of it could be read
    with pytest.raises(UserError, match=rf"0\.tar.*{reason}"):
        shards(tmp_path)


def test_a_large_member_is_an_unreadable_image_and_a_pipe_is_no_shard(tmp_path: Path) -> None:
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(header("a.jpg", 3 << 30))
        file.truncate((3 << 30) + 2048)
    with pytest.raises(CorruptImageError, match=r"a\.jpg: 3,221,225,472 bytes, more than the 1,073,741,824"):
        shards(tmp_path).train.read(0)
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(UserError, match=r"1\.tar: a pipe, socket, device or folder"):
        shards(tmp_path)


def test_mistakes_are_reported(tmp_path: Path) -> None:
    (one, _), (two, _) = IMAGES[:2]
    (tmp_path / "empty").mkdir()
    write_shard(tmp_path / "text" / "0.tar", [("a.txt", b"hello")])
    write_shard(tmp_path / "digits" / "0.tar", [("a.cls", b"9" * 5000), ("a.jpg", one)])
    write_shard(tmp_path / "json" / "0.tar", [("a.jpg", one), ("a.json", b"{")])
    write_shard(tmp_path / "deep" / "0.tar", [("a.jpg", one), ("a.json", b"[" * 100_000)])
    write_shard(tmp_path / "half" / "0.tar", [("a.cls", b"1"), ("a.jpg", one), ("b.jpg", two)])
    mistakes = [
        (None, r"data\.root is null: give a folder of \.tar shards"),
        (tmp_path / "nowhere" / "x", r"data\.root = .*nowhere/x: no such folder or file"),
        (tmp_path / "empty", r"data\.root = .*empty: no \.tar files in that folder"),
        (tmp_path / "empty" / "*.tar", r"no file matches the pattern"),
        (tmp_path / "text", r"no images in 1 shards; they end in"),
        (tmp_path, r"no \.tar files in that folder, but in its folders \(deep, .*data\.root=.*/deep, or"),
        (
            tmp_path / "digits",
            r"digits/0\.tar: a\.cls: '9{20}.* is not a label; .* 0 to 2,147,483,647 or one",
        ),
        (tmp_path / "deep", r"deep/0\.tar: a\.json: not JSON"),
        (tmp_path / "json", r"json/0\.tar: a\.json: not JSON"),
        (tmp_path / "half", r"half/0\.tar: b\.jpg: no label, .* 1 of 2 samples"),
    ]
    for root, message in mistakes:
        with pytest.raises(UserError, match=message):
            shards(root)


def test_a_shard_that_changes_makes_its_images_unreadable(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "set", IMAGES)
    source = shards(folder).train
    source.read(8)  # its shard is open now
    shard = folder / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:3000])
    with pytest.raises(CorruptImageError, match=r"changed after the run began") as caught:
        source.read(12)
    assert caught.value.name == f"{shard}: 000012.jpg"
    assert torch.equal(source.read(0), decoded(IMAGES[0][0]))
    shard.unlink()
    with pytest.raises(CorruptImageError, match=r"No such file"):
        pickle.loads(pickle.dumps(source)).read(12)


def test_copies_have_no_open_files_and_few_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_ranges, "OPEN_FILES", 4)
    source = shards(as_shards(tmp_path / "set", IMAGES, each=2)).train
    copy = pickle.loads(pickle.dumps(source))
    for one in (source, copy):
        assert isinstance(one, webdataset.ShardSource)
        for index in (*range(20), *reversed(range(20))):
            assert torch.equal(one.read(index), decoded(IMAGES[index][0]))
        assert len(one._bytes._open) == 4


def test_unreadable_members_are_reported(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [("a.jpg", b"not an image"), ("b.jpg", b"")])
    source = shards(tmp_path).train
    for index, reason in enumerate(("not an image", "the file is empty")):
        with pytest.raises(CorruptImageError, match=rf"0\.tar: {'ab'[index]}\.jpg: {reason}"):
            source.read(index)


def test_no_shard_is_read_twice(tmp_path: Path) -> None:
    folder = as_shards(tmp_path / "set", IMAGES)
    (folder / "list.txt").write_text("train-000000.tar\ntrain-000001.tar\n../set/train-000000.tar\n")
    with pytest.raises(UserError, match=r"set/\.\./set/train-000000\.tar is the same file as .*Name each"):
        shards(folder / "list.txt")
    with pytest.raises(UserError, match=r"train-000002\.tar is listed twice"):
        shards(folder / "train-00000{2,2}.tar")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.tar").symlink_to(folder / "train-000000.tar")
    with pytest.raises(UserError, match=r"val/0\.tar is among the training files"):
        shards(folder, tmp_path / "val")


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}{0..1}") == ["x0", "x1", "y0", "y1"]
    assert expand_braces("plain") == ["plain"]
