"""The README's picture of the page: PYTHONPATH=.:tests python tests/integration/page_picture.py FOLDER (empty, wide, dark, phone).

The shipped weights play for the vocal of model/weights/samples.
"""

import shutil
import sys
from pathlib import Path

from page_browser import CHROMIUM, browser, player
from page_service import Backend, Service, serve
from playwright.sync_api import Page, expect

from model.checkpoint import SHIPPED_CHECKPOINT
from serving.engine.load import load_engine
from serving.http.app import AppConfig

VOCAL = SHIPPED_CHECKPOINT.parent / "samples" / "song-000102-vocal.ogg"
WAIT_MS = 120_000


def played(page: Page, count: int, *, seed: int) -> None:
    page.locator("#seed").fill(str(seed))
    page.locator("#go").click()
    expect(page.locator(".take")).to_have_count(count, timeout=WAIT_MS)
    expect(page.locator("#work")).to_be_hidden()


def two_takes(page: Page) -> None:
    page.locator("#drop").drop({"files": VOCAL})
    expect(page.locator("#go")).to_be_enabled()
    played(page, 1, seed=7)
    page.get_by_role("radio", name="2", exact=True).check()
    played(page, 2, seed=8)
    newest = page.locator(".take").first
    newest.locator(".name").fill("The one for the chorus")
    newest.locator(".name").press("Enter")
    newest.locator(".keep").click()
    page.locator("#compare").click()
    player(page, "(player.set('band', { db: -3 }), player.seek(player.duration_s * .38))")
    page.evaluate("(document.activeElement.blur(), scrollTo(0, 0), document.getElementById('notice').replaceChildren())")


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None) or sys.exit("install the package chromium")
    engine = load_engine(checkpoint=str(SHIPPED_CHECKPOINT), codec=None, device="cpu", threads=2, max_duration_s=600.0, hang_after_s=120.0)
    with serve(Service(Backend(engine), AppConfig())) as service, browser(chromium) as running:
        with running.new_context(viewport={"width": 1180, "height": 812}, color_scheme="light") as desk:
            page = desk.new_page()
            page.goto(service.url)
            expect(page.locator("#service")).to_have_text("ready")
            page.screenshot(path=out / "empty.png")
            two_takes(page)
            page.screenshot(path=out / "wide.png", animations="disabled")
            page.emulate_media(color_scheme="dark")
            page.screenshot(path=out / "dark.png", animations="disabled")
        with running.new_context(viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True) as phone:
            page = phone.new_page()
            page.goto(service.url)
            two_takes(page)
            page.screenshot(path=out / "phone.png", full_page=True, animations="disabled")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
