"""The distribution's Chromium for tests, driven by Playwright: how it is started, and what it complained of."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
REMEDY = "install the package chromium"
# Waiting costs nothing where nothing is wrong, and a busy machine is slow.
WAIT_S = 20.0
expect.set_options(timeout=1_000 * WAIT_S)


def options(executable: str, *, microphone: Path | None = None) -> dict[str, Any]:
    """How Chromium is started: it reaches this machine alone; `microphone` is the WAV file that it hears, again and again."""
    arguments = [
        "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio", "--no-first-run", "--disable-quic",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        *([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []),
    ]  # fmt: skip
    return {"executable_path": executable, "args": arguments}


@contextmanager
def browser(executable: str, *, microphone: Path | None = None) -> Iterator[Browser]:
    """While it runs, this thread has a running event loop (Playwright's own), and `asyncio.run` fails in it."""
    with sync_playwright() as playwright, playwright.chromium.launch(**options(executable, microphone=microphone)) as running:
        yield running


def player(page: Page, expression: str) -> Any:
    """The value of an expression about the page's `player`."""
    return page.evaluate(f"async () => {{ const {{ player }} = await import('/page/app.js'); return {expression}; }}")


def until(page: Page, condition: str) -> None:
    """Looks every 10 ms. Playwright's `wait_for_function` evaluates in the page, whose policy forbids that."""
    late = f"not within {WAIT_S:g} s: {condition}"
    page.evaluate(f"""async () => {{
        for (const end = performance.now() + {1_000 * WAIT_S}; !({condition}); await new Promise(done => setTimeout(done, 10)))
            if (performance.now() > end) throw new Error({json.dumps(late)});
    }}""")


def until_player(page: Page, condition: str) -> None:
    until(page, f"(({{ player }}) => {condition})(await import('/page/app.js'))")


class Watch:
    """What a browser context asks for, and what its console says of errors, warnings, broken policies and scripts that failed."""

    def __init__(self, context: BrowserContext) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.allowed: list[str] = []
        """Parts of what the console may say in this test."""
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("console", self._hear)
        context.on("weberror", lambda failure: self.said.append(str(failure.error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.said.append(f"{message.text} {message.location['url']}")

    def elsewhere(self, origin: str) -> list[str]:
        """What was asked of another host."""
        return [url for url in self.asked if not url.startswith((f"{origin}/", f"blob:{origin}/", "data:"))]

    def complaints(self) -> list[str]:
        return [line for line in self.said if not any(part in line for part in self.allowed)]
