"""TensorBoard event files in the run directory."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dino_exp.errors import UserError
from dino_exp.tracker import RunInfo, Tracker
from dino_exp.tracker.feed import LOCAL_FILES, Feed, Record, logger, one_line

FINISH_SECONDS = 30.0
"""How long a stalled file system may delay the end of a run."""


class TensorboardTracker(Tracker):
    """Tracker that writes scalars, images, config and summary to `<run directory>/tensorboard/` in a thread.

    After a resume, the steps after the checkpoint are purged, so that no step appears twice.

    Args:
        mode: disabled writes nothing; there is no server, so all other modes are the same.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, *, mode: str) -> None:
        self._mode = mode
        self._feed: Feed | None = None
        if mode != "disabled":
            try:
                # not in the thread: a worker forked during an import never finishes that import
                importlib.import_module("torch.utils.tensorboard")
            except ImportError as error:
                raise UserError(
                    f"tracker=tensorboard: {error}. "
                    "Install it with `pip install tensorboard`, or use tracker=none."
                ) from None

    def start(self, run: RunInfo) -> None:
        if self._mode == "disabled":
            return
        try:
            self._feed = Feed("TensorBoard", _Writer(run))
        except RuntimeError as error:  # cannot start a thread
            logger.warning("TensorBoard: off, because of %s. %s", one_line(error), LOCAL_FILES)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._put({"log": dict(metrics), "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        self._put({"image": Path(path), "name": name, "step": step})

    def alert(self, title: str, text: str) -> None:
        self._put({"alert": f"**{title}**  \n{text}"})

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        if self._feed is None:
            return
        last = {"finish": {"exit_code": exit_code, **summary}}
        if not self._feed.close(last, FINISH_SECONDS):
            logger.warning("TensorBoard: not everything was written within %g s.", FINISH_SECONDS)
        self._feed = None

    def _put(self, record: Record) -> None:
        if self._feed is not None:
            self._feed.put(record)


class _Writer:
    """Writer of one run's records; called in the feed's thread."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._step = run.resume_step

    def __call__(self, records: Iterator[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = self._run.resume_step + 1 if self._run.resume_step else None
        with SummaryWriter(str(self._run.directory / "tensorboard"), purge_step=purge_step) as writer:
            if not self._run.resume_step:
                writer.add_text("config", _json_block(self._run.config), 0)
            for record in records:
                self._write(writer, record)

    def _write(self, writer: Any, record: Record) -> None:
        self._step = record.get("step", self._step)
        if "log" in record:
            for name, value in record["log"].items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name, value, self._step)
        elif "image" in record:
            try:
                pixels = _read_image(record["image"])
            except (OSError, ValueError) as error:
                logger.warning("TensorBoard: %s cannot be read and is skipped (%s).", record["image"], error)
                return
            writer.add_image(record["name"], pixels, self._step, dataformats="HWC")
        elif "alert" in record:
            writer.add_text("alert", record["alert"], self._step)
        elif "finish" in record:
            writer.add_text("summary", _json_block(record["finish"]), self._step)


def _read_image(path: Path) -> Any:
    """Read an image as uint8 (H, W, 3)."""
    import numpy as np

    from dino_exp.data.pillow_files import opened_image

    with opened_image(path) as image:
        return np.asarray(image.convert("RGB"))


def _json_block(value: Any) -> str:
    """Return Markdown that shows `value` as indented JSON."""
    return "".join(f"\t{line}\n" for line in json.dumps(value, indent=2, default=str).splitlines())
