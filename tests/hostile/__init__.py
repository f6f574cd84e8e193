"""Hostile text, and a browser that says what became of it.

    payloads.json      name to text: markup, styles, addresses, templates, characters, formulas, forged lines
"""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PAYLOADS: dict[str, str] = json.loads((Path(__file__).parent / "payloads.json").read_text(encoding="utf-8"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
PATIENCE_SECONDS = 120
ELEMENTS = "JSON.stringify([...document.querySelectorAll('*')].map(e => [e.tagName.toLowerCase(), ...e.getAttributeNames().sort()]))"


class Browser:
    """Headless Chromium, driven through a pipe (Chrome DevTools Protocol): every dialog, console line, error, request and window is noted."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (read_ours, write_theirs), (read_theirs, write_ours) = os.pipe(), os.pipe()
        # The protocol wants its ends at descriptors 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{read_theirs} 4>&{write_theirs}', "bash", CHROMIUM, "--remote-debugging-pipe", f"--user-data-dir={profile}", *FLAGS]
        self.process = subprocess.Popen(command, pass_fds=(read_theirs, write_theirs), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read_theirs)
        os.close(write_theirs)
        self.inward, self.outward, self.buffer, self.number = read_ours, write_ours, b"", 0
        self.session: str | None = None
        self.noted: list[str] = []
        self.asked: dict[str, str] = {}
        self.loaded, self.address = False, "about:blank"
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.send(f"{domain}.enable")
        # As if somebody looked at it: otherwise nothing takes the focus, and no handler of it runs.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.inward)
        os.close(self.outward)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are noted."""
        number = self.post(method, **parameters)
        while True:
            message = self.receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def post(self, method: str, **parameters: Any) -> int:
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.outward, json.dumps({"id": self.number, "method": method, "params": parameters, **session}).encode() + b"\0")
        return self.number

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.inward], [], [], PATIENCE_SECONDS)[0], "the browser does not answer"
            more = os.read(self.inward, 1 << 20)
            assert more, "the browser has ended"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        found = json.loads(message)
        self.note(found.get("method", ""), found.get("params", {}))
        return found

    def note(self, event: str, about: Mapping[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Page.javascriptDialogOpening":
            self.noted.append(f"executed: {about['message']}")
            self.post("Page.handleJavaScriptDialog", accept=True)
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.noted.append(f"executed: {event}")
        elif event == "Network.requestWillBeSent" and not about["request"]["url"].startswith((self.address, "about:")):
            self.asked[about["requestId"]] = f"request: {about['request']['url']}"
        elif event == "Network.loadingFailed" and about.get("blockedReason") == "csp":
            # Told of before the policy is looked at, and never sent.
            self.asked.pop(about["requestId"], None)
        elif event in ("Network.webSocketCreated", "Page.windowOpen"):
            self.noted.append(f"request: {about['url']}")

    def visit(self, page: Path, *, until_noted: bool = False) -> list[str]:
        """What was executed and requested while a page was loaded and drawn, or the first of it."""
        self.noted, self.asked, self.loaded, self.address = [], {}, False, page.resolve().as_uri()
        self.send("Page.navigate", url=self.address)
        while not (self.noted or self.asked if until_noted else self.loaded):
            self.receive()
        if not until_noted:
            self.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        return [*self.noted, *self.asked.values()]

    def evaluate(self, expression: str) -> Any:
        return self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)["result"].get("value")

    def elements(self) -> list[tuple[str, ...]]:
        """Name and attributes of every element of the page, in order."""
        return [tuple(element) for element in json.loads(self.evaluate(ELEMENTS))]
