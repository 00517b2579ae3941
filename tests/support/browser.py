"""Drives a headless Chromium through its debugging pipe: pages are opened, clicked, typed into and photographed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
# Chromium reads the pipe at 3 and answers at 4.
AT_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}


class Browser:
    """One page of a browser; `console` collects its messages, exceptions and refusals of the content security policy."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number = 0
        self._read = b""
        self._session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []
        self.events: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
    ) -> None:
        """Open a file and wait for its load event."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._ask("Emulation.setEmulatedMedia", features=scheme)
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self._ask("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.events.clear()
        self._ask("Page.navigate", url=page.as_uri())
        self._until(lambda: "Page.loadEventFired" in self.events)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, limit: float = 30.0) -> Any:
        """The value of an expression once it is true."""
        end = monotonic() + limit
        while not (found := self.run(script)):
            if monotonic() > end:
                raise AssertionError(f"not within {limit} s: {script}")
        return found

    def point(self, selector: str, number: int = 0) -> tuple[float, float]:
        """Scroll to the element and move the mouse to the middle of its first line."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.run(f"{found}.scrollIntoView({{block: 'center'}})")
        box = f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])({found}.getClientRects()[0])"
        x, y = self.run(box)
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str, number: int = 0) -> None:
        x, y = self.point(selector, number)
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str, number: int = 0) -> None:
        x, y = self.point(selector, number)
        self._ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def type(self, text: str) -> None:
        self._ask("Input.insertText", text=text)

    def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        code = KEYS.get(key, ord(key.upper()[0]))
        pressed: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select element, as its own menu, which is not part of the page, would."""
        found = f"document.querySelector({json.dumps(selector)})"
        assert self.run(f"{found}.value = {json.dumps(value)}, {found}.value") == value
        self.run(f"{found}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def photograph(self, path: Path, *, whole: bool = False) -> None:
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        answers: list[Any] = []
        self._until(
            lambda: bool(answers), lambda answer: answers.append(answer) if answer.get("id") == number else None
        )
        if "error" in answers[0]:
            raise AssertionError(f"{method}: {answers[0]['error']}")
        return answers[0]["result"]

    def _until(self, reached: Callable[[], bool], take: Callable[[Any], None] = lambda message: None) -> None:
        while not reached():
            while b"\0" not in self._read:
                if not select([self._reading], [], [], 60)[0] or not (more := os.read(self._reading, 1 << 20)):
                    raise AssertionError("the browser does not answer")
                self._read += more
            raw, _, self._read = self._read.partition(b"\0")
            message = json.loads(raw)
            self._note(message.get("method", ""), message.get("params", {}))
            take(message)

    def _note(self, event: str, about: Any) -> None:
        self.events.append(event)
        if event == "Runtime.exceptionThrown":
            self.console.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.console.append(str(about["args"]))
        elif event == "Log.entryAdded":
            self.console.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it ends with the block."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    to_read, to_answer = os.pipe()
    to_ask, to_write = os.pipe()
    pipe = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (to_ask, to_answer)]
    started = subprocess.Popen(
        [sys.executable, "-c", AT_3_AND_4, *map(str, pipe), *command],
        pass_fds=pipe,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for descriptor in (*pipe, to_ask, to_answer):
            os.close(descriptor)
        yield Browser(to_read, to_write)
    finally:
        started.kill()
        started.wait()
        os.close(to_read)
        os.close(to_write)
