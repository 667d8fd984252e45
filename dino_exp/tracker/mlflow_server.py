"""The part of MLflow's REST API that a tracker needs, without the `mlflow` package.

The API has been the same since MLflow 1.0, and here are all of its seven requests. The client package would
bring twenty others, reports of its use to its makers, and retries that last minutes.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MOST_METRICS, MOST_OTHERS = 1000, 100
"""Most metrics, and most parameters or tags, that a server takes in one request."""
LONGEST = 500
"""Characters of a parameter or tag that servers of every version take."""
LARGEST_ANSWER = 2**26
SECONDS = 20.0
"""How long a request may take."""
AGAIN = (408, 429)
"""Answers below 500 after which the same request may succeed."""


class UnavailableError(Exception):
    """A server that cannot be reached or cannot answer now."""


class RefusedError(Exception):
    """An answer that will not change: no permission, another program, a deleted experiment."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could take the password to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class MlflowServer:
    """A server at an address, with the credentials in the environment.

    They belong to the server that `MLFLOW_TRACKING_URI` names, and no other gets them: a configuration may be
    from somebody else.

    Args:
        address: http or https; None is that of `MLFLOW_TRACKING_URI`.
    """

    def __init__(self, address: str | None) -> None:
        own = os.environ.get("MLFLOW_TRACKING_URI", "")
        scheme, where, path, *_ = urlsplit(address or own)
        host = where.rpartition("@")[2]
        self.address = f"{scheme}://{host}{path.rstrip('/')}"
        is_own = (scheme, host) == (urlsplit(own).scheme, urlsplit(own).netloc.rpartition("@")[2])
        self._headers = {"Content-Type": "application/json", **(_credentials(own) if is_own else {})}
        handlers = [_NoRedirects(), urllib.request.HTTPSHandler(context=_tls())]
        self._opener = urllib.request.build_opener(*handlers)

    # ---- requests -------------------------------------------------------------------------------

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if there is none of that name."""
        try:
            found = self._call("GET", f"experiments/get-by-name?experiment_name={quote(name, safe='')}")
            return str(found["experiment"]["experiment_id"])
        except RefusedError as error:
            if "RESOURCE_DOES_NOT_EXIST" not in str(error):
                raise
        return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])

    def run(self, experiment: str, tag: str, value: str) -> dict[str, Any] | None:
        """Return the run of an experiment that has a tag of this value, the latest of several."""
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{tag}` = '{value}'",
            "max_results": 1,
            "order_by": ["attributes.start_time DESC"],
        }
        runs = self._call("POST", "runs/search", body).get("runs") or [None]
        return runs[0]

    def create(self, experiment: str, name: str, tags: Mapping[str, str], now: int) -> dict[str, Any]:
        """Create a run that starts at `now`, in milliseconds, and return it."""
        body = {"experiment_id": experiment, "run_name": name, "start_time": now, "tags": _pairs(tags)}
        return self._call("POST", "runs/create", body)["run"]

    def log(
        self,
        run: str,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add metrics (name, value, step, milliseconds), parameters that are not there yet, and tags."""
        points = [
            {"key": key, "value": _number(value), "step": step, "timestamp": time}
            for key, value, step, time in metrics
        ]
        for kind, items, most in (
            ("params", _pairs(params or {}), MOST_OTHERS),
            ("tags", _pairs(tags or {}), MOST_OTHERS),
            ("metrics", points, MOST_METRICS),
        ):
            for part in _parts(items, most):
                self._call("POST", "runs/log-batch", {"run_id": run, kind: part})

    def update(self, run: str, status: str, end: int | None = None) -> None:
        """Set the status, and when the run ended, in milliseconds."""
        times = {} if end is None else {"end_time": end}
        self._call("POST", "runs/update", {"run_id": run, "status": status, **times})

    def upload(self, place: str, name: str, content: bytes) -> None:
        """Write an artifact below a run's `artifact_uri`, which must be of `mlflow-artifacts`."""
        path = quote(f"{urlsplit(place).path.strip('/')}/{name}")
        self._send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", content, "application/octet-stream")

    # ---- HTTP -----------------------------------------------------------------------------------

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        answer = self._send(method, f"/api/2.0/mlflow/{path}", content)
        try:
            result = json.loads(answer or b"{}")
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise RefusedError(f"{self.address} is not an MLflow server")
        return result

    def _send(self, method: str, path: str, content: bytes | None, kind: str = "") -> bytes:
        headers = self._headers | ({"Content-Type": kind} if kind else {})
        request = urllib.request.Request(f"{self.address}{path}", content, headers, method=method)
        try:
            with self._opener.open(request, timeout=SECONDS) as answer:
                return answer.read(LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                reason = f"HTTP {error.code}{_reason(error)}"
            if error.code >= 500 or error.code in AGAIN:
                raise UnavailableError(reason) from None
            raise RefusedError(reason) from None
        except urllib.error.URLError as error:
            raise UnavailableError(str(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(str(error) or type(error).__name__) from None


def _credentials(address: str) -> dict[str, str]:
    """Return the header with the token, or the user and password, of the environment or of its address."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    parts = urlsplit(address)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
    if not user:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _tls() -> ssl.SSLContext:
    """Return how servers are verified, as MLflow's variables say."""
    file = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    context = ssl.create_default_context(cafile=file if file and Path(file).is_file() else None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what a server says about an error."""
    try:
        content = json.loads(error.read(LARGEST_ANSWER))
        words = [str(content[name]) for name in ("error_code", "message") if content.get(name)]
        return f" ({': '.join(words)})" if words else ""
    except Exception:  # no JSON, or the connection is lost
        return ""


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value[:LONGEST]} for key, value in values.items()]


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


def _number(value: float) -> float | str:
    """Return a number as JSON has it; protobuf's JSON writes those that it does not have as text."""
    if value != value:
        return "NaN"
    return ("Infinity" if value > 0 else "-Infinity") if value in (float("inf"), -float("inf")) else value
