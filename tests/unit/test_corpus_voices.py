"""Voices that sing words: on pitch to an independent ear, bit for bit, and refused before any song where something is missing."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import lacks

from infra.errors import UserError
from infra.settings import Settings
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus import CorpusConfig, SongRecord, compose, read_song_json, render, write_corpus
from pipelines.corpus.score.record import as_json
from pipelines.corpus.sound.banks.licence import bank_credit
from pipelines.corpus.sound.delivery import doubled_part, speak_verses
from pipelines.corpus.sound.singer import NUMPY_VOICE
from pipelines.corpus.sound.voice import F0_RATE_HZ
from pipelines.corpus.sound.voices import open as opening
from pipelines.corpus.sound.voices import speech_network, world
from pipelines.corpus.sound.voices.alignment import stretch, vowel_spans
from pipelines.corpus.sound.voices.open import choose_voices, open_voices

ROOT = Path(__file__).resolve().parents[2]
DURATION_S = 14.0
SHORT_S = 4.0
SEEDS = (4, 6)  # a mezzo-soprano and a baritone
FORMANTS = {"a": (730, 1120, 2500), "i": (300, 2200, 2900), "u": (340, 900, 2300), "e": (530, 1800, 2500), "o": (500, 850, 2450)}


@pytest.fixture(scope="module")
def neural() -> str:
    missing = speech_network.missing()
    if missing:
        lacks(missing)
    return "neural"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of syllables: vowels of a man at 130 Hz, some with a hiss or a hum before them."""
    folder = tmp_path_factory.mktemp("voices") / "tape"
    folder.mkdir()
    rng = np.random.default_rng(1)
    t = np.arange(int(0.7 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    for vowel, formants in FORMANTS.items():
        k = np.arange(1, 90)[:, None]
        gain = sum(1 / (1 + ((130 * k - formant) / 90) ** 2) for formant in formants) / k**0.5
        tone = np.sum(gain * np.sin(2 * np.pi * 130 * k * t), axis=0)
        tone *= 0.3 / np.abs(tone).max() * np.minimum(1, np.minimum(t, t[-1] - t) / 0.03)
        hiss = np.diff(rng.normal(size=6001)) * 0.03
        murmur = 0.05 * np.sin(2 * np.pi * 130 * t[:4000])
        silence = np.zeros(4000)
        for head, sounds in (("", silence), ("s", np.concatenate([silence, hiss])), ("n", np.concatenate([silence, murmur]))):
            sf.write(folder / f"{head}{vowel}.wav", np.concatenate([sounds, tone, silence]), SAMPLE_RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def syllables(recorded: Path) -> str:
    missing = world.missing()
    if missing:
        lacks(f"{missing} (make .venv/.vocoder)")
    return f"syllables:{recorded}"


def cents_off(record: SongRecord, audio_N: Array) -> Array:
    """How far each sung note is from the score to SwiftF0, an independent ear; unheard notes count as a whole octave off."""
    from swift_f0 import SwiftF0

    heard = SwiftF0(threads=1).detect(audio_N.astype(np.float32), SAMPLE_RATE_HZ)
    cents = []
    for note in record.vocal:
        inside = (heard.timestamps > note.onset_s + 0.05) & (heard.timestamps < note.offset_s - 0.05) & (heard.confidence > 0.5)
        hz = 440 * 2 ** ((note.midi - 69) / 12)
        cents.append(float(np.median(1200 * np.log2(heard.pitch_hz[inside] / hz))) if inside.any() else 1200.0)
    return np.abs(cents)


@pytest.mark.parametrize("kind", ["neural", "syllables"])
def test_an_independent_ear_hears_the_notes(kind: str, request: pytest.FixtureRequest) -> None:
    voices = open_voices((request.getfixturevalue(kind),))
    off = []
    for seed in SEEDS:
        record = compose(seed, DURATION_S)
        dry_N, f0_hz = voices.singers[0].sing(record, int(record.duration_s * SAMPLE_RATE_HZ))
        assert not dry_N[: int((record.vocal[0].onset_s - 0.7) * SAMPLE_RATE_HZ)].any()
        off.append(cents_off(record, dry_N))
        for note in record.vocal:
            inside = slice(int((note.onset_s + 0.05) * F0_RATE_HZ), int((note.onset_s + 0.09) * F0_RATE_HZ))
            assert (f0_hz[inside] > 0).all(), f"{note.syllable} is sung from its note on"
    assert np.mean(np.concatenate(off) < 50) >= 0.95
    assert np.median(np.concatenate(off)) < 10


def fingerprint(seed: int, voice: str) -> str:
    voices = open_voices((voice,))
    song = render(voices.perform(compose(seed, SHORT_S)), voices=voices)
    return hashlib.sha256(song.vocals_CN.tobytes() + song.accompaniment_CN.tobytes() + song.f0_hz.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["neural", "syllables"])
def test_a_song_has_the_same_bytes_whatever_was_sung_before(kind: str, request: pytest.FixtureRequest) -> None:
    voice = request.getfixturevalue(kind)
    first = fingerprint(3, voice)
    assert first != fingerprint(8, voice)
    assert first == fingerprint(3, voice)
    assert first != fingerprint(3, "numpy")
    code = (
        f"import sys; sys.path[:0] = ['tests', 'tests/unit']\nfrom test_corpus_voices import fingerprint\nprint(fingerprint(3, {voice!r}))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == first


def test_the_licence_of_recorded_syllables_is_carried(syllables: str, recorded: Path) -> None:
    note = recorded / "bank.license"
    note.write_text("SPDX-License-Identifier: CC-BY-4.0\nSPDX-FileCopyrightText: 2019 Someone\n")
    open_voices.cache_clear()
    song = render(compose(3, SHORT_S), voices=open_voices((syllables,)))
    note.unlink()
    open_voices.cache_clear()
    assert song.bank_licences == {song.voice: "CC-BY-4.0, 2019 Someone"}
    assert bank_credit(song.bank_licences) == "syllables tape (CC-BY-4.0, 2019 Someone)"


def test_two_songs_are_two_people(neural: str) -> None:
    voices = open_voices((neural,))
    timbres = [voices.singers[0].timbre(compose(seed, SHORT_S)) for seed in range(12)]
    assert len({tuple(timbre.items()) for timbre in timbres}) == 12
    formants = [timbre["formants"] for timbre in timbres]
    assert min(formants) < 0.9
    assert max(formants) > 1.0


def test_some_verses_are_spoken_and_the_record_says_so(neural: str) -> None:
    records = [compose(seed) for seed in range(30)]
    changed = [(record, speak_verses(record)) for record in records if speak_verses(record) != record]
    assert 2 <= len(changed) <= 12
    for record, performed in changed:
        verses = [(part.start_s, part.end_s) for part in record.sections if part.name == "verse"]
        for before, after in zip(record.vocal, performed.vocal, strict=True):
            if after.spoken:
                assert (after.onset_s, after.phones) == (before.onset_s, before.phones)
            else:
                assert after == before
        assert any(note.spoken for note in performed.vocal)
        assert any(start <= note.score_onset_s < end for note in performed.vocal if note.spoken for start, end in verses)
        assert not all(note.spoken for note in performed.vocal), "a chorus is sung"
    record, performed = changed[0]
    assert NUMPY_VOICE.perform(record) == record
    assert "spoken" not in json.dumps(as_json(record))
    assert open_voices((neural,)).perform(record) == performed
    _, f0_hz = open_voices((neural,)).singers[0].sing(performed, int(performed.duration_s * SAMPLE_RATE_HZ))
    note = max((note for note in performed.vocal if note.spoken), key=lambda note: note.offset_s - note.onset_s)
    said = f0_hz[int((note.onset_s + 0.1) * F0_RATE_HZ) : int((note.offset_s - 0.05) * F0_RATE_HZ)]
    said = 69 + 12 * np.log2(said[said > 0] / 440)
    assert said[0] - said[-1] > 0.7, "speech falls"
    assert np.median(said) == pytest.approx(note.midi, abs=1.2)


def test_some_choruses_are_doubled(neural: str) -> None:
    voices = open_voices((neural,))
    seed = next(seed for seed in range(20) if doubled_part(compose(seed, DURATION_S)) is not None)
    record = compose(seed, DURATION_S)
    second = doubled_part(record)
    assert second is not None
    assert all(0 < abs(a.onset_s - b.onset_s) < 0.02 for a, b in zip(second.vocal, record.vocal[-len(second.vocal) :], strict=True))
    song = render(record, voices=voices)
    assert song.doubled
    assert np.array_equal(song.vocals_CN + song.accompaniment_CN, song.mixture_CN)
    side = song.vocals_CN[0] - song.vocals_CN[1]
    alone = render(record)
    assert not alone.doubled
    assert np.std(side) > 2 * np.std(alone.vocals_CN[0] - alone.vocals_CN[1])


def test_singers_are_drawn_by_weight_from_the_seed(neural: str) -> None:
    both = open_voices((f"{neural}=3", "numpy=1"))
    drawn = [both.draw(seed).name for seed in range(200)]
    assert 0.65 < np.mean([name != "numpy" for name in drawn]) < 0.85
    assert drawn == [both.draw(seed).name for seed in range(200)]
    assert both.renderer == f"{both.singers[0].name}=3 + numpy=1"
    assert NUMPY_VOICE.renderer == "numpy"


def wrong_voices(recorded: Path, folder: Path) -> list[tuple[str, str]]:
    """Voices that cannot be, and what is said of them."""
    for name in ("empty", "few", "slow", "text", "quiet"):
        (folder / name).mkdir()
    for vowel in "aiueo":
        audio, _ = sf.read(recorded / f"{vowel}.wav")
        sf.write(folder / "slow" / f"{vowel}.wav", audio, 22_050)
        sf.write(folder / "quiet" / f"{vowel}.wav", audio if vowel == "a" else 0 * audio, SAMPLE_RATE_HZ)
        if vowel < "o":
            sf.write(folder / "few" / f"{vowel}.wav", audio, SAMPLE_RATE_HZ)
    (folder / "text" / "a.wav").write_text("once upon a time")
    return [
        ("opera", "opera: no such voice; choose numpy, neural"),
        ("neural=0", "--voice neural=0.*above 0"),
        (f"syllables:{folder / 'gone'}", "gone does not exist.*check"),
        (f"syllables:{folder / 'empty'}", "empty: no syllables.*a.ogg"),
        (f"syllables:{folder / 'few'}", "few: no syllables, there is no file u, o: give"),
        (f"syllables:{folder / 'slow'}", "slow: a.wav has a rate of 22050 Hz.*ffmpeg"),
        (f"syllables:{folder / 'text'}", "text: a.wav is no audio.*remove it"),
        (f"syllables:{folder / 'quiet'}", "quiet/e.wav: is silent.*record it again"),
        (f"syllables:{recorded}", "pyworld is not installed: pip install pyworld.*g[+][+].*neural or numpy"),
    ]


def test_a_wrong_voice_is_one_error_before_any_song(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_voices.cache_clear()
    monkeypatch.setattr(world.importlib.util, "find_spec", lambda _: None)
    for voice, said in [*wrong_voices(recorded, tmp_path), ("neural", r"--voice neural: hibari-tts is not installed: pip install.*numpy")]:
        with pytest.raises(UserError, match=said) as caught:
            write_corpus(CorpusConfig(out=str(tmp_path / "out"), songs=1, duration_s=SHORT_S, voice=(voice,), workers=1))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_another_version_of_the_network_is_refused(neural: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_network.importlib.metadata, "version", lambda _: "9.0")
    with pytest.raises(UserError, match=rf"hibari-tts 9.0 is installed.*{speech_network.VERSION}"):
        opening._open(neural)


def test_other_voices_of_the_network_sing_once_they_are_downloaded(neural: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the package: a copy of its own voice stands for one, under the name of a man's."""
    import hibari
    from hibari.voices import VOICES

    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    for voice, said in (
        ("neural:nobody", "no such voice; it has heart, emma"),
        ("neural:fable", "not on this machine.*hibari --voice fable"),
    ):
        with pytest.raises(UserError, match=said):
            open_voices((voice,))
    (tmp_path / VOICES["emma"]["file"]).write_bytes(b"no network")
    with pytest.raises(UserError, match=r"emma.* cannot be used.*download it again") as caught:
        open_voices(("neural:emma",))
    assert "\n" not in str(caught.value)
    (tmp_path / VOICES["fable"]["file"]).write_bytes((Path(hibari.__file__).parent / "assets" / VOICES["heart"]["file"]).read_bytes())
    record = compose(3, SHORT_S)
    man, woman = (open_voices((voice,)).singers[0] for voice in ("neural:fable", neural))
    assert man.name == f"hibari-tts {speech_network.VERSION} fable"
    assert man.timbre(record)["formants"] == pytest.approx(1.16 * woman.timbre(record)["formants"], rel=0.001)
    assert np.mean(cents_off(record, man.sing(record, int(record.duration_s * SAMPLE_RATE_HZ))[0]) < 50) >= 0.95


def test_the_neural_voice_is_found_or_numpy_sings(neural: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_voices((), Settings()) == (neural,)
    assert choose_voices((), Settings.from_environment({"BACKLINE_VOICES": "neural=2, numpy"})) == ("neural=2", "numpy")
    assert choose_voices(("numpy",), Settings(voices=("neural",))) == ("numpy",)
    caplog.set_level("INFO")
    monkeypatch.setattr(speech_network.importlib.util, "find_spec", lambda _: None)
    assert choose_voices((), Settings()) == ("numpy",)
    assert "one that sings words sounds better: hibari-tts is not installed: pip install" in caplog.text


def test_a_killed_run_goes_on_and_equals_an_uninterrupted_one(neural: str, tmp_path: Path) -> None:
    songs = 3
    command = [sys.executable, "-m", "pipelines", "corpus", "--songs", str(songs), "--duration-s", str(SHORT_S), "--workers", "1"]
    command += ["--voice", f"{neural}=2", "--voice", "numpy", "--out"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "song-000000" / "song.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for out in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / out)], cwd=ROOT, check=True, capture_output=True, timeout=300)
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
    kept = CorpusConfig(out=str(tmp_path / "whole"), songs=songs, duration_s=SHORT_S, voice=(f"{neural}=2", "numpy"), workers=1)
    assert write_corpus(kept).reused == songs
    told = [read_song_json((path / "song.json").read_bytes())[1] for path in sorted((tmp_path / "whole").iterdir())]
    assert {one.voices for one in told} == {f"hibari-tts {speech_network.VERSION} heart=2 + numpy=1"}
    assert {one.voice for one in told} <= {"numpy", f"hibari-tts {speech_network.VERSION} heart"}
    assert all(one.timbre["formants"] > 0 for one in told)
    again = write_corpus(CorpusConfig(out=str(tmp_path / "whole"), songs=1, duration_s=SHORT_S, voice=("numpy",), workers=1))
    assert again.written == 1, "other voices are another rendering"


def test_a_song_from_before_there_were_voices_is_kept(tmp_path: Path) -> None:
    config = CorpusConfig(out=str(tmp_path), songs=1, duration_s=SHORT_S, voice=("numpy",), workers=1)
    write_corpus(config)
    path = tmp_path / "song-000000" / "song.json"
    document = json.loads(path.read_text())
    for name in ("voices", "voice", "timbre", "doubled"):
        del document["rendering"][name]
    path.write_text(json.dumps(document))
    assert write_corpus(config).reused == 1


def test_vowels_are_found_where_they_sound_and_start_on_their_notes() -> None:
    frames = np.arange(120)
    level_db = np.maximum.reduce([60 - 0.8 * np.abs(frames - peak) ** 1.5 for peak in (20, 45, 80)])
    spans = vowel_spans(level_db, [24.0, 41.0, 84.0])
    assert [span.peak for span in spans] == [20, 45, 80]
    notes_s = [(1.0, 1.5), (1.5, 2.5), (2.5, 4.0)]
    position, origin_s = stretch(spans, notes_s, first=12, last=90, frame_s=0.0125, name="x")
    for span, (start_s, _) in zip(spans, notes_s, strict=True):
        at = round((start_s - origin_s) / 0.0125)
        assert position[at] == pytest.approx(span.start, abs=1.5)
    assert origin_s == pytest.approx(1.0 - (spans[0].start - 12) * 0.0125)


def test_the_extra_is_what_is_tested() -> None:
    assert f'"{speech_network.PACKAGE}=={speech_network.VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert importlib.util.find_spec("swift_f0") is not None
