"""Segments of a song: cut, measured, gated, and brought to one peak.

Reads: url, source, version, vocals, accompaniment, record, fault (a `FoundSong`).
Gives: a `SegmentedSong`: its identity, its segments with their audio, its rejects.

Shapes: S segments, C channels, N samples, T frames of 2,048 samples.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.audio_files import AudioError, decode, to_stereo_44k
from infra.errors import UserError
from infra.storage import MissingObjectError, Place
from model.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from pipelines.songs import SONG_RECORD, FoundSong, SongError
from pipelines.sources import STEMS

SILENCE_DB = -120.0


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How a song is cut, and what a segment must hold to be kept. Part of a dataset's identity."""

    min_duration_s: float = 5.0
    """A last piece shorter than this is dropped; a song shorter than this is rejected."""
    max_length_difference_s: float = 0.1
    """Stems may differ by so much (MP3 encoders pad); the longer one is cut."""
    voice_floor_db: float = -45.0
    """RMS of a 46 ms frame, dBFS after normalisation, below which nobody sings."""
    voice_range_db: float = 35.0
    """A frame so much quieter than the segment's loudest is not voice either, but its reverberation."""
    min_vocal_active: float = 0.05
    """Least share of frames with voice."""
    min_accompaniment_db: float = -60.0
    """Least RMS of the accompaniment, dBFS after normalisation."""
    min_peak_db: float = -60.0
    """Least peak of the mixture, dBFS before normalisation: quieter is silence, and gain would only raise its noise."""

    def __post_init__(self) -> None:
        if not 0 < self.min_duration_s <= SEGMENT_SAMPLES / SAMPLE_RATE_HZ:
            raise UserError(f"min_duration_s is {self.min_duration_s}: choose above 0 and at most {SEGMENT_SAMPLES / SAMPLE_RATE_HZ:.1f}")
        if self.max_length_difference_s < 0:
            raise UserError(f"max_length_difference_s is {self.max_length_difference_s}: choose 0 or more")
        if not 0 <= self.min_vocal_active <= 1:
            raise UserError(f"min_vocal_active is {self.min_vocal_active}, a share of frames: choose 0 to 1")
        if self.voice_range_db <= 0:
            raise UserError(f"voice_range_db is {self.voice_range_db}: choose above 0")
        for name in ("voice_floor_db", "min_accompaniment_db", "min_peak_db"):
            if not SILENCE_DB <= getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)} dBFS: choose {SILENCE_DB:.0f} to 0")


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Why a song, or one segment of it, is not in the dataset."""

    stage: str
    reason: str
    segment: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """One segment; both stems under the same gain, so that their balance survives."""

    index: int
    start_s: float
    vocal_CN: NDArray[np.float32]
    accompaniment_CN: NDArray[np.float32]
    vocal_active: float
    vocal_level_db: float
    gain_db: float

    @property
    def duration_s(self) -> float:
        return self.vocal_CN.shape[1] / SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class SongIdentity:
    """Which song it is. The id comes from the audio, so that a copied or moved song is the same song."""

    song_id: str
    audio_sha256: str = ""
    title: str = ""
    artist: str = ""
    license: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentedSong:
    """A song ready for the codec; without segments it is rejected as a whole, without rejects too it is stored already."""

    identity: SongIdentity
    duration_s: float = 0.0
    segments: tuple[Segment, ...] = ()
    rejects: tuple[Reject, ...] = ()


def segment_song(song: FoundSong, place: Place, config: SegmentConfig, known: frozenset[str] = frozenset()) -> SegmentedSong:
    """Read, decode, cut and measure one song; `place` lends its access to storage. A song whose id is `known` is not decoded again.

    What is wrong with the song itself becomes a reject; a storage that fails (other than a missing object) raises, for it says nothing
    about the song.
    """
    identity = SongIdentity(song_id=hashlib.sha256(song.url.encode()).hexdigest()[:16], title=song.url.rsplit("/", 1)[-1])
    stage = "source"
    try:
        if song.fault:
            raise SongError(song.fault)
        stage = "read"
        files = [Place(file.address, place.access).read_bytes() for file in song.media]
        identity = _identify(files, Place(song.record, place.access).read_bytes() if song.record else b"{}", identity.title)
        if identity.song_id in known:
            return SegmentedSong(identity=identity)
        stage = "decode"
        vocal_CN, accompaniment_CN = (_stem(name, file) for name, file in zip(STEMS, files, strict=True))
        del files
        stage = "segment"
        return segment_audio(identity, *_equal_lengths(vocal_CN, accompaniment_CN, config), config)
    except (SongError, AudioError, MissingObjectError) as error:
        return SegmentedSong(identity=identity, rejects=(Reject(stage=stage, reason=str(error)),))


def segment_audio(
    identity: SongIdentity, vocal_CN: NDArray[np.float32], accompaniment_CN: NDArray[np.float32], config: SegmentConfig
) -> SegmentedSong:
    """Cut and measure stems of one length; rejected as a whole when none of it can be used."""
    try:
        pieces = list(cut(vocal_CN, accompaniment_CN, config))
    except SongError as error:
        return SegmentedSong(identity=identity, rejects=(Reject(stage="segment", reason=str(error)),))
    segments = tuple(piece for piece in pieces if isinstance(piece, Segment))
    rejects = tuple(piece for piece in pieces if isinstance(piece, Reject))
    if not segments:
        reason = f"none of its {len(rejects)} segments can be used: {rejects[0].reason}"
        return SegmentedSong(identity=identity, rejects=(Reject(stage="segment", reason=reason),))
    return SegmentedSong(identity=identity, duration_s=vocal_CN.shape[1] / SAMPLE_RATE_HZ, segments=segments, rejects=rejects)


def cut(vocal_CN: NDArray[np.float32], accompaniment_CN: NDArray[np.float32], config: SegmentConfig) -> Iterator[Segment | Reject]:
    """Segments of 2,097,152 samples in order, the last as long as what is left; a Reject in place of each that fails a gate.

    SongError when the whole is shorter than `min_duration_s`.
    """
    samples = vocal_CN.shape[1]
    least = round(config.min_duration_s * SAMPLE_RATE_HZ)
    if samples < least:
        raise SongError(f"{samples / SAMPLE_RATE_HZ:.2f} s of audio are less than the {config.min_duration_s:g} s that a segment needs")
    for index, start in enumerate(range(0, samples, SEGMENT_SAMPLES)):
        stop = min(start + SEGMENT_SAMPLES, samples)
        if stop - start >= least:
            yield _measured(index, start, vocal_CN[:, start:stop], accompaniment_CN[:, start:stop], config)


def frame_rms_db(audio_CN: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,) RMS of each frame of 2,048 samples over both channels, dBFS, at least −120; the last frame is averaged over what it has."""
    power_N = np.mean(np.square(audio_CN, dtype=np.float64), axis=0)
    starts = np.arange(0, len(power_N), HOP_SAMPLES)
    lengths = np.minimum(starts + HOP_SAMPLES, len(power_N)) - starts
    return 10 * np.log10(np.maximum(np.add.reduceat(power_N, starts) / lengths, 10 ** (SILENCE_DB / 10)))


def voice(vocal_CN: NDArray[np.float32], config: SegmentConfig) -> tuple[float, float]:
    """(share of frames with voice, RMS over those frames in dBFS); (0, −120) when nobody sings."""
    rms_db_T = frame_rms_db(vocal_CN)
    active_T = rms_db_T >= max(config.voice_floor_db, float(rms_db_T.max()) - config.voice_range_db)
    if not active_T.any():
        return 0.0, SILENCE_DB
    return float(active_T.mean()), float(10 * np.log10(np.mean(10 ** (rms_db_T[active_T] / 10))))


def _measured(
    index: int, start: int, vocal_CN: NDArray[np.float32], accompaniment_CN: NDArray[np.float32], config: SegmentConfig
) -> Segment | Reject:
    def reject(reason: str) -> Reject:
        return Reject(stage="gate", segment=index, reason=f"segment {index} at {start / SAMPLE_RATE_HZ:.1f} s: {reason}")

    peak = float(np.abs(vocal_CN + accompaniment_CN).max())
    peak_db = 20 * np.log10(max(peak, 10 ** (SILENCE_DB / 20)))
    if peak_db < config.min_peak_db:
        return reject(f"silence, the mixture's peak is {peak_db:.1f} dBFS, below {config.min_peak_db:g}")
    gain = 1 / peak
    vocal_CN, accompaniment_CN = vocal_CN * np.float32(gain), accompaniment_CN * np.float32(gain)
    active, level_db = voice(vocal_CN, config)
    if active < config.min_vocal_active:
        return reject(f"voice in {active:.1%} of it, less than {config.min_vocal_active:.0%}")
    band_db = 10 * np.log10(max(float(np.mean(np.square(accompaniment_CN, dtype=np.float64))), 10 ** (SILENCE_DB / 10)))
    if band_db < config.min_accompaniment_db:
        return reject(f"no accompaniment, its RMS is {band_db:.1f} dBFS, below {config.min_accompaniment_db:g}")
    return Segment(
        index=index,
        start_s=start / SAMPLE_RATE_HZ,
        vocal_CN=vocal_CN,
        accompaniment_CN=accompaniment_CN,
        vocal_active=active,
        vocal_level_db=level_db,
        gain_db=20 * float(np.log10(gain)),
    )


def _stem(name: str, file: bytes) -> NDArray[np.float32]:
    try:
        return to_stereo_44k(decode(file))
    except AudioError as error:
        raise type(error)(f"{name}: {error}") from error


def _equal_lengths(
    vocal_CN: NDArray[np.float32], accompaniment_CN: NDArray[np.float32], config: SegmentConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    lengths = vocal_CN.shape[1], accompaniment_CN.shape[1]
    difference_s = abs(lengths[0] - lengths[1]) / SAMPLE_RATE_HZ
    if difference_s > config.max_length_difference_s:
        vocals_s, accompaniment_s = (samples / SAMPLE_RATE_HZ for samples in lengths)
        raise SongError(
            f"the stems' lengths differ by {difference_s:.2f} s (vocals {vocals_s:.2f} s, accompaniment {accompaniment_s:.2f} s), "
            f"more than {config.max_length_difference_s:g} s: export both from the same start to the same end"
        )
    return vocal_CN[:, : min(lengths)], accompaniment_CN[:, : min(lengths)]


def _identify(files: Sequence[bytes], record: bytes, title: str) -> SongIdentity:
    """Hash of the stems' bytes, and what song.json says; SongError when that is no JSON object."""
    try:
        given = json.loads(record)
        named = {name: _text(given.get(name)) for name in ("title", "artist", "license")} if isinstance(given, dict) else {}
    except (ValueError, RecursionError) as error:
        raise SongError(f"{SONG_RECORD} is not JSON ({error}): mend or remove it") from error
    if not isinstance(given, dict):
        raise SongError(f"{SONG_RECORD} is not a JSON object: mend or remove it")
    audio_sha256 = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files)).hexdigest()
    return SongIdentity(
        song_id=audio_sha256[:16],
        audio_sha256=audio_sha256,
        title=named["title"] or title,
        artist=named["artist"],
        license=named["license"],
    )


def _text(value: object) -> str:
    """JSON may hold half a surrogate pair, which no file can."""
    return str(value or "").encode("utf-8", "replace").decode()
