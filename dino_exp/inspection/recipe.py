"""An experiment for images that were measured: a file that the user owns, with a reason for each value."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from rich.table import Table

from dino_exp import installation
from dino_exp.atomic import write_text_atomically
from dino_exp.console import Console
from dino_exp.errors import UserError, refusing
from dino_exp.inspection.choice import Choice, Recipe
from dino_exp.inspection.experiment_file import SIGN, differences, read, text_of
from dino_exp.inspection.image_choices import augment_choice, crop_choices, data_choices, facts
from dino_exp.inspection.measured import Measured
from dino_exp.inspection.open_questions import open_questions
from dino_exp.inspection.training_choices import cpu_choices, gpu_choices, time_of
from dino_exp.installation import CONF, as_typed
from dino_exp.machine import Hardware

NAME = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z][A-Za-z0-9_-]{0,99}", re.IGNORECASE)
FEWEST = 16
"""Images of the smallest set that a recipe is written for: four batches of four."""
GROUPS = ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer", "data", "trainer", "eval")
"""The order of `conf/config.yaml`."""


def recipe_for(measured: Measured, name: str, hardware: Hardware) -> Recipe:
    """Return the experiment `name` for images on a machine.

    Raises:
        UserError: there are too few images.
    """
    if min(measured.images, measured.decoded) < FEWEST:
        raise UserError(
            f"{measured.place}: a recipe needs at least {FEWEST} images that were decoded, and "
            f"{measured.decoded} were."
        )
    training = cpu_choices if hardware.gpu is None else gpu_choices
    kind = Choice("data", measured.kind, "how the images are stored")
    found = [
        *training(measured, hardware),
        augment_choice(measured, hardware),
        kind,
        *data_choices(measured),
        *crop_choices(measured, hardware),
    ]
    found.sort(key=lambda each: ("." in each.key, GROUPS.index(each.key.partition(".")[0])))
    machine = f"{hardware.cores} CPU cores" + (f" and {hardware.gpu}" if hardware.gpu else "")
    title = f"{measured.images:,} images of {measured.place}, for a machine with {machine}"
    return Recipe(
        name,
        title,
        {"measured on": date.today().isoformat(), **facts(measured)},
        [*open_questions(measured, hardware), f"Time: {time_of(measured, hardware)}."],
        found,
    )


def experiment_path(name: str) -> Path:
    """Return where the experiment `name` of the user is, or will be.

    Raises:
        UserError: it cannot be an experiment's name, or is that of one of ours.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"--write {name}: use a letter first, then letters, digits, '_' and '-', at most 100 in all."
        )
    path = (CONF if installation.CHECKOUT else Path("conf")) / "experiment" / f"{name}.yaml"
    shipped = CONF / "experiment" / path.name
    with refusing("choose another name"):
        for each in {path, shipped}:
            if each.exists() and (each != path or SIGN not in read(each)):
                raise UserError(
                    f"--write {name}: {each} was not written by inspect and is left as it is; choose "
                    "another name."
                )
    return path


def write(measured: Measured, name: str, console: Console, hardware: Hardware | None = None) -> Path:
    """Write `conf/experiment/NAME.yaml`, or compare with it if it exists; say what is not known.

    Raises:
        UserError: the name cannot be used, the file cannot be read or written, or there are too few images.
    """
    path = experiment_path(name)
    recipe = recipe_for(measured, name, hardware or Hardware.here())
    if path.exists():
        _compare(path, recipe, console)
        return path
    with refusing("choose another folder, or ask its owner"):
        write_text_atomically(path, text_of(recipe))
    console.print(f"Written: {path}, with the reason for each value. It is yours to change.")
    console.print("What the images do not tell, and you may know:")
    for each in recipe.unknown:
        console.print(f"- {each}", soft_wrap=True)
    console.print(f"Train: {_command(name)}", soft_wrap=True)
    return path


def _command(name: str) -> str:
    return as_typed(
        f"python train.py {'' if installation.CHECKOUT else '--config-dir conf '}experiment={name}"
    )


def _compare(path: Path, recipe: Recipe, console: Console) -> None:
    """Print what of an experiment would be written otherwise now, and what of the data has changed."""
    found = differences(read(path), path, recipe)
    if found.facts is None:
        console.print(f"{path} does not say any more what was measured for it.")
    elif found.facts:
        console.print("The images have changed since:")
        for name, (before, now) in found.facts.items():
            console.print(f"- {name}: {before} → {now}", soft_wrap=True)
    else:
        console.print("The images are as they were.")
    if found.values:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("key", "in the file", "now", "why"):
            table.add_column(title, overflow="fold")
        for key, (theirs, now, why) in found.values.items():
            table.add_row(key, theirs, now, why)
        console.print("Other values than would be written now:")
        console.print(table)
    else:
        console.print(f"All {len(recipe.choices)} values are what would be written now.")
    if found.own:
        console.print(f"Only in the file: {', '.join(found.own)}", soft_wrap=True)
    console.print(
        f"{path} stays as it is. To write it anew, delete it or give another name. Train: "
        f"{_command(recipe.name)}",
        soft_wrap=True,
    )
