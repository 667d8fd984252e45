"""Mirror of a run in Weights & Biases that never slows, stops or fails the training.

The training process only queues records. A daemon thread (`feed.Feed`) sends them to a separate process
(`wandb_process.py`), which imports and calls wandb, and which can be killed whatever the server does.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from dino_exp.tracker import RunInfo, Tracker
from dino_exp.tracker.feed import LOCAL_FILES, Feed, Record, logger, one_line


class WandbTracker(Tracker):
    """Tracker that sends config, metrics, images, alerts, summary and exit code to W&B.

    Its files are in `<run directory>/wandb`, or in `$WANDB_DIR/wandb`. If W&B does not start within
    `timeout`, online becomes offline and offline becomes off, with one log line.

    Args:
        mode: online, offline, disabled, or auto: what WANDB_MODE or the W&B settings say, else online with a
            W&B login and offline without.
        project: W&B project; None is that of WANDB_PROJECT or the W&B settings, else dino-exp.
        entity: W&B team or user; None is that of WANDB_ENTITY, or the login's default.
        timeout: seconds that W&B may take to start, and again to finish.
        tags, notes: of the run; None is what WANDB_TAGS and WANDB_NOTES say.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str | None,
        entity: str | None,
        timeout: float,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
    ) -> None:
        self._settings = {
            "mode": mode,
            "project": project,
            "entity": entity,
            "timeout": timeout,
            "tags": None if tags is None else list(tags),
            "notes": notes,
        }
        self._session: _Session | None = None

    def start(self, run: RunInfo) -> None:
        if self._settings["mode"] == "disabled":
            return
        if not re.fullmatch(r"[\w-]{1,64}", str(run.tracker_id), re.ASCII):
            odd = "W&B: off, because the run's tracker_id in status.json is not one: %.80r. %s"
            logger.warning(odd, run.tracker_id, LOCAL_FILES)
            return
        init = self._settings | {
            "directory": str(run.directory.absolute()),
            "id": run.tracker_id,
            "name": run.name,
            "group": run.group,
            "config": run.config,
            "temporary": f"dino-exp-wandb-{run.tracker_id}-",
        }
        try:
            self._session = _Session(init)
        except Exception as error:
            logger.warning("W&B: off, because of %s. %s", one_line(error), LOCAL_FILES)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        known = {name: value for name, value in metrics.items() if value is not None}
        self._put({"log": {**known, "step": step}})

    def image(self, name: str, path: Path, step: int) -> None:
        self._put({"image": {"name": name, "path": str(Path(path).absolute()), "step": step}})

    def alert(self, title: str, text: str) -> None:
        self._put({"alert": {"title": title, "text": text}})

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        if self._session is not None:
            self._session.finish(summary, exit_code)
            self._session = None

    def _put(self, record: Record) -> None:
        if self._session is not None:
            self._session.feed.put(record)


class _Session:
    """The W&B process of one run and the feed into it; `wandb_process` opens the run with `init`."""

    def __init__(self, init: dict[str, Any]) -> None:
        self._init = init
        self._timeout: float = init["timeout"]
        self._finish_by: float | None = None
        self._folder = Path(init["directory"]) / "wandb"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._segments = Path(os.environ.get("WANDB_DIR") or init["directory"]).expanduser() / "wandb"
        self._segments.mkdir(parents=True, exist_ok=True)
        if not os.access(self._segments, os.W_OK):  # wandb would write into a temporary folder
            raise PermissionError(f"{self._segments} cannot be written")
        self._clear_temporary()  # of a run that was killed
        # Not in the feed's thread: a worker forked meanwhile would inherit the ends of the pipes that Popen
        # closes a moment later, and keep them open.
        self._process = _Process(self._folder)
        self.feed = Feed("W&B", self._consume)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """End the run; return within the timeout and a few seconds, whatever W&B does."""
        self._finish_by = time.monotonic() + self._timeout
        if self.feed.dropped:
            summary = {**summary, "wandb_dropped_records": self.feed.dropped}
        last = {"finish": {"summary": summary, "exit_code": exit_code}}
        if not self.feed.close(last, self._timeout + 2):  # blocked in a write to a process that does not read
            self._process.kill()
            self.feed.close(None, 5)

    def _consume(self, records: Iterator[Record]) -> None:
        try:
            opened = self._connect()
            if opened is None:
                return
            try:
                for record in records:
                    self._process.send(record)
                reply = self._process.reply(lambda: self._finish_by or 0.0)
            except OSError:  # the process has closed its end; it may have answered why
                soon = time.monotonic() + 2
                reply = self._process.reply(lambda: soon) or {}
            if reply is None or not reply.get("finished"):
                self._report_loss(reply, opened)
        finally:
            self._process.close()
            self._clear_temporary()

    def _clear_temporary(self) -> None:
        """Remove the temporary folders of this run's W&B processes, which all have ended."""
        for folder in Path(tempfile.gettempdir()).glob(f"{self._init['temporary']}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _connect(self) -> dict[str, Any] | None:
        """Wait until the run is open, online or else offline, and log it; return the reply, None if off."""
        own = f"run-*-{self._init['id']}"
        before = set(self._segments.glob(own))
        reply = self._opening(self._init["mode"])
        trouble = ""
        if "mode" not in reply and self._init["mode"] != "offline":
            trouble = reply["failed"]
            self._process.close()
            # the folder of a run that was never opened has only its config, and would break an upload
            for failed in set(self._segments.glob(own)) - before:
                shutil.rmtree(failed, ignore_errors=True)
            self._process = _Process(self._folder)
            reply = self._opening("offline")
        if "mode" not in reply:
            reasons = " and ".join(dict.fromkeys(filter(None, (trouble, reply["failed"]))))
            logger.warning("W&B: off (%s). %s", reasons, LOCAL_FILES)
            return None
        if reply["mode"] == "disabled":
            logger.info("W&B: disabled (%s).", reply["why"])
            return None
        if reply["mode"] == "online":
            logger.info("W&B: online, %s", reply["url"])
        elif trouble:
            logger.warning(
                "W&B: offline, as online failed (%s). Upload later: %s", trouble, self._sync(reply)
            )
        else:
            logger.info("W&B: offline (%s). Upload later: %s", reply["why"], self._sync(reply))
        return reply

    def _opening(self, mode: str) -> dict[str, Any]:
        """Ask the process to open the run; return its reply, or {"failed": why}."""
        started = time.monotonic()

        def deadline() -> float:
            # wandb.init keeps the timeout itself and then reports a reason; the margin is for that
            latest = started + self._timeout + 10
            if self._finish_by is None:
                return latest
            # if the training has already finished, most of the remaining seconds are for opening it offline
            share = 0.9 if mode == "offline" else 0.3
            return min(latest, self._finish_by - (1 - share) * self._timeout)

        try:
            self._process.send({"init": {**self._init, "mode": mode}})
        except OSError as error:
            return {"failed": one_line(error)}
        reply = self._process.reply(deadline)
        return reply or {"failed": f"no answer within {time.monotonic() - started:.0f} s"}

    def _report_loss(self, reply: dict[str, Any] | None, opened: dict[str, Any]) -> None:
        if reply is None:
            what = f"the upload was stopped after {self._timeout:g} s"
        else:
            what = f"the mirror ended early ({reply.get('failed', 'no reason given')})"
        logger.warning("W&B: %s. %s Upload the rest: %s", what, LOCAL_FILES, self._sync(opened))

    def _sync(self, opened: dict[str, Any]) -> str:
        """Return the command to upload the run; for offline runs their folder, to join resumed segments."""
        if opened["mode"] == "online":
            return f"wandb sync --include-online {shlex.quote(opened['files'])}"
        folder = shlex.quote(str(Path(opened["files"]).parent))
        if self._segments != self._folder:  # it has other runs too
            folder += f"/offline-run-*-{self._init['id']}"
        return f"wandb sync {folder}"


class _Process:
    """`wandb_process.py` in its own session, with its output in `<folder>/tracker.log`."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
        environment.pop("WANDB_SERVICE", None)  # wandb-core of another process, which ends with that process
        program = Path(__file__).with_name("wandb_process.py")
        with (folder / "tracker.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # a buffer has a lock, which a daemon thread would hold when the interpreter exits
                env=environment,
                start_new_session=True,
            )
        self._replies: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._read, name="W&B replies", daemon=True).start()

    def send(self, record: Record) -> None:
        """Send a record; block while the pipe is full, raise OSError if the process has ended."""
        assert self._popen.stdin is not None
        line = json.dumps(record, default=_plain, skipkeys=True).encode() + b"\n"
        while line:
            line = line[self._popen.stdin.write(line) :]

    def reply(self, deadline: Callable[[], float]) -> dict[str, Any] | None:
        """Return the next answer; {"failed": why} if the process ended; None after `deadline()`."""
        while True:
            try:
                answer = self._replies.get(timeout=max(0.0, min(0.5, deadline() - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline():
                    return None
                continue
            return {"failed": "its process was killed"} if answer is None else answer

    def kill(self) -> None:
        """Kill the process; wandb-core notices that its parent has ended, and ends too."""
        self._popen.kill()

    def close(self) -> None:
        """Kill the process and free its resources; only for the thread that sends."""
        self._popen.kill()
        self._popen.wait()
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as answers:
            for line in iter(answers.readline, b""):
                self._replies.put(json.loads(line))
        self._replies.put(None)


def _plain(value: Any) -> float | str:
    """Convert numbers of numpy and torch to floats, everything else to text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
