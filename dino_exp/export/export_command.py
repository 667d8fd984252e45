"""The command line of `python -m dino_exp.export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dino_exp.atomic import complete_folder
from dino_exp.config.messages import any_of, closest, did_you_mean
from dino_exp.config.plugin_options import used_by
from dino_exp.config.plugins import load, modules_of
from dino_exp.console import Console
from dino_exp.errors import USER_ERROR, UserError, program, refusing
from dino_exp.installation import as_typed
from dino_exp.paths import expanded
from dino_exp.runs.run_directory import refuse_links

USAGE = """\
python -m dino_exp.export run=outputs/EXPERIMENT/RUN format=timm

run         the folder of a run
format      timm or transformers (safetensors), dino (the released code's checkpoint),
            torchhub (code and weights), onnx
plugins     modules of your own that the run uses, e.g. [my_package.components]
network     teacher (default) or student
checkpoint  last (default) or best, by k-NN
out         a folder that does not exist yet (default: RUN/export/FORMAT_NETWORK_CHECKPOINT)
license     for the model card, e.g. apache-2.0 (default: not stated)
"""
CHOICES = {
    "format": ("timm", "transformers", "dino", "torchhub", "onnx"),
    "network": ("teacher", "student"),
    "checkpoint": ("last", "best"),
}
DEFAULTS = {"plugins": "", "network": "teacher", "checkpoint": "last", "out": "", "license": ""}


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says; return the exit code, 2 after an error, when nothing is written."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv):
        sys.stdout.write(as_typed(USAGE))
        return 0 if argv else USER_ERROR
    Console(soft_wrap=True).print(str(export_run(parse(argv))))
    return 0


def parse(argv: Sequence[str]) -> dict[str, str]:
    """Return the values by key; raise `UserError` for wrong words and for required keys that are missing."""
    keys = ["run", "format", *DEFAULTS]
    given = dict(DEFAULTS)
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            near = did_you_mean([f"{other}=..." for other in closest(key, keys)[:1]])
            raise UserError(f"{word}: no such key{near or f'; use {any_of(keys)}, written key=value.'}")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{key} = {value}: must be {any_of(CHOICES[key])}.")
        given[key] = value
    for key, example in (("run", "outputs/EXPERIMENT/RUN"), ("format", "timm")):
        if not given.get(key):
            raise UserError(f"{key}: not set; use e.g. {key}={example}.")
    return given


def export_run(given: dict[str, str]) -> Path:
    """Write the export folder, completely or not at all, and return its path."""
    from dino_exp.export import to_onnx, to_released, to_timm, to_torchhub, to_transformers
    from dino_exp.export.card import card
    from dino_exp.export.trained import read_run

    if given["plugins"]:
        load(modules_of(f"plugins={given['plugins']}"))
    formats = {
        "timm": to_timm,
        "transformers": to_transformers,
        "dino": to_released,
        "torchhub": to_torchhub,
        "onnx": to_onnx,
    }
    run, network, checkpoint = expanded(given["run"]), given["network"], given["checkpoint"]
    name = f"{given['format']}_{network}_{checkpoint}"
    out = expanded(given["out"]) if given["out"] else run / "export" / name
    if not given["out"]:
        refuse_links(out.parent)
    trained = read_run(run, checkpoint)
    if "backbone" in used_by(trained.cfg) and given["format"] != "onnx":
        raise UserError(
            f"format = {given['format']}: backbone={trained.cfg.backbone.name} is a network of your own, "
            "which no other program builds; format=onnx has all that it computes."
        )
    with new_folder(out) as folder:
        use = formats[given["format"]].write(trained, network, folder)
        networks = "Student and teacher" if given["format"] == "dino" else f"The {network}'s backbone"
        text = card(trained, networks, use, given["license"] or None)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, and move it to `out` at the end; after an error nothing is left.

    Raises:
        UserError: `out` exists and is not an empty folder, or cannot be written.
    """
    with refusing("choose another folder with out=DIR"):
        taken = os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir()))
    if taken:
        raise UserError(f"out = {out}: already exists; remove it, or choose another folder with out=DIR.")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        with refusing("choose another folder with out=DIR"), complete_folder(out) as temporary:
            yield temporary
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
