"""Fingerprints: a recording is found again when it is coded, cut, moved or made quieter; whatever only resembles it is not."""

import io
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import soundfile
import soxr
from listen_songs import compose as compose_plain

from model.errors import ModelError
from model.listen.fingerprint import (
    MOST_BIT_ERRORS,
    SILENT,
    SKETCH_WORDS,
    FingerprintIndex,
    bit_error_rate,
    fingerprint,
    same_recording,
    sketch,
)
from pipelines.corpus import compose, render

RATE_HZ = 44_100


@dataclass(frozen=True, kw_only=True)
class Song:
    vocal_CN: np.ndarray
    band_CN: np.ndarray
    mix_CN: np.ndarray
    words_T: np.ndarray


@pytest.fixture(scope="module")
def songs() -> list[Song]:
    found = []
    for seed in (10, 11, 12):
        song = render(compose(seed, 24.0))
        vocal_CN, band_CN = song.vocals_CN.astype(np.float32), song.accompaniment_CN.astype(np.float32)
        mix_CN = vocal_CN + band_CN
        found.append(Song(vocal_CN=vocal_CN, band_CN=band_CN, mix_CN=mix_CN, words_T=fingerprint(mix_CN)))
    return found


def coded(audio_CN: np.ndarray, kind: str, level: float) -> np.ndarray:
    """Through an encoder and back; `level` 0.8 is 90 to 96 kbit/s, 0.9 is 56 to 72."""
    buffer = io.BytesIO()
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}[kind]
    constant = "CONSTANT" if kind == "MP3" else None
    with soundfile.SoundFile(buffer, "w", RATE_HZ, 2, format=kind, subtype=subtype, compression_level=level, bitrate_mode=constant) as file:
        for start in range(0, audio_CN.shape[1], 65_536):  # libsndfile overflows its stack on a whole song of Vorbis
            file.write(audio_CN[:, start : start + 65_536].T)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0].T


COPIES = {
    "mp3": lambda mix_CN: coded(mix_CN, "MP3", 0.9),
    "ogg": lambda mix_CN: coded(mix_CN, "OGG", 0.8),
    "gain": lambda mix_CN: mix_CN * np.float32(0.05),
    "half a hop late": lambda mix_CN: np.pad(mix_CN, ((0, 0), (5 * 512 + 256, 0))),
    "cut at both ends": lambda mix_CN: mix_CN[:, round(3.137 * RATE_HZ) : -round(4 * RATE_HZ)],
    "mp3, cut, quiet": lambda mix_CN: coded(mix_CN[:, round(2.7182 * RATE_HZ) :] * np.float32(0.2), "MP3", 0.8),
    "mp3, then ogg": lambda mix_CN: coded(coded(mix_CN, "MP3", 0.8), "OGG", 0.8),
    "silence before": lambda mix_CN: np.pad(mix_CN, ((0, 0), (2 * RATE_HZ, RATE_HZ))),
    "noise": lambda mix_CN: mix_CN + np.random.default_rng(0).normal(0, 0.03 * mix_CN.std(), mix_CN.shape).astype(np.float32),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_the_same_recording_and_shares_words(songs: list[Song], change: str) -> None:
    for song in songs[:2]:
        copy_T = fingerprint(COPIES[change](song.mix_CN))
        assert bit_error_rate(song.words_T, copy_T) < MOST_BIT_ERRORS
        assert same_recording(copy_T, song.words_T)
        assert len(np.intersect1d(sketch(song.words_T), sketch(copy_T))) >= 3


@pytest.mark.parametrize("rate_hz", [48_000, 22_050, 32_000.0])
def test_the_rate_does_not_matter(songs: list[Song], rate_hz: float) -> None:
    song = songs[0]
    copy_T = fingerprint(soxr.resample(song.mix_CN.T, RATE_HZ, rate_hz).T, sample_rate_hz=rate_hz)
    assert abs(len(copy_T) - len(song.words_T)) <= 1
    assert bit_error_rate(song.words_T, copy_T) < 0.01


def test_other_songs_do_not_match(songs: list[Song]) -> None:
    for first, second in combinations(songs, 2):
        assert bit_error_rate(first.words_T, second.words_T) > 0.4
        assert len(np.intersect1d(sketch(first.words_T), sketch(second.words_T))) < 2


@pytest.mark.parametrize("level", [1.0, 0.5])
def test_the_same_band_with_another_vocal_does_not_match(songs: list[Song], level: float) -> None:
    for song, other in ((songs[0], songs[1]), (songs[1], songs[2]), (songs[2], songs[0])):
        samples = min(song.band_CN.shape[1], other.vocal_CN.shape[1])
        copy_T = fingerprint(song.band_CN[:, :samples] + np.float32(level) * other.vocal_CN[:, :samples])
        assert bit_error_rate(song.words_T, copy_T) > MOST_BIT_ERRORS + 0.05
        assert not same_recording(song.words_T, copy_T)


@pytest.mark.parametrize("speed", [1.06, 0.94, 1.02])
def test_another_speed_does_not_match(songs: list[Song], speed: float) -> None:
    for song in songs:
        other_T = fingerprint(soxr.resample(song.mix_CN.T, RATE_HZ * speed, RATE_HZ).T)
        assert not same_recording(song.words_T, other_T)
        assert len(np.intersect1d(sketch(song.words_T), sketch(other_T))) < 2


def test_another_song_in_the_same_key_and_tempo_does_not_match() -> None:
    found = []
    for seed in (1, 2):
        song = compose_plain(seed, bpm=110.0, tonic=7)
        found.append((song.chords, fingerprint((song.vocal_N + song.band_N).astype(np.float32))))
    (first_chords, first_T), (second_chords, second_T) = found
    assert first_chords != second_chords, "another progression, or it would be the same band"
    assert first_chords[0][:2] == second_chords[0][:2]
    assert not same_recording(first_T, second_T)
    assert bit_error_rate(first_T, second_T) > 0.3


def test_silence_has_no_words(songs: list[Song]) -> None:
    silent_T = fingerprint(np.zeros((2, 10 * RATE_HZ), np.float32))
    assert len(silent_T) > 800
    assert (silent_T == SILENT).all()
    assert len(sketch(silent_T)) == 0
    assert bit_error_rate(silent_T, silent_T) == 0.5
    whispered = np.random.default_rng(0).normal(0, 1e-6, (2, 10 * RATE_HZ)).astype(np.float32)
    assert len(sketch(fingerprint(whispered))) == 0, "dither is silence"
    gap_CN = songs[0].mix_CN.copy()
    gap_CN[:, 5 * RATE_HZ : 10 * RATE_HZ] = 0
    gap_T = fingerprint(gap_CN)
    assert (gap_T[int(5.5 * 86.13) : int(9.4 * 86.13)] == SILENT).all()
    assert (gap_T[: int(4 * 86.13)] != SILENT).mean() > 0.8
    assert same_recording(gap_T, songs[0].words_T), "what does not sound speaks against nothing"


def test_a_fingerprint_is_one_word_every_512_samples_of_44_kilohertz(songs: list[Song]) -> None:
    assert songs[0].words_T.dtype == np.uint32
    samples = songs[0].mix_CN.shape[1]
    assert len(songs[0].words_T) == pytest.approx((samples - 16_384) / 512 - 7, abs=2)
    assert np.array_equal(fingerprint(songs[0].mix_CN.mean(axis=0)), songs[0].words_T)


def test_a_bit_is_the_sign_of_a_difference_of_differences() -> None:
    """A tone that moves from the first band to the second lowers the first slope: bit 0 falls, bit 1 rises."""
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    fraction = np.clip((time_s - 0.8) / 0.4, 0, 1)
    tone_N = (1 - fraction) * np.sin(2 * np.pi * 308 * time_s) + fraction * np.sin(2 * np.pi * 327 * time_s)
    during_T = fingerprint(tone_N.astype(np.float32))[62:80]
    assert (during_T & 1 == 0).all()
    assert (during_T & 2 == 2).all()


@pytest.mark.parametrize("samples", [0, 1, 16_384, 20_000])
def test_what_is_too_short_has_no_words(samples: int) -> None:
    words_T = fingerprint(np.ones((2, samples), np.float32))
    assert words_T.dtype == np.uint32
    assert len(words_T) == 0
    assert len(sketch(words_T)) == 0
    assert bit_error_rate(words_T, words_T) == 0.5


def test_too_little_in_common_is_no_proof(songs: list[Song]) -> None:
    """Two seconds match by chance in a loop; and a song that quotes ten seconds of another is another song."""
    song, other = songs[0], songs[1]
    assert not same_recording(song.words_T, song.words_T[500:700])
    assert same_recording(song.words_T, song.words_T[500:1100])
    quoting_CN = np.concatenate([song.mix_CN[:, : 8 * RATE_HZ], other.mix_CN], axis=1)
    assert not same_recording(song.words_T, fingerprint(quoting_CN))


def test_wrong_audio_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(1, 2, 9\)"):
        fingerprint(np.zeros((1, 2, 9)))
    with pytest.raises(ModelError, match="at 0 Hz"):
        fingerprint(np.zeros((2, 9)), sample_rate_hz=0)


def test_a_sketch_is_small_sorted_and_the_same_wherever_the_words_stand(songs: list[Song]) -> None:
    words_T = songs[0].words_T
    found_W = sketch(words_T)
    assert found_W.dtype == np.uint32
    assert len(found_W) == SKETCH_WORDS
    assert (np.diff(found_W.astype(np.int64)) > 0).all()
    assert np.array_equal(sketch(np.concatenate([np.zeros(99, np.uint32), words_T, words_T])), found_W)
    assert np.array_equal(sketch(words_T, words=10), found_W[:10])


def test_the_index_finds_copies_and_nothing_else(songs: list[Song]) -> None:
    index = FingerprintIndex()
    for number, song in enumerate(songs):
        index.add(f"song-{number}", sketch(song.words_T))
    for number, song in enumerate(songs):
        assert index.candidates(sketch(fingerprint(COPIES["cut at both ends"](song.mix_CN)))) == [f"song-{number}"]
    assert index.candidates(np.zeros(0, np.uint32)) == []
    with pytest.raises(ModelError, match="at_least=0"):
        index.candidates(sketch(songs[0].words_T), at_least=0)


def test_the_index_answers_as_a_plain_count_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across its runs, joined and fresh."""
    monkeypatch.setattr("model.listen.fingerprint._FRESH_SONGS", 4)
    draws = np.random.default_rng(0)
    index, sets = FingerprintIndex(), []
    for number in range(61):
        words_W = np.unique(draws.integers(0, 60, 8, dtype=np.uint32))
        index.add(str(number), words_W)
        sets.append(set(words_W.tolist()))
        asked_W = np.unique(draws.integers(0, 60, 8, dtype=np.uint32))
        counts = {str(at): len(held & set(asked_W.tolist())) for at, held in enumerate(sets)}
        for at_least in (1, 2, 3):
            answer = index.candidates(asked_W, at_least=at_least)
            assert set(answer) == {song for song, count in counts.items() if count >= at_least}
            assert [counts[song] for song in answer] == sorted((counts[song] for song in answer), reverse=True)
    assert len(index) == 61
    assert len(index._runs) > 1
    held = sum(run.words_W.nbytes + run.songs_W.nbytes for run in index._runs)
    assert held == 8 * sum(len(one) for one in sets[:60]), "eight bytes a word"
