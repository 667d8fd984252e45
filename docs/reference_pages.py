"""The generated pages of the documentation: every group and key, and the Python modules.

`conf.py` calls `write` before each build. Keys come from the schema's docstrings, which `--help` prints too,
options from the first comment of their files in `conf/`, and modules from their source, which is read and not
imported. Docstrings are Markdown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.help import meaning
from dino_exp.config.hydra_loader import loader
from dino_exp.config.launcher_settings import SETTINGS, OptunaSettings
from dino_exp.config.messages import show
from dino_exp.config.register import EvaluateConfig
from dino_exp.config.schema import SCHEMAS, Config
from dino_exp.installation import CONF

ROOT = Path(__file__).parents[1]
TITLES = {
    "dino": "The algorithm",
    "backbone": "Backbones",
    "data": "Data",
    "config": "Configuration",
    "train": "Training",
    "eval": "Evaluations",
    "runs": "Run directories",
    "parallel": "Several processes",
    "weights": "Loading weights",
    "export": "Exporting weights",
    "report": "Reports",
    "plots": "Plots",
    "tracker": "Trackers",
    "launchers": "Launchers",
}
"""Page titles of the packages of `dino_exp`, and of `launchers`; other modules share the page "Base"."""


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


# ---- keys ---------------------------------------------------------------------------------------


def configuration() -> Iterator[str]:
    """Yield the page of `train.py`: keys outside groups, then each group with its options and keys."""
    yield from ("# Groups and keys of train.py", "")
    yield (
        "Type `group=option` to choose an option and `key=value` to change a value. Defaults are those of "
        "the released code; the options in `conf/` and the experiments choose others, and "
        "`python train.py --cfg job` prints what is in force."
    )
    plain = [field for field in fields(Config) if field.name not in SCHEMAS]
    yield from ("", "## Keys outside groups", "", *key_table(Config, plain, ""))
    for group, kinds in SCHEMAS.items():
        yield from ("", f"## {group}", "", *option_table(group))
        for name, kind in kinds.items():
            if name:
                yield from ("", f"### {group}: {name}")
            yield from ("", sentence(kind), "", *key_table(kind, own_fields(kind), f"{group}."))
    for group in ("experiment", "temperature", "ablation", "sweep"):
        yield from ("", f"## {group}", "", *option_table(group))


def evaluations() -> Iterator[str]:
    """Yield the page of `evaluate.py`."""
    yield from ("# Keys of evaluate.py", "")
    yield "Protocols, data layouts and figures are described in [Evaluations](../evaluation.md)."
    general = [field for field in fields(EvaluateConfig) if field.name not in (*SCHEMAS, *EVALUATIONS)]
    general += [field for field in fields(EvaluateConfig) if field.name == "eval"]
    yield from ("", "## General keys", "", *key_table(EvaluateConfig, general, ""))
    yield from ("", "The groups `backbone`, `data` and `tracker` are those of [train.py](configuration.md).")
    for name, kind in EVALUATIONS.items():
        yield from ("", f"## {name}", "", sentence(kind), "")
        if (CONF / name).is_dir():
            yield from (*option_table(name), "")
        yield from key_table(kind, own_fields(kind), f"{name}.")


def launchers() -> Iterator[str]:
    """Yield the page of the launchers' and the search's keys."""
    yield from ("# Keys of launchers and searches", "")
    yield "[Clusters](../clusters.md) shows how they are used."
    for name, settings in SETTINGS.items():
        yield from ("", f"## hydra/launcher={name}", "", sentence(settings), "")
        yield from key_table(settings, own_fields(settings), "hydra.launcher.")
    yield from ("", "## hydra/sweeper=optuna", "", sentence(OptunaSettings), "")
    yield from key_table(OptunaSettings, own_fields(OptunaSettings), "hydra.sweeper.")


def option_table(group: str) -> Iterator[str]:
    """Yield a table of a group's options, each with the first comment of its file."""
    yield from ("| option | meaning |", "|---|---|")
    for option in loader().options(group):
        lines = (CONF / group / f"{option}.yaml").read_text("utf-8").splitlines()
        comment: list[str] = []
        for line in lines:
            if line.startswith("# ") and not line.startswith("# @package"):
                comment.append(line[2:])
            elif comment:
                break
        yield f"| `{group}={option}` | {cell(' '.join(comment))} |"


def key_table(kind: type, rows: Iterable[Field[Any]], prefix: str) -> Iterator[str]:
    """Yield a table of keys: name, default, accepted values, meaning."""
    yield from ("| key | default | accepts | meaning |", "|---|---|---|---|")
    for field in rows:
        text = cell(meaning(kind, field.name, True))
        yield f"| `{prefix}{field.name}` | {default(field)} | {accepts(field)} | {text} |"


def own_fields(kind: type) -> list[Field[Any]]:
    """Return the fields that a person sets."""
    return [field for field in fields(kind) if field.name != "_target_"]


def default(field: Field[Any]) -> str:
    """Return a field's default as it is typed; empty where the option or the user gives it."""
    value = field.default
    if field.default_factory is not NO_DEFAULT:
        value = field.default_factory()
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


def sentence(kind: type) -> str:
    """Return the docstring of a class as one paragraph."""
    return " ".join((kind.__doc__ or "").split())


def cell(text: str) -> str:
    """Return text for a table cell; Markdown's characters are escaped outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [part if part.startswith("`") else re.sub(r"([*<\[\]_])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", r"\|")


# ---- Python modules -----------------------------------------------------------------------------


def python_pages() -> Iterator[tuple[str, list[str]]]:
    """Yield name and lines of one page per package, and of their table of contents."""
    packages: dict[str, list[str]] = {package: [] for package in TITLES} | {"base": []}
    for file in sorted([*ROOT.glob("dino_exp/**/*.py"), *ROOT.glob("launchers/**/*.py")]):
        first, *rest = file.relative_to(ROOT).with_suffix("").parts
        if rest[-1] not in ("__init__", "__main__"):
            package = rest[0] if first == "dino_exp" else first
            packages[package if package in TITLES else "base"] += module_lines(".".join([first, *rest]), file)
    yield (
        "python/index.md",
        [
            "# Python modules",
            "",
            "The command lines and `dino_exp.config` know Hydra; all else is a library of plain classes and "
            "functions that take their options as arguments. Names that begin with an underscore are private "
            "and are not listed.",
            "",
            "```{toctree}",
            *packages,
            "```",
        ],
    )
    for package, lines in packages.items():
        yield f"python/{package}.md", [f"# {TITLES.get(package, 'Base')}", *lines]


def module_lines(name: str, file: Path) -> list[str]:
    """Return the section of a module: its docstring, then its public names that have one."""
    tree = ast.parse(file.read_text("utf-8"))
    lines = ["", f"## {name}", "", f"```{{py:module}} {name}", "```", "", *prose(ast.get_docstring(tree))]
    return lines + members(tree.body, "function", "data", 4)


def members(body: list[ast.stmt], function: str, value: str, colons: int) -> list[str]:
    """Return directives for the documented public names of a module or class.

    Args:
        body: its statements.
        function: what Sphinx calls its functions: function or method.
        value: what Sphinx calls its variables: data or attribute.
        colons: length of the fence, which is longer than those within it.
    """
    lines, fence = [], ":" * colons
    for node, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        content: list[str] = []
        typed: list[str] = []
        if isinstance(node, ast.ClassDef):
            inits = [each for each in node.body if getattr(each, "name", "") == "__init__"]
            own = arguments(inits[0]) if inits and isinstance(inits[0], ast.FunctionDef) else ""
            kind, title, text = "class", f"{node.name}{own}", ast.get_docstring(node)
            content = members(node.body, "method", "attribute", colons - 1)
        elif isinstance(node, ast.FunctionDef):
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            kind, title, text = function, f"{node.name}{arguments(node)}{returns}", ast.get_docstring(node)
            if any("property" in ast.unparse(each) for each in node.decorator_list):
                kind, title = "property", node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(following, ast.Expr):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            typed = [f":type: {ast.unparse(node.annotation)}"] if isinstance(node, ast.AnnAssign) else []
            document = following.value.value if isinstance(following.value, ast.Constant) else None
            kind, title, text = value, ast.unparse(target), document if isinstance(document, str) else None
        else:
            continue
        if text and not title.startswith("_"):
            lines += ["", f"{fence}{{py:{kind}}} {title}", *typed, "", *prose(text), *content, fence]
    return lines


def arguments(node: ast.FunctionDef) -> str:
    """Return the arguments of a function in parentheses, without self or cls."""
    own = node.args
    first = (own.posonlyargs or own.args)[:1]
    if first and first[0].arg in ("self", "cls"):
        (own.posonlyargs or own.args).pop(0)
    return f"({ast.unparse(own)})"


def prose(docstring: str | None) -> list[str]:
    """Return a docstring as Markdown; `Args:`, `Returns:` and `Raises:` become lists."""
    lines: list[str] = []
    in_section = False
    for line in (docstring or "").splitlines():
        title = re.fullmatch(r"(Args|Returns|Raises|Yields):", line)
        if title:
            in_section = True
            lines += ["", f"**{title[1]}**", ""]
            continue
        in_section = in_section and (not line or line.startswith("    "))
        entry = re.fullmatch(r"    (\*{0,2}[\w.]+): (.*)", line) if in_section else None
        if entry:
            lines.append(f"- `{entry[1]}`: {escaped(entry[2])}")
        elif in_section:
            lines.append(f"  {escaped(line.strip())}" if lines[-1] else escaped(line.strip()))
        else:
            lines.append(escaped(line))
    return [*lines, ""]


def escaped(text: str) -> str:
    """Return text in which `<` outside code is no HTML."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or r"\<", text)
