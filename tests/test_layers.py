"""The layers of the packages: which of them may import which."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter

from tests.programs import ROOT

LAYERS = (
    ("streams", "installation", "atomic"),
    ("console",),
    ("errors",),
    ("parallel", "paths", "regular_file"),
    ("machine", "seeding", "metrics"),
    ("backbone",),
    ("dino",),
    ("data",),
    ("runs",),
    ("config",),
    ("plots", "tracker", "weights", "register"),
    ("eval",),
    ("training",),
    ("launchers",),
    ("report", "export", "inspection"),
    ("cli",),
    ("api",),
    ("dino_exp",),
)
"""From the bottom up: a package imports itself and lower layers (docs/architecture.md)."""
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def imports() -> dict[str, set[str]]:
    """Return what each module of the project imports of it, lazily or not; modules by their dotted names."""
    files = [path for folder in ("dino_exp", "launchers") for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                full = (f"{node.module}.{alias.name}" for alias in node.names)
                found[name].update(each if each in names else node.module for each in full)
            elif isinstance(node, ast.Import):
                found[name].update(alias.name for alias in node.names)
        found[name] &= names.keys() - {name}
    return found


def package_of(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if first == "dino_exp" and rest else first


def test_every_import_goes_down() -> None:
    upward = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if "__main__" not in module
        and package_of(target) != "dino_exp"
        and package_of(module) != package_of(target)
        and LEVEL[package_of(module)] <= LEVEL[package_of(target)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_loop() -> None:
    list(TopologicalSorter(imports()).static_order())  # raises CycleError


def test_no_two_modules_have_one_name() -> None:
    names = [module.rpartition(".")[2] for module in imports() if "__main__" not in module]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
