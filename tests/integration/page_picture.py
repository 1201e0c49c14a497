"""The README's picture of the page: PYTHONPATH=. python tests/integration/page_picture.py FOLDER (empty, wide, dark, phone).

The shipped weights play for the vocal of model/weights/samples.
"""

import sys
import tempfile
from pathlib import Path

from chromium import Page, browser
from page_service import Backend, Service, serve

from model.checkpoint import SHIPPED_CHECKPOINT
from serving.engine.load import load_engine
from serving.http.app import AppConfig

VOCAL = SHIPPED_CHECKPOINT.parent / "samples" / "song-000102-vocal.ogg"
WAIT_S = 120


def played(page: Page, count: int, **fields: object) -> None:
    for name, value in fields.items():
        page.js(f"document.getElementById({name!r}).value = {value}")
    page.click("#go")
    page.until(f"document.querySelectorAll('.take').length === {count} && document.getElementById('work').hidden", WAIT_S)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    engine = load_engine(checkpoint=str(SHIPPED_CHECKPOINT), codec=None, device="cpu", threads=2, max_duration_s=600.0, hang_after_s=120.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Service(Backend(engine), AppConfig())) as service,
        browser(Path(folder) / "b") as page,
    ):
        page.look_like(width=1180, height=812)
        page.go(service.url)
        page.until("document.getElementById('service').textContent === 'ready'")
        page.picture(out / "empty.png")
        page.drop("#drop", VOCAL)
        page.until("!document.getElementById('go').disabled")
        played(page, 1, seed=7)
        page.click("#candidates label:nth-child(2)")
        played(page, 2, seed=8)
        page.js(
            "(n => { n.value = 'The one for the chorus'; n.dispatchEvent(new Event('change')); })(document.querySelector('.take .name'))"
        )
        page.click(".take .keep")
        page.click("#compare")
        page.js(
            "import('/page/app.js').then(({ player }) => { player.set('band', { db: -3 }); return player.seek(player.duration_s * .38); })"
        )
        page.js("(document.activeElement.blur(), scrollTo(0, 0), document.getElementById('notice').replaceChildren())")
        page.look_like(width=1180, height=812)
        page.picture(out / "wide.png")
        page.look_like(width=1180, height=812, dark=True)
        page.picture(out / "dark.png")
        page.look_like(width=360, height=740, scale=2, phone=True)
        page.picture(out / "phone.png", whole=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
