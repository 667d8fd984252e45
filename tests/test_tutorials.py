"""The tutorials: the commands of each page, in their order, in an empty folder.

Blocks of `bash` are run, blocks of `python` are written to the file that their first line names, all other
blocks are output or remarks. Commands are those of the page but for four things: there are `IMAGES` images,
trainings have one epoch (`SHORT`), `RUN` is the run's directory, and experiments are written to
`conf/` of the folder instead of this project's.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dino_exp.inspection import inspect_command, recipe
from tests.programs import ROOT, run_program

PAGES = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMAGES = "64"
SHORT = [
    "trainer.epochs=1",
    "trainer.batch_size=16",
    "trainer.num_workers=0",
    "optimizer.warmup_epochs=0",
    "optimizer.freeze_last_layer_epochs=0",
    "tracker=none",
]
SHORT_IN_PYTHON = {
    '"trainer.epochs": 12': '"trainer.epochs": 1, "trainer.batch_size": 16, "trainer.num_workers": 0',
    '"optimizer.warmup_epochs": 1': '"optimizer.warmup_epochs": 0, "optimizer.freeze_last_layer_epochs": 0',
}


class Page:
    """A page whose commands have run in the working folder.

    Attributes:
        output: what they have printed.
    """

    def __init__(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self._capsys = "", capsys
        for language, text in BLOCK.findall((PAGES / f"{name}.md").read_text("utf-8")):
            if language == "python":
                self._write(text)
            else:
                for line in text.replace("\\\n", " ").splitlines():
                    self._run(line)

    def run(self, name: str) -> Path:
        """Return the directory of the one run of a name."""
        (found,) = [path.parent for path in Path("outputs", name).glob("*/config.yaml")]
        return found

    def config(self, name: str) -> Any:
        return yaml.safe_load((self.run(name) / "config.yaml").read_text("utf-8"))

    def summary(self, name: str) -> Any:
        return json.loads((self.run(name) / "summary.json").read_text("utf-8"))

    def figures(self, name: str) -> set[str]:
        """Return the names of the figures of all evaluations of a run."""
        records = json.loads((self.run(name) / "evaluations.json").read_text("utf-8"))
        return {figure for record in records for figure in record["figures"]}

    def _write(self, text: str) -> None:
        name = text.partition("\n")[0].removeprefix("# ")
        for word, short in SHORT_IN_PYTHON.items():
            text = text.replace(word, short)
        Path(name).write_text(text, "utf-8")

    def _run(self, line: str) -> None:
        """Run a command to its end, which must be a success."""
        python, program, *arguments = shlex.split(line, comments=True)
        if python == "dino-exp":
            assert inspect_command.main([program, *arguments]) == 0
            self.output += self._capsys.readouterr().out
            return
        assert python == "python"
        if program == "examples/make_images.py":
            arguments.append(IMAGES)
        if program == "train.py":
            arguments += [*SHORT, "--config-dir", "conf"] if Path("conf").exists() else SHORT
        arguments = [
            re.sub(r"outputs/(\w+)/RUN", lambda run: str(self.run(run[1])), each) for each in arguments
        ]
        path = Path.cwd() / program
        ended = run_program(str(path) if path.exists() else program, *arguments, folder=Path.cwd())
        assert ended.returncode == 0, ended.output
        self.output += ended.output


@pytest.fixture
def followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Page]:
    """Return a function that runs the commands of a page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "CONF", tmp_path / "conf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda name: Page(name, capsys)


Followed = Callable[[str], Page]


def test_photographs(followed: Followed) -> None:
    page = followed("photos")
    assert "64 in 4 classes of 16 each" in page.output
    assert page.config("photos")["data"]["mean"][0] < 0.45  # theirs, not ImageNet's
    assert page.summary("photos")["knn_top1"] is not None
    assert {"top1_k20", "val_top1"} <= page.figures("photos")
    assert (page.run("photos") / "report" / "index.html").exists()


def test_microscope_images(followed: Followed) -> None:
    page = followed("microscope")
    data = page.config("cells")["data"]
    assert data["channels"] == 1
    assert 50 < data["range"][0] < data["range"][1] < 350
    assert page.config("cells")["augment"]["quarter_turns"] == 1
    assert page.summary("cells")["knn_top1"] is not None


def test_ten_bands_judged_by_a_labeled_set(followed: Followed) -> None:
    page = followed("satellite")
    assert "64 without labels" in page.output
    data = page.config("satellite")["data"]
    assert (data["channels"], len(data["range"]), len(data["mean"])) == (10, 10, 10)
    assert "16 images of 4 classes, by 16 labeled images" in page.output
    assert page.summary("satellite")["knn_top1"] is not None
    assert (page.run("satellite") / "checkpoints" / "best.pt").exists()


def test_frames_of_a_video(followed: Followed) -> None:
    page = followed("video")
    assert len(list(Path("frames").iterdir())) == 64
    assert "64 without labels" in page.output
    assert page.summary("film")["knn_top1"] is not None
    assert len(list(page.run("film").glob("evaluations/**/neighbors.png"))) == 1


def test_a_dataset_of_ones_own_from_the_command_line_and_from_python(followed: Followed) -> None:
    page = followed("dataset")
    assert page.config("archive")["data"]["name"] == "archive"
    losses = [
        re.findall('"loss": [^,]+', (page.run(name) / "metrics.jsonl").read_text("utf-8"))
        for name in ("archive", "from_python")
    ]
    assert len(losses[0]) > 0
    assert losses[0] == losses[1]


def test_the_notebooks_that_the_page_names_are_tested() -> None:
    named = re.findall(r"examples/(\w+\.ipynb)\)", (PAGES / "notebook.md").read_text("utf-8"))
    tested = (ROOT / "tests" / "test_notebook.py").read_text("utf-8")
    assert len(named) == 2
    assert [name for name in named if f'code("{name}")' not in tested] == []
