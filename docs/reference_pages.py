"""The generated pages of the documentation: every group and key, and a page per folder of Python modules.

`conf.py` calls `write` before each build. Keys come from the schema's docstrings, which `--help` prints too
(Markdown), options from the first comment of their files in `conf/`. The pages of modules only name them:
autodoc imports them and reads their docstrings (reStructuredText).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.help import meaning
from dino_exp.config.launcher_settings import SETTINGS
from dino_exp.config.messages import show
from dino_exp.config.schema import SCHEMAS, Config, ExpectedConfig
from dino_exp.config.searches import SEARCHES
from dino_exp.installation import CONF

ROOT = Path(__file__).parents[1]


def write(folder: Path) -> None:
    """Write all generated pages into `folder`; pages that did not change keep their date."""
    pages = {
        "configuration.md": configuration(),
        "evaluations.md": evaluations(),
        "launchers.md": launchers(),
        "contributing.md": included("CONTRIBUTING.md"),
        "changelog.md": included("CHANGELOG.md"),
        **dict(python_pages()),
    }
    for name, lines in pages.items():
        file, text = folder / name, "\n".join(lines) + "\n"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def included(name: str) -> list[str]:
    """Return a page with the content of a file at the top of the checkout, whose links begin there."""
    return [f"```{{include}} ../../{name}", ":relative-docs: docs/", ":relative-images:", "```"]


def configuration() -> Iterator[str]:
    """Yield the page of `train.py`: keys outside groups, then each group with its options and keys."""
    yield from ("# Groups and keys of train.py", "")
    yield (
        "Type `group=option` to choose an option and `key=value` to change a value. Defaults are those of "
        "the released code; options and experiments choose others; `python train.py --cfg job` prints all."
    )
    yield from ("", "## Keys outside groups", "", *key_table(Config, "", skip={*SCHEMAS, "expected"}))
    yield from ("", "## expected", *keys(ExpectedConfig, "expected."))
    for name, kinds in SCHEMAS.items():
        yield from group(name, kinds)
    for name in ("experiment", "temperature", "ablation", "sweep"):
        yield from group(name, {})


def evaluations() -> Iterator[str]:
    """Yield the page of `evaluate.py`."""
    protocols = "Protocols, data layouts and figures are described in [Evaluations](../evaluation.md)."
    yield from ("# Keys of evaluate.py", "", protocols)
    general = key_table(EvaluateConfig, "", skip={*SCHEMAS, *EVALUATIONS} - {"eval"})
    yield from ("", "## General keys", "", *general)
    yield from ("", "The groups `backbone`, `data` and `tracker` are those of [train.py](configuration.md).")
    for name, kind in EVALUATIONS.items():
        yield from group(name, {"": kind})


def launchers() -> Iterator[str]:
    """Yield the page of the launchers' and the search's keys."""
    yield from ("# Keys of launchers and searches", "", "[Clusters](../clusters.md) shows how they are used.")
    for name, settings in SETTINGS.items():
        yield from ("", f"## hydra/launcher={name}", *keys(settings, "hydra.launcher."))
    for name, settings in SEARCHES.items():
        yield from ("", f"## hydra/sweeper={name}", *keys(settings, "hydra.sweeper."))


def group(name: str, kinds: Mapping[str, type]) -> Iterator[str]:
    """Yield the section of a group: a table of its options, then the keys of each kind of option."""
    yield from ("", f"## {name}", "")
    if (CONF / name).is_dir():
        yield from ("| option | meaning |", "|---|---|")
        for file in sorted((CONF / name).glob("*.yaml")):  # and not what installed plugins add
            lines, option = file.read_text("utf-8").splitlines(), file.stem
            rest = dropwhile(lambda line: not re.match("# (?!@package)", line), lines)
            comment = takewhile(lambda line: line.startswith("# "), rest)
            yield f"| `{name}={option}` | {cell(' '.join(line[2:] for line in comment))} |"
    ours = {word: kind for word, kind in kinds.items() if not hasattr(kind, "described_by")}
    for word, kind in ours.items():
        yield from ("", f"### {name}: {word}" if word else "", *keys(kind, f"{name}."))


def keys(kind: type, prefix: str) -> Iterator[str]:
    """Yield the docstring of a class as one paragraph, and the table of its keys."""
    yield from ("", " ".join((kind.__doc__ or "").split()), "", *key_table(kind, prefix))


def key_table(kind: type, prefix: str, skip: Collection[str] = ()) -> Iterator[str]:
    """Yield a table of keys: name, default, accepted values, meaning."""
    yield from ("| key | default | accepts | meaning |", "|---|---|---|---|")
    for field in own_fields(kind):
        if field.name not in skip:
            text = cell(meaning(kind, field.name, True))
            yield f"| `{prefix}{field.name}` | {default(field)} | {accepts(field)} | {text} |"


def own_fields(kind: type) -> list[Field[Any]]:
    """Return the fields that a person sets."""
    return [field for field in fields(kind) if field.name != "_target_"]


def default(field: Field[Any]) -> str:
    """Return a field's default as it is typed; empty where the option or the user gives it."""
    value = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
    return "" if value in (NO_DEFAULT, MISSING) else f"`{show(value)}`"


def accepts(field: Field[Any]) -> str:
    """Return the type of a field with its bounds, or the words that it accepts."""
    if "choices" in field.metadata:
        return ", ".join(f"`{word}`" for word in field.metadata["choices"].words)
    words = cell(str(field.type).replace(" | None", " or null"))
    bounds = field.metadata.get("bounds")
    if bounds is None:
        return words
    limits = ((">", bounds.above), ("≥", bounds.at_least), ("<", bounds.below), ("≤", bounds.at_most))
    texts = [f"{sign} {show(limit)}" for sign, limit in limits if limit is not None]
    return ", ".join([words, *texts]) + (f"; {bounds.hint}" if bounds.hint else "")


def cell(text: str) -> str:
    """Return text for a table cell; Markdown's characters are escaped outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [part if part.startswith("`") else re.sub(r"([*<\[\]_])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", r"\|")


def python_pages() -> Iterator[tuple[str, list[str]]]:
    """Yield name and lines of one page per folder of modules, and of their table of contents."""
    pages: dict[str, list[str]] = {}
    for file in sorted([*ROOT.glob("dino_exp/**/*.py"), *ROOT.glob("launchers/**/*.py")]):
        *folders, name = file.relative_to(ROOT).with_suffix("").parts
        if name != "__main__":
            module = ".".join(folders if name == "__init__" else [*folders, name])
            page = ".".join(folders[:2])
            level = "#" if module == page else "##"
            section = ["```{eval-rst}", f".. automodule:: {module}", "```", ""]
            pages.setdefault(page, []).extend([f"{level} {module}", "", *section])
    yield from ((f"python/{page}.md", lines) for page, lines in pages.items())
    introduction = (
        "The command lines and `dino_exp.config` know Hydra; all else is a library of plain classes and "
        "functions that take their options as arguments."
    )
    yield "python/index.md", ["# Python modules", "", introduction, "", "```{toctree}", *pages, "```"]
