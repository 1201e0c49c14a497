"""A record to sound: stems that add up to the mixture, sample by sample."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.score.record import SongRecord, Track
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.sound.drumkit import load_kit
from pipelines.corpus.sound.dsp import band
from pipelines.corpus.sound.instruments import INSTRUMENTS, Key
from pipelines.corpus.sound.mix import blend, master, place_vocal, quantise
from pipelines.corpus.sound.voice import sing

Band = Literal["numpy", "fluidsynth"]
PCM_SCALE = 32768.0


@dataclass(frozen=True)
class RenderedSong:
    """Stems and mixture as float32 multiples of 1/32768, shape (2, N): vocals + accompaniment == mixture exactly."""

    vocals_CN: NDArray[np.float32]
    accompaniment_CN: NDArray[np.float32]
    mixture_CN: NDArray[np.float32]
    f0_hz: NDArray[np.float32]
    """The sung pitch at 200 Hz, 0 where unvoiced."""
    vocal_gain_db: float
    accompaniment_gain_db: float


def render(record: SongRecord, *, band: Band = "numpy") -> RenderedSong:
    """Sings and plays a record at 44.1 kHz. Equal records give equal audio, in any process and order."""
    samples = int(record.duration_s * SAMPLE_RATE_HZ)
    dry, f0_hz = sing(record, samples)
    vocals = place_vocal(dry, record.mix, 60 / record.tempo_bpm, str(record.seed))
    if band == "fluidsynth":
        from pipelines.corpus.sound.sampled import play_sampled

        parts = play_sampled(record, samples)
    else:
        parts = {track.name: play_track(track, record, samples) for track in record.tracks}
    kicks = [note.onset_s for track in record.tracks if track.name == "drums" for note in track.notes if note.midi == DRUM_KEYS["kick"]]
    accompaniment = blend(record, parts, kicks)
    ending = np.ones(samples)
    fade = int(1.2 * SAMPLE_RATE_HZ)
    ending[-fade:] = 0.5 + 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    before = (float(np.max(np.abs(vocals))), float(np.max(np.abs(accompaniment))))
    vocals, accompaniment = master(vocals * ending, accompaniment * ending, record.mix)
    after = (float(np.max(np.abs(vocals))), float(np.max(np.abs(accompaniment))))
    sung, played = quantise(vocals, accompaniment)
    return RenderedSong(
        vocals_CN=(sung / PCM_SCALE).astype(np.float32),
        accompaniment_CN=(played / PCM_SCALE).astype(np.float32),
        mixture_CN=((sung + played) / PCM_SCALE).astype(np.float32),
        f0_hz=f0_hz.astype(np.float32),
        vocal_gain_db=float(20 * np.log10(after[0] / before[0])),
        accompaniment_gain_db=float(20 * np.log10(after[1] / before[1])),
    )


def play_track(track: Track, record: SongRecord, samples: int) -> Array:
    """One part of the numpy band, dry, shape (2, samples). Equal notes are sounded once and reused."""
    out = np.zeros((2, samples))
    kit = load_kit(record.mix.kit, record.mix.kit_tune, record.mix.kit_damp) if track.name == "drums" else {}
    sounded: dict[tuple[int, int, int], Array] = {}
    for note in track.notes:
        start = int(note.onset_s * SAMPLE_RATE_HZ)
        if track.name == "drums":
            sound = kit[note.midi] * note.velocity**1.4
        else:
            key = (note.midi, round(note.duration_s * 20), round(note.velocity * 4))
            if key not in sounded:
                sounded[key] = INSTRUMENTS[track.instrument](Key(note.midi, max(key[1], 1) / 20, key[2] / 4))
            sound = sounded[key] * note.velocity
        stop = min(start + sound.shape[1], samples)
        if stop > start:
            out[:, start:stop] += sound[:, : stop - start]
    if track.instrument in ("crunch_guitar", "lead_guitar"):
        out = _amplifier(out, 2.2 if track.instrument == "crunch_guitar" else 3.0)
    return out


def _amplifier(audio_CN: Array, drive: float) -> Array:
    """A valve amplifier and its loudspeaker: a soft bend, then a narrow band."""
    level = np.sqrt(np.mean(audio_CN[np.abs(audio_CN) > 1e-4] ** 2)) if np.any(np.abs(audio_CN) > 1e-4) else 1.0
    return band(np.tanh(drive * audio_CN / (2.5 * level)), 110, 4200)
