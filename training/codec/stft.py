"""How far two waveforms are apart on short-time spectra of several windows: a loss to train with, and a distance in dB to report.

Shapes: B batch, C audio channels, N samples, J spectral frames, K frequency bins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOWS = (256, 512, 1024, 2048, 4096)
# What lies 60 dB below the loudest value of a spectrum is hardly heard beside it.
AUDIBLE = 1e-3
# A full-scale sine is 1; below this everything is silence.
SILENCE = 1e-4


def magnitudes(audio_BN: Tensor, window: int, hop: int) -> Tensor:
    """(B, N) → (B, K, J), a full-scale sine being 1; only frames that lie within the audio."""
    hann = torch.hann_window(window, device=audio_BN.device)
    spectrum_BKJ = torch.stft(audio_BN, window, hop, window=hann * (4 / window), center=False, return_complex=True)
    # A root of zero has an infinite slope.
    return (spectrum_BKJ.real.square() + spectrum_BKJ.imag.square() + 1e-14).sqrt()


def stft_loss(predicted_BN: Tensor, target_BN: Tensor, windows: Sequence[int]) -> Tensor:
    """Spectral convergence plus L1 of log-magnitudes, mean over windows, hops of a quarter (Yamamoto et al. 2020, eq. 3 to 6)."""
    total = predicted_BN.new_zeros(())
    for window in windows:
        with torch.no_grad():
            target_BKJ = magnitudes(target_BN, window, window // 4)
            floor_B = (AUDIBLE * target_BKJ.amax(dim=(1, 2), keepdim=True)).clamp_min(SILENCE)
        predicted_BKJ = magnitudes(predicted_BN, window, window // 4)
        error_B = (predicted_BKJ - target_BKJ).square().sum(dim=(1, 2)).add(1e-12).sqrt()
        convergence = (error_B / (target_BKJ.square().sum(dim=(1, 2)).sqrt() + target_BKJ[0].numel() ** 0.5 * SILENCE)).mean()
        logarithmic = ((predicted_BKJ.square() + floor_B.square()).log() - (target_BKJ.square() + floor_B.square()).log()).abs().mean() / 2
        total = total + convergence + logarithmic
    return total / len(windows)


def stft_distance_db(original_CN: Tensor, decoded_CN: Tensor, window: int) -> float:
    """Mean distance of the channels' magnitudes in dB, over what is less than 60 dB below the loudest; 0 where all is silence."""
    original, decoded = (magnitudes(audio_CN, window, window // 4) for audio_CN in (original_CN, decoded_CN))
    low = max(float(original.max()) * AUDIBLE, SILENCE)
    audible = original > low
    difference = 20 * (original.clamp_min(low).log10() - decoded.clamp_min(low).log10()).abs()
    return float(difference[audible].mean()) if bool(audible.any()) else 0.0
