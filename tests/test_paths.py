"""Paths for users with and without a home folder."""

import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from dino_exp import paths
from dino_exp.config.compose import compose
from dino_exp.config.relations import folder_problems
from dino_exp.errors import UserError
from dino_exp.paths import cache_root, expanded


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away HOME, and the user's entry among the users."""

    def missing(number: int) -> NoReturn:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_a_tilde_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="~/images: there is no such home folder; write the path without ~"):
        expanded("~/images")
    assert expanded("images") == Path("images")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_nothing_is_cached_and_the_reason_is_named() -> None:
    with pytest.raises(NotADirectoryError, match="HOME is not set"):
        cache_root().mkdir(parents=True)
    assert paths.home() == paths.NO_HOME


def test_the_home_of_somebody_unknown_is_a_problem_of_its_key(tmp_path: Path) -> None:
    cfg = compose(["data=image_folder", f"data.root={tmp_path}"])
    cfg.data.root = "~nobody_here/images"
    (problem,) = folder_problems(cfg)
    words = "there is no such home folder; write the path without ~."
    assert problem == f"data.root = ~nobody_here/images: ~nobody_here/images: {words}"
