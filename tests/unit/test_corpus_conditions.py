"""Each condition of the listening set does what its name says, by measurement."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy

from infra.audio.files import decode, to_stereo_44k
from infra.errors import UserError
from model import listen
from model.dimensions import SAMPLE_RATE_HZ
from model.inference.gain import active_level_db
from pipelines.corpus import RenderedSong, SongRecord, compose, render
from pipelines.corpus.listening_set import LISTENING_SET, ListeningSetConfig, write_listening_set
from pipelines.corpus.vocals.conditions import CONDITIONS, OTHER_PERFORMANCE, SAME_PERFORMANCE, Severity, vocal_under

SEEDS = (900, 903)
DURATION_S = 20.0
SEVERITY = Severity()


@dataclass(frozen=True)
class Sung:
    """A song and its vocal under every condition."""

    record: SongRecord
    song: RenderedSong
    vocals: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=SEEDS)
def sung(request: pytest.FixtureRequest) -> Sung:
    record = compose(request.param, DURATION_S)
    song = render(record)
    return Sung(record, song, {condition: vocal_under(condition, record, song) for condition in CONDITIONS})


def level_db(audio: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20))


def band_db(audio_CN: np.ndarray, low_hz: float, high_hz: float) -> float:
    sos = scipy.signal.butter(8, (low_hz, high_hz), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return level_db(scipy.signal.sosfilt(sos, audio_CN))


def note_cents(sung: Sung, condition: str) -> np.ndarray:
    """Distance of each note of 0.2 s or more from the score, as heard in its middle."""
    times_s, hz, voiced = listen.f0(sung.vocals[condition])
    cents = []
    for note in sung.record.vocal:
        inside = (times_s > note.onset_s + 0.07) & (times_s < note.offset_s - 0.05) & voiced
        if note.offset_s - note.onset_s > 0.2 and inside.sum() > 5:
            cents.append(1200 * np.log2(np.median(hz[inside]) / 440) - 100 * (note.midi - 69))
    return np.array(cents)


def held_share(vocal_CN: np.ndarray) -> float:
    """Share of voiced frames in which pitch stays within a third of a semitone for 0.3 s."""
    _, hz, voiced = listen.f0(vocal_CN)
    midi = 69 + 12 * np.log2(np.where(voiced, hz, 1.0) / 440)
    spread = scipy.ndimage.maximum_filter1d(midi, 31) - scipy.ndimage.minimum_filter1d(midi, 31)
    return float(((spread < 0.33) & voiced).sum() / voiced.sum())


def test_every_condition_is_as_long_bounded_finite_and_about_as_loud(sung: Sung) -> None:
    clean_db = active_level_db(sung.vocals["clean"])
    assert np.array_equal(sung.vocals["clean"], sung.song.vocals_CN)
    for condition, vocal_CN in sung.vocals.items():
        assert vocal_CN.shape == sung.song.vocals_CN.shape
        assert vocal_CN.dtype == np.float32
        assert np.isfinite(vocal_CN).all()
        assert np.abs(vocal_CN).max() < 1
        assert active_level_db(vocal_CN) == pytest.approx(clean_db, abs=3.0), condition
    assert set(SAME_PERFORMANCE) | set(OTHER_PERFORMANCE) == set(sung.vocals)


def test_the_same_seed_and_condition_give_the_same_vocal(sung: Sung) -> None:
    for condition in ("noise", "bleed", "off-key", "free-tempo", "spoken"):
        assert np.array_equal(vocal_under(condition, sung.record, sung.song), sung.vocals[condition])


def test_noise_lies_15_db_below_the_singing_and_hums(sung: Sung) -> None:
    noise_CN = sung.vocals["noise"].astype(np.float64) - sung.vocals["clean"]
    assert level_db(noise_CN) - active_level_db(sung.vocals["clean"]) == pytest.approx(SEVERITY.noise_db, abs=1.0)
    assert band_db(noise_CN, 45, 55) > band_db(noise_CN, 70, 80) + 5
    assert np.ptp([band_db(noise_CN, low, 2 * low) for low in (250, 1_000, 4_000)]) < 1.0


def _at(audio_CN: np.ndarray, start_s: float) -> np.ndarray:
    """A tenth of a second."""
    return audio_CN[:, int(start_s * SAMPLE_RATE_HZ) : int((start_s + 0.1) * SAMPLE_RATE_HZ)]


def test_reverb_rings_on_after_the_last_note_of_a_phrase(sung: Sung) -> None:
    ends_s = [one.offset_s for one, other in pairwise(sung.record.vocal) if other.onset_s - one.offset_s > 0.5]
    drops = {}
    for condition in ("clean", "reverb"):
        held, after = ([_at(sung.vocals[condition], end_s + delay_s) for end_s in ends_s] for delay_s in (-0.1, 0.25))
        drops[condition] = np.mean([level_db(one) - level_db(other) for one, other in zip(held, after, strict=True)])
    # 60 dB in 1.2 s are 15 to 20 dB in the 0.3 to 0.4 s between.
    assert drops["reverb"] < 22 < drops["clean"] - 2


def test_a_telephone_passes_its_band_alone(sung: Sung) -> None:
    phone_CN, clean_CN = sung.vocals["phone"], sung.vocals["clean"]
    assert band_db(phone_CN, 5_000, 10_000) < level_db(phone_CN) - 40
    assert band_db(phone_CN, 40, 150) < level_db(phone_CN) - 40
    assert band_db(phone_CN, 1_500, 3_000) > band_db(clean_CN, 1_500, 3_000)
    assert np.array_equal(phone_CN[0], phone_CN[1])


def test_bleed_is_the_songs_own_band_18_db_down_with_holes(sung: Sung) -> None:
    bleed_CN = sung.vocals["bleed"].astype(np.float64) - sung.vocals["clean"]
    assert level_db(bleed_CN) - active_level_db(sung.vocals["clean"]) == pytest.approx(SEVERITY.bleed_db, abs=1.5)
    _, _, coherent = scipy.signal.stft(bleed_CN[0], SAMPLE_RATE_HZ, nperseg=2_048)
    _, _, played = scipy.signal.stft(sung.song.accompaniment_CN[0], SAMPLE_RATE_HZ, nperseg=2_048)
    match = np.abs(np.sum(coherent * played.conj())) / np.sqrt(np.sum(np.abs(coherent) ** 2) * np.sum(np.abs(played) ** 2))
    assert match > 0.3
    power_FT = np.abs(coherent[20:280]) ** 2
    assert np.mean(power_FT < 1e-3 * power_FT.mean()) > 0.4


def test_detuned_is_40_cents_flat_and_clean_is_not(sung: Sung) -> None:
    assert np.median(note_cents(sung, "detuned")) == pytest.approx(-40, abs=8)
    assert np.median(note_cents(sung, "clean")) == pytest.approx(0, abs=8)


def test_off_key_misses_note_by_note(sung: Sung) -> None:
    cents = note_cents(sung, "off-key")
    assert np.median(np.abs(cents)) > 20
    assert np.median(np.abs(note_cents(sung, "clean"))) < 5
    assert np.quantile(np.abs(cents), 0.9) < 105


def test_free_tempo_moves_onsets_by_no_more_than_the_warp_allows(sung: Sung) -> None:
    original, moved = sung.record.vocal, OTHER_PERFORMANCE["free-tempo"](sung.record, SEVERITY).vocal
    onsets_s = np.array([[note.onset_s for note in notes] for notes in (original, moved)])
    assert np.abs(onsets_s[1] - onsets_s[0]).max() > 0.08
    pace = np.diff(onsets_s[1]) / np.diff(onsets_s[0])
    assert pace.min() > 1 - SEVERITY.rubato - 0.01
    assert pace.max() < 1 + SEVERITY.rubato + 0.01
    assert np.ptp(pace) > SEVERITY.rubato
    heard_s = listen.onsets(sung.vocals["free-tempo"])
    near = [np.abs(heard_s - onset_s).min() for onset_s in onsets_s[1]]
    assert np.median(near) < 0.04


def test_humming_has_pitch_and_no_consonants(sung: Sung) -> None:
    assert np.median(np.abs(note_cents(sung, "humming"))) < 15
    assert band_db(sung.vocals["humming"], 4_000, 16_000) < level_db(sung.vocals["humming"]) - 60
    assert band_db(sung.vocals["clean"], 4_000, 16_000) > level_db(sung.vocals["clean"]) - 45


def test_speech_is_low_fast_and_holds_no_note(sung: Sung) -> None:
    assert held_share(sung.vocals["spoken"]) < 0.35 * held_share(sung.vocals["clean"])
    _, hz, voiced = listen.f0(sung.vocals["spoken"])
    assert 69 + 12 * np.log2(np.median(hz[voiced]) / 440) == pytest.approx(sung.record.voice.low_midi - 2, abs=2.5)
    spoken = OTHER_PERFORMANCE["spoken"](sung.record, SEVERITY).vocal
    lengths_s = [note.offset_s - note.onset_s for note in spoken]
    assert 0.12 < np.median(lengths_s) < 0.24
    assert [note.syllable for note in spoken] == [note.syllable for note in sung.record.vocal][: len(spoken)]


def test_a_whisper_has_no_pitch(sung: Sung) -> None:
    _, _, voiced = listen.f0(sung.vocals["whisper"])
    assert voiced.mean() < 0.01
    assert listen.f0(sung.vocals["clean"])[2].mean() > 0.3


def test_a_fragment_is_one_phrase_then_silence(sung: Sung) -> None:
    end_s = max(note.offset_s for note in sung.record.vocal if note.phrase == sung.record.vocal[0].phrase)
    fragment_CN = sung.vocals["fragment"]
    assert level_db(fragment_CN[:, int((end_s + 4) * SAMPLE_RATE_HZ) :]) < -90
    before = slice(0, int((end_s - 0.3) * SAMPLE_RATE_HZ))
    assert level_db(fragment_CN[:, before] - sung.vocals["clean"][:, before]) < level_db(fragment_CN[:, before]) - 6


def test_the_set_on_disk_is_what_its_description_says(tmp_path: Path) -> None:
    config = ListeningSetConfig(out=str(tmp_path / "set"), songs=1, seed=900, duration_s=10.0, workers=1)
    write_listening_set(config)
    description = json.loads((tmp_path / "set" / LISTENING_SET).read_bytes())
    assert tuple(description["conditions"]) == CONDITIONS
    assert description["severity"]["noise_db"] == SEVERITY.noise_db
    (song,) = description["songs"]
    record = compose(900, 10.0)
    assert (song["seed"], song["record_sha256"]) == (900, record.sha256())
    rendered = render(record)
    for condition in CONDITIONS:
        written_CN = to_stereo_44k(decode((tmp_path / "set" / song["song_id"] / f"{condition}.wav").read_bytes()))
        assert np.abs(written_CN - vocal_under(condition, record, rendered)).max() < 1.01 / 65_536
    assert len(list((tmp_path / "set" / song["song_id"]).iterdir())) == len(CONDITIONS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"songs": 0}, "at least 1"), ({"seed": 995}, "never train"), ({"workers": 0}, "at least 1"), ({"duration_s": 5.0}, "10 to 600")],
)
def test_wrong_settings_are_named(changed: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ListeningSetConfig(**{"out": "set", "songs": 8, **changed})  # type: ignore[arg-type]
