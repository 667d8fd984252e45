"""Shards as writers make them: dots, links, appended archives, and what is skipped is counted."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch

from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ImageSource, decode_image
from dino_exp.errors import UserError
from tests.data.sources import classes_of, labels_of, load
from tests.data.stored import encoded, write_shard

pytestmark = pytest.mark.usefixtures("cache")
IMAGES = encoded(4)


def read(folder: Path) -> ImageSource:
    return load("webdataset", root=folder, val_root=None).train


def tar(*arguments: str | Path) -> None:
    subprocess.run(["tar", *arguments], check=True)


def names_in(source: ImageSource) -> list[str]:
    return [source.name(index).split(".tar: ")[1] for index in range(len(source))]


def assert_images(source: ImageSource, expected: list[tuple[str, bytes]]) -> None:
    assert names_in(source) == [name for name, _ in expected]
    for index, (name, content) in enumerate(expected):
        assert torch.equal(source.read(index), decode_image(content, name, Decoding(3)))


def test_every_image_of_a_dotted_name_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["video.mp4_frame0.jpg", "video.mp4_frame1.jpg", "v1.0/a.jpg", "v1.0/b.JPG"]
    members = list(zip(names, IMAGES, strict=True))
    write_shard(tmp_path / "0.tar", members)
    assert_images(read(tmp_path), members)
    assert "images that share their name up to the first dot with another one" in caplog.text
    assert "each read as one: 2, the first is" in caplog.text


def test_names_are_relative_to_the_root_of_the_archive(tmp_path: Path) -> None:
    members = [
        (f"{start}x.jpg", image) for start, image in zip(("./", "/a/", "./b/./", ""), IMAGES, strict=True)
    ]
    labels = [("x.cls", b"0"), ("a/x.cls", b"1"), ("./b/x.cls", b"2"), ("/x.cls", b"0")]
    write_shard(tmp_path / "0.tar", members + labels)
    source = read(tmp_path)
    assert_images(source, list(zip(("x.jpg", "a/x.jpg", "b/x.jpg", "x.jpg"), IMAGES, strict=True)))
    assert labels_of(source).tolist() == [0, 1, 2, 0]


def test_what_is_not_read_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = IMAGES[:2]
    members = [
        ("a.npy", b"an embedding"),
        ("a.seg.png", other),
        ("a.jpg", one),
        ("a.webp", other),
        ("._a.jpg", b"AppleDouble"),
        ("__MACOSX/a.jpg", b"AppleDouble"),
        ("cat/@eaDir/a.jpg", other),
        ("b.svg", other),
        ("b.cls", b"1"),
        ("c.txt", b"a caption"),
        ("no_ending", other),
        ("d.json", b"{}"),
        ("e.mask.png", other),  # without an image beside it
    ]
    write_shard(tmp_path / "0.tar", members)
    write_shard(tmp_path / "1.tar", [("a.pth", b"")])
    for _ in range(2):  # the second time from the index
        caplog.clear()
        assert_images(read(tmp_path), [("a.jpg", one), ("e.mask.png", other)])
        assert [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records] == [
            "data.root: hidden images and those of system folders, skipped: 3, the first is 0.tar: ._a.jpg",
            "data.root: files with the ending .svg, skipped: 1, the first is 0.tar: b.svg",
            "data.root: files with the ending .txt, skipped: 1, the first is 0.tar: c.txt",
            "data.root: files without an ending, skipped: 1, the first is 0.tar: no_ending",
            "data.root: JSON files without a label (label, cls, class, class_id, class_name, label_name): 1, "
            "the first is 0.tar: d.json",
            "data.root: masks, depth maps and thumbnails beside an image, skipped: 1, the first is 0.tar: "
            "a.seg.png beside a.jpg",
            "data.root: arrays beside an image, skipped: 1, the first is 0.tar: a.npy beside a.jpg",
            "data.root: images of the same name in another format, skipped: 1, the first is 0.tar: a.webp "
            "beside a.jpg",
            "data.root: labels of no image in their shard, ignored: 1, the first is 0.tar: b.cls",
            "data.root: files with the ending .pth, skipped: 1, the first is 1.tar: a.pth",
            "data.root: shards without images: 1, the first is 1.tar",
        ]


@pytest.mark.parametrize("style", ["gnu", "posix", "ustar"])
def test_links_have_the_bytes_of_their_targets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, style: str
) -> None:
    files, shards = tmp_path / "files", tmp_path / "shards"
    for folder in (files / "a", files / "b", files / "blobs", shards):
        folder.mkdir(parents=True)
    (files / "a" / "1.jpg").write_bytes(IMAGES[0])
    (files / "a" / "1.cls").write_text("0")
    (files / "b" / "2.jpg").hardlink_to(files / "a" / "1.jpg")
    (files / "b" / "2.cls").hardlink_to(files / "a" / "1.cls")
    (files / "b" / "3.jpg").symlink_to("link.jpg")
    (files / "b" / "link.jpg").symlink_to("../blobs/0123")
    (files / "b" / "3.cls").write_text("1")
    (files / "b" / "link.cls").symlink_to("./3.cls")
    (files / "blobs" / "0123").write_bytes(IMAGES[1])
    (files / "b" / "loop.jpg").symlink_to("loop.jpg")
    (files / "b" / "out.jpg").symlink_to(tmp_path / "out.jpg")
    (tmp_path / "out.jpg").write_bytes(IMAGES[2])
    tar("--sort=name", f"--format={style}", "-C", files, "-cf", shards / "0.tar", ".")
    source = read(shards)
    expected = [("a/1.jpg", 0), ("b/2.jpg", 0), ("b/3.jpg", 1), ("b/link.jpg", 1)]
    assert_images(source, [(name, IMAGES[number]) for name, number in expected])
    assert (classes_of(source), labels_of(source).tolist()) == (["0", "1"], [0, 0, 1, 1])
    assert "links to what is not in their shard, skipped: 2, the first is" in caplog.text


def test_hard_links_of_appended_archives_mean_the_file_before_them(tmp_path: Path) -> None:
    both = tmp_path / "both.tar"
    for image in IMAGES[:2]:
        (tmp_path / "1.jpg").write_bytes(image)
        (tmp_path / "2.jpg").unlink(missing_ok=True)
        (tmp_path / "2.jpg").hardlink_to(tmp_path / "1.jpg")
        tar("-C", tmp_path, "-cf", tmp_path / "part", "1.jpg", "2.jpg")
        with both.open("ab") as file:
            file.write((tmp_path / "part").read_bytes())
    names = [("1.jpg", IMAGES[0]), ("2.jpg", IMAGES[0]), ("1.jpg", IMAGES[1]), ("2.jpg", IMAGES[1])]
    assert_images(read(tmp_path), names)


def test_the_kinds_of_what_is_skipped_are_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [(f"a.{number}x", b"") for number in range(100)] + [
        (f"2021.01.{day}", b"") for day in range(50)
    ]
    write_shard(tmp_path / "BZh9.tar", [("BZhang.jpg", IMAGES[0]), *members])
    assert names_in(read(tmp_path)) == ["BZhang.jpg"]
    assert len(caplog.records) == 25
    assert "files of further kinds, skipped: 126, the first is" in caplog.text


def test_archives_may_be_appended_to_one_another(tmp_path: Path) -> None:
    parts = []
    for number, image in enumerate(IMAGES):
        members = [("a.jpg", image), ("a.cls", b"%d" % number)]
        parts.append(write_shard(tmp_path / "part.tar", members).read_bytes())
    (tmp_path / "part.tar").unlink()
    shortest = parts[0].rstrip(b"\0")  # one block of zeros as the end marker is enough
    shortest += bytes(-len(shortest) % 512 + 512)
    shard = tmp_path / "0.tar"
    for start in (parts[0], shortest, parts[0] + bytes(3 << 20)):
        shard.write_bytes(start + b"".join(parts[1:]))
        source = read(tmp_path)
        assert_images(source, [("a.jpg", image) for image in IMAGES])
        assert labels_of(source).tolist() == [0, 1, 2, 3]
    last = shard.stat().st_size - len(parts[3])
    shard.write_bytes(shard.read_bytes()[: last + 700])
    with pytest.raises(UserError, match=r"half-written or damaged \(unexpected end of data\)"):
        read(tmp_path)


def test_names_and_sizes_of_every_header_format_are_read(tmp_path: Path) -> None:
    long = f"ordner/{'ü' * 40}/{'ü' * 40}.jpg"
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    for number, style in enumerate(formats):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=style) as shard:
            member = tarfile.TarInfo(long)
            member.size = len(IMAGES[0])
            shard.addfile(member, io.BytesIO(IMAGES[0]))
            member = tarfile.TarInfo("\udcff.jpg")  # a name that is not UTF-8
            member.size = len(IMAGES[1])
            shard.addfile(member, io.BytesIO(IMAGES[1]))
    assert_images(read(tmp_path), [(long, IMAGES[0]), ("\udcff.jpg", IMAGES[1])] * 3)


def test_sparse_files_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (tmp_path / "hole.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(0, 2)
        file.write(IMAGES[0])
    (tmp_path / "plain.jpg").write_bytes(IMAGES[1])
    for style in ("gnu", "posix"):
        tar(
            f"--format={style}",
            "-S",
            "-C",
            tmp_path,
            "-cf",
            tmp_path / f"{style}.tar",
            "hole.jpg",
            "plain.jpg",
        )
    assert_images(read(tmp_path), [("plain.jpg", IMAGES[1])] * 2)
    assert "sparse files, devices and the like, skipped: 2, the first is" in caplog.text
