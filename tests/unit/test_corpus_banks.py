"""Recorded instruments: small fonts and folders of samples that the tests write, played bit for bit, and refused before any song."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import lacks

from infra.errors import UserError
from infra.settings import Settings
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus import CorpusConfig, compose, render, write_corpus
from pipelines.corpus.score.record import Note, SongRecord, Track
from pipelines.corpus.score.styles import DRUM_KEYS, PROGRAMS
from pipelines.corpus.sound.bank import NUMPY
from pipelines.corpus.sound.banks import open as opening
from pipelines.corpus.sound.banks import players
from pipelines.corpus.sound.banks.note_folder import NoteFolder
from pipelines.corpus.sound.banks.open import choose_banks, open_banks, parse_weighted
from pipelines.corpus.sound.banks.sf2 import read_soundfont
from pipelines.corpus.sound.banks.soundfont_bank import SoundfontBank
from tests.soundfonts import soundfont

ROOT = Path(__file__).resolve().parents[2]
MELODIC = [(0, program) for program in range(128)]
FULL = [*MELODIC, (128, 0)]
DURATION_S = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("banks")


@pytest.fixture(scope="module")
def font(folder: Path) -> str:
    if importlib.util.find_spec("tinysoundfont") is None:
        lacks(f"tinysoundfont is not installed: {players.TINY_REMEDY}")
    path = folder / "small.sf2"
    path.write_bytes(soundfont(FULL))
    return str(path)


def hit(seconds: float, gain: float, seed: int) -> np.ndarray:
    t = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return gain * np.random.default_rng(seed).uniform(-1, 1, t.size) * np.exp(-t / 0.05)


@pytest.fixture(scope="module")
def drums(folder: Path) -> str:
    for piece, seed in (("Kick", 1), ("Snare", 2), ("HihatClosed", 3)):
        (folder / "kit" / piece).mkdir(parents=True)
        for turn, gain in enumerate((0.5, 0.02, 0.1, 0.9, 0.25)):
            sf.write(folder / "kit" / piece / f"{turn:02d}.wav", hit(0.3, gain, 10 * seed + turn), SAMPLE_RATE_HZ)
    return str(folder / "kit")


@pytest.fixture(scope="module")
def piano(folder: Path) -> str:
    """Notes that the folder numbers an octave too low, in two layers: the loud one has a second partial."""
    (folder / "piano").mkdir()
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for midi, name in ((48, "c2"), (57, "a2"), (66, "fs3"), (72, "c4")):
        hz = 440 * 2 ** ((midi - 69) / 12)
        for layer, second in (("p", 0.0), ("f", 0.6)):
            tone = 0.3 * (np.sin(2 * np.pi * hz * t) + second * np.sin(4 * np.pi * hz * t)) * np.exp(-t)
            sf.write(folder / "piano" / f"key_{name}_{layer}_rr1.wav", tone, SAMPLE_RATE_HZ)
    return str(folder / "piano")


def track(instrument: str, *notes: Note, name: str = "chords") -> Track:
    return Track(name=name, instrument=instrument, program=0, level_db=0, pan=0, reverb=0, tilt_db=0, notes=notes)


def record_of(seed: int = 3) -> SongRecord:
    return compose(seed, DURATION_S)


def test_a_font_says_what_it_holds(font: str, folder: Path) -> None:
    read = read_soundfont(Path(font))
    assert read.presets == frozenset(FULL)
    assert read.modulators == 0
    (folder / "moved.sf2").write_bytes(Path(font).read_bytes())
    assert read_soundfont(folder / "moved.sf2").digest == read.digest
    (folder / "rules.sf2").write_bytes(soundfont(FULL, modulators=40))
    assert players.needs_fluidsynth(read_soundfont(folder / "rules.sf2"))
    assert not players.needs_fluidsynth(replace(read_soundfont(folder / "rules.sf2"), path=Path("FluidR3_GM.sf2")))


def test_a_song_has_the_same_bytes_whatever_was_played_before(font: str) -> None:
    banks = open_banks((font,))
    record = record_of()
    first = render(record, banks)
    render(compose(8, 7.3), banks)
    again = render(record, banks)
    assert np.array_equal(first.accompaniment_CN, again.accompaniment_CN)
    assert not np.array_equal(first.accompaniment_CN, render(record).accompaniment_CN)
    assert np.array_equal(first.vocals_CN + first.accompaniment_CN, first.mixture_CN)
    other = "import sys,hashlib\nfrom pipelines.corpus import compose, render\nfrom pipelines.corpus.sound.banks.open import open_banks\n"
    other += f"print(hashlib.sha256(render(compose(3, {DURATION_S}), open_banks((sys.argv[1],))).accompaniment_CN.tobytes()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", other, font], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == hashlib.sha256(first.accompaniment_CN.tobytes()).hexdigest()


def test_notes_begin_on_time_at_their_pitch_and_velocity(font: str) -> None:
    bank = SoundfontBank(read_soundfont(Path(font)))
    notes = (Note(onset_s=0.5, duration_s=0.3, midi=69, velocity=1.0), Note(onset_s=1.5, duration_s=0.3, midi=69, velocity=0.5))
    audio_N = bank.play(track("piano", *notes), record_of(), 2 * SAMPLE_RATE_HZ)[0]
    loud = np.flatnonzero(np.abs(audio_N) > 1e-3)
    assert abs(loud[0] / SAMPLE_RATE_HZ - 0.5) < 0.003
    half = [np.abs(audio_N[int(at * SAMPLE_RATE_HZ) :][:8000]).max() for at in (0.5, 1.5)]
    assert half[1] / half[0] == pytest.approx(0.25, rel=0.05), "amplitude goes with the square of velocity"
    piece = audio_N[int(0.52 * SAMPLE_RATE_HZ) :][:8192] * np.hanning(8192)
    assert np.argmax(np.abs(np.fft.rfft(piece))) * SAMPLE_RATE_HZ / 8192 == pytest.approx(440, abs=6)


def test_fluidsynth_plays_a_font_of_rules_alike_twice(folder: Path, font: str) -> None:
    if players.fluidsynth_library() is None:
        lacks(f"FluidSynth's library is not installed: {players.FLUIDSYNTH_REMEDY}")
    assert font
    (folder / "rules.sf2").write_bytes(soundfont(FULL, modulators=40))
    banks = open_banks((str(folder / "rules.sf2"),))
    record = record_of()
    first = render(record, banks).accompaniment_CN
    render(compose(8, 7.3), banks)
    assert np.array_equal(first, render(record, banks).accompaniment_CN)


def test_parts_are_drawn_by_weight_from_the_seed(font: str, drums: str) -> None:
    records = [compose(seed, DURATION_S) for seed in range(40)]
    both = open_banks((f"{font}=3", "numpy=1"))
    drawn = [both.draw(one, record).name for record in records for one in record.tracks]
    assert 0.6 < np.mean([name != "numpy" for name in drawn]) < 0.9
    assert drawn == [both.draw(one, record).name for record in records for one in record.tracks]
    song = render(records[5], open_banks((font, drums, "numpy=0.001")))
    assert set(song.banks) == {one.name for one in records[5].tracks}
    assert all(name.startswith("small.sf2@") for part, name in song.banks.items() if part != "drums")
    assert both.renderer == f"{both.banks[0].name}=3 + numpy=1"
    assert NUMPY.renderer == "numpy"


def test_louder_strokes_are_other_hits_and_none_repeats(drums: str) -> None:
    bank = open_banks((drums, "numpy")).banks[0]
    strokes = [Note(onset_s=index / 2, duration_s=0.1, midi=DRUM_KEYS["snare"], velocity=v) for index, v in enumerate((0.1, 0.4, 1.0, 1.0))]
    strokes.append(Note(onset_s=2.0, duration_s=0.1, midi=DRUM_KEYS["clap"], velocity=1.0))
    audio_CN = bank.play(track("drums", *strokes, name="drums"), record_of(), 3 * SAMPLE_RATE_HZ)
    heard = [audio_CN[:, int(start * SAMPLE_RATE_HZ) :][:, : SAMPLE_RATE_HZ // 2] for start in (0, 0.5, 1, 1.5, 2)]
    levels = [float(np.sqrt(np.mean(one**2))) for one in heard]
    assert levels[0] < 0.5 * levels[1] < 0.3 * levels[2]
    shapes = [one / np.abs(one).max() for one in heard[2:4]]
    assert not np.allclose(shapes[0], shapes[1]), "two strokes alike are two hits"
    assert levels[4] > 0, "what the kit lacks is computed"


def test_a_folder_of_notes_plays_the_pitch_that_is_asked_for(piano: str) -> None:
    bank = NoteFolder(Path(piano))
    assert bank.plays("piano")
    assert not bank.plays("organ")
    for midi, velocity in ((48, 0.2), (60, 0.9), (73, 0.2)):
        audio_N = bank.play(track("piano", Note(onset_s=0.0, duration_s=0.8, midi=midi, velocity=velocity)), record_of(), SAMPLE_RATE_HZ)[0]
        spectrum = np.abs(np.fft.rfft(audio_N * np.hanning(audio_N.size)))
        hz = 440 * 2 ** ((midi - 69) / 12)
        assert np.argmax(spectrum) == pytest.approx(hz, rel=0.01)
        assert (spectrum[round(2 * hz)] > 0.2 * spectrum.max()) == (velocity > 0.5), "layers follow velocity"


def wrong_banks(folder: Path) -> list[tuple[str, str]]:
    """Banks that cannot be, and what is said of them."""
    made = folder / "wrong"
    made.mkdir(exist_ok=True)
    whole = soundfont(FULL)
    fonts = {
        "text": b"once upon a time", "cut": whole[:-5000], "few": soundfont([entry for entry in FULL if entry != (0, 48)]),
        "nodrums": soundfont(MELODIC), "rules": soundfont(FULL, modulators=9),
    }  # fmt: skip
    for name, data in fonts.items():
        (made / f"{name}.sf2").write_bytes(data)
    for name in ("empty", "guitar-unnamed", "piano-slow", "things"):
        (made / name).mkdir(exist_ok=True)
    sf.write(made / "guitar-unnamed" / "take.wav", hit(0.1, 0.5, 1), SAMPLE_RATE_HZ)
    sf.write(made / "piano-slow" / "a3.wav", hit(0.1, 0.5, 1), 22_050)
    sf.write(made / "things" / "a3.wav", hit(0.1, 0.5, 1), SAMPLE_RATE_HZ)
    said = {
        "text.sf2": "no soundfont.*give the file", "cut.sf2": "cut short.*copy it again", "few.sf2": r"strings \(program 48\).*numpy",
        "nodrums.sf2": r"drums \(bank 128\).*--bank numpy", "rules.sf2": "FluidSynth.*libfluidsynth3", "gone.sf2": "does not exist.*check",
        "empty": "no notes.*folder of samples", "guitar-unnamed": "no file's name holds a note.*name the notes",
        "piano-slow": "a3.wav has a rate of 22050 Hz.*ffmpeg", "things": "which instrument.*Rename",
    }  # fmt: skip
    return [(str(made / name), f"{name}.*{words}") for name, words in said.items()]


def test_a_wrong_bank_is_one_error_before_any_song(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, font: str) -> None:
    assert font
    monkeypatch.setattr(players, "fluidsynth_library", lambda: None)
    for bank, said in [*wrong_banks(folder), ("numpy=0", "numpy=0.*above 0"), ("numpy=-1", "above 0")]:
        with pytest.raises(UserError, match=said) as caught:
            write_corpus(CorpusConfig(out=str(tmp_path / "out"), songs=1, duration_s=DURATION_S, bank=(bank,), workers=1))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_without_a_player_the_remedy_is_said(font: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"tinysoundfont.*--bank numpy"):
        opening._open(font)


def test_banks_are_found_or_numpy_plays(
    font: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "FONT_FOLDERS", (tmp_path / "none", tmp_path))
    caplog.set_level("INFO")
    (tmp_path / "Some.sf2").write_bytes(soundfont(FULL))
    assert choose_banks((), Settings()) == ("numpy",)
    assert "recorded instruments sound better: apt-get install" in caplog.text
    known = tmp_path / "FluidR3_GM.sf2"
    known.write_bytes(Path(font).read_bytes())
    (tmp_path / "default-GM.sf2").symlink_to(known)
    assert choose_banks((), Settings()) == (str(known),)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "Some.sf2").write_bytes(soundfont(FULL))
    assert choose_banks((), Settings.from_environment({"BACKLINE_BANKS": f"{shelf}, numpy=2"})) == (f"{shelf / 'Some.sf2'}=1", "numpy=2")
    assert choose_banks((font,), Settings(banks=("numpy",))) == (font,)
    assert parse_weighted("/a=b/font.sf2") == ("/a=b/font.sf2", 1.0)
    assert parse_weighted("numpy=0.5") == ("numpy", 0.5)


def test_a_killed_run_goes_on_and_equals_an_uninterrupted_one(font: str, tmp_path: Path) -> None:
    songs = 3
    command = [sys.executable, "-m", "pipelines", "corpus", "--songs", str(songs), "--duration-s", str(DURATION_S), "--workers", "1"]
    command += ["--bank", f"{font}=2", "--bank", "numpy", "--out"]
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
    told = json.loads((tmp_path / "whole" / "song-000001" / "song.json").read_text())["rendering"]
    assert told["renderer"].startswith("small.sf2@")
    assert set(told["banks"].values()) <= {"numpy", told["renderer"].partition("=")[0]}
    kept = write_corpus(
        CorpusConfig(out=str(tmp_path / "whole"), songs=songs, duration_s=DURATION_S, bank=(f"{font}=2", "numpy"), workers=1)
    )
    assert kept.reused == songs
    again = write_corpus(CorpusConfig(out=str(tmp_path / "whole"), songs=1, duration_s=DURATION_S, bank=("numpy",), workers=1))
    assert again.written == 1, "other banks are another rendering"


def test_every_instrument_has_a_program_and_a_computed_stand_in() -> None:
    for name in ("drums", *PROGRAMS):
        assert NUMPY.banks[0].plays(name)
