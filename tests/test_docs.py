"""What the documentation says of the project exists: links, files, keys and command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dino_exp.config import plugins
from dino_exp.config.compose import check
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.launcher_settings import SETTINGS
from dino_exp.config.schema import SCHEMAS
from docs import reference_pages
from tests.programs import ROOT
from tests.their_modules import forgotten, write_module

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(DOCS.glob("tutorials/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDERS = re.compile(r"\.\.\.|\bFILE\b|\bOVERRIDES\b|\bRUN\b|\bmy_images$|<|\$|~|--help|-sc")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    reference_pages.write(folder)
    return folder


def commands(program: str) -> list[list[str]]:
    """Return the arguments of all complete command lines of a program in the pages; those of the tutorials
    are run by tests/test_tutorials.py."""
    pages = [page for page in PAGES if page.parent.name != "tutorials"]
    lines = [line for page in pages for line in page.read_text("utf-8").replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(f"python {program} ")]
    return [words[2:] for words in found if not PLACEHOLDERS.search(" ".join(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path, generated: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    missing = [
        target
        for target in targets
        if target
        and not (page.parent / target).exists()
        and not (generated / target.removeprefix("reference/")).exists()
    ]
    assert missing == []


def test_every_page_is_in_the_table_of_contents(generated: Path) -> None:
    written = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if DOCS in page.parents}
    written.remove("index")
    pages = (
        written | {f"reference/{page.stem}" for page in generated.glob("*.md")} | {"reference/python/index"}
    )
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(entries) == sorted(pages)


def test_files_that_the_architecture_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    folders = ("dino_exp", "launchers", "hydra_plugins", "tests", "docs", "conf", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths = [f"/{path.relative_to(ROOT)}" for path in (*files, *ROOT.glob("*.py"))]
    named = set(re.findall(r"`([\w/]+\.(?:py|yaml|md))`", text)) - {"config.yaml"}  # a run's
    assert len(named) > 50
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_the_reference_has_every_key(generated: Path) -> None:
    pages = {
        "configuration.md": {group: list(kinds.values()) for group, kinds in SCHEMAS.items()},
        "evaluations.md": {name: [kind] for name, kind in EVALUATIONS.items()},
        "launchers.md": {"hydra.launcher": list(SETTINGS.values())},
    }
    for page, groups in pages.items():
        rows = re.findall(r"^\| `([\w.]+)` \|", (generated / page).read_text("utf-8"), re.MULTILINE)
        for group, kinds in groups.items():
            for kind in kinds:
                assert {f"{group}.{field.name}" for field in reference_pages.own_fields(kind)} <= set(rows)


def test_the_reference_has_the_meaning_and_bounds_of_a_key(generated: Path) -> None:
    text = (generated / "configuration.md").read_text("utf-8")
    (row,) = re.findall(r"^\| `loss.center_momentum`.*$", text, re.MULTILINE)
    assert row.startswith(
        "| `loss.center_momentum` | `0.9` | float, ≥ 0, < 1; the paper uses 0.9; 0.999 collapses |"
    )
    assert "center ← m·center + (1 − m)·batch mean" in row


def test_the_reference_has_every_module_on_the_page_of_its_folder(generated: Path) -> None:
    pages = {page.stem: page.read_text("utf-8") for page in (generated / "python").glob("dino_exp*.md")}
    folders = [file.parent.name for file in ROOT.glob("dino_exp/*/__init__.py")]
    assert pages.keys() == {"dino_exp", *(f"dino_exp.{folder}" for folder in folders)}
    for page, text in pages.items():
        files = ROOT.joinpath(*page.split(".")).glob("*.py" if page == "dino_exp" else "**/*.py")
        paths = [file.relative_to(ROOT).with_suffix("") for file in files if file.stem != "__main__"]
        modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
        assert sorted(re.findall(r"automodule:: ([\w.]+)", text)) == sorted(modules)
    assert "automodule:: launchers.slurm" in (generated / "python" / "launchers.md").read_text("utf-8")


def test_commands_of_train_are_understood(tmp_path: Path) -> None:
    lines = commands("train.py")
    assert len(lines) > 15
    write_module(tmp_path, "my_package.components")
    with forgotten():
        plugins.load(["my_package.components"], str(tmp_path))
        for words in lines:
            if "hydra/launcher=slurm" in words:  # complains about a missing sbatch
                words.append("hydra.launcher.dry_run=true")
            assert check(words).misread == [], words


def test_commands_of_evaluate_name_evaluations_that_exist() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = {name for words in re.findall(r"\beval=\[?([\w,]+)", text) for name in words.split(",")}
    assert named - {"NAME"} <= EVALUATIONS.keys()
