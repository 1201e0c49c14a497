"""The musician's page in a real browser, on the real application with a tiny engine."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page_browser
import pytest
import serving_parts as parts
import soundfile
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from conftest import needs
from page_browser import Watch, player, until, until_player
from page_service import Backend, Service, serve
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig
from serving.problems import Problem

SECONDS = 6.0
DESK = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "is_mobile": True, "has_touch": True}
DARK = {"color_scheme": "dark"}


@pytest.fixture(scope="module")
def vocal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vocal") / "my vocal.wav"
    file.write_bytes(parts.vocal(SECONDS))
    return file


@pytest.fixture(scope="module")
def browser(vocal: Path) -> Iterator[Browser]:
    """One for this file, no longer: other tests call `asyncio.run`."""
    with page_browser.browser(needs(page_browser.CHROMIUM, page_browser.REMEDY), microphone=vocal) as running:
        yield running


@pytest.fixture(scope="module")
def running(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert browser.is_connected()  # without one, nothing is loaded
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    engine = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=1, max_duration_s=60.0, hang_after_s=60.0)
    with serve(Service(Backend(engine), AppConfig())) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """As it is at first, whatever the last test made of it."""
    running.rest()
    yield running
    running.rest()


@pytest.fixture
def looks() -> dict[str, Any]:
    return DESK


@pytest.fixture
def context(browser: Browser, looks: dict[str, Any]) -> Iterator[BrowserContext]:
    """A visitor who was never here."""
    with browser.new_context(**looks, permissions=["microphone"]) as made:
        yield made


@pytest.fixture
def watch(context: BrowserContext) -> Watch:
    return Watch(context)


@pytest.fixture
def tab(context: BrowserContext, watch: Watch) -> Iterator[Page]:
    """An empty tab. Afterwards nothing was asked of another host, and the console was silent but for what the test allows."""
    page = context.new_page()
    yield page
    origin = page.evaluate("location.origin")
    assert watch.elsewhere(origin) == []
    assert watch.complaints() == []


@pytest.fixture
def page(tab: Page, service: Service) -> Page:
    return visited(tab, service)


def visited(tab: Page, service: Service) -> Page:
    """The page when it knows its service."""
    tab.goto(service.url)
    expect(tab.locator("#service")).to_have_text("ready")
    expect(tab.locator("#steps")).not_to_have_attribute("placeholder", "the model's own")
    return tab


def drop(page: Page, vocal: Path) -> None:
    page.locator("#drop").drop({"files": vocal})
    expect(page.locator("#go")).to_be_enabled()


def take(page: Page, *, seed: int, steps: int = 2) -> None:
    """Asks for a band by the form, and waits for its take."""
    before = page.locator(".take").count()
    if not page.locator("#steps").is_visible():
        page.get_by_text("Finer settings").click()
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_label("Steps", exact=True).fill(str(steps))
    page.locator("#go").click()
    expect(page.locator(".take")).to_have_count(before + 1)
    expect(page.locator("#work")).to_be_hidden()


def open_booth(page: Page) -> None:
    page.locator("#record").click()
    expect(page.locator("#booth")).to_be_visible()


def heard(page: Page) -> Locator:
    return page.locator(".take.heard .name")


def is_pressed(button: Locator) -> None:
    expect(button).to_have_attribute("aria-pressed", "true")


def loudest(page: Page, lane: str) -> float:
    """The loudest sample of a lane in 0.7 s, longer than a rest of the vocal; the first 0.1 s are left out, for a meter looks back."""
    return page.evaluate(
        """async lane => {
            const { player } = await import('/page/app.js'), start_s = player.context.currentTime;
            let peak = 0;
            for (let at_s = start_s; at_s < start_s + 0.8; at_s = player.context.currentTime) {
                if (at_s > start_s + 0.1) peak = Math.max(peak, player.level(lane));
                await new Promise(done => setTimeout(done, 10));
            }
            return peak;
        }""",
        lane,
    )


def is_drawn(page: Page, lane: str) -> bool:
    wave = page.locator(f".wave[data-lane={lane}] .ahead")
    return wave.evaluate("canvas => canvas.getContext('2d').getImageData(0, 0, 900, 200).data.some(x => x)")


def saved(page: Page, button: str) -> tuple[str, bytes]:
    """Name and content of what the first take's button downloads."""
    with page.expect_download() as download:
        page.locator(".take").first.locator(button).click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def is_accessible(page: Page) -> AxeResults:
    """axe finds nothing: every control has a name, every text its contrast (WCAG 1.4.3), and the rest of its rules."""
    until(page, "document.getAnimations().every(a => a.playState !== 'running' || a.effect.getTiming().iterations === Infinity)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    return found


def is_accessible_for_certain(page: Page) -> None:
    """There is no text either whose contrast axe cannot tell."""
    doubts = [rule["nodes"] for rule in is_accessible(page).response["incomplete"] if rule["id"] == "color-contrast"]
    assert doubts == []


def test_a_vocal_a_band_and_its_scores(page: Page, service: Service, vocal: Path) -> None:
    drop(page, vocal)
    expect(page.locator("#vocal-name")).to_have_text("my vocal.wav, 0:06")
    assert is_drawn(page, "vocal")
    page.get_by_role("radio", name="3", exact=True).check()
    take(page, seed=7)
    (asked,) = service.backend.asked
    assert (asked.seed, asked.candidates, asked.steps, asked.output) == (7, 3, 2, "stems")
    about = page.locator(".take .about")
    expect(about).to_contain_text("seed 7")
    expect(about).to_contain_text("best of 3")
    numbers, words = (page.locator(f".scores .{name}").all_inner_texts() for name in ("number", "words"))
    assert [0 <= float(number) <= 1 for number in numbers] == [True] * 3
    assert len(words) == 3
    assert set(words) <= {"tight", "good", "loose", "off"}
    assert is_drawn(page, "band")


def test_the_example_vocal_is_played_to(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Try an example").click()
    expect(page.locator("#vocal-name")).to_have_text("example.ogg, 0:20")
    assert is_drawn(page, "vocal")
    take(page, seed=7)
    assert [request.seed for request in service.backend.asked] == [7]


def test_transport_and_faders(page: Page, vocal: Path) -> None:
    drop(page, vocal)
    take(page, seed=7)
    lanes = {name: page.locator(f".lane[data-lane={name}]") for name in ("vocal", "band")}
    mute, solo = lanes["vocal"].locator(".mute"), lanes["vocal"].locator(".solo")
    page.locator("#loop").click()
    page.locator("#play").click()
    until_player(page, "player.position_s > 0.3")
    assert loudest(page, "vocal") > 0.01
    assert loudest(page, "band") > 1e-3
    mute.click()
    until_player(page, "player.buses[0].gain.value < 1e-5")
    assert loudest(page, "vocal") == pytest.approx(0, abs=1e-4)
    assert loudest(page, "band") > 1e-3
    is_pressed(mute)
    mute.click()
    solo.click()
    until_player(page, "player.buses[1].gain.value < 1e-5")
    assert loudest(page, "band") == pytest.approx(0, abs=1e-4)
    assert loudest(page, "vocal") > 0.01
    solo.click()
    lanes["band"].locator(".fader").fill("-6")
    until_player(page, "Math.abs(player.buses[1].gain.value - 10 ** (-6 / 20)) < 1e-3")
    expect(lanes["band"].locator(".db")).to_have_text("−6 dB")
    page.locator("#play").click()
    assert not player(page, "player.playing")
    box = page.locator("#timeline").bounding_box()
    assert box
    page.locator("#timeline").click(position={"x": box["width"] / 2, "y": 20})
    assert player(page, "player.position_s") == pytest.approx(SECONDS / 2, abs=0.05)
    expect(page.locator("#clock")).to_have_text("0:03 / 0:06")


def test_takes_are_compared_kept_and_saved(page: Page, vocal: Path) -> None:
    takes = page.locator(".take")
    drop(page, vocal)
    take(page, seed=7)
    page.locator("#loop").click()  # on a busy machine a band may take longer than the song
    page.locator("#play").click()
    take(page, seed=8)
    expect(heard(page)).to_have_value("Take 2")
    assert player(page, "player.playing")
    # The place goes on as the time does, however long the click took.
    behind = "(player.context.currentTime - player.position_s)"
    before = player(page, behind)
    page.locator("#compare").click()
    expect(heard(page)).to_have_value("Take 1")
    assert (player(page, behind) - before + SECONDS / 2) % SECONDS == pytest.approx(SECONDS / 2, abs=0.1)
    assert player(page, "player.playing")
    page.keyboard.press("x")
    expect(heard(page)).to_have_value("Take 2")
    page.locator("#play").click()
    takes.first.locator(".name").fill("The quiet one")
    takes.first.locator(".name").press("Enter")
    expect(takes.first.locator(".hear")).to_be_focused()
    assert not player(page, "player.playing")  # the key was for the name alone
    takes.first.locator(".keep").click()
    is_pressed(takes.first.locator(".keep"))
    takes.nth(1).locator(".remove").click()
    expect(page.locator("#notice")).to_contain_text("Take 1 is deleted")
    page.locator("#notice").get_by_role("button").click()
    expect(takes).to_have_count(2)
    page.reload()
    expect(takes).to_have_count(1)
    expect(heard(page)).to_have_value("The quiet one")
    expect(page.locator("#vocal-name")).to_have_text("my vocal.wav, 0:06")
    expect(page.locator("#go")).to_be_enabled()
    page.locator("#play").click()
    until_player(page, "player.level('vocal') > 0.01")
    page.locator("#play").click()
    name, content = saved(page, ".save-stems")
    assert name == "the-quiet-one-stems.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as stems:
        assert stems.testzip() is None
        sounds = {name: soundfile.read(io.BytesIO(stems.read(name))) for name in stems.namelist()}
    assert set(sounds) == {"vocal.wav", "accompaniment.wav", "mix.wav"}
    assert {(len(sound), rate) for sound, rate in sounds.values()} == {(int(SECONDS * 44_100), 44_100)}
    band = sounds["accompaniment.wav"][0]
    player(page, "(player.set('vocal', {muted: true}), player.set('band', {db: -6}))")
    name, content = saved(page, ".save-mix")
    assert name == "the-quiet-one-mix.wav"
    assert np.abs(soundfile.read(io.BytesIO(content))[0] - band * 10 ** (-6 / 20)).max() < 1e-3
    name, content = saved(page, ".save-band")
    assert name == "the-quiet-one-band.wav"
    assert np.array_equal(soundfile.read(io.BytesIO(content))[0], band)


def test_windows_loops_and_takes_join_to_the_sample(page: Page) -> None:
    """Two takes of the same noise, compared while they play in a loop: what is heard is the noise, without a click."""
    page.locator("#to-start").click()  # a context plays only after somebody has done something
    told = page.evaluate(
        """async () => {
        const { Player } = await import('/page/sound/player.js'), { openWav, pack, wavOf, RATE_HZ } = await import('/page/sound/wav.js');
        const noise = Float32Array.from({ length: 2.5 * RATE_HZ }, () => Math.random() - 0.5), packed = pack([noise]);
        const deck = async () => ({ vocal: await openWav(wavOf([packed], { channels: 1, rate_hz: RATE_HZ })), band: null });
        const context = new AudioContext({ sampleRate: RATE_HZ }), player = new Player(context), heard = [];
        await context.audioWorklet.addModule('/page/sound/recorder-worklet.js');
        const capture = new AudioWorkletNode(context, 'capture', { numberOfOutputs: 0 });
        capture.port.onmessage = ({ data }) => heard.push(data.packet);
        player.buses[0].connect(capture);
        const wait = ms => new Promise(done => setTimeout(done, ms));
        await player.load(await deck());
        await player.repeat(true);
        await player.play();
        await wait(1200);
        await player.load(await deck());
        await wait(1000);
        await player.load(await deck());
        await wait(1300);
        player.pause();
        const all = heard.flatMap(packet => [...packet]), from = all.findIndex(sample => sample !== 0) + 4410;
        const start = packed.findIndex((_, n) => [0, 1, 2, 3, 4].every(i => Math.abs(packed[n + i] - all[from + i]) < 3));
        let worst = 0, compared = 0;
        for (let n = from; n < from + 3 * RATE_HZ && n < all.length; n++, compared++)
          worst = Math.max(worst, Math.abs(all[n] - packed[(start + n - from) % packed.length]));
        await context.close();
        return { start, worst, compared };
    }"""
    )
    assert told["start"] >= 0
    assert told["compared"] > 2.9 * 44_100
    assert told["worst"] <= 2, f"of 32768: {json.dumps(told)}"


def test_a_recording(page: Page) -> None:
    """Chromium's fake microphone sings the vocal again and again."""

    def until_recorded(clock: str) -> None:
        # Not by `expect`, which looks once a second in the end.
        until(page, f"document.getElementById('booth-clock').textContent === {clock!r}")

    open_booth(page)
    until(page, "Number(document.getElementById('level').ariaValueNow) > -30")
    expect(page.locator("#input option")).not_to_have_count(0)
    page.locator("#roll").click()
    until_recorded("0:01")
    page.locator("#leave").click()  # starts over
    expect(page.locator("#booth-clock")).to_have_text("0:00")
    until_recorded("0:02")
    page.locator("#roll").click()
    expect(page.locator("#go")).to_be_enabled()
    expect(page.locator("#vocal-name")).to_contain_text("recording.wav, 0:0")
    assert 1.9 < player(page, "player.duration_s") < 2.9
    expect(page.locator("#booth")).to_be_hidden()
    take(page, seed=1)
    page.locator("#play").click()
    until_player(page, "player.level('vocal') > 0.01")


def test_without_a_mouse(page: Page, vocal: Path) -> None:
    def focused() -> str:
        """What has the focus: its id, else its classes and label."""
        return page.evaluate("(e => e.id || `${e.className} ${e.getAttribute('aria-label')}`)(document.activeElement)")

    def go_to(control: str) -> list[str]:
        """By Tab; what has had the focus on the way."""
        met: list[str] = []
        while not met or met[-1] != control:
            page.keyboard.press("Tab")
            met.append(focused())
            assert len(met) < 60, met
            assert page.evaluate("document.activeElement === document.body || document.activeElement.matches(':focus-visible')"), met
        return met

    # From before the way there: a dialog that opens at once is faster than the browser's being told to give it away.
    with page.expect_file_chooser() as chooser:
        go_to("choose")
        page.keyboard.press("Enter")
    chooser.value.set_files(vocal)
    expect(page.locator("#go")).to_be_enabled()
    go_to("go")
    page.keyboard.press("Enter")
    expect(page.locator(".take")).to_have_count(1)
    expect(page.locator("#play")).to_be_focused()
    go_to("go")
    reached = " ".join(go_to("go"))
    for control in ("choose", "record", "seed", "timeline", "play", "loop", "help", "keep", "save-mix", "save-stems", "remove", "fader"):
        assert control in reached
    assert {"mute", "solo"} <= set(reached.split())
    go_to("timeline")
    page.keyboard.press("ArrowRight")
    assert player(page, "player.position_s") == pytest.approx(5.0)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    until_player(page, "player.playing && player.position_s > 0.1")
    page.keyboard.press("m")
    assert player(page, "player.gain('vocal')") == 0
    page.keyboard.press("Shift+S")
    assert player(page, "[player.gain('band'), player.mix.band.solo]") == [1, True]
    page.keyboard.press("l")
    until_player(page, "player.loop")
    page.keyboard.press("Space")
    until_player(page, "!player.playing")
    page.keyboard.press("k")
    is_pressed(page.locator(".take .keep"))


def cancel(page: Page) -> None:
    """The page itself breaks the request off."""
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/accompaniments")) as broken:
        page.locator("#cancel").click()
    assert broken.value.failure == "net::ERR_ABORTED"
    expect(page.locator("#work")).to_be_hidden()


def test_progress_and_cancelling(page: Page, service: Service, vocal: Path) -> None:
    drop(page, vocal)
    service.backend.hold.clear()
    page.locator("#go").click()
    expect(page.locator("#progress-text")).to_contain_text("step 5 of 20")
    assert page.locator("#progress").evaluate("bar => bar.value") == pytest.approx(0.25)
    is_accessible_for_certain(page)
    service.progress = {"state": "queued", "steps_done": 0, "steps": 0, "queue_position": 3}
    expect(page.locator("#progress-text")).to_contain_text("place 3 in the queue")
    assert page.locator("#progress").get_attribute("value") is None
    assert len(set(service.asked_progress)) == 1
    cancel(page)
    expect(page.locator(".take")).to_have_count(0)
    expect(page.locator("#problem")).to_be_hidden()


def test_progress_where_two_ingresses_answer_in_turn(page: Page, service: Service, vocal: Path, watch: Watch) -> None:
    """The one that does not know the request takes nothing away from what the other told, however often."""
    watch.allowed.append("status of 404")
    drop(page, vocal)
    service.backend.hold.clear()
    service.odd_only = True
    page.locator("#go").click()
    text = page.locator("#progress-text")
    expect(text).to_contain_text("step 5 of 20")
    text.evaluate("""text => (globalThis.said = [], new MutationObserver(() => said.push(text.textContent))
        .observe(text, { childList: true, characterData: true, subtree: true }))""")
    before = len(service.asked_progress)
    while len(service.asked_progress) < before + 14:
        page.wait_for_timeout(100)
    assert page.evaluate("said.every(text => text.includes('step 5 of 20'))")
    cancel(page)


def test_models_of_a_service_that_wakes_are_asked_for_again(tab: Page, service: Service, watch: Watch) -> None:
    watch.allowed.append("status of 503")
    service.backend.asleep, service.backend.others = 2, ["another"]
    page = visited(tab, service)  # until the model's own steps are known
    assert service.backend.asleep == 0
    expect(page.locator("#model-field")).to_be_visible()


def test_refusals_are_said_in_words(page: Page, service: Service, vocal: Path, watch: Watch, tmp_path: Path) -> None:
    watch.allowed += [f"status of {status}" for status in (503, 429, 400, 404)]
    problem, go = page.locator("#problem"), page.locator("#go")
    damaged = tmp_path / "text.wav"
    damaged.write_text("this is no sound")
    page.locator("#drop").drop({"files": damaged})
    expect(page.locator("#vocal-problem")).to_contain_text("cannot be read as audio")
    is_accessible_for_certain(page)
    drop(page, vocal)
    expect(page.locator("#vocal-problem")).to_be_hidden()
    service.progress = None
    service.backend.refusals = [Problem(status=503, detail="full", retry_after_s=2), Problem(status=429, detail="share", retry_after_s=2)]
    go.click()
    expect(problem).to_contain_text("The service is busy. It is asked again in")
    expect(problem).to_contain_text("as many bands in work")
    expect(page.locator(".take")).to_have_count(1)
    expect(problem).to_be_hidden()
    service.backend.refusals = [Problem(status=503, detail="full", retry_after_s=60)] * 2
    go.click()
    expect(page.locator("#again")).to_be_visible()
    with page.expect_response(lambda answer: answer.status == 503):
        page.locator("#retry").click()
    expect(page.locator("#again")).to_be_visible()
    expect(page.locator("#work")).to_be_hidden()
    page.locator("#give-up").click()
    expect(problem).to_be_hidden()
    service.backend.refusals = [Problem(status=400, title="Unreadable audio", detail="it ends early")]
    go.click()
    expect(problem).to_have_text("Unreadable audio: it ends early")
    is_accessible_for_certain(page)


@pytest.fixture
def locked(service: Service) -> Iterator[Service]:
    with serve(Service(service.backend, AppConfig(api_key_digests=(digest("sesame"),)))) as asking:
        yield asking


def test_a_key_is_asked_for_and_not_stored(locked: Service, tab: Page, vocal: Path, watch: Watch) -> None:
    watch.allowed.append("status of 401")
    tab.goto(locked.url)
    expect(tab.locator("#key-field")).to_be_visible()
    drop(tab, vocal)
    tab.locator("#go").click()
    expect(tab.locator("#problem")).to_have_text("This service asks for a key.")
    expect(tab.locator("#key")).to_be_focused()
    tab.keyboard.type("sesame")
    tab.keyboard.press("Enter")
    expect(tab.locator(".take")).to_have_count(1)
    assert tab.evaluate("[sessionStorage['backline-key'], Object.values(localStorage).includes('sesame')]") == ["sesame", False]


@pytest.mark.parametrize("looks", [PHONE, PHONE | DARK], ids=["light", "dark"])
def test_a_phone(page: Page, vocal: Path) -> None:
    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # WCAG 2.5.8: targets of at least 24 pixels
        tight = "buttons => buttons.filter(b => b.offsetWidth && Math.min(b.offsetWidth, b.offsetHeight) < 24 && b.id !== 'help').length"
        assert page.locator("button").evaluate_all(tight) == 0
        is_accessible_for_certain(page)

    fits()
    drop(page, vocal)
    take(page, seed=2**53 - 1)
    open_booth(page)
    expect(page.locator("#steps")).to_be_visible()
    fits()


@pytest.mark.parametrize("looks", [DESK, DESK | DARK], ids=["light", "dark"])
def test_everything_has_a_name_and_text_has_contrast(page: Page, vocal: Path) -> None:
    is_accessible_for_certain(page)
    drop(page, vocal)
    take(page, seed=7)
    open_booth(page)
    player(page, "(player.set('vocal', {muted: true}), player.set('band', {solo: true}), player.repeat(true))")
    page.locator(".take .keep").click()
    is_pressed(page.locator(".take .keep"))
    is_accessible_for_certain(page)
    for role, name in (
        ("main", None), ("heading", "backline"), ("meter", "Level of the microphone"), ("slider", "Place in the song"),
        ("slider", "Vocal level"), ("button", "Mute the band"), ("button", "Hear Take 1"), ("button", "Keep Take 1"),
        ("button", "Delete Take 1"), ("button", "Play"), ("button", "Loop"), ("radio", "3"), ("spinbutton", "Seed"),
        ("textbox", "Name of Take 1"),
    ):  # fmt: skip
        expect(page.get_by_role(role, name=name, exact=True)).to_be_visible()
    page.locator("#help").click()
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    is_accessible(page)  # it has arrows, which axe does not take for text


def test_a_model_is_chosen_where_there_are_several(page: Page, service: Service) -> None:
    expect(page.locator("#model-field")).to_be_hidden()
    service.backend.others = ["student"]
    page.reload()
    expect(page.locator("#model-field")).to_be_visible()
    values = page.locator("#model option").evaluate_all("options => options.map(option => option.value)")
    assert values == ["", parts.MODEL_NAME, "student"]


@pytest.mark.parametrize("looks", [DESK, DESK | DARK, PHONE], ids=["light", "dark", "phone"])
def test_the_documents_for_programs(tab: Page, service: Service) -> None:
    tab.goto(f"{service.url}/docs")
    expect(tab.locator("section").nth(3)).to_be_visible()
    expect(tab.locator("#main")).to_contain_text("/v1/accompaniments")
    is_accessible(tab)


def test_what_goes_wrong_on_a_page_is_noticed(page: Page, service: Service, watch: Watch) -> None:
    """The silence that every test here ends with would otherwise prove nothing."""
    with page.expect_event("pageerror"):
        page.evaluate("setTimeout(() => { throw new Error('boom'); })")
    page.evaluate("console.error('said aloud')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), { textContent: '1' }))")
    with page.expect_event("requestfailed"):
        page.goto("data:text/html,<img src='http://elsewhere.invalid/picture.png'>")
    for part in ("boom", "said aloud", "Content Security Policy", "ERR_NAME_NOT_RESOLVED"):
        assert any(part in line for line in watch.complaints()), watch.said
        watch.allowed.append(part)
    assert watch.elsewhere(service.url) == ["http://elsewhere.invalid/picture.png"]
    watch.asked.clear()
