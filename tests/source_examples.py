"""Small examples of audio files and of each kind of source, in the layout that users have on disk; real audio of a second or two."""

import io
from collections.abc import Sequence

import av
import numpy as np

RATE_HZ = 44_100


def bursts(seed: int, duration_s: float = 2.0, rate_hz: int = RATE_HZ, channels: int = 2) -> np.ndarray:
    """(C, N) a tone whose loudness changes every 50 ms at random: its place in time can be found again to the sample."""
    rng = np.random.default_rng(seed)
    samples = round(duration_s * rate_hz)
    envelope_N = np.interp(np.arange(samples), np.arange(0, samples, rate_hz // 20), rng.uniform(0, 0.5, -(-samples // (rate_hz // 20))))
    chirp_N = np.sin(2 * np.pi * np.cumsum(rng.uniform(200, 3_000, samples // 500 + 1).repeat(500)[:samples]) / rate_hz)
    return np.repeat((envelope_N * chirp_N)[None], channels, axis=0).astype(np.float32)


def container(
    streams: Sequence[np.ndarray], format: str = "mp4", codec: str = "aac", rate_hz: int = RATE_HZ, starts: Sequence[int] | None = None
) -> bytes:
    """A container file with one audio stream for each (C, N) array; `starts` are their first timestamps in samples."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as file:
        layouts = ["mono" if len(samples_CN) == 1 else "stereo" if len(samples_CN) == 2 else "5.1" for samples_CN in streams]
        written = [file.add_stream(codec, rate=rate_hz, layout=layout, options={"b": "256k"}) for layout in layouts]
        for first in range(0, max(samples_CN.shape[1] for samples_CN in streams), 1_024):
            for index, (stream, samples_CN) in enumerate(zip(written, streams, strict=True)):
                block_CN = samples_CN[:, first : first + 1_024]
                if not block_CN.shape[1]:
                    continue
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block_CN), format="fltp", layout=layouts[index])
                frame.sample_rate, frame.pts = rate_hz, first + (starts[index] if starts else 0)
                file.mux(stream.encode(frame))
        for stream in written:
            file.mux(stream.encode(None))
    return buffer.getvalue()
