"""What codec 2 keeps of a sound: views of it on three windows, and the sound that looks like given views.

Each view is where one thing shows best: 4,096 samples tell partials apart, 2,048 on mel bands hold what an ear measures, 512 hold attacks.
All are logs of magnitudes, in nepers. Sound is made from them without a search: a plausible phase for the finest view
(`model.codec.phase`), then gains in time and frequency, so that each view of the result is what it should be, the shortest window last.

Shapes: B batch, C audio channels, N samples, T latent frames, J spectral frames, K bins, M bands, F features of a latent frame.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.codec.phase import decorrelate, first_guess, noise_phase, spectrum, waveform
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ

FINE_WINDOW, MEL_WINDOW, ATTACK_WINDOW = 4_096, 2_048, 512
FINE_FRAMES, MEL_FRAMES, ATTACK_FRAMES = (HOP_SAMPLES // (window // 4) for window in (FINE_WINDOW, MEL_WINDOW, ATTACK_WINDOW))
# The fine view: single bins of 10.8 Hz to 2.8 kHz, where notes are told apart, pairs to 5.5 kHz; above, the mel view says it all.
FINE_SINGLES, FINE_PAIRS = 256, 128
FINE_BANDS, FINE_BINS = FINE_SINGLES + FINE_PAIRS, FINE_SINGLES + 2 * FINE_PAIRS
MEL_BANDS = 128
ATTACK_CENTRES_HZ = (150.0, 300.0, 600.0, 1_200.0, 2_400.0, 4_800.0, 9_600.0, 16_000.0)
STEREO_BANDS = 24
FEATURE_SIZES = (MEL_FRAMES * MEL_BANDS, FINE_FRAMES * FINE_BANDS, ATTACK_FRAMES * len(ATTACK_CENTRES_HZ), STEREO_BANDS, STEREO_BANDS)
FEATURES = sum(FEATURE_SIZES)
# A full-scale sine is 1; what lies 100 dB below it is silence.
FLOOR = 1e-5
FLOOR_NEPERS = math.log(FLOOR)
# Of the side beside the mid, in nepers: from 52 dB below it to 43 above.
SIDE_RANGE = (-6.0, 5.0)
# Of the side that counts as mid, so that a record in opposite phase (its true mid is silent) has a mid to be made from. Where the
# two are equally loud it changes the mid by at most 0.06 dB.
SIDE_IN_MID = math.exp(-SIDE_RANGE[1])
# Turning phases apart costs level where frames overlap: measured on thirteen pieces of the training songs, to 0.05 dB.
SIDE_MAKEUP = 10 ** (0.45 / 20)
# Of a band that is there at all; what is 24 dB too soft stays a little softer.
MOST_GAIN = 16.0


@dataclass(frozen=True, kw_only=True)
class Views:
    """Log-magnitudes of the mid on three windows; the side's level beside the mid's, and how far it leans on the mid (−1 to 1)."""

    mel_BJM: Tensor
    fine_BJM: Tensor
    attack_BJM: Tensor
    side_BTM: Tensor
    lean_BTM: Tensor

    def features(self) -> Tensor:
        """(B, T, F): mel, fine, attack, side, lean."""
        batch, frames, _ = self.side_BTM.shape
        parts = (self.mel_BJM, self.fine_BJM, self.attack_BJM, self.side_BTM, self.lean_BTM)
        return torch.cat([part.reshape(batch, frames, -1) for part in parts], dim=-1)


def views_in(features_BTF: Tensor) -> Views:
    """The inverse of `Views.features`."""
    batch, frames, _ = features_BTF.shape
    mel, fine, attack, side_BTM, lean_BTM = features_BTF.split(FEATURE_SIZES, dim=-1)
    return Views(
        mel_BJM=mel.reshape(batch, frames * MEL_FRAMES, MEL_BANDS),
        fine_BJM=fine.reshape(batch, frames * FINE_FRAMES, FINE_BANDS),
        attack_BJM=attack.reshape(batch, frames * ATTACK_FRAMES, len(ATTACK_CENTRES_HZ)),
        side_BTM=side_BTM,
        lean_BTM=lean_BTM,
    )


@functools.lru_cache(maxsize=8)
def mel_centres_hz(bands: int) -> tuple[float, ...]:
    """From 20 Hz to 20 kHz, even on Slaney's scale: linear to 1 kHz, logarithmic above (Slaney 1998, Auditory Toolbox)."""
    top = 15 + 27 * math.log(20) / math.log(6.4)
    mels = [0.3 + (top - 0.3) * (band + 1) / (bands + 1) for band in range(bands)]
    return tuple(200 / 3 * mel if mel < 15 else 1_000 * 6.4 ** ((mel - 15) / 27) for mel in mels)


@functools.lru_cache(maxsize=8)
def triangles(window_samples: int, centres_hz: tuple[float, ...]) -> Tensor:
    """(K, M) weights of bands at a window's bins: linear between neighbouring centres, 1 in all beyond the outermost."""
    place = torch.arange(window_samples // 2 + 1) * (SAMPLE_RATE_HZ / window_samples)
    centres = torch.tensor(centres_hz)
    upper = torch.searchsorted(centres, place).clamp(1, len(centres) - 1)
    share = ((place - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    weights = torch.zeros(len(place), len(centres))
    weights.scatter_(1, upper.unsqueeze(1), share.unsqueeze(1))
    return weights.scatter_(1, upper.unsqueeze(1) - 1, 1 - share.unsqueeze(1))


def mel_bank(window_samples: int, device: torch.device) -> Tensor:
    return triangles(window_samples, mel_centres_hz(MEL_BANDS)).to(device)


def attack_bank(device: torch.device) -> Tensor:
    return triangles(ATTACK_WINDOW, ATTACK_CENTRES_HZ).to(device)


def stereo_bank(device: torch.device) -> Tensor:
    return triangles(MEL_WINDOW, mel_centres_hz(STEREO_BANDS)).to(device)


def views_of(audio_BCN: Tensor) -> Views:
    """Audio (B, 2, T * 2048) → its views."""
    side_BN = (audio_BCN[:, 0] - audio_BCN[:, 1]) / 2
    mid_BN = (audio_BCN[:, 0] + audio_BCN[:, 1]) / 2 + SIDE_IN_MID * side_BN
    mel_BJK, side_BJK = spectrum(mid_BN, MEL_WINDOW), spectrum(side_BN, MEL_WINDOW)
    fine_BJK = _power(spectrum(mid_BN, FINE_WINDOW)[..., :FINE_BINS])
    pairs_BJM = fine_BJK[..., FINE_SINGLES:].unflatten(-1, (FINE_PAIRS, 2)).mean(-1)
    power_BJK = _power(mel_BJK)
    stereo = stereo_bank(audio_BCN.device)
    # Where the mid is below −100 dB (1e-10) there is little image to keep, and silence is mono: 1e-15 is the bottom of the side's range.
    mid, side, cross = (
        (part_BJK @ stereo).unflatten(1, (-1, MEL_FRAMES)).sum(2)
        for part_BJK in (power_BJK, _power(side_BJK), mel_BJK.real * side_BJK.real + mel_BJK.imag * side_BJK.imag)
    )
    return Views(
        mel_BJM=_log(_mean(power_BJK, mel_bank(MEL_WINDOW, audio_BCN.device))),
        fine_BJM=_log(torch.cat([fine_BJK[..., :FINE_SINGLES], pairs_BJM], dim=-1)),
        attack_BJM=_log(_mean(_power(spectrum(mid_BN, ATTACK_WINDOW)), attack_bank(audio_BCN.device))),
        side_BTM=(0.5 * ((side + 1e-15).log() - (mid + 1e-10).log())).clamp(*SIDE_RANGE),
        lean_BTM=(cross / (mid * side + 1e-20).sqrt()).clamp(-1, 1),
    )


def sound_of(views: Views, *, rounds: int, grid_frames: int) -> Tensor:
    """Views → the audio (B, 2, T * 2048) of a sound that looks like them; a round is gains on the mel view, then on the attack view."""
    device = views.mel_BJM.device
    mid_BN = waveform(_first_spectrum(views, grid_frames))
    mel, attack = mel_bank(MEL_WINDOW, device), attack_bank(device)
    wanted_mel_BJM, wanted_attack_BJM = _unlog(views.mel_BJM), _unlog(views.attack_BJM)
    for _ in range(rounds):
        mid_BN = waveform(shaped(spectrum(mid_BN, MEL_WINDOW), mel, wanted_mel_BJM))
        mid_BN = waveform(shaped(spectrum(mid_BN, ATTACK_WINDOW), attack, wanted_attack_BJM))
    mid_BJK = spectrum(mid_BN, MEL_WINDOW)
    level_BTM, lean_BTM = views.side_BTM.clamp(*SIDE_RANGE).exp(), views.lean_BTM.clamp(-1, 1)
    spread = stereo_bank(device).T
    leaning_BJK, free_BJK = (
        (gain_BTM @ spread).repeat_interleave(MEL_FRAMES, dim=1)
        for gain_BTM in (level_BTM * lean_BTM, SIDE_MAKEUP * level_BTM * (1 - lean_BTM.square()).clamp_min(0).sqrt())
    )
    side_BN = waveform(leaning_BJK * mid_BJK + free_BJK * decorrelate(mid_BJK))
    return torch.stack([mid_BN + side_BN, mid_BN - side_BN], dim=1)


def shaped(spectrum_BJK: Tensor, bank_KM: Tensor, wanted_BJM: Tensor) -> Tensor:
    """The spectra with gains that give each band its wanted mean power, linear between the bands' centres."""
    found_BJM = _mean(_power(spectrum_BJK), bank_KM)
    gain_BJM = (wanted_BJM / (found_BJM + FLOOR**2 / 10)).sqrt().clamp_max(MOST_GAIN)
    return spectrum_BJK * (gain_BJM @ bank_KM.T)


def _first_spectrum(views: Views, grid_frames: int) -> Tensor:
    """(B, 2T, K) of the longest window: the fine view under a plausible phase, and above it the mel view as noise.

    Noise has half the power there that it has on a window of half the length.
    """
    singles_BJK, pairs_BJM = _unlog(views.fine_BJM).split([FINE_SINGLES, FINE_PAIRS], dim=-1)
    fine_BJK = torch.cat([singles_BJK, pairs_BJM.repeat_interleave(2, dim=-1)], dim=-1).sqrt()
    mel_BJM = _unlog(views.mel_BJM).unflatten(1, (-1, MEL_FRAMES // FINE_FRAMES)).mean(2)
    above_BJK = (mel_BJM @ mel_bank(FINE_WINDOW, mel_BJM.device)[FINE_BINS:].T / 2).sqrt()
    batch, frames, _ = fine_BJK.shape
    found_BJK = fine_BJK.new_empty(batch, frames, FINE_WINDOW // 2 + 1, dtype=torch.complex64)
    torch.mul(first_guess(fine_BJK, grid_frames), fine_BJK, out=found_BJK[..., :FINE_BINS])
    noise_JK = noise_phase(grid_frames, FINE_WINDOW // 2 + 1)[:, FINE_BINS:].to(above_BJK.device)
    turned_JK = torch.polar(torch.ones_like(noise_JK), noise_JK).repeat(-(-frames // grid_frames), 1)[:frames]
    torch.mul(turned_JK, above_BJK, out=found_BJK[..., FINE_BINS:])
    return found_BJK


def _power(spectrum_BJK: Tensor) -> Tensor:
    return spectrum_BJK.real.square() + spectrum_BJK.imag.square()


def _mean(power_BJK: Tensor, bank_KM: Tensor) -> Tensor:
    return power_BJK @ (bank_KM / bank_KM.sum(0).clamp_min(1e-6))


def _log(power: Tensor) -> Tensor:
    return 0.5 * (power + FLOOR**2).log()


def _unlog(log_magnitude: Tensor) -> Tensor:
    """Power. The floor is taken off, and half as much again for a network's error: silence is silence, not bands of floor."""
    return ((2 * log_magnitude.clamp_max(3.0)).exp() - 1.5 * FLOOR**2).clamp_min(0)


@functools.lru_cache(maxsize=1)
def band_places() -> tuple[Tensor, Tensor, Tensor]:
    """Where the bands of the mel, fine and attack views lie, in octaves from 1 kHz."""
    bin_hz = SAMPLE_RATE_HZ / FINE_WINDOW
    fine_hz = torch.cat([torch.arange(FINE_SINGLES) + 0.5, FINE_SINGLES + 1.0 + 2 * torch.arange(FINE_PAIRS)]) * bin_hz
    mel_hz, attack_hz = torch.tensor(mel_centres_hz(MEL_BANDS)), torch.tensor(ATTACK_CENTRES_HZ)
    return (mel_hz / 1_000).log2(), (fine_hz / 1_000).log2(), (attack_hz / 1_000).log2()
