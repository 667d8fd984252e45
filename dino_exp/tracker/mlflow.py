"""Mirror of a run on an MLflow server, which gets from metrics.jsonl what it has missed."""

from __future__ import annotations

import getpass
import math
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_exp.config.relations import mlflow_address_problem
from dino_exp.errors import UserError
from dino_exp.installation import as_typed
from dino_exp.runs.former_names import leaves
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.tracker import RunInfo, Tracker
from dino_exp.tracker.feed import LOCAL_FILES, Feed, Record, logger, one_line
from dino_exp.tracker.mlflow_server import MlflowServer, RefusedError, UnavailableError

ID, GROUP = "dino_exp.tracker_id", "dino_exp.group"
"""Tags by which a run, and the runs of a sweep, are found."""
FLUSH_SECONDS, RETRY_SECONDS = 2.0, 30.0
"""Least time between two requests for metrics, and after a failure."""
KEPT = 200
"""Records that wait for a server that does not answer; older lines are in metrics.jsonl."""


class MlflowTracker(Tracker):
    """Tracker that sends config, metrics, images, summary and status to an MLflow server, from a thread.

    A resumed run is found by its tag and goes on; steps that the server has are not sent again. Each time the
    server answers again, it gets the lines of metrics.jsonl that it lacks.

    Args:
        mode: `disabled` and `offline` send nothing, the latter because it will be done later by hand.
        tracking_uri: the server's address; None is that of MLFLOW_TRACKING_URI.
        experiment: MLflow's experiment; None is that of MLFLOW_EXPERIMENT_NAME, else dino-exp.
        tags: of the run, `name` or `name=value`.
        timeout: seconds that the server may take at the end.

    Raises:
        UserError: there is no address, or it is none of a server.
    """

    def __init__(
        self,
        *,
        mode: str,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        tags: Sequence[str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._mode, self._timeout = mode, timeout
        self._mirror: _Mirror | None = None
        self._feed: Feed | None = None
        self.complete = False
        """Whether the server has got all of the last run."""
        if mode in ("disabled", "offline"):
            return
        typed = os.environ.get("MLFLOW_TRACKING_URI")
        if not tracking_uri and not typed:
            raise UserError(
                "tracker=mlflow: no server is named; set MLFLOW_TRACKING_URI or tracker.tracking_uri, e.g. "
                "tracker.tracking_uri=http://localhost:5000, or use tracker=none."
            )
        name = "tracker.tracking_uri" if tracking_uri else "MLFLOW_TRACKING_URI"
        if problem := mlflow_address_problem(name, tracking_uri or typed or ""):
            raise UserError(problem)
        self._server = MlflowServer(tracking_uri)
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dino-exp"
        named = (tag.partition("=") for tag in tags or ())
        self._tags = {name.strip(): value if equals else "true" for name, equals, value in named}

    def start(self, run: RunInfo) -> None:
        if self._mode == "disabled":
            return
        if self._mode == "offline":
            logger.info("MLflow: offline. Send it later: %s", sync_command(run.directory))
            return
        if not re.fullmatch(r"[\w-]{1,64}", str(run.tracker_id), re.ASCII):
            odd = "MLflow: off, because the run's tracker_id in status.json is not one: %.80r. %s"
            logger.warning(odd, run.tracker_id, LOCAL_FILES)
            return
        try:
            self._mirror = _Mirror(run, self._server, self._experiment, self._tags)
            self._feed = Feed("MLflow", self._mirror)
        except RuntimeError as error:  # cannot start a thread
            logger.warning("MLflow: off, because of %s. %s", one_line(error), LOCAL_FILES)
            return
        self._put({})  # the run appears at once

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._put({"log": dict(metrics), "step": step, "time": _now()})

    def image(self, name: str, path: Path, step: int) -> None:
        self._put({"image": Path(path), "name": name, "step": step})

    def alert(self, title: str, text: str) -> None:
        self._put({"log": {"alert": f"{title}: {text}"}, "step": 0, "time": _now()})

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        if self._feed is None or self._mirror is None:
            return
        if not self._feed.close({"finish": dict(summary), "exit_code": exit_code}, self._timeout):
            self._mirror.report(f"no answer within {self._timeout:g} s")
        self.complete = self._mirror.complete
        self._feed = self._mirror = None

    def _put(self, record: Record) -> None:
        if self._feed is not None:
            self._feed.put(record)


class _Mirror:
    """Sender of one run's records; called in the feed's thread."""

    def __init__(self, run: RunInfo, server: MlflowServer, experiment: str, tags: dict[str, str]) -> None:
        self._run, self._server, self._experiment, self._tags = run, server, experiment, tags
        self._id: str | None = None
        """MLflow's id of the run; None while the server does not answer."""
        self._place = ""
        self._latest: dict[str, int] = {}
        """The last step of each metric on the server."""
        self._texts: dict[str, str] = {}
        """Tags that the server has."""
        self._waiting: list[Record] = []
        self._next = 0.0
        self._reported = self._introduced = False
        self.complete = False

    def __call__(self, records: Iterator[Record]) -> None:
        for record in records:
            self._waiting.append(record)
            if "finish" not in record and time.monotonic() < self._next:
                continue
            try:
                self._send()
            except UnavailableError as error:
                self.report(one_line(error).partition(": ")[2])
                self._id = None
                del self._waiting[:-KEPT]
                self._next = time.monotonic() + RETRY_SECONDS
            except RefusedError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                odd = f"an answer that is none of MLflow's ({one_line(error)})"
                raise RefusedError(f"{self._server.address} gave {odd}") from error
            else:
                self._reported = False
                self._next = time.monotonic() + FLUSH_SECONDS

    def report(self, reason: str) -> None:
        """Log once that the server does not answer."""
        if not self._reported:
            logger.warning(
                "MLflow: %s does not answer (%s). The run continues, and sends what is missing when it does; "
                "if the run ends before: %s",
                self._server.address,
                reason,
                sync_command(self._run.directory),
            )
        self._reported = True

    def _send(self) -> None:
        metrics: list[tuple[str, float, int, int]] = []
        texts: dict[str, str] = {}
        if self._id is None:
            for line in self._open():
                self._collect(line, line["step"], _now(), metrics, texts)
        assert self._id is not None
        for record in self._waiting:
            if "log" in record:
                self._collect(record["log"], record["step"], record["time"], metrics, texts)
            elif "finish" in record:
                summary = {f"summary/{key}": value for key, value in record["finish"].items()}
                last = max(self._latest.values(), default=0)
                self._collect(summary, last, _now(), metrics, texts)
        texts = {key: value for key, value in texts.items() if self._texts.get(key) != value}
        self._server.log(self._id, metrics, tags=texts)
        self._texts |= texts
        for record in self._waiting:
            if "image" in record:
                self._upload(record)
            elif "finish" in record:
                stopped = record["finish"].get("state") == "preempted"
                status = "KILLED" if stopped else "FAILED" if record["exit_code"] else "FINISHED"
                self._server.update(self._id, status, _now())
                self.complete = True
        self._waiting.clear()

    def _open(self) -> list[dict[str, Any]]:
        """Find or create the run, and return the lines of metrics.jsonl."""
        run, server = self._run, self._server
        experiment = server.experiment(self._experiment)
        found = server.run(experiment, ID, run.tracker_id)
        if found is None:
            tags = {"mlflow.user": _user(), "mlflow.source.name": "dino-exp", ID: run.tracker_id}
            tags |= {GROUP: run.group} if run.group else {}
            found = server.create(experiment, run.name, tags | self._tags, _now())
        info, data = found["info"], found.get("data") or {}
        self._id, self._place = str(info["run_id"]), str(info.get("artifact_uri"))
        self._latest = {each["key"]: int(each.get("step", 0)) for each in data.get("metrics") or ()}
        known = {each["key"] for each in data.get("params") or ()}
        # cannot be changed: what a resume has otherwise, such as the device, keeps its first value
        config = {key: value for key, value in run.config.items() if key != "tracker"}
        params = {_named(key): _text(value) for key, value in leaves(config)}
        server.log(self._id, params={key: value for key, value in params.items() if key not in known})
        server.update(self._id, "RUNNING")
        if not self._introduced:
            page = f"{server.address}/#/experiments/{experiment}/runs/{self._id}"
            logger.info("MLflow: %s", page)
            self._introduced = True
        return read_metrics(RunDirectory(run.directory).metrics_file)

    def _collect(
        self,
        values: Mapping[str, Any],
        step: int,
        now: int,
        metrics: list[tuple[str, float, int, int]],
        texts: dict[str, str],
    ) -> None:
        """Add the numbers that the server lacks to `metrics`, and words to `texts`."""
        for key, value in values.items():
            name = _named(key)
            if isinstance(value, str):
                texts[name.removeprefix("summary/")] = value
            elif isinstance(value, (int, float)) and key != "step":
                again = name.startswith(("eval/", "summary/"))  # a repeated evaluation, a resumed run's end
                if again or step > self._latest.get(name, -1):
                    metrics.append((name, float(value), step, now))
                    self._latest[name] = max(step, self._latest.get(name, 0))

    def _upload(self, record: Record) -> None:
        if not self._place.startswith("mlflow-artifacts:"):
            if self._place:
                where = "MLflow: images stay in the run directory, because the server keeps its files at %s"
                logger.info(where, self._place.partition(":")[0])
            self._place = ""
            return
        try:
            content = record["image"].read_bytes()
        except OSError as error:
            logger.warning("MLflow: %s cannot be read and is skipped (%s).", record["image"], error)
            return
        assert self._id is not None
        name = f"{record['name']}/step_{record['step']}{record['image'].suffix}"
        self._server.upload(self._place, name, content)


def _now() -> int:
    """Return milliseconds since 1970."""
    return int(time.time() * 1000)


def _named(key: str) -> str:
    """Return a key in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", str(key), flags=re.ASCII)[:250]


def _text(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.10g}"
    return str(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return "unknown"


def sync_command(directory: Path) -> str:
    """Return the command that sends a run later."""
    return f"{as_typed('python -m dino_exp.tracker.mlflow_sync')} {shlex.quote(str(directory))}"
