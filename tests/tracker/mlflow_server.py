"""An MLflow server on 127.0.0.1 with the answers that a tracker needs and the real limits; it can fail."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIX = "/api/2.0/"


class MlflowServer:
    """Server with a `behavior`: answer, error (500), silent (no answer) or redirect; may change at any time.

    `runs` are those of the real API, with all points of a metric under `history`.
    """

    def __init__(self, port: int = 0) -> None:
        self.behavior = "answer"
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.authorizations: set[str | None] = set()
        self.place = "mlflow-artifacts:/{experiment}/{run}/artifacts"
        self.closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def only_run(self) -> dict[str, Any]:
        (run,) = self.runs.values()
        return run

    # ---- the API ------------------------------------------------------------------------------------

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        method = getattr(self, f"_{re.sub(r'[^a-z]', '_', path)}", None)
        return (404, {"error_code": "ENDPOINT_NOT_FOUND"}) if method is None else method(**body)

    def _experiments_get_by_name(self, experiment_name: str) -> tuple[int, dict[str, Any]]:
        if experiment_name not in self.experiments:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        return 200, {"experiment": {"experiment_id": self.experiments[experiment_name]}}

    def _experiments_create(self, name: str) -> tuple[int, dict[str, Any]]:
        self.experiments[name] = str(len(self.experiments) + 1)
        return 200, {"experiment_id": self.experiments[name]}

    def _runs_search(
        self, experiment_ids: list[str], filter: str, max_results: int, order_by: list[str]
    ) -> tuple[int, dict[str, Any]]:
        assert order_by == ["attributes.start_time DESC"]
        found = re.fullmatch(r"tags\.`([\w.]+)` = '([\w-]+)'", filter)
        assert found
        runs = [
            {"info": run["info"], "data": self._data(run)}
            for run in reversed(self.runs.values())
            if run["info"]["experiment_id"] in experiment_ids and run["tags"].get(found[1]) == found[2]
        ]
        return 200, {"runs": runs[:max_results]} if runs else {}

    def _data(self, run: dict[str, Any]) -> dict[str, Any]:
        histories = run["history"].values()
        latest = [max(points, key=lambda point: (point["step"], point["timestamp"])) for points in histories]
        params = [{"key": key, "value": value} for key, value in run["params"].items()]
        return {"metrics": latest, "params": params}

    def _runs_create(
        self, experiment_id: str, run_name: str, start_time: int, tags: list[dict[str, str]]
    ) -> tuple[int, dict[str, Any]]:
        name = f"{len(self.runs) + 1:032x}"
        info = {
            "run_id": name,
            "run_name": run_name,
            "experiment_id": experiment_id,
            "status": "RUNNING",
            "start_time": start_time,
            "artifact_uri": self.place.format(experiment=experiment_id, run=name),
        }
        tagged = {tag["key"]: tag["value"] for tag in tags}
        self.runs[name] = {"info": info, "tags": tagged, "params": {}, "history": {}, "statuses": ["RUNNING"]}
        return 200, {"run": {"info": info, "data": {"tags": tags}}}

    def _runs_update(self, run_id: str, status: str, end_time: int = 0) -> tuple[int, dict[str, Any]]:
        self.runs[run_id]["info"] |= {"status": status, "end_time": end_time}
        self.runs[run_id]["statuses"].append(status)
        return 200, {"run_info": self.runs[run_id]["info"]}

    def _runs_log_batch(
        self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()
    ) -> tuple[int, dict[str, Any]]:
        run = self.runs[run_id]
        if len(metrics) > 1000 or len(params) > 100 or len(tags) > 100:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too many in one request"}
        for param in params:
            known = run["params"].setdefault(param["key"], param["value"])
            if known != param["value"] or len(known) > 500:
                return 400, {
                    "error_code": "INVALID_PARAMETER_VALUE",
                    "message": f"{param['key']} has a value",
                }
        for point in metrics:
            if not re.fullmatch(r"[\w\-. /:]+", point["key"]) or not isinstance(point["step"], int):
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"no metric: {point}"}
            run["history"].setdefault(point["key"], []).append(point | {"value": float(point["value"])})
        run["tags"] |= {tag["key"]: tag["value"] for tag in tags}
        return 200, {}


def _handler(server: MlflowServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = urlsplit(self.path)
            path = parts.path.removeprefix(PREFIX)
            server.requests.append(path)
            server.authorizations.add(self.headers.get("authorization"))
            if server.behavior == "silent":
                server.closed.wait()
                return
            if server.behavior == "error":
                self.send(500, {"error_code": "INTERNAL_ERROR", "message": "the database is locked"})
            elif server.behavior == "redirect":
                self.send(302, {}, location="http://127.0.0.1:1/elsewhere")
            elif server.behavior == "forbid":
                self.send(403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied"})
            elif path.startswith("mlflow-artifacts/artifacts/"):
                server.artifacts[path.removeprefix("mlflow-artifacts/artifacts/")] = body
                self.send(200, {})
            else:
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                self.send(*server.answer(path.removeprefix("mlflow/"), query | json.loads(body or b"{}")))

        do_GET = do_PUT = do_POST  # noqa: N815

        def send(self, code: int, reply: dict[str, Any], **headers: str) -> None:
            text = json.dumps(reply).encode()
            self.send_response(code)
            headers |= {"content-type": "application/json", "content-length": str(len(text))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def wait_for(condition: Any, tries: int = 400) -> Any:
    """Wait for a true value of `condition()` and return it."""
    for _ in range(tries):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("the condition never became true")
