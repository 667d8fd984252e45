"""Which members of archives are passed over, by the rule of folders."""

import pytest

from dino_exp.data.image_scan import is_passed_over


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("cat/1.jpg", False),
        ("./cat/1.jpg", False),
        ("../cat/\udce9.jpg", False),
        ("cat/._1.jpg", True),
        ("__MACOSX/cat/1.jpg", True),
        ("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", True),
        ("cat/THUMBS.DB", True),
        (".hidden/1.jpg", True),
    ],
)
def test_members_of_archives_are_passed_over_as_files_are(path: str, expected: bool) -> None:
    assert is_passed_over(path) == expected
