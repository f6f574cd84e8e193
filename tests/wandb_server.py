"""A local HTTP server that answers wandb's client as wandb's own does, and keeps what it was sent."""

import gzip
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")


@dataclass
class Server:
    """What one server was sent."""

    url: str
    failing: bool = False
    """Whether it answers everything with an error that will not pass."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id to what is known of a run."""
    begun: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Id to how often its upload was begun."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """Id to the rows that were logged, in the order in which they came."""
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    """(type, name)"""
    views: list[dict[str, Any]] = field(default_factory=list)
    """Workspaces."""

    def graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of one query."""
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "ann"}, "bucket": self._resumed(given["name"])}}
        if operation == "UpsertBucket":
            name = given["name"]
            known = self.runs.setdefault(name, {})
            # A run that goes on later sends its config alone.
            if given.get("groupName"):
                self.begun[name] += 1
            known |= {key: value for key, value in given.items() if value is not None}
            project = {"id": "p", "name": "persona_lab", "entity": {"id": "e", "name": "ann"}}
            bucket = {"id": name, "name": name, "displayName": known.get("displayName"), "description": "", "config": "{}", "sweepName": None, "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(self.history[name])}, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            about = given["input"]
            self.artifacts.append((about["artifactTypeName"], about["artifactCollectionName"]))
            # Its content is known already: nothing is uploaded.
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}}}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": "ann", "username": "ann", "name": "Ann", "email": "", "admin": False, "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        rows, tail = self.history[name], [json.dumps(row) for row in self.history[name][-1:]]
        counts = {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(rows), "historyTail": json.dumps(tail), "eventsTail": "[]"}
        about = {"id": name, "name": name, "displayName": name, "config": "{}", "summaryMetrics": "{}", "tags": [], "notes": "", "wandbConfig": "{}"}
        return {**about, **counts}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """A piece of a run's file stream."""
        for name, piece in sent.get("files", {}).items():
            lines = [json.loads(line) for line in piece["content"]]
            if name == "wandb-history.jsonl":
                rows = self.history[run]
                # As the server does: what is sent again at the same place is not there twice.
                rows[piece["offset"] : piece["offset"] + len(lines)] = lines
            elif name == "wandb-summary.json":
                self.summary[run] = lines[-1]


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({}, 400 if server.failing else 200)

        def do_PUT(self) -> None:
            self.body()
            self.answer({})

        def do_POST(self) -> None:
            body = self.body()
            if server.failing:
                self.answer({"errors": [{"message": "the disk of the server is full"}]}, 400)
            elif self.path == "/graphql":
                query = json.loads(body)
                operation = query.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", query["query"])[1]  # type: ignore[index]
                self.answer({"data": server.graphql(operation, query.get("variables") or {})})
            else:
                if run := STREAM.fullmatch(self.path):
                    server.stream(run[1], json.loads(body))
                self.answer({})

        def body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def answer(self, value: dict[str, Any], code: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
