"""musicnn's VGG (Pons and Serra 2019) of MagnaTagATune: an embedding of 3 s of music, and 50 tags. Its weights (ISC licence) are a file
that the user names; none ship.

The file is an npz of the published network's variables with `__` for `/`: `1CNN__kernel` (3, 3, in, out) and `1CNN__bias` to 5,
`batch_normalization__gamma`, `beta`, `moving_mean`, `moving_variance` and with `_1` to `_5`, `dense__kernel` (256, 50) and `dense__bias`.

Shapes: C channels, N samples, R windows, T frames, F bins, M mel bands, D dimensions, G tags.
"""

import functools
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.embedding import EmbeddingUnavailable

TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient", "beat", "violin",
    "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute",
    "woman", "male vocal", "no vocal", "pop", "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance",
    "male voice", "female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip
RATE_HZ, HOP, FFT, BANDS = 16_000, 256, 512, 96
WINDOW_FRAMES, WINDOW_HOP_FRAMES = 187, 94
# Kernel and stride of the pooling after each convolution, over time and bands: 187 × 96 become 2 × 1.
_POOLS = (((4, 1), 2), ((2, 2), 2), ((2, 2), 2), ((2, 2), 2), ((4, 4), 4))
_LEVEL_RMS = 0.1
_EPSILON = 1e-3  # of the published network's batch normalisation
BATCH = 16


class MusicnnEmbedding:
    """The network's last layer before its tags, for windows of 3 s, 1.5 s apart, of a sound at one level."""

    dimension = 256
    window_s = WINDOW_FRAMES * HOP / RATE_HZ

    def __init__(self, weights: Mapping[str, np.ndarray], name: str = "musicnn", *, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._kernels = [_tensor(weights, f"{layer}CNN__kernel", (3, 3, 1 if layer == 1 else 128, 128)) for layer in range(1, 6)]
        self._kernels = [kernel.permute(3, 2, 0, 1).contiguous().to(self._device) for kernel in self._kernels]
        self._biases = [_tensor(weights, f"{layer}CNN__bias", (128,)).to(self._device) for layer in range(1, 6)]
        self._norms = [_norm(weights, layer).map(self._device) for layer in range(6)]
        self._tags = _tensor(weights, "dense__kernel", (256, len(TAGS))), _tensor(weights, "dense__bias", (len(TAGS),))
        self.name = name
        self.note = f"musicnn's VGG of MagnaTagATune, its last layer; windows of {self.window_s:.2g} s, 1.5 s apart"

    @torch.inference_mode()
    def embed(self, audio_CN: np.ndarray) -> np.ndarray:
        """(C, N) at 44.1 kHz → (R, 256); a sound shorter than a window is one window, padded with silence."""
        window_RTM = torch.from_numpy(windows(audio_CN))
        return torch.cat([self._layers(part_RTM.to(self._device)).cpu() for part_RTM in window_RTM.split(BATCH)]).numpy()

    def tags(self, embedded_RD: np.ndarray) -> np.ndarray:
        """(R, 256) of `embed` → (R, 50): how likely each of `TAGS` is."""
        kernel_DG, bias_G = self._tags
        return torch.sigmoid(torch.from_numpy(embedded_RD).float() @ kernel_DG + bias_G).numpy()

    def _layers(self, window_RTM: Tensor) -> Tensor:
        x_RDTM = self._norms[0](window_RTM[:, None])
        for kernel, bias, norm, (pool, stride) in zip(self._kernels, self._biases, self._norms[1:], _POOLS, strict=True):
            x_RDTM = F.max_pool2d(norm(F.relu(F.conv2d(x_RDTM, kernel, bias, padding=1))), pool, stride)
        return x_RDTM.permute(0, 2, 3, 1).flatten(1)  # channels last, as the dense layer's weights are


class _Norm:
    """Batch normalisation with stored moments, as one product and one sum."""

    def __init__(self, scale_D: Tensor, shift_D: Tensor) -> None:
        self._scale_D11, self._shift_D11 = scale_D.view(-1, 1, 1), shift_D.view(-1, 1, 1)

    def __call__(self, x_RDTM: Tensor) -> Tensor:
        return x_RDTM * self._scale_D11 + self._shift_D11

    def map(self, device: torch.device) -> "_Norm":
        return _Norm(self._scale_D11.to(device), self._shift_D11.to(device))


def _norm(weights: Mapping[str, np.ndarray], layer: int) -> _Norm:
    name, width = f"batch_normalization{f'_{layer}' if layer else ''}", 128 if layer else 1
    gamma, beta, mean, variance = (
        _tensor(weights, f"{name}__{part}", (width,)) for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    scale = gamma / torch.sqrt(variance + _EPSILON)
    return _Norm(scale, beta - mean * scale)


def _tensor(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in weights or weights[name].shape != shape:
        found = f"has the shape {weights[name].shape}" if name in weights else "is missing"
        raise EmbeddingUnavailable(f"musicnn: {name} {found}; must be {shape}: give an npz of the VGG of MagnaTagATune")
    return torch.from_numpy(np.asarray(weights[name], np.float32))


def windows(audio_CN: np.ndarray) -> np.ndarray:
    """(R, 187, 96) float32 log-mel windows of a sound at 44.1 kHz, mono, its RMS at 0.1."""
    mono_N = np.atleast_2d(np.asarray(audio_CN, np.float64)).mean(axis=0)
    mono_N = soxr.resample(mono_N, SAMPLE_RATE_HZ, RATE_HZ)
    mono_N = mono_N * (_LEVEL_RMS / (np.sqrt(np.mean(mono_N**2)) + 1e-9))
    shortest = (WINDOW_FRAMES - 1) * HOP
    padded_N = torch.from_numpy(np.pad(mono_N, (0, max(0, shortest - len(mono_N)))))
    window_N = torch.hann_window(FFT, dtype=torch.float64)
    spectrum_FT = torch.stft(padded_N, FFT, HOP, window=window_N, pad_mode="constant", return_complex=True)
    mel_TM = np.log10(10_000 * (spectrum_FT.abs().square().numpy().T @ slaney_bank()) + 1).astype(np.float32)
    return np.stack([mel_TM[start : start + WINDOW_FRAMES] for start in range(0, len(mel_TM) - WINDOW_FRAMES + 1, WINDOW_HOP_FRAMES)])


@functools.lru_cache(maxsize=1)
def slaney_bank() -> np.ndarray:
    """(F, M): triangles of equal area on Slaney's mel scale (Slaney 1998): linear to 1 kHz, logarithmic above."""
    edge_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(RATE_HZ / 2), BANDS + 2))
    low_hz, centre_hz, high_hz = edge_hz[:-2], edge_hz[1:-1], edge_hz[2:]
    bin_hz = np.linspace(0.0, RATE_HZ / 2, FFT // 2 + 1)[:, None]
    rising_FM, falling_FM = (bin_hz - low_hz) / (centre_hz - low_hz), (high_hz - bin_hz) / (high_hz - centre_hz)
    return np.maximum(0.0, np.minimum(rising_FM, falling_FM)) * 2 / (high_hz - low_hz)


# 200/3 Hz a mel up to 15 mel, then 27 mel for each factor of 6.4.
_LINEAR_HZ, _BREAK_HZ, _BREAK_MEL, _LOG_STEP = 200 / 3, 1_000.0, 15.0, np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else _BREAK_MEL + float(np.log(hz / _BREAK_HZ)) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL)))


def load_musicnn(file: str, *, device: str = "cpu") -> MusicnnEmbedding:
    """The embedding with the weights of a file. Raises EmbeddingUnavailable where the file is none of the network's."""
    try:
        content = Path(file).read_bytes()
        with np.load(file, allow_pickle=False) as held:
            weights = {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:  # np.load's kinds for what is no npz
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EmbeddingUnavailable(f"embedding musicnn: {file} cannot be read ({reason}); give its npz as musicnn:FILE") from error
    return MusicnnEmbedding(weights, f"musicnn {hashlib.sha256(content).hexdigest()[:8]}", device=device)


def style_centroids(embedded: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Style → (D,): the mean over its pieces of the mean of each piece's windows (R, D), so that long pieces do not count more."""
    return {style: np.mean([piece_RD.mean(axis=0) for piece_RD in pieces_RD], axis=0) for style, pieces_RD in embedded.items() if pieces_RD}


def nearest_style(embedded_RD: np.ndarray, centroids: Mapping[str, np.ndarray]) -> str:
    """The style whose centroid lies nearest to the mean of a piece's windows."""
    mean_D = embedded_RD.mean(axis=0)
    return min(centroids, key=lambda style: float(np.linalg.norm(centroids[style] - mean_D)))
