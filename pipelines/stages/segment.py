"""Segments of a song: cut, measured, gated, and brought to one peak.

Reads: its stems, and the mixture that they were separated from. Gives: a `SegmentedSong`: its segments with their audio, its rejects.

Shapes: S segments, C channels, N samples, T frames of 2,048 samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.audio.files import MAX_DURATION_S
from infra.errors import UserError
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.listen.fingerprint import MOST_BIT_ERRORS, fingerprint
from model.separation.quality import separation_quality
from pipelines.song import Reject, Segment, SegmentedSong, SongError, SongIdentity

SILENCE_DB = -120.0
# Samples within 0.01% of the peak are as high as the format went; a run of them is a wave whose top is gone.
CLIP_MARGIN, CLIP_RUN = 1e-4, 3
# Copies cut differently at their ends still share most of it.
FINGERPRINT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How a song is cut, and what it and a segment must hold to be kept. Part of a dataset's identity."""

    max_duration_s: float = MAX_DURATION_S
    """A longer song is rejected before it is decoded."""
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
    max_clipped: float = 0.02
    """Largest share of the mixture's samples in flat tops (3 or more at the peak). Loud masters have up to 1%."""
    min_separation_quality: float = 0.0
    """Least quality of separated stems, 0 to 1 (`model.separation.quality`); 0 keeps all, the figure is in the row."""
    max_fingerprint_errors: float = MOST_BIT_ERRORS
    """Two recordings whose fingerprints differ in at most this share of bits are one (an MP3, another cut); 0 compares hashes only."""

    def __post_init__(self) -> None:
        if not 0 < self.min_duration_s <= SEGMENT_SAMPLES / SAMPLE_RATE_HZ:
            raise UserError(f"min_duration_s is {self.min_duration_s}: choose above 0 and at most {SEGMENT_SAMPLES / SAMPLE_RATE_HZ:.1f}")
        if self.max_length_difference_s < 0:
            raise UserError(f"max_length_difference_s is {self.max_length_difference_s}: choose 0 or more")
        if self.max_duration_s < self.min_duration_s:
            raise UserError(f"max_duration_s is {self.max_duration_s}: choose at least min_duration_s ({self.min_duration_s:g})")
        for name in ("min_vocal_active", "max_clipped", "min_separation_quality"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, a share: choose 0 to 1")
        if not 0 <= self.max_fingerprint_errors < 0.5:
            raise UserError(f"max_fingerprint_errors is {self.max_fingerprint_errors}: choose 0 (off) to below 0.5, which is chance")
        if self.voice_range_db <= 0:
            raise UserError(f"voice_range_db is {self.voice_range_db}: choose above 0")
        for name in ("voice_floor_db", "min_accompaniment_db", "min_peak_db"):
            if not SILENCE_DB <= getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)} dBFS: choose {SILENCE_DB:.0f} to 0")


def segment_audio(
    identity: SongIdentity,
    vocal_CN: NDArray[np.float32],
    accompaniment_CN: NDArray[np.float32],
    config: SegmentConfig,
    mixture_CN: NDArray[np.float32] | None = None,
) -> SegmentedSong:
    """Cut and measure stems of one length, which `mixture_CN` was separated into, if it was; rejected when none of it can be used."""
    try:
        pieces = list(cut(vocal_CN, accompaniment_CN, config, mixture_CN))
    except SongError as error:
        return SegmentedSong(identity=identity, rejects=(Reject(stage="segment", reason=str(error)),))
    segments = tuple(piece for piece in pieces if isinstance(piece, Segment))
    rejects = tuple(piece for piece in pieces if isinstance(piece, Reject))
    if not segments:
        reason = f"none of its {len(rejects)} segments can be used: {rejects[0].reason}"
        return SegmentedSong(identity=identity, rejects=(Reject(stage="segment", reason=reason),))
    return SegmentedSong(identity=identity, duration_s=vocal_CN.shape[1] / SAMPLE_RATE_HZ, segments=segments, rejects=rejects)


def cut(
    vocal_CN: NDArray[np.float32],
    accompaniment_CN: NDArray[np.float32],
    config: SegmentConfig,
    mixture_CN: NDArray[np.float32] | None = None,
) -> Iterator[Segment | Reject]:
    """Segments of 2,097,152 samples in order, the last as long as what is left; a Reject in place of each that fails a gate.

    SongError when the whole is shorter than `min_duration_s`.
    """
    samples = vocal_CN.shape[1]
    least = round(config.min_duration_s * SAMPLE_RATE_HZ)
    if samples < least:
        raise SongError(f"{samples / SAMPLE_RATE_HZ:.2f} s of audio are less than the {config.min_duration_s:g} s that a segment needs")
    for index, start in enumerate(range(0, samples, SEGMENT_SAMPLES)):
        here = slice(start, min(start + SEGMENT_SAMPLES, samples))
        if here.stop - start >= least:
            original_CN = None if mixture_CN is None else mixture_CN[:, here]
            yield _measured(index, start, vocal_CN[:, here], accompaniment_CN[:, here], original_CN, config)


def middle_fingerprint(mixture_CN: NDArray[np.float32]) -> tuple[int, ...]:
    """The fingerprint of the middle of a song, as it is kept with the song."""
    samples = mixture_CN.shape[1]
    length = min(samples, round(FINGERPRINT_S * SAMPLE_RATE_HZ))
    start = (samples - length) // 2
    return tuple(fingerprint(mixture_CN[:, start : start + length]).tolist())


def clipped_share(mixture_CN: NDArray[np.float32]) -> float:
    """Share of samples in flat tops: runs of 3 or more within 0.01% of the highest peak."""
    top_CN = np.abs(mixture_CN) >= np.abs(mixture_CN).max() * (1 - CLIP_MARGIN)
    runs_CN = top_CN[:, 2:] & top_CN[:, 1:-1] & top_CN[:, :-2]
    within_CN = np.zeros_like(top_CN)
    for offset in range(CLIP_RUN):
        within_CN[:, offset : offset + runs_CN.shape[1]] |= runs_CN
    return float(within_CN.mean())


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
    index: int,
    start: int,
    vocal_CN: NDArray[np.float32],
    accompaniment_CN: NDArray[np.float32],
    original_CN: NDArray[np.float32] | None,
    config: SegmentConfig,
) -> Segment | Reject:
    def reject(reason: str) -> Reject:
        return Reject(stage="gate", segment=index, reason=f"segment {index} at {start / SAMPLE_RATE_HZ:.1f} s: {reason}")

    mixture_CN = vocal_CN + accompaniment_CN
    peak = float(np.abs(mixture_CN).max())
    peak_db = 20 * np.log10(max(peak, 10 ** (SILENCE_DB / 20)))
    if peak_db < config.min_peak_db:
        return reject(f"silence, the mixture's peak is {peak_db:.1f} dBFS, below {config.min_peak_db:g}")
    clipped = clipped_share(mixture_CN if original_CN is None else original_CN)
    if clipped > config.max_clipped:
        return reject(f"{clipped:.1%} of its samples are clipped, more than {config.max_clipped:.0%}")
    gain = 1 / peak
    vocal_CN, accompaniment_CN = vocal_CN * np.float32(gain), accompaniment_CN * np.float32(gain)
    active, level_db = voice(vocal_CN, config)
    if active < config.min_vocal_active:
        return reject(f"voice in {active:.1%} of it, less than {config.min_vocal_active:.0%}")
    band_db = 10 * np.log10(max(float(np.mean(np.square(accompaniment_CN, dtype=np.float64))), 10 ** (SILENCE_DB / 10)))
    if band_db < config.min_accompaniment_db:
        return reject(f"no accompaniment, its RMS is {band_db:.1f} dBFS, below {config.min_accompaniment_db:g}")
    quality = None if original_CN is None else separation_quality(original_CN, vocal_CN / gain, accompaniment_CN / gain).score
    if quality is not None and quality < config.min_separation_quality:
        return reject(f"separation quality {quality:.2f}, below {config.min_separation_quality:g}")
    return Segment(
        index=index,
        start_s=start / SAMPLE_RATE_HZ,
        vocal_CN=vocal_CN,
        accompaniment_CN=accompaniment_CN,
        vocal_active=active,
        vocal_level_db=level_db,
        gain_db=20 * float(np.log10(gain)),
        separation_quality=quality,
    )
