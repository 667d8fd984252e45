"""Components of others: what is registered, checked and refused, and who can name a module."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dino_exp import cli
from dino_exp.config import plugins
from dino_exp.config.compose import check, compose
from dino_exp.config.compose_evaluation import check as check_evaluation
from dino_exp.config.identity import run_id
from dino_exp.config.stored import read_config
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from tests.their_modules import forgotten, write_images, write_module

GARDEN = ("experiment=debug", "data=garden", "data.root=.")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a working folder; what is registered in the test is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with forgotten():
        yield tmp_path


def refused(name: str) -> str:
    """Return why a module is refused."""
    with pytest.raises(UserError) as refusal:
        plugins.load([name])
    return str(refusal.value)


def test_options_of_others_are_checked_as_ours(here: Path) -> None:
    write_module(here, "my_package.components")
    plugins.load(["my_package.components"])

    def problems(*words: str) -> list[str]:
        return check([*GARDEN, *words]).errors

    assert problems() == []
    assert problems("data.limit=0") == ["data.limit = 0: must be at least 1 and at most 5000."]
    assert problems("data.limit=x") == ["data.limit = x: must be a whole number."]
    assert problems("data.season=sumer") == [
        "data.season = sumer: must be all, summer or winter; did you mean summer?"
    ]
    assert problems("data.limt=3") == ["data.limt: no such key; did you mean data.limit?"]
    assert problems("data.root=gone") == ["data.root = gone: no such folder or file."]
    assert check(["experiment=debug", "data=garden"]).errors == [
        "data.root: not set; give the training images, e.g. data.root=/path/to/train."
    ]
    (unknown,) = check(["experiment=debug", "data=gardn"]).errors
    assert unknown.startswith("data=gardn: no such option; did you mean garden?")
    assert problems("backbone=two_layers", "backbone.act=gelu") == []
    assert problems("backbone=two_layers", "backbone.act=tanh") == [
        "backbone.act = tanh: must be relu or gelu."
    ]
    (small,) = problems("backbone=two_layers", "crops.local_size=2")
    assert small.startswith("backbone.name = two_layers: cannot take images of 2x2 pixels")


def test_help_shows_their_options_and_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_module(here, "mine")
    assert cli.main([*GARDEN, "backbone=two_layers", "plugins=[mine]", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "garden*" in page
    assert "Keys of data=garden: data.key=value" in page
    assert "limit 1000 Most images of a class." in page
    assert "width 8 channels of the hidden layer." in page


def test_a_file_of_ones_own_refines_an_option(here: Path) -> None:
    write_module(here, "mine")
    (here / "conf" / "data").mkdir(parents=True)
    text = "defaults: [/schema/data/garden@_here_, _self_]\nlimit: 7\n"
    (here / "conf" / "data" / "garden.yaml").write_text(text)
    plugins.load(["mine"])
    checked = check(["--config-dir", "conf", *GARDEN])
    assert checked.errors == []
    assert checked.runs[0].cfg.data.limit == 7


BAD = {
    "import nothing_of_this_name": "plugins = bad: imports nothing_of_this_name, which is not installed (",
    "x = {}['key']": "plugins = bad: KeyError: 'key' (",
    "def f(:": "plugins = bad: invalid syntax (",
    "raise SystemExit(3)": "plugins = bad: SystemExit: 3 (",
    "x = 1": "plugins = bad: registers nothing; put e.g. @register.data('my_set') above a function of ",
    "@register.data('shapes')\ndef f(): ...": "data=shapes is an option of this project",
    "@register.data('shapes_tiny')\ndef f(): ...": "data=shapes_tiny is an option of this project",
    "@register.data('a')\ndef f(): ...\n@register.data('a')\ndef g(): ...": "data=a is registered already (",
    "@register.data('my set')\ndef f(): ...": "not a name; use letters, digits and _",
    "@register.data('a')\ndef f(size=3): ...": "size: has no type; write e.g. size: int = 64",
    "@register.data('a')\ndef f(size: dict): ...": "size: dict cannot be a setting; use int, float, bool",
    "@register.data('a')\ndef f(size: int, /): ...": "size: cannot be given by name",
    "@register.data('a')\ndef f(size: int = 'x'): ...": "its default is of another type",
    "@register.data('a', config=int)\ndef f(): ...": "config = <class 'int'>: not a dataclass",
    "@register.data('a', config=C)\ndef f(sise): ...": "did you mean sise?",
    "@register.data('a', config=C)\ndef f(size, more): ...": "more: the call needs it",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_module_that_cannot_be_used_is_refused_in_words(here: Path, text: str, message: str) -> None:
    start = "from dataclasses import dataclass\nfrom dino_exp import register\n"
    start += "@dataclass\nclass C:\n    size: int = 3\n"
    write_module(here, "bad", start + text)
    reason = refused("bad")
    assert reason.startswith("plugins = bad: ")
    assert message in reason
    assert "dino_exp/config" not in reason


def test_a_module_that_is_not_there_is_refused(here: Path) -> None:
    assert refused("nowhere.components").startswith("plugins = nowhere.components: no module nowhere where")
    write_module(here, "mine")
    for word, meant in (("mine.py", "mine"), ("./my_package/mine.py", "my_package.mine")):
        with pytest.raises(UserError, match=f"not the name of a module; did you mean {meant}"):
            plugins.take([f"plugins=[{word}]"])
    with pytest.raises(UserError, match="all runs have the same plugins"):
        plugins.take(["plugins=[mine],[other]"])
    assert plugins.take(["plugins=mine", "trainer.epochs=1"]) == ["plugins=[mine]", "trainer.epochs=1"]


RAISES = {
    "raise UserError('The garden is closed.')": "data=garden: The garden is closed.\n",
    "Path('gone.csv').read_text()": "data=garden: gone.csv: no such file or folder (",
    "return {}['key']": "data=garden: KeyError: 'key' (",
    "import nothing_of_this_name": "data=garden: imports nothing_of_this_name, which is not installed (",
}


@pytest.mark.parametrize(("line", "message"), RAISES.items())
def test_what_a_data_function_raises_is_said_and_nothing_is_created(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    from tests.their_modules import COMPONENTS

    file = write_module(here, "mine", COMPONENTS.replace("from dino_exp.data import folder", line))
    assert cli.main([*GARDEN, "plugins=[mine]"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert ("KeyError" in error) == (f'File "{file}"' in error)  # only surprises need the calls
    assert "dino_exp/" not in error
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("3", "data=garden: "),
        ("Torn(range(80))", "data.max_corrupt = 0.01: 75 of 80 images cannot be read, the first is"),
        ("Splits(Own(), None)", "data=garden: Own has no content(), by which a run knows its images"),
    ],
)
def test_images_that_are_none_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], result: str, message: str
) -> None:
    write_module(
        here,
        "mine",
        f"""
        import numpy as np
        from dino_exp import register
        from dino_exp.data.source import Splits

        class Own:
            pass

        class Torn(list):
            def __getitem__(self, index):
                assert index < 5, "torn"
                return np.zeros((32, 32, 3), np.uint8)

        @register.data("garden")
        def garden(root: str):
            return {result}
        """,
    )
    assert cli.main([*GARDEN, "plugins=[mine]"]) == 2
    assert f"\n{message}" in f"\n{capsys.readouterr().err}"
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("3", "backbone=net: returns int; it must return a torch.nn.Module."),
        ("nn.Flatten()", "backbone=net: returns a network without parameters, which cannot be trained."),
        ("claiming()", "backbone=net: its feature_dim is 5, and its features have 4 numbers."),
        ("nn.Conv2d(3, 4, 3)", "backbone=net: backbone.name = net: returns (2, 4, 30, 30) for two images"),
        ("x", "backbone=net: NameError: name 'x' is not defined ("),
    ],
)
def test_networks_that_are_none_are_refused(here: Path, result: str, message: str) -> None:
    write_module(
        here,
        "mine",
        f"""
        from torch import nn
        from dino_exp import register

        def claiming():
            network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            network.feature_dim = 5
            return network

        @register.backbone("net")
        def net():
            return {result}
        """,
    )
    plugins.load(["mine"])
    (problem,) = check(["experiment=debug", "backbone=net"]).errors
    assert problem.startswith(message)


def test_a_run_keeps_its_name_when_its_component_moves(here: Path) -> None:
    root = write_images(here / "images", 1, 1)

    def name(module: str, *words: str) -> str:
        with forgotten():
            write_module(here, module)
            data = ("data=garden", f"data.root={root}")
            return run_id(compose(["experiment=debug", *data, f"plugins=[{module}]", *words]))

    first = name("one")
    assert name("two.three") == first
    assert name("one", "data.limit=3") != first


def test_an_installed_package_names_its_module(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_module(here, "installed_one")
    write_module(here, "installed_two", "raise ValueError('broken')")
    monkeypatch.syspath_prepend(here)
    points = [EntryPoint(name, name, plugins.ENTRY_POINTS) for name in ("installed_two", "installed_one")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.load_installed.cache_clear()
    try:
        assert check(GARDEN).errors == []
        assert "installed plugins = installed_two: ValueError: broken (" in capsys.readouterr().err
    finally:
        plugins.load_installed.cache_clear()


# ---- who can name a module ---------------------------------------------------------------------------------

FILES = {
    "experiment/theirs": "# @package _global_\ndefaults: [debug, _self_]\nplugins: [hostile]\n",
    "experiment/searches": (
        "# @package _global_\ndefaults: [debug, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: "
        "{plugins: '[hostile]'}}}\n"
    ),
    "experiment/refers": (
        "# @package _global_\ndefaults: [debug, _self_]\nname: hostile\nplugins: ['${name}']\n"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_file_names_no_module(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_module(here, "hostile", "from pathlib import Path; Path('pwned').touch()")
    (here / "conf" / "experiment").mkdir(parents=True)
    (here / "conf" / f"{name}.yaml").write_text(FILES[name])
    assert cli.main(["--config-dir", "conf", name.replace("/", "=")]) == 2
    assert "only the command line names code to import" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["conf", "hostile.py"]


def test_a_target_of_a_module_that_was_not_named_is_no_component(here: Path) -> None:
    (here / "conf" / "data").mkdir(parents=True)
    (here / "conf" / "data" / "theirs.yaml").write_text("_target_: plugin:data.hostile\nname: x\nroot: x\n")
    (problem,) = check(["--config-dir", "conf", "experiment=debug", "data=theirs"]).errors
    assert problem.startswith("data._target_ = plugin:data.hostile: begin the option's file")


def test_a_stored_run_names_no_module(here: Path) -> None:
    write_module(here, "hostile", "from pathlib import Path; Path('pwned').touch()")
    directory = RunDirectory(here / "run")
    directory.path.mkdir()
    text = "".join(f"{group}: {{}}\n" for group in ("backbone", "head", "crops", "augment", "loss", "ema"))
    text += "optimizer: {}\ntrainer: {}\ndata: {_target_: plugin:data.hostile}\nplugins: [hostile]\n"
    directory.config_file.write_text(text)
    words = (
        "its data=hostile is not of this project; if you trust the code that has it, add plugins=[hostile]."
    )
    with pytest.raises(plugins.UnnamedError) as refusal:
        read_config(directory)
    assert str(refusal.value) == f"{directory.path}: {words}"
    assert check_evaluation(["run=run"]).problems == [f"run: {words}"]
    assert not (here / "pwned").exists()
