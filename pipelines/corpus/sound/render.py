"""A record to sound: stems that add up to the mixture, sample by sample."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.score.record import SongRecord
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.sound.bank import NUMPY, Bank, BankSet
from pipelines.corpus.sound.delivery import beside, doubled_part
from pipelines.corpus.sound.dsp import db
from pipelines.corpus.sound.mix import blend, master, master_band, place_vocal, quantise
from pipelines.corpus.sound.singer import NUMPY_VOICE, Singer, SingerSet

PCM_SCALE = 32768.0
GAIN_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class SungVocal:
    """A vocal as another song's render left it."""

    vocals_CN: NDArray[np.float32]
    """Multiples of 1/32768, shape (2, N)."""
    f0_hz: NDArray[np.float32]
    gain_db: float
    """Its gain in mastering, as its song.json holds it."""
    voice: str
    timbre: dict[str, float]
    doubled: bool
    voice_licence: str = ""
    """Of the recordings that were sung with."""


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
    banks: dict[str, str]
    """Which bank played each part."""
    bank_licences: dict[str, str]
    """Each of these banks, and the voice, where it holds recordings → their licence."""
    voice: str
    """Who sang."""
    timbre: dict[str, float]
    doubled: bool

    @property
    def sung(self) -> SungVocal:
        """Its vocal, for other bands; the gain as `song.json` holds it, so that bands made later are those made at once."""
        return SungVocal(
            vocals_CN=self.vocals_CN,
            f0_hz=self.f0_hz,
            gain_db=round(self.vocal_gain_db, GAIN_DIGITS),
            voice=self.voice,
            timbre=self.timbre,
            doubled=self.doubled,
            voice_licence=self.bank_licences.get(self.voice, ""),
        )


def render(record: SongRecord, banks: BankSet = NUMPY, voices: SingerSet = NUMPY_VOICE) -> RenderedSong:
    """Sings and plays a record at 44.1 kHz. Equal records, banks and voices give equal audio, in any process and order.

    record: as composed, or as `voices.perform` changes it.
    """
    samples = int(record.duration_s * SAMPLE_RATE_HZ)
    singer = voices.draw(record.seed)
    vocals, f0_hz, doubled = _sing(record, singer, samples)
    accompaniment, played_by = _play(record, banks, samples)
    ending = _ending(samples)
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
        banks={name: bank.name for name, bank in played_by.items()},
        bank_licences=_licences(played_by, singer.name, singer.licence),
        voice=singer.name,
        timbre=singer.timbre(record),
        doubled=doubled,
    )


def render_band(record: SongRecord, sung: SungVocal, banks: BankSet = NUMPY) -> RenderedSong:
    """Plays a record's band beside a vocal that is sung already, at that vocal's level; not a sample of the vocal changes.

    Equal records, vocals and banks give equal audio, in any process and order.
    """
    samples = sung.vocals_CN.shape[1]
    accompaniment, played_by = _play(record, banks, samples)
    vocals = sung.vocals_CN.astype(np.float64)
    before = float(np.max(np.abs(accompaniment)))
    accompaniment = master_band(vocals, accompaniment * _ending(samples) * db(sung.gain_db), record.mix)
    after = float(np.max(np.abs(accompaniment)))
    whole = np.round(vocals * PCM_SCALE).astype(np.int32)
    played = np.round(accompaniment * 32767.0).astype(np.int32)
    played = np.clip(played, -32768 - whole, 32767 - whole)
    return RenderedSong(
        vocals_CN=sung.vocals_CN,
        accompaniment_CN=(played / PCM_SCALE).astype(np.float32),
        mixture_CN=((whole + played) / PCM_SCALE).astype(np.float32),
        f0_hz=sung.f0_hz,
        vocal_gain_db=sung.gain_db,
        accompaniment_gain_db=float(20 * np.log10(after / before)),
        banks={name: bank.name for name, bank in played_by.items()},
        bank_licences=_licences(played_by, sung.voice, sung.voice_licence),
        voice=sung.voice,
        timbre=sung.timbre,
        doubled=sung.doubled,
    )


def _licences(played_by: dict[str, Bank], voice: str, voice_licence: str) -> dict[str, str]:
    licences = {bank.name: bank.licence for bank in played_by.values() if bank.licence}
    return licences | ({voice: voice_licence} if voice_licence else {})


def _sing(record: SongRecord, singer: Singer, samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """The vocal in its room, shape (2, samples), its F0, and whether choruses are doubled."""
    dry, f0_hz = singer.sing(record, samples)
    second = doubled_part(record) if singer.performs else None
    vocals = place_vocal(dry, record.mix, 60 / record.tempo_bpm, str(record.seed))
    if second is not None:
        vocals += beside(dry, singer.sing(second, samples)[0], record.seed)
    return vocals, f0_hz, second is not None


def _play(record: SongRecord, banks: BankSet, samples: int) -> tuple[Array, dict[str, Bank]]:
    """The band in its room beside a vocal of active level 1, shape (2, samples), and which bank played each part."""
    drawn = {track.name: banks.draw(track, record) for track in record.tracks}
    parts = {track.name: drawn[track.name].play(track, record, samples) for track in record.tracks}
    kicks = [note.onset_s for track in record.tracks if track.name == "drums" for note in track.notes if note.midi == DRUM_KEYS["kick"]]
    return blend(record, parts, kicks), drawn


def _ending(samples: int) -> Array:
    """The gain of a song that fades in its last 1.2 s."""
    ending = np.ones(samples)
    fade = int(1.2 * SAMPLE_RATE_HZ)
    ending[-fade:] = 0.5 + 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    return ending
