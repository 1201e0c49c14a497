"""A song's vocal under the conditions that real ones come in: other rooms, devices and separators, other singing, no singing.

Those of `SAME_PERFORMANCE` treat the rendered vocal; the others edit the record and sing it again. They are for evaluation: of `capture`,
which training vocals go through, they share the form of a room's answer (another draw of it) and nothing else. Each depends on the song's
seed and the condition alone.

Shapes: C channels, N samples, F bins, T frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance, noise
from pipelines.corpus.score.record import SongRecord, VocalNote
from pipelines.corpus.sound.dsp import band, db, good_length, reverberate, room
from pipelines.corpus.sound.mix import active_rms, place_vocal
from pipelines.corpus.sound.render import RenderedSong
from pipelines.corpus.sound.voice import sing

HIGHEST_PEAK = 0.99
_WHISPERED = 1e-6
_MU = 255.0


@dataclass(frozen=True, kw_only=True)
class Severity:
    """How bad each condition is; levels in dB are relative to the singing."""

    noise_db: float = -15.0
    """Pink."""
    hum_hz: float = 50.0
    hum_db: float = -24.0
    reverb_s: float = 1.2
    """Time in which the room's sound falls by 60 dB."""
    reverb_db: float = 2.0
    phone_hz: tuple[float, float] = (300.0, 3_400.0)
    phone_drive_db: float = 6.0
    bleed_db: float = -18.0
    bleed_hz: tuple[float, float] = (200.0, 6_000.0)
    bleed_kept: float = 0.2
    """Share of time and frequency that passes the separator's gate."""
    detuned_cents: float = -40.0
    off_key_cents: float = 60.0
    """Every note misses by up to this much."""
    off_key_drift_cents: float = -30.0
    """From the first note to the last."""
    rubato: float = 0.08
    """The tempo wanders by this share at most."""
    hum_top_hz: float = 700.0
    """A closed mouth's lips and nose pass what is below."""
    spoken_syllable_s: tuple[float, float] = (0.14, 0.23)
    spoken_pause_s: float = 0.3


def vocal_under(condition: str, record: SongRecord, song: RenderedSong, severity: Severity | None = None) -> NDArray[np.float32]:
    """(2, N) float32, as long as the song, its singing about as loud, peak below 1.

    song: `render(record)`. KeyError for a condition that `CONDITIONS` does not name.
    """
    severity = severity or Severity()
    if condition in SAME_PERFORMANCE:
        audio_CN = SAME_PERFORMANCE[condition](song, severity, f"{condition}/{record.seed}")
    else:
        audio_CN = _sung(OTHER_PERFORMANCE[condition](record, severity), song.vocals_CN.shape[1]) * db(song.vocal_gain_db)
        if condition == "humming":
            audio_CN = band(audio_CN, 0, severity.hum_top_hz, order=4)
    peak = float(np.abs(audio_CN).max())
    return (audio_CN * min(1.0, HIGHEST_PEAK / max(peak, 1e-9))).astype(np.float32)


def _sung(record: SongRecord, samples: int) -> Array:
    dry, _ = sing(record, samples)
    return place_vocal(dry, record.mix, 60 / record.tempo_bpm, str(record.seed))


def _clean(song: RenderedSong, _: Severity, __: str) -> Array:
    return song.vocals_CN.astype(np.float64)


def _noisy(song: RenderedSong, severity: Severity, name: str) -> Array:
    """A room's noise, 3 dB less an octave from 20 Hz on, and its mains."""
    vocal_CN = _clean(song, severity, name)
    n = vocal_CN.shape[1]
    size = good_length(n)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    pink_CN = np.stack(
        [np.fft.irfft(np.fft.rfft(noise(n, name, channel), size) / np.sqrt(np.maximum(f, 20.0)), size)[:n] for channel in range(2)]
    )
    t = np.arange(n) / SAMPLE_RATE_HZ
    k = np.arange(1, 4)[:, None]
    hum_N = np.sum(np.sin(2 * np.pi * severity.hum_hz * k * t) / k, axis=0)
    level = active_rms(vocal_CN)
    return vocal_CN + _at_level(pink_CN, level * db(severity.noise_db)) + _at_level(hum_N, level * db(severity.hum_db))


def _reverberant(song: RenderedSong, severity: Severity, name: str) -> Array:
    vocal_CN = _clean(song, severity, name)
    wet_CN = reverberate(vocal_CN.mean(axis=0) * db(severity.reverb_db), room(severity.reverb_s, name))
    return _as_loud_as(vocal_CN, vocal_CN + wet_CN)


def _telephone(song: RenderedSong, severity: Severity, name: str) -> Array:
    """A narrow band, bent by the microphone, in 8 bits of mu-law (ITU-T G.711's curve)."""
    vocal_CN = _clean(song, severity, name)
    narrow_N = band(vocal_CN.mean(axis=0), *severity.phone_hz, order=6)
    bent_N = np.tanh(narrow_N * (db(severity.phone_drive_db) / active_rms(narrow_N[None])))
    coded_N = np.sign(bent_N) * np.round(127 * np.log1p(_MU * np.abs(bent_N)) / np.log1p(_MU)) / 127
    decoded_N = np.sign(coded_N) * np.expm1(np.abs(coded_N) * np.log1p(_MU)) / _MU
    return _as_loud_as(vocal_CN, np.stack([band(decoded_N, *severity.phone_hz, order=6)] * 2))


def _separated(song: RenderedSong, severity: Severity, name: str) -> Array:
    """The band's loudest times and frequencies left over in patches, the rest gated away, as separators leave it."""
    vocal_CN = _clean(song, severity, name)
    band_CN = band(song.accompaniment_CN.astype(np.float64), *severity.bleed_hz)
    f_F, _, spectrum_CFT = scipy.signal.stft(band_CN, SAMPLE_RATE_HZ, nperseg=2_048, noverlap=1_536)
    power_FT = scipy.ndimage.uniform_filter((np.abs(spectrum_CFT) ** 2).mean(axis=0), (3, 9))
    open_FT = power_FT > np.quantile(power_FT[(f_F > severity.bleed_hz[0]) & (f_F < severity.bleed_hz[1])], 1 - severity.bleed_kept)
    _, left_CN = scipy.signal.istft(spectrum_CFT * open_FT, SAMPLE_RATE_HZ, nperseg=2_048, noverlap=1_536)
    return vocal_CN + _at_level(left_CN[:, : vocal_CN.shape[1]], active_rms(vocal_CN) * db(severity.bleed_db))


def _at_level(audio: Array, level: float) -> Array:
    return audio * (level / np.sqrt(np.mean(audio**2)))


def _as_loud_as(vocal_CN: Array, audio_CN: Array) -> Array:
    return audio_CN * (active_rms(vocal_CN) / active_rms(audio_CN))


def _at_pitch(note: VocalNote, midi: float) -> VocalNote:
    """A record holds the score's pitches; the singer takes any."""
    return replace(note, midi=midi)  # type: ignore[arg-type]


def _detuned(record: SongRecord, severity: Severity) -> SongRecord:
    return replace(record, vocal=tuple(_at_pitch(note, note.midi + severity.detuned_cents / 100) for note in record.vocal))


def _off_key(record: SongRecord, severity: Severity) -> SongRecord:
    chance = Chance("off-key", record.seed)
    last = record.vocal[-1].onset_s
    cents = [
        chance.uniform(-severity.off_key_cents, severity.off_key_cents) + severity.off_key_drift_cents * note.onset_s / last
        for note in record.vocal
    ]
    return replace(record, vocal=tuple(_at_pitch(note, note.midi + off / 100) for note, off in zip(record.vocal, cents, strict=True)))


def _free_tempo(record: SongRecord, severity: Severity) -> SongRecord:
    """Times moved along a smooth curve whose slope wanders about 1, a new turn every 3 s or so; the song stays as long."""
    times_s = np.arange(0, record.duration_s + 0.05, 0.05)
    turns = noise(int(record.duration_s / 3) + 3, "rubato", record.seed)
    pace = scipy.ndimage.gaussian_filter1d(np.interp(times_s / 3, np.arange(turns.size), turns), 12)
    pace -= pace.mean()
    steps_s = 0.05 * (1 + severity.rubato * pace / np.abs(pace).max())
    moved_s = np.cumsum(steps_s) - steps_s[0]

    def at(time_s: float) -> float:
        return float(np.interp(time_s, times_s, moved_s))

    vocal = tuple(
        replace(note, score_onset_s=at(note.score_onset_s), onset_s=at(note.onset_s), offset_s=at(note.offset_s)) for note in record.vocal
    )
    return replace(record, vocal=vocal)


def _humming(record: SongRecord, _: Severity) -> SongRecord:
    """One closed vowel for all syllables; the lips are `vocal_under`'s."""
    voice = replace(record.voice, tilt=record.voice.tilt + 0.3, breathiness_db=-60.0)
    return replace(record, vocal=tuple(replace(note, phones=("UW",)) for note in record.vocal), voice=voice)


def _spoken(record: SongRecord, severity: Severity) -> SongRecord:
    """The words read out, a phrase when it would be sung: pitch falls from phrase to phrase's end in small steps about a low centre."""
    chance = Chance("spoken", record.seed)
    centre = record.voice.low_midi - 2
    vocal: list[VocalNote] = []
    time_s = 0.0
    for phrase in sorted({note.phrase for note in record.vocal}):
        words = [note for note in record.vocal if note.phrase == phrase]
        time_s = max(words[0].onset_s, time_s + severity.spoken_pause_s)
        for index, note in enumerate(words):
            length_s = chance.uniform(*severity.spoken_syllable_s) * (1.5 if index + 1 == len(words) else 1.0)
            midi = round(centre + 3 - 6 * (index + 1) / len(words) + chance.spread(2.0))
            spoken = replace(note, score_onset_s=time_s, onset_s=time_s, offset_s=time_s + length_s - 0.01, midi=midi)
            if spoken.offset_s < record.duration_s:
                vocal.append(spoken)
            time_s += length_s
    voice = replace(record.voice, glide_s=0.16, vibrato_cents=0.0, scoop_semitones=0.0)
    return replace(record, vocal=tuple(vocal), voice=voice)


def _whispered(record: SongRecord, _: Severity) -> SongRecord:
    """Vocal folds that let air through and do not swing: the tone goes, aspiration takes its level, consonants stay."""
    quiet = tuple(replace(note, velocity=note.velocity * _WHISPERED) for note in record.vocal)
    return replace(record, vocal=quiet, voice=replace(record.voice, breathiness_db=float(-20 * np.log10(_WHISPERED)) - 16.0))


def _fragment(record: SongRecord, _: Severity) -> SongRecord:
    return replace(record, vocal=tuple(note for note in record.vocal if note.phrase == record.vocal[0].phrase))


SAME_PERFORMANCE: dict[str, Callable[[RenderedSong, Severity, str], Array]] = {
    "clean": _clean,
    "noise": _noisy,
    "reverb": _reverberant,
    "phone": _telephone,
    "bleed": _separated,
}
OTHER_PERFORMANCE: dict[str, Callable[[SongRecord, Severity], SongRecord]] = {
    "detuned": _detuned,
    "off-key": _off_key,
    "free-tempo": _free_tempo,
    "humming": _humming,
    "spoken": _spoken,
    "whisper": _whispered,
    "fragment": _fragment,
}
CONDITIONS = (*SAME_PERFORMANCE, *OTHER_PERFORMANCE)
