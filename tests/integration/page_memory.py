"""What a browser holds for songs of ten minutes: PYTHONPATH=.:tests python tests/integration/page_memory.py (a minute; decision 17).

The service here answers at once with stems of noise, so that only the page is measured.
"""

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
from chromium import Page, browser
from page_service import Backend, Service, serve
from serving_parts import tiny_checkpoint

from serving.engine.engine import _zip
from serving.engine.load import load_engine
from serving.http.app import AppConfig
from serving.schema import AccompanimentRequest, AccompanimentResult, Fit, StageSeconds

MINUTES = 10
RATE_HZ = 44_100
WAIT_S = 120
PLAYER = "(await import('/page/app.js')).player"


def noise(channels: int) -> bytes:
    samples_NC = (3_000 * np.random.default_rng(0).standard_normal((MINUTES * 60 * RATE_HZ, channels))).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples_NC, RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


class Prompt(Backend):
    """Answers every request with the same stems."""

    stems: bytes

    async def generate(self, _vocal: bytes, request: AccompanimentRequest, *_: object, **__: object) -> AccompanimentResult:
        fit = Fit(harmony=0.7, rhythm=0.5, overall=0.5, leakage=0.0)
        return AccompanimentResult(
            audio=self.stems, media_type="application/zip", file_name="stems.zip", model="noise", seed=request.seed or 0, fit=fit,
            candidate_fits=(fit,), duration_s=60.0 * MINUTES, stages=StageSeconds(diffuse=1.0),
        )  # fmt: skip


def held_mb() -> dict[str, int]:
    """Resident memory of Chromium's largest process of each kind."""
    held: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command, memory = " ".join(process.cmdline()), process.memory_info().rss // 2**20
        except psutil.NoSuchProcess:
            continue
        kind = "page" if "--type=renderer" in command else "browser" if "--type=" not in command else "others"
        held[kind] = max(memory, held.get(kind, 0))
    return held


def measure(page: Page, vocal: Path) -> None:
    def say(what: str, start_s: float) -> None:
        sys.stdout.write(f"{what}: {time.monotonic() - start_s:.1f} s, MB {held_mb()}\n")

    def player(script: str) -> str:
        return f"(async () => {{ const player = {PLAYER}; return {script}; }})()"

    start_s = time.monotonic()
    say("empty", start_s)
    page.drop("#drop", vocal)
    peak: dict[str, int] = {}
    while page.js("document.getElementById('go').disabled"):
        peak = {kind: max(memory, peak.get(kind, 0)) for kind, memory in held_mb().items()}
    say(f"dropped, at most {peak}", start_s)
    for take in (1, 2, 3):
        start_s = time.monotonic()
        page.click("#go")
        page.until(f"document.querySelectorAll('.take').length === {take} && document.getElementById('work').hidden", WAIT_S)
        say(f"take {take}", start_s)
    start_s = time.monotonic()
    page.click("#play")
    for place_s in (500, 100):
        page.js(player(f"player.seek({place_s})"))
        page.until(player(f"player.position_s > {place_s + 4}"))
        page.press("x")
    say("played and compared", start_s)
    page.click("#play")
    start_s = time.monotonic()
    page.click(".take .keep")
    page.until("document.querySelector('.take .keep').ariaPressed === 'true'", WAIT_S)
    say("kept", start_s)
    start_s = time.monotonic()
    page.click(".take .save-mix")
    page.downloaded("take-3-mix.wav", WAIT_S)
    say("mix saved", start_s)
    start_s = time.monotonic()
    page.reload()
    page.until("document.querySelectorAll('.take').length === 1 && !document.getElementById('play').disabled", WAIT_S)
    say("come back", start_s)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = str(tiny_checkpoint(folder / "tiny"))
        backend = Prompt(load_engine(checkpoint=checkpoint, codec=None, device="cpu", threads=1, max_duration_s=601.0, hang_after_s=60.0))
        stereo = noise(2)
        backend.stems = _zip({"vocal.wav": stereo, "accompaniment.wav": stereo, "mix.wav": stereo})[0]
        vocal = folder / "vocal.wav"
        vocal.write_bytes(noise(1))
        with serve(Service(backend, AppConfig(max_upload_bytes=2**28))) as service, browser(folder / "browser") as page:
            page.go(service.url)
            page.until("document.getElementById('steps').placeholder !== \"the model's own\"")
            measure(page, vocal)


if __name__ == "__main__":
    main()
