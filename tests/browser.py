"""Chromium without a window, driven over the DevTools protocol by a pipe; and a server for a folder."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--hide-scrollbars"),
)


def find_browser() -> str | None:
    """The path of a Chromium, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser.

    Attributes:
      requests: addresses of everything that the page has asked for.
      problems: what the page wrote to its console as a warning or an error, and exceptions.
    """

    def __init__(
        self, browser: Browser, width: int, height: int, scale: float, features: dict[str, str]
    ) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.requests: list[str] = []
        self.problems: list[str] = []
        browser.listeners[self._session] = self._listen
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        mobile = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        if mobile:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)

    def _listen(self, method: str, content: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(content["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("warning", "error"):
            self.problems.append(content["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("warning", "error"):
            self.problems.append(json.dumps(content["args"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Goes to an address."""
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Returns when a JavaScript expression is true; before the page is there, it may fail."""
        end = time.monotonic() + seconds
        while not self.run(f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < end, f"still not: {condition}; {self.problems}"
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Presses and releases keys, by their names in JavaScript."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            for kind in ("keyDown", "keyUp"):
                content = {
                    "key": key,
                    "windowsVirtualKeyCode": codes.get(key, 46),
                    "text": text * (kind == "keyDown"),
                }
                self.call("Input.dispatchKeyEvent", type=kind, **content)

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Draws with the mouse along points of the window."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def drop(self, *paths: Path) -> None:
        """Drops files in the middle of the window, as from a folder."""
        data = {"items": [], "files": [str(path.resolve()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)

    def screenshot(self, path: Path) -> None:
        """Writes a PNG file of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, program: str, folder: str) -> None:
        read_commands, self._out = os.pipe()
        self._in, write_answers = os.pipe()

        def at_3_and_4() -> None:
            commands, answers = os.dup(read_commands), os.dup(write_answers)  # they may be 3 and 4 themselves
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            close_fds=False,
            preexec_fn=at_3_and_4,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.listeners: dict[str, Any] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; what happens until its answer goes to the listeners."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer and (listener := self.listeners.get(answer.get("sessionId", ""))):
                listener(answer["method"], answer["params"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def page(self, width: int = 1280, height: int = 900, scale: float = 1, **features: str) -> Page:
        """A new page; features: media features such as prefers_color_scheme."""
        return Page(
            self, width, height, scale, {name.replace("_", "-"): value for name, value in features.items()}
        )

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        self._process.wait(20)
        os.close(self._out)
        os.close(self._in)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    program = find_browser()
    assert program
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".gz": "application/gzip"}  # noqa: RUF012

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address at which a folder is served, as `python -m http.server` does."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
