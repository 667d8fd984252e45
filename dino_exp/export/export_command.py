"""The command line of `python -m dino_exp.export`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from dino_exp.config.messages import any_of, closest, did_you_mean
from dino_exp.errors import UserError
from dino_exp.installation import as_typed

USER_ERROR = 2
USAGE = """\
python -m dino_exp.export run=outputs/EXPERIMENT/RUN format=timm

run         the folder of a run
format      timm (safetensors), dino (the released code's checkpoint), torchhub (code and weights), onnx
network     teacher (default) or student
checkpoint  last (default) or best, by k-NN
out         a folder that is not there yet (default: RUN/export/FORMAT_NETWORK_CHECKPOINT)
license     for the model card, e.g. apache-2.0 (default: not stated)
"""
CHOICES = {
    "format": ("timm", "dino", "torchhub", "onnx"),
    "network": ("teacher", "student"),
    "checkpoint": ("last", "best"),
}
DEFAULTS = {"network": "teacher", "checkpoint": "last", "out": "", "license": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit code: 2 where it cannot be, and nothing was made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(as_typed(USAGE), end="")
        return 0 if argv else USER_ERROR
    try:
        print(export(parse(argv)))
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    return 0


def parse(argv: Sequence[str]) -> dict[str, str]:
    """The values by key; a `UserError` for what is none, or missing."""
    keys = ["run", "format", *DEFAULTS]
    given = dict(DEFAULTS)
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            near = did_you_mean([f"{other}=..." for other in closest(key, keys)[:1]])
            raise UserError(f"{word}: no such key{near or f'; there are {any_of(keys)}, written key=value.'}")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{key} = {value}: must be {any_of(CHOICES[key])}.")
        given[key] = value
    for key, example in (("run", "outputs/EXPERIMENT/RUN"), ("format", "timm")):
        if not given.get(key):
            raise UserError(f"{key}: not set; give e.g. {key}={example}.")
    return given


def export(given: dict[str, str]) -> Path:
    """Write the folder, whole or not at all, and return it."""
    from dino_exp.export import to_onnx, to_released, to_timm, to_torchhub
    from dino_exp.export.card import card
    from dino_exp.export.trained import read_run

    formats = {"timm": to_timm, "dino": to_released, "torchhub": to_torchhub, "onnx": to_onnx}
    run, network, checkpoint = Path(given["run"]).expanduser(), given["network"], given["checkpoint"]
    name = f"{given['format']}_{network}_{checkpoint}"
    out = Path(given["out"]).expanduser() if given["out"] else run / "export" / name
    trained = read_run(run, checkpoint)
    with whole_folder(out) as folder:
        use = formats[given["format"]].write(trained, network, folder)
        networks = "Student and teacher" if given["format"] == "dino" else f"The {network}'s backbone"
        text = card(trained, networks, use, given["license"] or None)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which is at `out` once all went well; after an error nothing is left of it.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out = {out}: is there already; remove it, or give another folder with out=DIR.")
    temporary = out.with_name(f".{out.name}.{uuid4().hex}")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"out = {out}: cannot be written ({reason}); give another with out=DIR.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
