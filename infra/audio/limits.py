"""What audio must be before anyone uses it: the limits, the checks that hold them, and one error a kind of fault.

Shared by both decoders, libsndfile's and FFmpeg's. Shape legend: C channels, N samples. Full scale is ±1.
"""

import numpy as np

from infra.errors import UserError

MAX_DURATION_S = 1_200.0
MAX_CHANNELS = 8
MIXABLE_CHANNELS = (1, 2, 6)
"""Layouts that can be mixed to stereo: mono, stereo and 5.1."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
# A minute of silence in eight channels is a few kB of FLAC: duration alone does not bound the memory.
MAX_DECODED_BYTES = 2**30
# Boxes of an MP4, chunks of a WAV: an honest file has hundreds; 20 minutes in fragments of 85 ms have so many.
MAX_PARTS = 100_000
# Float files scaled as integers or holding garbage overflow later, where nobody knows which file it was.
MAX_PEAK = 100.0

REMEDY = "export it as WAV, FLAC, MP3, OGG or M4A"


class AudioError(UserError):
    """A file that cannot be used as audio."""


class NotAudio(AudioError):
    """The bytes are no audio that this machine can decode (HTTP 415)."""


class UnreadableAudio(AudioError):
    """Audio by its signature, but damaged, empty, or holding samples that mean nothing (HTTP 400)."""


class AudioTooLong(AudioError):
    """Longer than the limit, or larger once decoded (HTTP 413)."""


def check_format(sample_rate_hz: int, channels: int, max_channels: int) -> None:
    """UnreadableAudio for a rate that no recording has, or for channels that are too many or cannot be mixed to stereo."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise UnreadableAudio(f"sample rate {sample_rate_hz} Hz is not within {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz; export at 44100 Hz")
    if channels < 1:
        raise UnreadableAudio("the header claims 0 channels, at least 1 is needed; export a stereo file")
    if channels > max_channels:
        raise UnreadableAudio(f"{channels} channels are more than {max_channels}; export a stereo file")
    check_mixable(channels)


def check_mixable(channels: int) -> None:
    """UnreadableAudio for a number of channels that `to_stereo_44k` has no rule for; told before such a file takes any memory."""
    if channels not in MIXABLE_CHANNELS:
        raise UnreadableAudio(f"{channels} channels cannot be mixed to stereo, only 1, 2 or 6 (5.1) can; export a stereo file")


def check_length(samples: int, sample_rate_hz: int, channels: int, max_duration_s: float) -> None:
    """AudioTooLong when so many samples are too long, or too large in memory; for what a header claims and for what was decoded so far."""
    duration_s = samples / sample_rate_hz
    if duration_s > max_duration_s:
        raise AudioTooLong(f"{duration_s:.1f} s of audio are more than the {max_duration_s:g} s allowed; cut it into shorter files")
    if samples * channels * 4 > MAX_DECODED_BYTES:
        size_mib = samples * channels * 4 / 2**20
        raise AudioTooLong(
            f"{duration_s:.1f} s at {sample_rate_hz} Hz in {channels} channels decode to {size_mib:.0f} MiB, "
            f"more than the {MAX_DECODED_BYTES // 2**20} MiB allowed; export stereo at 44100 Hz or cut it"
        )


def check_parts(parts: int, what: str) -> None:
    """UnreadableAudio when a file has more boxes or chunks than any recording: to walk over 100 MiB of empty ones takes half a minute."""
    if parts > MAX_PARTS:
        raise UnreadableAudio(f"the file has more than {MAX_PARTS} {what}, as no recording has; {REMEDY} again")


def check_samples(samples: np.ndarray) -> None:
    """UnreadableAudio when there are none, when one is not finite, or when they are far beyond full scale."""
    if not samples.size:
        raise UnreadableAudio("the file holds 0 samples, at least 1 is needed; check that the recording was saved")
    low, high = float(samples.min()), float(samples.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise UnreadableAudio(f"{bad} of {samples.size} samples are NaN or infinite, all must be finite; export the file again")
    if max(-low, high) > MAX_PEAK:
        raise UnreadableAudio(f"peak {max(-low, high):.3g} is more than {MAX_PEAK:g} times full scale; normalise it to ±1")
