"""A real browser for tests of the live page: headless Chromium, driven over its DevTools protocol, and a page for it.

Only what these tests need: pages of some size, expressions and conditions in a page, keys, clicks and pictures. A page
waits for its own conditions, so that no test has to guess how long something takes.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from ._wait import eventually

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from ..ui import LivePage

__all__ = ["Browser", "BrowserPage", "WatchedStore", "find_chromium"]

SOON_S = 30.0
_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TOKEN = "a-token-of-the-tests"  # noqa: S105 - and of nothing else
_KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
    "PageDown": (34, ""),
    "PageUp": (33, ""),
    "Home": (36, ""),
    "End": (35, ""),
    "Tab": (9, ""),
}
_WAITING = """new Promise((found, failed) => {
    const began = Date.now();
    const look = () => {
        let value;
        try { value = %s; } catch (error) { value = false; }
        if (value) found(typeof value === "object" && !Array.isArray(value) ? true : value);
        else if (Date.now() - began > %d) failed(new Error("it did not come true"));
        else setTimeout(look, 20);
    };
    look();
})"""


def find_chromium() -> str | None:
    """Return where a Chromium is installed, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """A headless Chromium with a profile of its own; a context manager that ends it."""

    def __init__(self, program: str) -> None:
        from websockets.sync.client import connect

        self._profile = tempfile.TemporaryDirectory(prefix="logmark-browser-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(  # noqa: S603 - the browser that was found
            [
                program,
                "--headless=new",
                "--no-sandbox",  # it would not run as root, as in most containers; it only visits pages of the tests
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--no-first-run",
                "--mute-audio",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._profile.name}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it has children of its own, which are to end with it
        )
        try:
            said = Path(self._profile.name, "DevToolsActivePort")
            lines = eventually(lambda: self._said(said), SOON_S, what="the browser's port")
            self._stack = contextlib.ExitStack()
            self._socket: ClientConnection = self._stack.enter_context(
                connect(
                    f"ws://127.0.0.1:{lines[0]}{lines[1]}",
                    max_size=_ANSWER_BYTES_MAX,
                    compression=None,
                    ping_interval=None,
                )
            )
        except BaseException:
            self._end()
            raise
        self._numbers = itertools.count(1)
        self._pages: dict[str, BrowserPage] = {}

    def _said(self, path: Path) -> list[str]:
        if self._process.poll() is not None:
            message = f"the browser ended with {self._process.returncode}"
            raise RuntimeError(message)
        lines = path.read_text(encoding="utf-8").split() if path.exists() else []
        return lines if len(lines) > 1 else []

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """Have the browser do something, and return what it answers."""
        number = next(self._numbers)
        frame: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            frame["sessionId"] = session
        self._socket.send(orjson.dumps(frame), text=True)
        while True:
            answer: dict[str, Any] = orjson.loads(self._socket.recv(2 * SOON_S))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            page = self._pages.get(str(answer.get("sessionId")))
            if page is not None and "method" in answer:
                page.note(answer["method"], answer["params"])

    def open(self, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light") -> BrowserPage:
        """Open a page in a context of its own, which shares nothing with the others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call(
            "Target.createTarget",
            {"url": "about:blank", "browserContextId": context, "width": width, "height": height},
        )["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = BrowserPage(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.prefer(scheme)
        page.call("Page.navigate", {"url": url})
        return page

    def forget(self, session: str, context: str) -> None:
        """Close a page."""
        self._pages.pop(session, None)
        self.call("Target.disposeBrowserContext", {"browserContextId": context})

    def _end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(SOON_S)
        self._profile.cleanup()

    def __enter__(self) -> Self:
        """Return the browser."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it with all its pages."""
        self._stack.close()
        self._end()


class BrowserPage:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.problems: list[str] = []
        """What the page's console told of: exceptions, refusals of its policy, anything else that was reported."""

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Take what the browser tells without being asked."""
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.problems.append(str(parameters["args"]))

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> Any:
        """Have the browser do something with this page."""
        return self._browser.call(method, parameters, self._session)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, waiting for it when it is a promise."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, f"{expression[:400]}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = SOON_S) -> Any:
        """Wait until an expression is true in the page, and return its value; True for an object."""
        return self.evaluate(_WAITING % (condition, timeout_s * 1000))

    def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds."""
        return str(self.evaluate(f"document.querySelector({orjson.dumps(selector).decode()}).textContent"))

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys, one after the other; a single character types it."""
        for key in keys:
            code, text = _KEYS.get(key, (ord(key.upper()[0]), key))
            event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            self.call("Input.dispatchKeyEvent", {"type": "keyDown", "text": text, **event})
            self.call("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self.call("Input.insertText", {"text": text})

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that a selector finds."""
        found = self.wait_for(
            f"(() => {{ const at = document.querySelector({orjson.dumps(selector).decode()}).getBoundingClientRect();"
            " return at.width ? [at.x + at.width / 2, at.y + at.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": found[0], "y": found[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", event)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """Prefer ``dark`` or ``light``, as the system would."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, path: Path, *, scale: float = 1) -> bytes:
        """Save what is to be seen as a PNG, and return its bytes."""
        size = self.evaluate("[innerWidth, innerHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": scale}
        data = base64.b64decode(self.call("Page.captureScreenshot", {"format": "png", "clip": clip})["data"])
        path.write_bytes(data)
        return data

    def close(self) -> None:
        """Close the page."""
        self._browser.forget(self._session, self._context)


class WatchedStore:
    """A runtime, the live page on it, and the browser's pages that look at it."""

    SETTLED = "view && view.known && view.list.places && !document.querySelector('.row.loading:not([hidden])')"
    """The condition in a page that all of what is in view has been fetched."""

    def __init__(self, browser: Browser, url: str) -> None:
        from .. import open as open_store

        self.browser = browser
        self.runtime = open_store(url, job_status={"turn.ended": "success"})
        self.pages: list[BrowserPage] = []
        self.token = _TOKEN
        self.served = self.serve()

    def serve(self, port: int = 0) -> LivePage:
        """Serve the page, on a port if one is given."""
        from ..ui import serve_page

        return serve_page(self.runtime, tokens={self.token: "tester"}, port=port)

    def look(
        self,
        session_id: str | None = None,
        *,
        url: str | None = None,
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
    ) -> BrowserPage:
        """Open the page, and a session in it, if one is given."""
        page = self.browser.open(
            url or f"{self.served.url}#token={self.token}", width=width, height=height, scheme=scheme
        )
        self.pages.append(page)
        page.wait_for("net.ready")
        if session_id is not None:
            quoted = orjson.dumps(session_id).decode()
            page.wait_for(f"sessions.has({quoted})")
            page.evaluate(f"openSession({quoted})")
            page.wait_for(self.SETTLED)
        return page

    def close(self) -> None:
        """Close everything; fail when a page's console has told of something that should not be."""
        problems = [problem for page in self.pages for problem in page.problems]
        for page in self.pages:
            page.close()
        self.served.close()
        self.runtime.close()
        unexpected = [problem for problem in problems if "WebSocket connection" not in problem]  # a server was lost
        assert unexpected == []
