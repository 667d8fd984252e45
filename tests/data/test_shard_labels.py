"""Labels in shards: numbers and names, which image they belong to, and what is no class."""

from pathlib import Path

import pytest

from dino_exp.data.shard_labels import Label, NoClassError, in_file, in_json
from dino_exp.data.source import ImageSource
from dino_exp.errors import UserError
from tests.data.sources import classes_of, held_out, labels_of, load
from tests.data.stored import encoded, write_shard

pytestmark = pytest.mark.usefixtures("cache")
(IMAGE,) = encoded(1)
Members = list[tuple[str, bytes]]


def source_of(folder: Path, members: Members) -> ImageSource:
    write_shard(folder / "0.tar", members)
    return load("webdataset", root=folder, val_root=None).train


def labeled(folder: Path, members: Members) -> dict[str, str]:
    """Return the class of each image by its name in the shard."""
    source = source_of(folder, members)
    names = (source.name(index).split("0.tar: ")[1] for index in range(len(source)))
    return dict(zip(names, (classes_of(source)[label] for label in labels_of(source)), strict=True))


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"3", 3),
        (b" 007\r\n", 7),
        (b"\xef\xbb\xbf3.0", 3),
        (b"1e2", 100),
        (b"-1", None),
        (b"NaN", None),
        (b"golden retriever\n", "golden retriever"),
        ("Käfer\u3000甲虫".encode(), "Käfer\u3000甲虫"),
    ],
)
def test_a_label_is_a_number_or_a_name(content: bytes, label: Label | None) -> None:
    assert in_file(content) == label


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"1.5",
        b"-2",
        b"2147483648",
        b"3 4",
        b"[3, 4]",
        b"a\nb",
        b"\xff\xfe",
        b"x" * 256,
        b"9" * 10**7,
    ],
)
def test_what_is_no_class_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"0\.tar: a\.cls: .* is not a label; a class number from 0 to 2,147"):
        source_of(tmp_path, [("a.cls", content), ("a.jpg", IMAGE)])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"label": 3}', ("label", 3)),
        (b'\xef\xbb\xbf{"cls": 3.0}', ("cls", 3)),
        (b'{"label": null, "class": "3"}', ("class", 3)),
        (b'{"class_name": " cat "}', ("class_name", "cat")),
        (b'{"label": ["cat"], "caption": "two cats"}', ("label", "cat")),
        (b'{"label": NaN}', ("label", None)),
        (b'{"label": -1}', ("label", None)),
        (b'{"key": "000", "status": "success", "caption": "a cat"}', (None, None)),
        (b"[1]", (None, None)),
    ],
)
def test_json_has_labels_by_several_keys(content: bytes, found: tuple[str | None, Label | None]) -> None:
    assert in_json(content) == found


@pytest.mark.parametrize(
    "value", ["true", "[1, 2]", "[]", '{"id": 3}', "0.5", "1e400", "-7", '"a\\nb"', '"\\ud800"']
)
def test_what_is_no_class_in_json_is_ignored_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    with pytest.raises(NoClassError):
        in_json(b'{"label": %s}' % value.encode())
    source = source_of(tmp_path, [("a.jpg", IMAGE), ("a.json", b'{"label": %s}' % value.encode())])
    assert source.labels is None
    assert "labels that are no class, ignored: 1, the first is" in caplog.text


def test_labels_need_not_be_beside_their_images(tmp_path: Path) -> None:
    images = [(f"{name}.jpg", IMAGE) for name in ("x/a", "x/b", "y/a")]
    labels = [("y/a.cls", b"2"), ("x/b.json", b'{"label": 1}'), ("x/a.cls", b"0")]
    for number, members in enumerate((images + labels, labels + images, labels[:2] + images + labels[2:])):
        assert labeled(tmp_path / str(number), members) == {"x/a.jpg": "0", "x/b.jpg": "1", "y/a.jpg": "2"}


def test_labels_are_found_by_any_part_of_a_dotted_name(tmp_path: Path) -> None:
    members = [
        *((f"2021.05.01-{number}.jpg", IMAGE) for number in (1, 2)),
        ("2021.05.01-2.cls", b"2"),
        ("2021.05.01-1.cls", b"1"),
        ("a.left.jpg", IMAGE),
        ("a.right.jpg", IMAGE),
        ("a.cls", b"3"),
        ("img.v1.jpg", IMAGE),
        ("img.v1.jpg.json", b'{"label": 4}'),
    ]
    assert labeled(tmp_path, members) == {
        "2021.05.01-1.jpg": "1",
        "2021.05.01-2.jpg": "2",
        "a.left.jpg": "3",
        "a.right.jpg": "3",
        "img.v1.jpg": "4",
    }


def test_of_images_of_one_name_each_has_its_own_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, order in enumerate(((0, 1, 2, 3), (0, 2, 1, 3))):  # two samples, or sorted by their endings
        sample = [("a.jpg", IMAGE), ("a.cls", b"5"), ("a.jpg", IMAGE), ("a.cls", b"6")]
        source = source_of(tmp_path / str(number), [sample[index] for index in order])
        assert (classes_of(source), labels_of(source).tolist()) == (["5", "6"], [0, 1])
    assert "images of the same name as an earlier one in their shard, all read: 1" in caplog.text
    with pytest.raises(UserError, match=r"a\.jpg has two labels that disagree: 5 in a\.cls and 6 in a\.cls"):
        source_of(tmp_path / "one", [sample[0], sample[1], sample[3]])


def test_a_number_may_have_a_name_beside_it_but_no_other_number(tmp_path: Path) -> None:
    members = [("a.jpg", IMAGE), ("a.cls", b"5"), ("b.jpg", IMAGE), ("b.cls", b"6")]
    named = [*members, ("a.json", b'{"label": "cat"}'), ("b.json", b'{"label": 6}')]
    assert labeled(tmp_path / "named", named) == {"a.jpg": "5", "b.jpg": "6"}
    with pytest.raises(UserError, match=r"b\.jpg has two labels that disagree: 6 in b\.cls and 7 in b\.json"):
        source_of(tmp_path / "other", [*members, ("b.json", b'{"label": 7}')])


def test_names_are_classes_in_their_order_or_that_of_classes_txt(tmp_path: Path) -> None:
    def members(*names: str) -> Members:
        return [m for i, name in enumerate(names) for m in ((f"{i}.cls", name.encode()), (f"{i}.jpg", IMAGE))]

    write_shard(tmp_path / "train-0.tar", members("owl", "cat"))
    write_shard(tmp_path / "train-1.tar", members("ant", "owl"))
    write_shard(tmp_path / "val-0.tar", members("owl", "cat"))
    splits = load("webdataset", root=tmp_path, val_root="auto")
    assert (classes_of(splits.train), labels_of(splits.train).tolist()) == (
        ["ant", "cat", "owl"],
        [2, 1, 0, 2],
    )
    assert labels_of(held_out(splits)).tolist() == [2, 1]
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\nant\n")
    source = load("webdataset", root=tmp_path, val_root=None).train
    assert (classes_of(source), labels_of(source).tolist()) == (["owl", "cat", "dog", "ant"], [0, 1, 3, 0])
    (tmp_path / "classes.txt").write_text("owl\ncat\n")
    with pytest.raises(UserError, match=r"classes\.txt: 2 names, but not 'ant' \(1 such\)"):
        load("webdataset", root=tmp_path, val_root=None)
    write_shard(tmp_path / "train-1.tar", members("3"))
    with pytest.raises(
        UserError,
        match=r"train-0\.tar: 0\.jpg: its label is the name 'owl', .*train-1\.tar: 0\.jpg .* number 3",
    ):
        load("webdataset", root=tmp_path, val_root=None)
