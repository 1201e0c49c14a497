"""Several bands for one vocal: the same melody over other chords that carry it, the same bytes of vocal, runs that are killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.corpus import CorpusConfig, SongRecord, compose, read_song_json, write_corpus
from pipelines.corpus.bands.rearrange import compose_bands
from pipelines.corpus.bands.reharmonise import bears, changed_share, strong_notes
from pipelines.corpus.score.compose import write_lead_sheet
from pipelines.corpus.score.harmony import PlacedChord
from pipelines.corpus.score.styles import STYLES
from pipelines.song import audio_identity

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(36)
BANDS = 4
LOOSE = {style.name: style.loose_s for style in STYLES}
TEMPI = {style.name: style.tempo_bpm for style in STYLES}
SECONDS = 6.0
SEED = 4


@pytest.fixture(scope="module")
def several() -> list[tuple[SongRecord, ...]]:
    return [compose_bands(seed, BANDS) for seed in SEEDS]


def config(out: Path, **changes: object) -> CorpusConfig:
    given = {"songs": 2, "seed": SEED, "duration_s": SECONDS, "bands_per_vocal": 3, "workers": 1, "bank": ("numpy",), **changes}
    return CorpusConfig(out=str(out), **given)  # type: ignore[arg-type]


def hashes(out: Path) -> dict[str, str]:
    """Of every file; a hidden one is what a kill leaves of a file that was being written, and no reader looks at it."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_first_band_is_the_song_as_it_always_was(several: list[tuple[SongRecord, ...]]) -> None:
    for seed, records in zip(SEEDS, several, strict=True):
        assert records[0] == compose(seed)
        assert compose_bands(seed, 2) == records[:2], "a band is the same, however many there are"


def test_what_is_sung_and_when_stays_and_what_is_played_does_not(several: list[tuple[SongRecord, ...]]) -> None:
    shared = (
        "vocal",
        "voice",
        "beats_s",
        "downbeats_s",
        "sections",
        "key",
        "metre",
        "swing",
        "swing_unit",
        "tempo_bpm",
        "duration_s",
        "drift",
    )
    for first, *others in several:
        for record in others:
            assert all(getattr(record, name) == getattr(first, name) for name in shared)
            assert record.vocal_of == first.song_id
            assert not first.vocal_of
            assert record.title != first.title
            assert (record.chords[0].start_s, record.chords[-1].end_s) == (first.chords[0].start_s, first.chords[-1].end_s)
            assert all(one.end_s == two.start_s for one, two in zip(record.chords, record.chords[1:], strict=False))
            assert record.chords[-1].label.rstrip("7") == first.chords[-1].label.rstrip("7"), "the song ends where it ended"
        records = (first, *others)
        assert len({record.song_id for record in records}) == BANDS
        assert len({tuple(chord.label for chord in record.chords) for record in records}) == BANDS
        assert len({tuple((track.instrument, track.notes) for track in record.tracks) for record in records}) == BANDS
        if first.metre == "4/4" and 98 < first.tempo_bpm < 118 and not first.drift and first.swing < 0.505:
            assert len({record.style for record in records}) == BANDS


def test_machines_neither_swing_nor_drift_and_styles_stay_near_their_tempi(several: list[tuple[SongRecord, ...]]) -> None:
    for first, *others in several:
        for record in others:
            if record.style != first.style:
                assert LOOSE[record.style] or (first.drift == 0 and first.swing <= 0.505)
                low, high = TEMPI[record.style]
                assert 0.9 * low <= first.tempo_bpm <= 1.11 * high


def test_other_chords_carry_the_melodys_strong_notes(several: list[tuple[SongRecord, ...]]) -> None:
    """Judged from the records alone: the sung note on a strong place is a tone of the chord there, or a tension of it."""
    kinds = {"tone": 0, "tension": 0, "avoid": 0}
    changed = []
    for seed, records in zip(SEEDS, several, strict=True):
        sheet = write_lead_sheet(seed)
        strong = strong_notes(sheet.melody, sheet.frame.accent)
        assert len(strong) > 8
        for record in records[1:]:
            chords = [PlacedChord(chord.start_s, chord.end_s, chord.root, chord.quality) for chord in record.chords]
            first = [PlacedChord(chord.start_s, chord.end_s, chord.root, chord.quality) for chord in records[0].chords]
            changed.append(changed_share(first, chords))
            for note in strong:
                at_s = sheet.frame.time_s(note.beat) + 1e-4
                kinds[bears(next(chord for chord in chords if chord.start <= at_s < chord.end), note.pitch_class)] += 1
    assert kinds["avoid"] <= 0.005 * sum(kinds.values())
    assert kinds["tone"] >= 0.85 * sum(kinds.values())
    assert min(changed) > 0.3, "it is another harmony, not the same with a seventh"


@pytest.mark.parametrize(
    ("root", "quality", "pitch_class", "kind"),
    [
        (0, "maj", 4, "tone"),
        (0, "maj", 2, "tension"),
        (0, "maj", 5, "avoid"),  # the fourth over a major chord
        (7, "7", 11, "tone"),
        (7, "7", 0, "avoid"),
        (9, "min", 2, "tension"),
        (9, "min", 5, "avoid"),  # the flat sixth
        (5, "maj7", 11, "tension"),  # Lydian
        (7, "sus4", 11, "avoid"),
    ],
)
def test_what_a_note_is_to_a_chord(root: int, quality: str, pitch_class: int, kind: str) -> None:
    assert bears(PlacedChord(0, 4, root, quality), pitch_class) == kind


def test_the_songs_of_a_vocal_share_its_bytes_and_say_so(tmp_path: Path) -> None:
    summary = write_corpus(config(tmp_path, songs=1))
    assert (summary.songs, summary.vocals, summary.written) == (3, 1, 3)
    assert "3 songs of 1 vocals" in str(summary)
    names = ["song-000004", "song-000004-band-1", "song-000004-band-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names == list(summary.song_ids)
    for name in ("vocals.wav", "f0.npy"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in names}) == 1
    first = audio_identity(Place(str(tmp_path / names[0] / f"{stem}.wav")).sha256() for stem in ("vocals", "accompaniment"))
    bands = set()
    for folder in names:
        stems = [
            sf.read(tmp_path / folder / f"{name}.wav", dtype="int16")[0].astype(int) for name in ("vocals", "accompaniment", "mixture")
        ]
        assert np.array_equal(stems[0] + stems[1], stems[2])
        assert 0.5 < np.abs(stems[2]).max() / 32768 <= 10 ** (-1 / 20) + 1e-4
        bands.add(stems[1].tobytes())
        record, rendering, stored = read_song_json((tmp_path / folder / "song.json").read_bytes())
        assert stored == record.sha256()
        assert rendering.vocal_of_audio_sha256 == ("" if folder == names[0] else first)
    assert len(bands) == 3
    assert write_corpus(config(tmp_path, songs=1)).reused == 3


def test_bands_that_are_added_later_or_by_several_processes_are_the_same(tmp_path: Path) -> None:
    write_corpus(config(tmp_path / "at once"))
    write_corpus(config(tmp_path / "later", bands_per_vocal=1))
    summary = write_corpus(config(tmp_path / "later", workers=2))
    assert (summary.written, summary.reused) == (4, 2)
    assert hashes(tmp_path / "later") == hashes(tmp_path / "at once")


def test_a_killed_run_that_goes_on_leaves_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    write_corpus(config(tmp_path / "whole"))
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "pipelines", "corpus", "--out", str(out), "--songs", "2", "--seed", str(SEED), "--duration-s", str(SECONDS),
        "--bands-per-vocal", "3", "--workers", "1", "--bank", "numpy",
    ]  # fmt: skip
    killed = 0
    for files in (2, 9, 17):  # of 30: within the first vocal's songs, between them, within the second's
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and sum(path.is_file() for path in out.rglob("*")) < files:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 3
    assert hashes(out) != hashes(tmp_path / "whole")
    write_corpus(config(out))
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_vocal_that_its_record_does_not_vouch_for_is_not_shared(tmp_path: Path) -> None:
    write_corpus(config(tmp_path, songs=1, bands_per_vocal=1))
    (tmp_path / "song-000004" / "vocals.wav").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"vocals.wav is not the file .* delete .*song-000004 and run again"):
        write_corpus(config(tmp_path, songs=1))


@pytest.mark.parametrize("bands", [0, 5])
def test_the_number_of_bands_has_bounds(bands: int) -> None:
    with pytest.raises(UserError, match=f"--bands-per-vocal {bands}: must be from 1 to 4"):
        CorpusConfig(out="x", songs=1, bands_per_vocal=bands)
