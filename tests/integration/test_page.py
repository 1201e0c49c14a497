"""The musician's page in a real browser, on the real application with a tiny engine."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
import serving_parts as parts
import soundfile
from chromium import Page, PageError
from page_service import Backend, Service, serve

from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig
from serving.problems import Problem

pytestmark = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="there is no Chromium on this machine: install the package chromium")
SECONDS = 6.0
CONTRAST = Path(__file__).parent / "contrast.js"
PLAYER = "(await import('/page/app.js')).player"
CONTROLS = {"button", "textbox", "spinbutton", "slider", "combobox", "radio", "checkbox", "link", "meter", "progressbar", "group"}


def with_player(expression: str) -> str:
    return f"(async () => {{ const player = {PLAYER}; return {expression}; }})()"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    engine = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=1, max_duration_s=60.0, hang_after_s=60.0)
    with serve(Service(Backend(engine), AppConfig())) as running:
        yield running


@pytest.fixture(scope="module")
def vocal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vocal") / "my vocal.wav"
    file.write_bytes(parts.vocal(SECONDS))
    return file


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory, vocal: Path) -> Iterator[Page]:
    with chromium.browser(tmp_path_factory.mktemp("browser"), microphone=vocal) as page:
        yield page


@pytest.fixture
def page(tab: Page, service: Service) -> Iterator[Page]:
    """The page as at a first visit; afterwards nothing was asked of another host, and the console is silent."""
    yield from visited(tab, service)


def visited(tab: Page, service: Service, expected: tuple[str, ...] = ()) -> Iterator[Page]:
    tab.go("about:blank")
    tab.call("Storage.clearDataForOrigin", origin=service.url, storageTypes="all")
    tab.look_like(width=1280, height=900)
    tab.events.clear()
    tab.go(service.url)
    tab.until("document.getElementById('service').textContent === 'ready'")
    tab.until("document.getElementById('steps').placeholder !== \"the model's own\"")
    service.backend.asked.clear()
    service.asked_progress.clear()
    yield tab
    service.backend.hold.set()
    elsewhere = [url for url in tab.requests() if not url.startswith((service.url, f"blob:{service.url}", "data:"))]
    assert elsewhere == []
    complaints = [said for said in tab.complaints() if not any(text in said for text in expected)]
    assert complaints == []


def drop(page: Page, vocal: Path) -> None:
    page.drop("#drop", vocal)
    page.until("!document.getElementById('go').disabled")


def take(page: Page, *, seed: int, steps: int = 2) -> None:
    """Asks for a band by the form, and waits for its take."""
    before = page.js("document.querySelectorAll('.take').length")
    page.js(f"(document.getElementById('seed').value = {seed}, document.getElementById('steps').value = {steps})")
    page.click("#go")
    page.until(f"document.querySelectorAll('.take').length === {before + 1}")
    page.until("document.getElementById('work').hidden")


def loudest(page: Page, lane: str) -> float:
    """The loudest sample of a lane in 0.7 s, longer than a rest of the vocal."""
    script = """(async () => {
        const { player } = await import('/page/app.js');
        let peak = 0;
        for (const end = performance.now() + 700; performance.now() < end; await new Promise(done => setTimeout(done, 10)))
            peak = Math.max(peak, player.level(LANE));
        return peak;
    })()"""
    return float(page.js(script.replace("LANE", repr(lane))))


def heard(page: Page) -> str:
    return str(page.js("document.querySelector('.take.heard .name').value"))


def test_a_vocal_a_band_and_its_scores(page: Page, service: Service, vocal: Path) -> None:
    drop(page, vocal)
    assert page.text("#vocal-name") == "my vocal.wav, 0:06"
    assert page.js(
        "document.querySelector('.wave[data-lane=vocal] .ahead').getContext('2d').getImageData(0, 0, 900, 200).data.some(x => x)"
    )
    page.click("#candidates label:nth-child(3)")
    take(page, seed=7)
    (asked,) = service.backend.asked
    assert (asked.seed, asked.candidates, asked.steps, asked.output) == (7, 3, 2, "stems")
    assert "seed 7" in page.text(".take .about")
    assert "best of 3" in page.text(".take .about")
    for row in (1, 2, 3):
        number, words = page.text(f".scores div:nth-child({row}) .number"), page.text(f".scores div:nth-child({row}) .words")
        assert 0 <= float(number) <= 1
        assert words in ("tight", "good", "loose", "off")
    assert page.js("document.querySelector('.wave[data-lane=band] .ahead').getContext('2d').getImageData(0, 0, 900, 200).data.some(x => x)")


def test_transport_and_faders(page: Page, vocal: Path) -> None:
    drop(page, vocal)
    take(page, seed=7)
    page.click("#loop")
    page.click("#play")
    page.until(with_player("player.position_s > 0.3"))
    assert loudest(page, "vocal") > 0.01
    band = loudest(page, "band")
    assert band > 1e-3
    page.click(".lane[data-lane=vocal] .mute")
    page.until(with_player("player.buses[0].gain.value < 1e-5"))
    assert (loudest(page, "vocal"), loudest(page, "band") > 1e-3) == (pytest.approx(0, abs=1e-4), True)
    assert page.js("document.querySelector('.lane[data-lane=vocal] .mute').ariaPressed") == "true"
    page.click(".lane[data-lane=vocal] .mute")
    page.click(".lane[data-lane=vocal] .solo")
    page.until(with_player("player.buses[1].gain.value < 1e-5"))
    assert (loudest(page, "band"), loudest(page, "vocal") > 0.01) == (pytest.approx(0, abs=1e-4), True)
    page.click(".lane[data-lane=vocal] .solo")
    page.js("(f => { f.value = -6; f.dispatchEvent(new Event('input')); })(document.querySelector('.lane[data-lane=band] .fader'))")
    page.until(with_player("Math.abs(player.buses[1].gain.value - 10 ** (-6 / 20)) < 1e-3"))
    assert page.text(".lane[data-lane=band] .db") == "−6 dB"
    page.click("#play")
    assert not page.js(with_player("player.playing"))
    x, y, width = page.js("(r => [r.x, r.y + 20, r.width])(document.getElementById('timeline').getBoundingClientRect())")
    page.click_at(x + width / 2, y)
    assert page.js(with_player("player.position_s")) == pytest.approx(SECONDS / 2, abs=0.05)
    assert page.text("#clock") == "0:03 / 0:06"


def test_takes_are_compared_kept_and_saved(page: Page, vocal: Path) -> None:
    drop(page, vocal)
    take(page, seed=7)
    page.click("#play")
    take(page, seed=8)
    assert heard(page) == "Take 2"
    assert page.js(with_player("player.playing"))
    before = page.js(with_player("(await new Promise(r => setTimeout(r, 100)), player.position_s)"))
    page.click("#compare")
    page.until("document.querySelector('.take.heard .name').value === 'Take 1'")
    after = page.js(with_player("player.position_s"))
    assert 0 < (after - before) % SECONDS < 2
    page.press("x")
    page.until("document.querySelector('.take.heard .name').value === 'Take 2'")
    page.press(" ")
    page.js("(n => { n.value = 'The quiet one'; n.dispatchEvent(new Event('change')); })(document.querySelector('.take .name'))")
    page.click(".take .keep")
    page.until("document.querySelector('.take .keep').ariaPressed === 'true'")
    page.click(".take:nth-child(2) .remove")
    assert "Take 1 is deleted" in page.text("#notice")
    page.click("#notice button")
    assert page.js("document.querySelectorAll('.take').length") == 2
    page.reload()
    page.until("document.querySelectorAll('.take').length === 1")
    page.until("document.querySelector('.take.heard .name')?.value === 'The quiet one'")
    assert page.text("#vocal-name") == "my vocal.wav, 0:06"
    assert not page.js("document.getElementById('go').disabled")
    page.click("#play")
    page.until(with_player("player.level('vocal') > 0.01"))
    page.click("#play")
    page.click(".take .save-stems")
    with zipfile.ZipFile(io.BytesIO(page.downloaded("the-quiet-one-stems.zip"))) as stems:
        assert stems.testzip() is None
        sounds = {name: soundfile.read(io.BytesIO(stems.read(name))) for name in stems.namelist()}
    assert set(sounds) == {"vocal.wav", "accompaniment.wav", "mix.wav"}
    assert {(len(sound), rate) for sound, rate in sounds.values()} == {(int(SECONDS * 44_100), 44_100)}
    page.js(with_player("player.set('vocal', {muted: true}), player.set('band', {db: -6})"))
    page.click(".take .save-mix")
    mix, _ = soundfile.read(io.BytesIO(page.downloaded("the-quiet-one-mix.wav")))
    assert np.abs(mix - sounds["accompaniment.wav"][0] * 10 ** (-6 / 20)).max() < 1e-3
    page.click(".take .save-band")
    band, _ = soundfile.read(io.BytesIO(page.downloaded("the-quiet-one-band.wav")))
    assert np.array_equal(band, sounds["accompaniment.wav"][0])


def test_windows_loops_and_takes_join_to_the_sample(page: Page) -> None:
    """Two takes of the same noise, compared while they play in a loop: what is heard is the noise, without a click."""
    told = page.js(
        """(async () => {
        const { Player } = await import('/page/player.js'), { openWav, pack, wavOf, RATE_HZ } = await import('/page/wav.js');
        const noise = Float32Array.from({ length: 2.5 * RATE_HZ }, () => Math.random() - 0.5), packed = pack([noise]);
        const deck = async () => ({ vocal: await openWav(wavOf([packed], { channels: 1, rate_hz: RATE_HZ })), band: null });
        const context = new AudioContext({ sampleRate: RATE_HZ }), player = new Player(context), heard = [];
        await context.audioWorklet.addModule('/page/recorder-worklet.js');
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
    })()"""
    )
    assert told["start"] >= 0
    assert told["compared"] > 2.9 * 44_100
    assert told["worst"] <= 2, f"of 32768: {json.dumps(told)}"


def test_a_recording(page: Page) -> None:
    """Chromium's fake microphone sings the vocal again and again."""
    page.click("#record")
    page.until("!document.getElementById('booth').hidden")
    page.until("Number(document.getElementById('level').ariaValueNow) > -30")
    assert page.js("document.getElementById('input').options.length") >= 1
    page.click("#roll")
    page.until("document.getElementById('booth-clock').textContent === '0:01'")
    page.click("#leave")  # starts over
    assert page.text("#booth-clock") == "0:00"
    page.until("document.getElementById('booth-clock').textContent === '0:02'")
    page.click("#roll")
    page.until("!document.getElementById('go').disabled")
    assert page.text("#vocal-name").startswith("recording.wav, 0:0")
    assert 1.9 < page.js(with_player("player.duration_s")) < 2.9
    assert page.js("document.getElementById('booth').hidden")
    take(page, seed=1)
    page.click("#play")
    page.until(with_player("player.level('vocal') > 0.01"))


def test_without_a_mouse(page: Page, vocal: Path) -> None:
    page.choose("#file", vocal)
    page.until("!document.getElementById('go').disabled")
    while page.focused() != "go":
        page.press("Tab")
    page.press("Enter")
    page.until("document.querySelectorAll('.take').length === 1")
    page.until("document.activeElement.id === 'play'")
    while page.focused() != "go":
        page.press("Tab")
    met: list[str] = []
    while not met or met[-1] != "go":
        page.press("Tab")
        met.append(page.focused())
        assert len(met) < 60
        assert page.js("document.activeElement === document.body || document.activeElement.matches(':focus-visible')"), met
    reached = " ".join(met)
    for control in (
        "choose",
        "record",
        "seed",
        "timeline",
        "play",
        "loop",
        "help",
        "keep",
        "save-mix",
        "save-stems",
        "remove",
        "fader",
        "mute",
        "solo",
    ):
        assert control in reached
    while page.focused() != "timeline":
        page.press("Tab")
    page.press("ArrowRight")
    assert page.js(with_player("player.position_s")) == pytest.approx(5.0)
    page.press("Home")
    page.press(" ")
    page.until(with_player("player.playing && player.position_s > 0.1"))
    page.press("m")
    assert page.js(with_player("player.gain('vocal')")) == 0
    page.press("S", shift=True)
    assert page.js(with_player("[player.gain('band'), player.mix.band.solo]")) == [1, True]
    page.press("l")
    page.until(with_player("player.loop"))
    page.press(" ")
    page.until(with_player("!player.playing"))
    page.press("k")
    page.until("document.querySelector('.take .keep').ariaPressed === 'true'")


def test_progress_and_cancelling(page: Page, service: Service, vocal: Path) -> None:
    drop(page, vocal)
    service.backend.hold.clear()
    page.click("#go")
    page.until("document.getElementById('progress-text').textContent.includes('step 5 of 20')")
    assert page.js("document.getElementById('progress').value") == pytest.approx(0.25)
    service.progress = {"state": "queued", "steps_done": 0, "steps": 0, "queue_position": 3}
    page.until("document.getElementById('progress-text').textContent.includes('place 3 in the queue')")
    assert not page.js("document.getElementById('progress').hasAttribute('value')")
    assert len(set(service.asked_progress)) == 1
    service.progress = {"state": "running", "steps_done": 5, "steps": 20, "queue_position": None}
    page.click("#cancel")
    page.until("document.getElementById('work').hidden")
    assert page.js("document.querySelectorAll('.take').length") == 0
    assert page.js("document.getElementById('problem').hidden")
    page.until_cancelled()


def test_progress_where_two_ingresses_answer_in_turn(tab: Page, service: Service, vocal: Path) -> None:
    """The one that does not know the request takes nothing away from what the other told, however often."""
    visit = visited(tab, service, expected=("status of 404",))
    page = next(visit)
    drop(page, vocal)
    service.backend.hold.clear()
    service.odd_only = True
    page.click("#go")
    page.until("document.getElementById('progress-text').textContent.includes('step 5 of 20')")
    page.js("""(globalThis.said = [], new MutationObserver(() => said.push(document.getElementById('progress-text').textContent))
        .observe(document.getElementById('progress-text'), { childList: true, characterData: true, subtree: true }))""")
    before = len(service.asked_progress)
    while len(service.asked_progress) < before + 14:
        page.js("new Promise(done => setTimeout(done, 100))")
    service.odd_only = False
    assert page.js("said.every(text => text.includes('step 5 of 20'))")
    page.click("#cancel")
    page.until("document.getElementById('work').hidden")
    page.until_cancelled()
    list(visit)


def test_models_of_a_service_that_wakes_are_asked_for_again(tab: Page, service: Service) -> None:
    service.backend.asleep, service.backend.others = 2, ["another"]
    visit = visited(tab, service, expected=("status of 503",))
    page = next(visit)  # until the model's own steps are known
    assert service.backend.asleep == 0
    assert not page.js("document.getElementById('model-field').hidden")
    service.backend.others = []
    list(visit)


def test_refusals_are_said_in_words(tab: Page, service: Service, vocal: Path, tmp_path: Path) -> None:
    visit = visited(tab, service, expected=("status of 503", "status of 429", "status of 400", "status of 404"))
    page = next(visit)
    damaged = tmp_path / "text.wav"
    damaged.write_text("this is no sound")
    page.drop("#drop", damaged)
    page.until("document.getElementById('vocal-problem').textContent.includes('cannot be read as audio')")
    drop(page, vocal)
    assert page.js("document.getElementById('vocal-problem').hidden")
    service.progress = None
    service.backend.refusals = [Problem(status=503, detail="full", retry_after_s=1), Problem(status=429, detail="share", retry_after_s=1)]
    page.click("#go")
    page.until("document.getElementById('problem').innerText.includes('The service is busy. It is asked again in')")
    page.until("document.getElementById('problem').innerText.includes('as many bands in work')")
    page.until("document.querySelectorAll('.take').length === 1")
    assert page.js("document.getElementById('problem').hidden")
    service.backend.refusals = [Problem(status=503, detail="full", retry_after_s=60)] * 2
    page.click("#go")
    page.until("!document.getElementById('again').hidden")
    page.click("#retry")
    page.until("!document.getElementById('again').hidden && document.getElementById('work').hidden")
    page.click("#give-up")
    assert page.js("document.getElementById('problem').hidden")
    service.backend.refusals = [Problem(status=400, title="Unreadable audio", detail="it ends early")]
    page.click("#go")
    page.until("document.getElementById('problem').innerText === 'Unreadable audio: it ends early'")
    service.progress = {"state": "running", "steps_done": 5, "steps": 20, "queue_position": None}
    list(visit)


def test_a_key_is_asked_for_and_not_stored(tab: Page, service: Service, vocal: Path) -> None:
    with serve(Service(service.backend, AppConfig(api_key_digests=(digest("sesame"),)))) as locked:
        tab.go(locked.url)
        tab.until("!document.getElementById('key-field').hidden")
        drop(tab, vocal)
        tab.click("#go")
        tab.until("document.getElementById('problem').innerText === 'This service asks for a key.'")
        assert tab.focused() == "key"
        for letter in "sesame":
            tab.press(letter)
        tab.press("Enter")
        tab.until("document.querySelectorAll('.take').length === 1")
        assert tab.js("[sessionStorage['backline-key'], Object.values(localStorage).includes('sesame')]") == ["sesame", False]
        tab.go("about:blank")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(page: Page, vocal: Path, dark: bool) -> None:
    page.look_like(width=360, height=740, dark=dark, phone=True)
    assert page.js("document.documentElement.scrollWidth") <= 360
    drop(page, vocal)
    take(page, seed=2**53 - 1)
    page.click("#record")
    page.until("!document.getElementById('booth').hidden")
    page.js("document.querySelector('details').open = true")
    assert page.js("document.documentElement.scrollWidth") <= 360
    # WCAG 2.5.8: targets of at least 24 pixels
    tight = "b => b.offsetWidth && Math.min(b.offsetWidth, b.offsetHeight) < 24 && b.id !== 'help'"
    assert page.js(f"[...document.querySelectorAll('button')].filter({tight}).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_everything_has_a_name_and_text_has_contrast(page: Page, vocal: Path, dark: bool) -> None:
    page.look_like(width=1280, height=900, dark=dark)
    drop(page, vocal)
    take(page, seed=7)
    page.click("#record")
    page.until("!document.getElementById('booth').hidden")
    page.js(with_player("player.set('vocal', {muted: true}), player.set('band', {solo: true}), player.repeat(true)"))
    page.click(".take .keep")
    page.until("document.querySelector('.take .keep').ariaPressed === 'true'")
    page.until("document.getAnimations().every(a => a.playState !== 'running')")
    met = page.accessible()
    nameless = [role for role, name in met if role in CONTROLS - {"group"} and not name.strip()]
    assert nameless == []
    roles = {role for role, _ in met}
    assert {"button", "slider", "radio", "spinbutton", "textbox", "main", "heading", "meter"} <= roles
    names = [name for _, name in met]
    for name in ("Place in the song", "Vocal level", "Mute the band", "Hear Take 1", "Keep Take 1", "Delete Take 1", "Play", "Loop"):
        assert name in names
    assert page.js(CONTRAST.read_text()) == []


def test_a_model_is_chosen_where_there_are_several(page: Page, service: Service) -> None:
    assert page.js("document.getElementById('model-field').hidden")
    service.backend.others = ["student"]
    page.reload()
    page.until("!document.getElementById('model-field').hidden")
    service.backend.others = []
    assert page.js("[...document.getElementById('model').options].map(o => o.value)") == ["", parts.MODEL_NAME, "student"]


def test_the_documents_for_programs(page: Page) -> None:
    page.go(f"{page.js('location.origin')}/docs")
    page.until("document.querySelectorAll('section').length > 3")
    assert "/v1/accompaniments" in page.text("#main")


def test_a_page_error_is_noticed(tab: Page) -> None:
    with pytest.raises(PageError, match="boom"):
        tab.js("(() => { throw new Error('boom'); })()")
