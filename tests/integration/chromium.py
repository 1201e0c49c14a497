"""Headless Chromium for tests, driven over its DevTools protocol: what a person does on a page, and what the browser saw."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

EXECUTABLE = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None)
START_S = 30
WAIT_S = 20
# name → (code, virtual key code, text)
KEYS = {
    "Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " "), "Escape": ("Escape", 27, ""), "Home": ("Home", 36, ""),
    "End": ("End", 35, ""), "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, ""), "Backspace": ("Backspace", 8, ""),
}  # fmt: skip
SHIFT = 8


class PageError(Exception):
    """A script on the page failed, or what was waited for did not come."""


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection, downloads: Path) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.downloads = downloads
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        told = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            allowUnsafeEvalBlockedByCSP=True,
        )
        if "exceptionDetails" in told:
            raise PageError(f"{expression}: {told['exceptionDetails'].get('exception', told['exceptionDetails'])}")
        return told["result"].get("value")

    def until(self, expression: str, timeout_s: float = WAIT_S) -> None:
        """Waits until the expression is true."""
        end_s = time.monotonic() + timeout_s
        while not self.js(f"(async () => Boolean(await ({expression})))()"):
            if time.monotonic() > end_s:
                raise PageError(f"not within {timeout_s:g} s: {expression}; the page says: {self.js('document.body.innerText')}")
            time.sleep(0.03)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def reload(self) -> None:
        self.js("window.old = true")
        self.call("Page.reload")
        self.until("!window.old && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({selector!r}).innerText"))

    def focused(self) -> str:
        """What has the focus: its id, else its classes and label."""
        return str(self.js("(e => e.id || `${e.className} ${e.getAttribute('aria-label')}`)(document.activeElement)"))

    def click(self, selector: str) -> None:
        """With the mouse, in the element's middle."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())")
        self.click_at(x, y)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, number, text = KEYS.get(key, (f"Key{key.upper()}", ord(key.upper()[0]), key))
        parameters = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def drop(self, selector: str, file: Path) -> None:
        """A file, dragged from the desktop onto an element."""
        x, y = self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())")
        for kind in ("dragEnter", "dragOver", "drop"):
            data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, file: Path) -> None:
        """A file, as the dialog of a file input gives it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def look_like(self, *, width: int, height: int, dark: bool = False, scale: float = 1.0, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.until("document.getAnimations().every(a => a.playState !== 'running')")

    def picture(self, file: Path, *, whole: bool = False) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))

    def downloaded(self, name: str, timeout_s: float = WAIT_S) -> bytes:
        """The content of a finished download."""
        file, end_s = self.downloads / name, time.monotonic() + timeout_s
        while not file.exists():
            if time.monotonic() > end_s:
                raise PageError(f"{name} was not downloaded; there are {[found.name for found in self.downloads.iterdir()]}")
            time.sleep(0.03)
        return file.read_bytes()

    def accessible(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader meets."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def _seen(self, method: str) -> list[dict[str, Any]]:
        self.js("1")  # what has arrived until now
        return [event["params"] for event in self.events if event.get("method") == method]

    def requests(self) -> list[str]:
        return [told["request"]["url"] for told in self._seen("Network.requestWillBeSent")]

    def until_cancelled(self) -> None:
        """Waits until the page itself has broken a request off."""
        end_s = time.monotonic() + WAIT_S
        while not any(told.get("canceled") for told in self._seen("Network.loadingFailed")):
            if time.monotonic() > end_s:
                raise PageError(f"no request was broken off: {self._seen('Network.loadingFailed')}")
            time.sleep(0.03)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, broken policies and scripts that failed."""
        said = [told for told in self._seen("Runtime.consoleAPICalled") if told["type"] in ("error", "warning", "assert")]
        failed = [told["exceptionDetails"] for told in self._seen("Runtime.exceptionThrown")]
        entries = [told["entry"] for told in self._seen("Log.entryAdded") if told["entry"]["level"] in ("error", "warning")]
        return [*(json.dumps(told) for told in said + failed), *(f"{entry['text']} {entry.get('url', '')}" for entry in entries)]


@contextmanager
def browser(folder: Path, *, microphone: Path | None = None) -> Iterator[Page]:
    """A fresh Chromium with one empty tab; `microphone` is the WAV file that it hears, again and again."""
    assert EXECUTABLE
    profile, downloads = folder / "profile", folder / "downloads"
    downloads.mkdir(parents=True)
    command = [
        EXECUTABLE, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        *([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []),
        f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
    ]  # fmt: skip
    with (folder / "chromium.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            port = _port(profile / "DevToolsActivePort", process)
            tabs = [tab for tab in httpx.get(f"http://127.0.0.1:{port}/json/list").json() if tab["type"] == "page"]
            with connect(tabs[0]["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Page(socket, downloads)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _port(file: Path, process: subprocess.Popen) -> int:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            raise PageError(f"Chromium ended with {process.returncode}: {(file.parents[1] / 'chromium.log').read_text()[-2000:]}")
        time.sleep(0.05)
    raise PageError(f"Chromium did not start within {START_S} s")
