"""A W&B server on 127.0.0.1 with just enough answers for wandb to upload a run, which can also fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Server with a `behavior`: answer, error (always 500) or silent (no answer); may change at any time.

    `history` has the metric rows that arrived, by run and line number, as in the real server.
    """

    def __init__(self) -> None:
        self.behavior = "answer"
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.alerts: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.requests = 0
        self.closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "mutation UpsertBucket" in query:
            run = self.runs.setdefault(variables["name"], {})
            run.update({key: value for key, value in variables.items() if value is not None})
            bucket = {
                "id": "id",
                "name": variables["name"],
                "displayName": run.get("displayName"),
                "historyLineCount": len(self.history.get(variables["name"], {})),
                "project": {"id": "p", "name": run["project"], "entity": {"id": "e", "name": "team"}},
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "RunResumeStatus" in query:
            found = self._resumed(variables["name"]) if variables["name"] in self.runs else None
            team = {"id": "e", "name": "team"}
            return {"model": {"id": "p", "name": "p", "entity": team, "bucket": found}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        if "mutation NotifyScriptableRunAlert" in query:
            self.alerts.append(variables["title"])
            return {"notifyScriptableRunAlert": {"success": True}}
        return {}

    def _resumed(self, run: str) -> dict[str, Any]:
        rows = self.history.get(run, {})
        last = rows[max(rows)] if rows else {}
        return {
            "id": "id",
            "name": run,
            "summaryMetrics": "{}",
            "displayName": run,
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }

    def file_stream(self, run: str, body: dict[str, Any]) -> None:
        chunk = body.get("files", {}).get("wandb-history.jsonl")
        if chunk:
            for line, row in enumerate(chunk["content"], start=chunk["offset"]):
                self.history.setdefault(run, {})[line] = json.loads(row)
        if body.get("complete"):
            self.exit_codes[run] = body["exitcode"]


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            server.requests += 1
            if server.behavior == "silent":
                server.closed.wait()
                return
            if server.behavior == "error":
                self.answer(500, {})
                return
            reply: dict[str, Any] = {}
            if self.path == "/graphql":
                query = json.loads(body)
                reply = {"data": server.graphql(query["query"], query.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                server.file_stream(self.path.split("/")[-2], json.loads(body))
            elif self.path.startswith("/upload/"):
                server.uploads[self.path.removeprefix("/upload/")] = body
            self.answer(200, reply)

        do_GET = do_PUT = do_POST  # noqa: N815

        def answer(self, code: int, reply: dict[str, Any]) -> None:
            text = json.dumps(reply).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler
