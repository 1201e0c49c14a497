"""What a browser holds for songs of ten minutes: PYTHONPATH=.:tests python tests/integration/page_memory.py (a minute; decision 17).

The service here answers at once with stems of noise, so that only the page is measured.
"""

import io
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import soundfile
from page_browser import CHROMIUM, options, player, until_player
from page_service import Backend, Service, serve
from playwright.sync_api import Page, expect, sync_playwright
from serving_parts import tiny_checkpoint

from serving.engine.load import load_engine
from serving.http.app import AppConfig
from serving.schema import AccompanimentRequest, AccompanimentResult, Fit, StageSeconds

MINUTES = 10
RATE_HZ = 44_100
WAIT_S = 120
expect.set_options(timeout=1_000 * WAIT_S)


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
        # Chromium's own process has a profile and no type; Playwright's driver has neither.
        kind = (
            "page"
            if "--type=renderer" in command
            else "browser"
            if "--user-data-dir=" in command and "--type=" not in command
            else "others"
        )
        held[kind] = max(memory, held.get(kind, 0))
    return held


def measure(page: Page, vocal: Path) -> None:
    def say(what: str, start_s: float) -> None:
        sys.stdout.write(f"{what}: {time.monotonic() - start_s:.1f} s, MB {held_mb()}\n")

    takes, play = page.locator(".take"), page.locator("#play")
    start_s = time.monotonic()
    say("empty", start_s)
    page.locator("#file").set_input_files(vocal)
    peak: dict[str, int] = {}
    while page.locator("#go").is_disabled():
        peak = {kind: max(memory, peak.get(kind, 0)) for kind, memory in held_mb().items()}
    say(f"chosen, at most {peak}", start_s)
    for take in (1, 2, 3):
        start_s = time.monotonic()
        page.locator("#go").click()
        expect(takes).to_have_count(take)
        expect(page.locator("#work")).to_be_hidden()
        say(f"take {take}", start_s)
    start_s = time.monotonic()
    play.click()
    for place_s in (500, 100):
        player(page, f"player.seek({place_s})")
        until_player(page, f"player.position_s > {place_s + 4}")
        page.keyboard.press("x")
    say("played and compared", start_s)
    play.click()
    start_s = time.monotonic()
    takes.first.locator(".keep").click()
    expect(takes.first.locator(".keep")).to_have_attribute("aria-pressed", "true")
    say("kept", start_s)
    start_s = time.monotonic()
    with page.expect_download(timeout=1_000 * WAIT_S) as download:
        takes.first.locator(".save-mix").click()
    assert download.value.path().stat().st_size > MINUTES * 60 * RATE_HZ * 4
    say("mix saved", start_s)
    start_s = time.monotonic()
    page.reload()
    expect(takes).to_have_count(1)
    expect(play).to_be_enabled()
    say("come back", start_s)


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        checkpoint = str(tiny_checkpoint(folder / "tiny"))
        backend = Prompt(load_engine(checkpoint=checkpoint, codec=None, device="cpu", threads=1, max_duration_s=601.0, hang_after_s=60.0))
        stereo = noise(2)
        stems = io.BytesIO()
        with zipfile.ZipFile(stems, "w", zipfile.ZIP_STORED) as archive:
            for name in ("vocal.wav", "accompaniment.wav", "mix.wav"):
                archive.writestr(name, stereo)
        backend.stems = stems.getvalue()
        vocal = folder / "vocal.wav"
        vocal.write_bytes(noise(1))
        chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None) or sys.exit("install the package chromium")
        with (
            serve(Service(backend, AppConfig(max_upload_bytes=2**28))) as service,
            sync_playwright() as playwright,
            # With a profile on disk, as people have it: without one, Chromium keeps every take in memory.
            playwright.chromium.launch_persistent_context(folder / "profile", **options(chromium)) as context,
        ):
            page = context.pages[0]
            page.goto(service.url)
            expect(page.locator("#steps")).not_to_have_attribute("placeholder", "the model's own")
            measure(page, vocal)


if __name__ == "__main__":
    main()
