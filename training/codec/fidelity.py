"""How well a codec keeps recordings that have no written truth: mel spectrum, attacks and width of what came back beside the original.

Shapes: C audio channels, N samples, M mel bands, J spectral frames.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from model.codec.base import Codec
from model.codec.views import mel_centres_hz, triangles
from model.dimensions import SAMPLE_RATE_HZ
from training.codec.data import read_stem

AUDIO_ENDINGS = (".wav", ".flac", ".ogg")
HOP_SAMPLES = 44


def audio_files(folder: Path) -> list[Path]:
    """The recordings anywhere in a folder, by name. Raises UserError where there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in AUDIO_ENDINGS)
    if not files:
        raise UserError(f"{folder}: no {', '.join(AUDIO_ENDINGS)} file in it; give a folder of 44.1 kHz stereo recordings")
    return files


def log_mel_db(audio_CN: Tensor) -> Tensor:
    """(J, M): 128 Slaney bands of the mono mix, window 2,048, hop 512, floored 80 dB under the loudest."""
    edges_hz = (20.0, *mel_centres_hz(128), 20_000.0)
    bank = triangles(2_048, edges_hz)[:, 1:-1] * 2 / (torch.tensor(edges_hz[2:]) - torch.tensor(edges_hz[:-2]))
    power = torch.stft(audio_CN.mean(0), 2_048, 512, window=torch.hann_window(2_048), return_complex=True).abs().square()
    level = 10 * (power.T @ bank + 1e-10).log10()
    return torch.maximum(level, level.max() - 80)


def added_rises_ms(original_CN: Tensor, decoded_CN: Tensor) -> list[float]:
    """How much longer each strong attack takes from a fifth to four fifths of its peak: the steepest 0.5% of 3 ms steps, 200 ms apart."""
    before, after = (np.convolve(np.abs(audio.mean(0).numpy()), np.ones(220) / 220, "same") for audio in (original_CN, decoded_CN))
    step = before[::HOP_SAMPLES][3:] - before[::HOP_SAMPLES][:-3]
    rises, last = [], -(10**9)
    for index in np.where(step > np.quantile(step, 0.995))[0]:
        at = int(index) * HOP_SAMPLES
        if at - last < 8_820 or at + 4_410 > len(before):
            continue
        last = at
        around = slice(max(0, at - 2_205), at + 4_410)
        rises.append(_rise_ms(after[around]) - _rise_ms(before[around]))
    return rises


def _rise_ms(envelope: np.ndarray) -> float:
    top = int(np.argmax(envelope))
    low = np.flatnonzero(envelope[:top] < 0.2 * envelope[top])
    high = np.flatnonzero(envelope[: top + 1] >= 0.8 * envelope[top])
    return float((high[0] if len(high) else top) - (low[-1] if len(low) else 0)) * 1_000 / SAMPLE_RATE_HZ


def side_to_mid_db(audio_CN: Tensor) -> float:
    """Above 250 Hz, below which stereo is hardly heard."""
    bins = torch.fft.rfft(torch.stack([audio_CN[0] + audio_CN[1], audio_CN[0] - audio_CN[1]]))
    mid, side = bins[:, int(250 * audio_CN.shape[1] / SAMPLE_RATE_HZ) :].abs().double().square().mean(1).tolist()
    return float(10 * np.log10((side + 1e-10) / (mid + 1e-10)))


@torch.inference_mode()
def fidelity(codec: Codec, files: Sequence[Path]) -> dict[str, float]:
    """Mean over files of the mel distance and the side's error, in dB; median and third quartile of what attacks gain, in ms."""
    mels, sides, rises = [], [], list[float]()
    for path in files:
        original_CN = read_stem(path)
        decoded_CN = codec.decode(codec.encode(original_CN.unsqueeze(0)))[0, :, : original_CN.shape[1]]
        mels.append(float((log_mel_db(original_CN) - log_mel_db(decoded_CN)).abs().mean()))
        sides.append(abs(side_to_mid_db(decoded_CN) - side_to_mid_db(original_CN)))
        rises += added_rises_ms(original_CN, decoded_CN)
    return {
        "mel_db": float(np.mean(mels)),
        "rise_ms": float(np.median(rises)) if rises else 0.0,
        "rise_quartile_ms": float(np.quantile(rises, 0.75)) if rises else 0.0,
        "side_db": float(np.mean(sides)),
    }
