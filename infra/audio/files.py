"""Audio files: bytes ↔ float32 arrays, with limits that hold before and while decoding.

libsndfile reads WAV, FLAC, MP3, OGG and their like, bit by bit as they are; containers (M4A, MP4, WebM, …) go to FFmpeg.

Shape legend: C channels, N samples. Arrays are (C, N), full scale is ±1.
"""

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import soundfile
import soxr

from infra.audio.containers import container_of, decode_container
from infra.audio.limits import (
    MAX_CHANNELS,
    MAX_DURATION_S,
    REMEDY,
    AudioError,
    AudioTooLong,
    NotAudio,
    UnreadableAudio,
    check_format,
    check_length,
    check_mixable,
    check_parts,
    check_samples,
)
from infra.errors import UserError

__all__ = [
    "MAX_DURATION_S",
    "MIME_TYPES",
    "SAMPLE_RATE_HZ",
    "Audio",
    "AudioError",
    "AudioTooLong",
    "FileFormat",
    "NotAudio",
    "StreamWriter",
    "UnreadableAudio",
    "decode",
    "encode",
    "to_stereo_44k",
]

SAMPLE_RATE_HZ = 44_100
BLOCK_SAMPLES = 65_536
# Programs that write a WAV to a pipe put the largest number of 32 or 31 bits, or a little less, where the length belongs.
UNKNOWN_WAV_BYTES = frozenset((*range(2**31 - 2**12, 2**31 + 1), *range(2**32 - 2**12, 2**32)))

FileFormat = Literal["wav", "flac", "mp3", "ogg"]
MIME_TYPES: Mapping[FileFormat, str] = MappingProxyType({"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg"})

_SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
# libsndfile also opens MATLAB files and samplers' banks, whose signatures are so weak that a random binary can pass for one.
_CONTAINERS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "MPEG"}
_SIGNATURES = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff")
# ITU-R BS.775-3, table 2, from WAV's order L R C LFE Ls Rs; the LFE is left out, as there.
_DOWNMIX_5_1 = np.array([[1, 0, 0.5**0.5, 0, 0.5**0.5, 0], [0, 1, 0.5**0.5, 0, 0, 0.5**0.5]], dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Audio:
    """Decoded audio: `samples_CN` float32, finite, at least one sample."""

    samples_CN: np.ndarray
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        return self.samples_CN.shape[1] / self.sample_rate_hz


class _Stream(soundfile.SoundFile):
    """A file read once from front to back: soundfile seeks after every block where it can, and a FLAC of unknown length cannot."""

    def seekable(self) -> bool:
        return False


def decode(data: bytes, *, stream: int = 0, max_duration_s: float = MAX_DURATION_S, max_channels: int = MAX_CHANNELS) -> Audio:
    """Decode one audio stream of a whole file from memory; `stream` counts from 0, and only containers hold more than one.

    What the header claims is checked before a sample is decoded, and what is really there again block by block. A WAV that claims more than
    it holds is refused, for the end of the recording is missing; one whose writer did not know its length (a pipe) gives what is there.

    Raises: NotAudio, UnreadableAudio, AudioTooLong; the message is one line with value, constraint and remedy.
    """
    if stream < 0:
        raise UserError(f"stream is {stream}: count from 0")
    if not data:
        raise NotAudio(f"the file is empty (0 bytes); {REMEDY}")
    if container_of(data):
        samples_CN, rate_hz = decode_container(data, stream=stream, max_duration_s=max_duration_s, max_channels=max_channels)
    elif stream:
        raise UnreadableAudio(f"audio stream {stream} is wanted and the file holds one, number 0; check the file")
    else:
        samples_CN, rate_hz = _decode_file(data, max_duration_s, max_channels)
    check_samples(samples_CN)
    return Audio(samples_CN=samples_CN, sample_rate_hz=rate_hz)


def to_stereo_44k(audio: Audio) -> np.ndarray:
    """(2, N) float32 at 44.1 kHz, where N is the duration rounded to a sample: mono is doubled, 5.1 is mixed down (ITU-R BS.775-3).

    Raises UnreadableAudio for any other number of channels.
    """
    samples_CN = audio.samples_CN
    channels = samples_CN.shape[0]
    check_mixable(channels)
    if channels == 6:
        samples_CN = _DOWNMIX_5_1 @ samples_CN
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        samples_CN = _resample(samples_CN, audio.sample_rate_hz)
    if channels == 1:
        samples_CN = np.repeat(samples_CN, 2, axis=0)
    return np.array(samples_CN, dtype=np.float32, order="C")


def encode(samples_CN: np.ndarray, format: FileFormat = "wav", *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """A whole file in memory; its media type is `MIME_TYPES[format]`. WAV and FLAC hold 16-bit PCM, clipped at full scale, never wrapped.

    The same samples give the same bytes, and 16-bit samples survive encode and decode unchanged.
    """
    if format not in MIME_TYPES:
        raise UserError(f"format {format!r} is none of {', '.join(MIME_TYPES)}; choose one of them")
    samples_CN = np.asarray(samples_CN, dtype=np.float32)
    if samples_CN.ndim != 2 or samples_CN.shape[0] not in (1, 2) or samples_CN.shape[1] == 0:
        raise UserError(f"samples of shape {samples_CN.shape} cannot be written; give (1 or 2 channels, at least 1 sample)")
    if not np.isfinite(samples_CN).all():
        raise UserError("NaN or infinite samples cannot be written; mend the audio before it is encoded")
    frames_NC = _frames(samples_CN, format)
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", samplerate=sample_rate_hz, channels=samples_CN.shape[0], format=format.upper(), subtype=_SUBTYPES[format]
    ) as file:
        # In blocks: libvorbis keeps its work space on the stack and overflows it when it is given minutes at once.
        for start in range(0, len(frames_NC), BLOCK_SAMPLES):
            file.write(frames_NC[start : start + BLOCK_SAMPLES])
    data = buffer.getvalue()
    return _with_serial(data) if format == "ogg" else data


def _frames(samples_CN: np.ndarray, format: FileFormat) -> np.ndarray:
    """What libsndfile is given, (N, C)."""
    if format in ("wav", "flac"):
        # 32768 is what decoding divides by, so that PCM → float → PCM is the identity.
        return np.clip(np.rint(samples_CN.T * 32_768), -32_768, 32_767).astype(np.int16)
    return np.clip(samples_CN.T, -1, 1)


class StreamWriter:
    """A stereo file of known length at 44.1 kHz whose bytes leave as they are made. A WAV is the same, byte for byte, as `encode` makes it;
    a FLAC's header does not know its length and checksum, an MP3's how much silence its coder put before and after."""

    def __init__(self, format: FileFormat, samples: int) -> None:
        self._format, self._sink = format, _Sink()
        self._file: soundfile.SoundFile | None = None
        if format == "wav":
            size = 4 * samples
            chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, SAMPLE_RATE_HZ, 4 * SAMPLE_RATE_HZ, 4, 16)
            self._sink.write(struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + chunk + struct.pack("<4sI", b"data", size))
        else:
            self._file = soundfile.SoundFile(
                self._sink, "w", samplerate=SAMPLE_RATE_HZ, channels=2, format=format.upper(), subtype=_SUBTYPES[format]
            )

    def write(self, samples_CN: np.ndarray) -> bytes:
        """The next samples (2, n) float32 → what can be sent of them, which may be nothing yet."""
        frames_NC = _frames(samples_CN, self._format)
        if self._file is None:
            self._sink.write(frames_NC.astype("<i2").tobytes())
        else:
            for start in range(0, len(frames_NC), BLOCK_SAMPLES):
                self._file.write(frames_NC[start : start + BLOCK_SAMPLES])
        return self._taken()

    def close(self) -> bytes:
        """The file's last bytes."""
        if self._file is not None:
            self._file.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.take()
        return _with_serial(data) if self._format == "ogg" else data


class _Sink(io.RawIOBase):
    """A file that forgets what was taken from it; what is written there later (a header's second version) is dropped."""

    def __init__(self) -> None:
        self._kept, self._first, self._at = bytearray(), 0, 0

    def write(self, data: Any) -> int:
        given = bytes(data)
        late = min(max(self._first - self._at, 0), len(given))
        start = self._at + late - self._first
        self._kept[start : start + len(given) - late] = given[late:]
        self._at += len(given)
        return len(given)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._first + len(self._kept)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        data = bytes(self._kept)
        self._first += len(data)
        self._kept.clear()
        return data


def _decode_file(data: bytes, max_duration_s: float, max_channels: int) -> tuple[np.ndarray, int]:
    """((C, N) float32, rate in Hz) through libsndfile."""
    _check_wav_claim(data)
    try:
        with _Stream(io.BytesIO(data)) as file:
            if file.format not in _CONTAINERS:
                raise NotAudio(f"the file is {file.format}, not a common audio format; {REMEDY}")
            check_format(file.samplerate, file.channels, max_channels)
            if file.frames < 2**62:  # beyond that the header says "unknown"; the blocks are counted anyway
                check_length(file.frames, file.samplerate, file.channels, max_duration_s)
            return np.ascontiguousarray(_read_blocks(file, max_duration_s).T), int(file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as fault:
        raise _fault(data, fault) from fault


def _check_wav_claim(data: bytes) -> None:
    """Raises when a RIFF file's data chunk claims more bytes than follow it, which libsndfile would silently shorten, or comes after more
    chunks than any recording has."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at, chunks = 12, 0
    while at + 8 <= len(data):
        chunks += 1
        check_parts(chunks, "chunks")
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            held = len(data) - at - 8
            if held < size and size not in UNKNOWN_WAV_BYTES:
                raise UnreadableAudio(
                    f"the header claims {size} bytes of audio and the file holds {held}: its end is missing; export it again"
                )
            return
        at += 8 + size + size % 2  # chunks begin at even places


def _read_blocks(file: Any, max_duration_s: float) -> np.ndarray:
    """(N, C) float32; stops at the limit, whatever the header had claimed."""
    blocks: list[np.ndarray] = []
    samples = 0
    while len(block_NC := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
        samples += len(block_NC)
        check_length(samples, file.samplerate, file.channels, max_duration_s)
        blocks.append(block_NC)
    return np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)


def _fault(data: bytes, fault: Exception) -> AudioError:
    mpeg = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    if data.startswith(_SIGNATURES) or mpeg:
        # libsndfile's text names the object in memory; only what follows says anything.
        reason = str(getattr(fault, "error_string", fault)).strip().rstrip(".")
        return UnreadableAudio(f"the audio is damaged or cut short ({reason}); {REMEDY} again")
    return NotAudio(f"the file ({len(data)} bytes) is not audio; {REMEDY}")


def _resample(samples_CN: np.ndarray, rate_hz: int) -> np.ndarray:
    target = max(1, round(samples_CN.shape[1] * SAMPLE_RATE_HZ / rate_hz))
    resampled_CN = soxr.resample(samples_CN.T, rate_hz, SAMPLE_RATE_HZ, quality="HQ").T[:, :target]
    return np.pad(resampled_CN, ((0, 0), (0, target - resampled_CN.shape[1])))


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _with_serial(ogg: bytes, serial: int = 1) -> bytes:
    """The same stream under a fixed serial number: libsndfile draws it from the clock (RFC 3533, section 6)."""
    data, start = bytearray(ogg), 0
    while start < len(data):
        segments = data[start + 26]
        end = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])
        data[start + 14 : start + 18] = serial.to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)
        # Ogg's CRC is zlib's polynomial unreflected, from 0 and without the final inversion.
        reflected = zlib.crc32(bytes(data[start:end]).translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
        data[start + 22 : start + 26] = reflected.to_bytes(4, "big").translate(_REVERSED_BITS)
        start = end
    return bytes(data)
