"""One audio stream of a container (MP4, M4A, MOV, WebM, MKV, AAC, WavPack) through FFmpeg, as PyAV wraps it.

FFmpeg opens nothing but the bytes it is given: the demuxer is chosen here by the file's signature, never guessed by FFmpeg (its guesses
include playlists and scripts that name other files), no protocol is allowed, and only decoders of audio are.

Shape legend: C channels, N samples. Full scale is ±1.
"""

import io
from collections.abc import Iterator
from typing import Any, NoReturn

import av
import numpy as np

from infra.audio.limits import REMEDY, NotAudio, UnreadableAudio, check_format, check_length, check_parts

# (FFmpeg's demuxer, where its signature stands, the signature, what people call it)
_SIGNATURES = (
    ("mov", 4, b"ftyp", "M4A or MP4"),
    ("mov", 4, b"moov", "MOV"),
    ("mov", 4, b"mdat", "MOV"),
    ("mov", 4, b"wide", "MOV"),
    ("matroska", 0, b"\x1aE\xdf\xa3", "WebM or MKV"),
    ("wv", 0, b"wvpk", "WavPack"),
)
# Their headers say how long they are; for the others FFmpeg guesses from the bit rate, and a guess is no claim.
_CLAIMING = ("mov", "matroska", "wv")
# No decoder of pictures is opened, not even to look at a cover or a video's first frame.
_CODECS = (
    *("aac", "aac_latm", "ac3", "eac3", "alac", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus", "libopus", "vorbis", "wavpack"),
    *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le"),
    *("pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
# Boxes of an MP4 that hold boxes.
_HOLDERS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf", b"mfra", b"wave", b"ilst")
)
# (zero, full scale) of FFmpeg's integer samples.
_SCALE: dict[str, tuple[float, float]] = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}
# A packet is at most a few thousand samples; what is missing beyond is missing from the file.
_MISSING_S = 0.5


def container_of(data: bytes) -> str | None:
    """What people call the container these bytes begin like; None when this module does not read them."""
    found = _signature(data)
    return found[1] if found else None


def decode_container(data: bytes, *, stream: int, max_duration_s: float, max_channels: int) -> tuple[np.ndarray, int]:
    """((C, N) float32, sample rate in Hz) of the audio stream `stream`, counted from 0 among the audio streams.

    An encoder's priming is cut off and a stream that begins later than its siblings is padded, so the streams of one file are aligned.
    What the header claims is checked before a sample is decoded, and what is really there again packet by packet.

    Raises: NotAudio, UnreadableAudio, AudioTooLong; one line with value, constraint and remedy.
    """
    found = _signature(data)
    if found is None:
        raise NotAudio(f"the file ({len(data)} bytes) is not audio; {REMEDY}")
    demuxer, name = found
    if demuxer == "mov":
        _check_boxes(data)
    try:
        with _opened(data, demuxer) as container:
            audio = _stream(container, stream, name)
            claim_s = _claimed_s(container, audio) if demuxer in _CLAIMING else None
            check_format(audio.codec_context.sample_rate, audio.codec_context.channels, max_channels)
            if claim_s:
                check_length(
                    round(claim_s * audio.codec_context.sample_rate),
                    audio.codec_context.sample_rate,
                    audio.codec_context.channels,
                    max_duration_s,
                )
            samples_CN, rate_hz = _read(container, audio, max_duration_s, max_channels)
    except av.error.MemoryError as fault:
        raise UnreadableAudio(f"decoding the {name} file needs more memory than there is; {REMEDY}") from fault
    except (av.error.FFmpegError, UnicodeDecodeError) as fault:
        reason = str(getattr(fault, "strerror", None) or fault).strip().rstrip(".")
        raise UnreadableAudio(f"the {name} file is damaged or cut short ({reason}); {REMEDY} again") from fault
    held_s = samples_CN.shape[1] / rate_hz
    if claim_s and held_s < claim_s - _MISSING_S:
        raise UnreadableAudio(
            f"the {name} header claims {claim_s:.1f} s of audio and the file holds {held_s:.1f} s: its end is missing; export it again"
        )
    return samples_CN, rate_hz


def probe_container(data: bytes, demuxer: str) -> tuple[int, float | None]:
    """(audio streams, seconds that the header claims, if it does) of a file that FFmpeg's `demuxer` opens; nothing is decoded.

    Raises UnreadableAudio when it does not open it, or the file would lead it astray.
    """
    if demuxer == "mov":
        _check_boxes(data)
    try:
        with _opened(data, demuxer) as container:
            return len(container.streams.audio), None if container.duration is None else container.duration / av.time_base
    except (av.error.FFmpegError, ValueError) as fault:
        reason = str(getattr(fault, "strerror", None) or fault).strip().rstrip(".")
        raise UnreadableAudio(f"{reason}; {REMEDY} again") from fault


def _opened(data: bytes, demuxer: str) -> Any:
    """The container, opened so that FFmpeg reads these bytes and nothing else."""
    options = {"format_whitelist": demuxer, "protocol_whitelist": "none", "codec_whitelist": ",".join(_CODECS)}
    return av.open(io.BytesIO(data), format=demuxer, options=options, metadata_errors="replace", io_open=_refuse)


def _signature(data: bytes) -> tuple[str, str] | None:
    for demuxer, at, mark, name in _SIGNATURES:
        if data[at : at + len(mark)] == mark:
            return demuxer, name
    # ADTS: twelve bits of sync, one of version, two of layer (always 0, which is no layer of MPEG audio).
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "aac", "AAC"
    return None


def _check_boxes(data: bytes) -> None:
    """UnreadableAudio when an MP4 has too many boxes, or its fragments claim more packets than the file has bytes: FFmpeg would walk over
    all of the ones, and make a list of the others, before it says anything."""
    packets = 0
    for number, (kind, start) in enumerate(_boxes(data, 0, len(data)), 1):
        check_parts(number, "boxes")
        if kind == b"trun":
            packets += int.from_bytes(data[start + 4 : start + 8])
    if packets > len(data):
        raise UnreadableAudio(f"the header claims {packets} packets and the file holds {len(data)} bytes: it is damaged; {REMEDY} again")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """(kind, start of the content) of each box, and of those inside (ISO/IEC 14496-12, section 4.2)."""
    ends = [end]
    while ends:
        if start + 8 > ends[-1]:
            start = ends.pop()
            continue
        kind, size, head = data[start + 4 : start + 8], int.from_bytes(data[start : start + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        stop = min(start + size, ends[-1]) if size else ends[-1]
        yield kind, start + head
        if stop < start + head:
            start = ends.pop()
        elif kind in _HOLDERS:
            ends.append(stop)
            start += head
        else:
            start = stop


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:  # noqa: ARG001  # the form in which FFmpeg asks
    raise UnreadableAudio(f"the file wants to open another one ({url[:80]!r}); {REMEDY}, whole")


def _stream(container: Any, stream: int, name: str) -> Any:
    streams = container.streams.audio
    if not streams:
        raise NotAudio(f"the {name} file holds no audio stream; {REMEDY}")
    if stream >= len(streams):
        raise UnreadableAudio(f"audio stream {stream} is wanted and the {name} file holds {len(streams)}, counted from 0; check the file")
    audio = streams[stream]
    if audio.codec_context is None or audio.codec_context.name not in _CODECS:
        codec = audio.codec_context.name if audio.codec_context else "unknown"
        raise NotAudio(f"the {name} file's audio is coded as {codec}, which is not decoded here; {REMEDY}")
    return audio


def _claimed_s(container: Any, audio: Any) -> float | None:
    if audio.duration is not None:
        return float(audio.duration * audio.time_base)
    # The whole file's length is this stream's only when it is alone.
    return container.duration / av.time_base if container.duration is not None and len(container.streams) == 1 else None


def _read(container: Any, audio: Any, max_duration_s: float, max_channels: int) -> tuple[np.ndarray, int]:
    """((C, N) float32, rate in Hz); stops at the limit, whatever the header had claimed."""
    blocks: list[np.ndarray] = []
    samples, rate_hz, channels = 0, 0, 0
    for frame in _frames(container, audio):
        if not blocks:
            rate_hz, channels = frame.sample_rate, frame.layout.nb_channels
            check_format(rate_hz, channels, max_channels)
            if late := _late(container, audio, rate_hz):
                check_length(late, rate_hz, channels, max_duration_s)
                blocks.append(np.zeros((channels, late), np.float32))
                samples = late
        elif (frame.sample_rate, frame.layout.nb_channels) != (rate_hz, channels):
            raise UnreadableAudio(
                f"the audio changes from {rate_hz} Hz in {channels} channels to {frame.sample_rate} Hz in {frame.layout.nb_channels}; "
                f"{REMEDY} of one rate"
            )
        samples += frame.samples
        check_length(samples, rate_hz, channels, max_duration_s)
        blocks.append(_floats(frame))
    if not blocks:
        return np.zeros((1, 0), np.float32), audio.codec_context.sample_rate
    return np.concatenate(blocks, axis=1), rate_hz


def _frames(container: Any, audio: Any) -> Iterator[Any]:
    for packet in container.demux(audio):
        if packet.is_corrupt:
            raise UnreadableAudio(f"the audio is damaged or cut short (a packet is incomplete); {REMEDY} again")
        yield from packet.decode()


def _late(container: Any, audio: Any, rate_hz: int) -> int:
    """Samples by which this stream begins after the earliest audio stream of the file."""
    starts = [float(other.start_time * other.time_base) for other in container.streams.audio if other.start_time is not None]
    return round((float(audio.start_time * audio.time_base) - min(starts)) * rate_hz) if audio.start_time is not None else 0


def _floats(frame: Any) -> np.ndarray:
    """(C, N) float32 of a frame of any of FFmpeg's sample formats."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    kind = frame.format.name.removesuffix("p")
    if kind not in _SCALE:
        return samples.astype(np.float32)
    zero, full = _SCALE[kind]
    return ((samples.astype(np.float64 if kind in ("s32", "s64") else np.float32) - zero) / full).astype(np.float32)
