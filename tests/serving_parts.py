"""What the tests of the service share: a tiny checkpoint for the embedded codec, and vocals, good and bad."""

import io
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch

from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics, save_checkpoint
from model.codec.load import load_codec
from model.network.unet import AccompanimentUNet, UNetConfig

RATE_HZ = 44_100
MODEL_NAME = "tiny"
# Two steps keep a request far below a second.
QUICK = {"steps": "2", "seed": "7"}


def processes(of: psutil.Process, name: str) -> list[psutil.Process]:
    """Those that a process began, itself or through others, whose command has `name` in it."""
    found = []
    for process in of.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def free_port() -> int:
    # Ray keeps 10002 to 19999 to its workers; the kernel's own choice lies above.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tiny_checkpoint(folder: Path) -> Path:
    """A two-level network with random weights, as training would have saved it."""
    torch.manual_seed(0)
    network = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32)
    zeros, ones = (0.0,) * 64, (1.0,) * 64
    checkpoint = Checkpoint(
        name=MODEL_NAME,
        network=network,
        state=AccompanimentUNet(network).state_dict(),
        statistics=LatentStatistics(
            vocal_mean=zeros, vocal_std=ones, accompaniment_mean=zeros, accompaniment_std=ones, vocal_level_db=-20.0
        ),
        codec=load_codec("embedded").identity,
        dataset=DatasetIdentity(uri="test", digest="0" * 64),
        step=3,
        metrics={},
    )
    save_checkpoint(folder, checkpoint)
    return folder


def sung(seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A melody of harmonic tones with gaps; from 4 s on there is enough of it for tempo and key to be heard."""
    time_N = np.arange(int(seconds * rate_hz)) / rate_hz
    notes_hz = 220 * 2 ** (np.array([0, 4, 7, 4, 5, 9, 7, 2]) / 12)
    pitch_N = notes_hz[(time_N * 2).astype(int) % len(notes_hz)]
    phase_N = 2 * np.pi * np.cumsum(pitch_N) / rate_hz
    envelope_N = np.clip(8 * (0.5 - (time_N % 0.5)), 0, 1)
    return (0.1 * envelope_N * sum(np.sin(k * phase_N) / k for k in range(1, 9))).astype(np.float32)


def stereo(seconds: float = 1.0) -> np.ndarray:
    """`sung` as an engine takes it, (2, N)."""
    return np.repeat(sung(seconds)[None], 2, axis=0)


def audio_file(samples_NC: np.ndarray, rate_hz: int = RATE_HZ, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_NC, rate_hz, format=format, subtype=subtype)
    return buffer.getvalue()


def vocal(seconds: float = 1.0) -> bytes:
    return audio_file(sung(seconds))


def lying_wav() -> bytes:
    """8 ms of samples under a header that claims ten hours."""
    data = bytearray(audio_file(sung(0.008)))
    claimed = 36_000 * RATE_HZ * 2
    data[4:8] = struct.pack("<I", claimed + 36)
    data[40:44] = struct.pack("<I", claimed)
    return bytes(data)


def not_a_number() -> bytes:
    samples_N = sung(1)
    samples_N[1_000] = np.nan
    return audio_file(samples_N, subtype="FLOAT")


# name → (file, status): the bad input that each gets one clear error. Files are made when they are asked for.
BAD_VOCALS: dict[str, tuple[Callable[[], bytes], int]] = {
    "not audio": (lambda: b"%PDF-1.7 " + bytes(range(256)) * 20, 415),
    "empty file": (lambda: b"", 415),
    "zero samples": (lambda: audio_file(np.zeros(0, np.float32)), 400),
    "NaN": (not_a_number, 400),
    "twenty channels": (lambda: audio_file(np.zeros((1_000, 20), np.float32)), 400),
    "lying header": (lying_wav, 400),
    "cut FLAC": (lambda: audio_file(sung(2), format="FLAC")[:3_000], 400),
    "two hundred channels": (lambda: audio_file(np.zeros((1_000, 200), np.float32)), 400),
    "FLAC bomb": (lambda: audio_file(np.zeros(8_000 * 3_600, np.int16), rate_hz=8_000, format="FLAC"), 413),
    "too long": (lambda: audio_file(np.zeros(8_000 * 65, np.float32), rate_hz=8_000), 413),
}
# The odd input that is answered.
ODD_VOCALS: dict[str, Callable[[], bytes]] = {
    "8 kHz mono": lambda: audio_file(sung(1.0, 8_000), rate_hz=8_000),
    "six channels": lambda: audio_file(np.repeat(sung()[:, None], 6, axis=1)),
    "FLAC": lambda: audio_file(sung(), format="FLAC"),
    "polyglot": lambda: audio_file(sung()) + b"PK\x03\x04<script>alert(1)</script>%PDF-1.7",
    "OGG": lambda: audio_file(sung(), format="OGG", subtype="VORBIS"),
    "MP3": lambda: audio_file(sung(), format="MP3", subtype="MPEG_LAYER_III"),
}
