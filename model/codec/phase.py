"""Spectra and the phase that magnitudes lack: a short-time Fourier transform, its inverse, and fast Griffin-Lim.

Shapes: B batch, N samples, J spectral frames, K frequency bins (window / 2 + 1).
"""

import functools
import math

import scipy
import torch
from torch import Tensor

from model.codec.magnitude_vae import MAGNITUDE_FLOOR, SPECTRAL_HOP_SAMPLES, WINDOW_SAMPLES

OVERLAP = WINDOW_SAMPLES // SPECTRAL_HOP_SAMPLES
TURN = 2 * math.pi
# Of a window; 441 samples of 4,096.
MAX_DECORRELATION = 441 / WINDOW_SAMPLES
# Hann as the Gaussian of the same spread, γ = 0.25645 N² (Prusa et al. 2017, table I): bins per unit of slope along frequency,
# and slope along time (a hop) that shifts the group delay by half a window.
FREQUENCY_SLOPE = 1.0 / (TURN * 0.25645)
DELAY_SLOPE = math.pi / (0.25645 * OVERLAP)
# Growth of the log-magnitude in a hop from which a sound counts as begun (8.7 dB).
ONSET_RISE = 1.0
# Instantaneous frequencies, in bins from a bin's centre, that noise stays below when a network predicts it; a partial's lobe exceeds it.
NOISE_OFFSET = 0.19


def window(samples: int, device: torch.device) -> Tensor:
    """Periodic Hann window."""
    return torch.hann_window(samples, device=device)


def spectrum(audio_BN: Tensor, window_samples: int = WINDOW_SAMPLES) -> Tensor:
    """Audio (B, J * hop) → spectra (B, J, K) complex, the hop a quarter of the window; what lies outside the audio counts as zero.

    Frames are centred in their hop. A sine of amplitude 1 has a peak of 1.
    """
    hop = window_samples // OVERLAP
    edge = (window_samples - hop) // 2
    padded = torch.nn.functional.pad(audio_BN, (edge, edge))
    return _forward(padded.unfold(-1, window_samples, hop) * (window(window_samples, audio_BN.device) * (4.0 / window_samples)))


def waveform(spectrum_BJK: Tensor) -> Tensor:
    """Spectra (B, J, K) → the audio (B, J * hop) whose spectra are nearest in least squares (Griffin & Lim 1984, eq. 6)."""
    batch, frames, bins = spectrum_BJK.shape
    window_samples = 2 * (bins - 1)
    hop = window_samples // OVERLAP
    edge = (window_samples - hop) // 2
    pieces = _inverse(spectrum_BJK).mul_(window(window_samples, spectrum_BJK.device) * (window_samples / 4.0))
    pieces = pieces.view(batch, frames, OVERLAP, hop)
    total = torch.zeros(batch, frames + OVERLAP - 1, hop, device=pieces.device)
    for part in range(OVERLAP):
        total[:, part : part + frames] += pieces[:, :, part]
    return total.view(batch, -1)[:, edge : edge + frames * hop].div_(_window_power(frames, window_samples, pieces.device))


def _window_power(frames: int, window_samples: int, device: torch.device) -> Tensor:
    """Sum of the squared windows over each sample: 1.5, less at either end where frames are missing."""
    hop = window_samples // OVERLAP
    edge = (window_samples - hop) // 2
    parts = window(window_samples, device).square().view(OVERLAP, hop)
    total = torch.zeros(frames + OVERLAP - 1, hop, device=device)
    for part in range(OVERLAP):
        total[part : part + frames] += parts[part]
    return total.view(-1)[edge : edge + frames * hop]


def _forward(frames_BJN: Tensor) -> Tensor:
    """Real FFT; on a CPU by pocketfft, which is several times as fast there as torch's, unless a gradient is wanted."""
    if frames_BJN.device.type == "cpu" and not frames_BJN.requires_grad:
        return torch.from_numpy(scipy.fft.rfft(frames_BJN.numpy(), workers=torch.get_num_threads()))
    return torch.fft.rfft(frames_BJN)


def _inverse(spectrum_BJK: Tensor) -> Tensor:
    if spectrum_BJK.device.type == "cpu" and not spectrum_BJK.requires_grad:
        return torch.from_numpy(scipy.fft.irfft(spectrum_BJK.numpy(), workers=torch.get_num_threads()))
    return torch.fft.irfft(spectrum_BJK)


def impose(magnitude_BJK: Tensor, guess_BJK: Tensor) -> Tensor:
    """The guess's phase under the given magnitudes."""
    inverse = (guess_BJK.real.square() + guess_BJK.imag.square() + 1e-20).rsqrt()
    return guess_BJK * (magnitude_BJK * inverse)


def find_phase(magnitude_BJK: Tensor, *, rounds: int, momentum: float, grid_frames: int) -> Tensor:
    """Magnitudes (B, J, K) → spectra with those magnitudes and a phase that makes them nearly consistent.

    Fast Griffin-Lim (Perraudin, Balazs & Søndergaard 2013, alg. 2). A round reads three frames on either side.
    """
    guess = impose(magnitude_BJK, first_guess(magnitude_BJK, grid_frames))
    previous = guess
    for _ in range(rounds):
        projected = spectrum(waveform(impose(magnitude_BJK, guess)))
        guess = projected + momentum * (projected - previous)
        previous = projected
    return impose(magnitude_BJK, guess)


def first_guess(magnitude_BJK: Tensor, grid_frames: int) -> Tensor:
    """Unit spectra with a plausible phase, a function of each block of `grid_frames` frames (and its neighbours) alone.

    Phase gradients come from the log-magnitude as if the window were Gaussian (Prusa, Balazs & Søndergaard 2017, eq. 8): along
    time by each bin's instantaneous frequency, and anew along frequency by the group delay where a block or a sound begins. Where the
    spectrum is as flat as a prediction of noise is, phase is drawn from a fixed table: a regular phase would sound as a row of clicks.
    """
    log_magnitude = (magnitude_BJK + MAGNITUDE_FLOOR / 10).log()
    batch, frames, bins = magnitude_BJK.shape
    offset = torch.zeros_like(log_magnitude)  # of the instantaneous frequency from the bin's centre, in bins
    offset[..., 1:-1] = (FREQUENCY_SLOPE / 2) * (log_magnitude[..., 2:] - log_magnitude[..., :-2])
    advance = ((torch.arange(bins, device=offset.device) / OVERLAP).remainder(1.0) + offset.clamp_(-1.0, 1.0) / OVERLAP).mul_(TURN)
    rise = torch.nn.functional.pad(log_magnitude[:, 1:] - log_magnitude[:, :-1], (0, 0, 1, 0))
    slope = torch.zeros_like(log_magnitude)
    slope[:, 1:-1] = (rise[:, 1:-1] + rise[:, 2:]) / 2
    # A partial that fills the window turns half a cycle a bin; one that begins late in it turns more.
    turn = -TURN / 2 - (TURN / 2 / DELAY_SLOPE) * slope.clamp_(-2.0, 2.0)
    afresh = torch.nn.functional.pad((turn[..., 1:] + turn[..., :-1]).div_(2).double().cumsum(-1).remainder_(TURN).float(), (1, 0))
    blocks = -(-frames // grid_frames)

    def in_blocks(x_BJK: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_BJK, (0, 0, 0, blocks * grid_frames - frames)).view(batch, blocks, grid_frames, bins)

    advance, afresh, begins = in_blocks(advance), in_blocks(afresh), in_blocks(rise) > ONSET_RISE
    phase = afresh.clone()
    for frame in range(1, grid_frames):
        carried = phase[:, :, frame - 1] + (advance[:, :, frame] + advance[:, :, frame - 1]) / 2
        phase[:, :, frame] = torch.where(begins[:, :, frame], afresh[:, :, frame], carried)
    noisy = in_blocks(torch.nn.functional.max_pool1d(offset.abs(), 7, 1, 3)) < NOISE_OFFSET
    phase = torch.where(noisy & ~begins, noise_phase(grid_frames, bins).to(phase.device), phase)
    return torch.polar(torch.ones_like(phase), phase).view(batch, blocks * grid_frames, bins)[:, :frames]


@functools.lru_cache(maxsize=4)
def noise_phase(grid_frames: int, bins: int) -> Tensor:
    """(grid_frames, K) phases, the same in every block, so that a chunk gets what the whole would get."""
    return TURN * torch.rand(grid_frames, bins, generator=torch.Generator().manual_seed(0))


def decorrelate(spectrum_BJK: Tensor) -> Tensor:
    """The same spectra with each bin's phase turned by a fixed amount: as loud, and nowhere in phase (the parametric side).

    The turn is quadratic in blocks of 32 bins, so that a bin is delayed by at most 10 ms and transients stay together.
    """
    bins = spectrum_BJK.shape[-1]
    window_samples = 2 * (bins - 1)
    delay = MAX_DECORRELATION * window_samples * torch.sin(TURN * torch.arange(bins, device=spectrum_BJK.device) / 32)
    turn = torch.cumsum(delay * (TURN / window_samples), dim=0) + TURN / 4
    return spectrum_BJK * torch.polar(torch.ones_like(turn), turn)
