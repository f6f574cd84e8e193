"""A real HTTP server in OpenAI's format, on this machine, which can be told to fail in every way that servers do."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = Mapping[str, Any]
Reply = Callable[[Body], Any]


def completion(text: str, top: Mapping[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """The JSON of a chat completion; `top`: log-probabilities of first tokens."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    if top is not None:
        told = [{"token": token, "logprob": nats, "bytes": None} for token, nats in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": max(top.values()), "bytes": None, "top_logprobs": told}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "judge-1", "choices": [choice], "usage": usage} | more


class EndpointServer:
    """Serves until the end of its `with` block; `faults` are used up first, one a request, and then every request is answered."""

    def __init__(self, reply: Reply, path: str = "/v1/chat/completions") -> None:
        self.reply, self.path = reply, path
        self.faults: list[Any] = []
        self.seen: list[tuple[dict[str, str], Body]] = []
        """Headers and body of every request."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the tests read `seen`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "EndpointServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.seen.append((dict(handler.headers), body))
            fault = self.faults.pop(0) if self.faults else None
        if handler.path != self.path:
            fault = (404, {}, b'{"error": {"message": "no such path"}}')
        if fault == "hang":
            self._over.wait(30)
            return
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("content-length", "5000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            return
        status, headers, content = fault if fault is not None else (200, {}, json.dumps(self.reply(body)).encode())
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
