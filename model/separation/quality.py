"""How well a segment was separated, judged without the true stems: what is lost, and how much of each stem is heard in the other.

Shape legend: C channels, N samples.
"""

from dataclasses import dataclass

import numpy as np

from model.errors import ModelError
from model.listen.spectrum import mono
from model.metrics.leakage import leakage

# What float32 leaves of a sum of stems lies under it; also the residual of a silent mixture.
FLOOR_DB = -120.0
# A stem so far under the other holds no sound to judge: what a network leaves of a voice where nobody sings.
INAUDIBLE_DB = -60.0
_SILENCE_DB = -200.0


@dataclass(frozen=True, kw_only=True)
class SeparationQuality:
    """One segment's figures, and `score`, 0 to 1, which puts them together. Higher is better.

    score = (1 − vocal_bleed) · (1 − band_bleed) · (1 − 10^(residual_db / 20)): the shares of each stem's sound that are its own alone, and
    of the mixture's amplitude that the stems account for. A product, since one fault is enough to spoil a pair; unclipped, so that a little
    more bleed always costs a little. It ranks separations and finds bad ones; it is no SDR.

    Measured on demo songs 1 to 5, 47.6 s each, 0.3 s of one core a segment (the two stems play in one key and tempo, so that even the true
    ones share something). Ranges over the songs:

    | stems | score |
    |---|---|
    | true | 0.82 to 0.92 |
    | vocal added to the band at −40, −30, −20, −10, 0 dB | 0.81–0.91, 0.78–0.88, 0.63–0.75, 0.19–0.34, 0.01–0.02 |
    | band added to the vocal at the same | 0.80–0.90, 0.73–0.86, 0.52–0.66, 0.21–0.32, 0.02–0.03 |
    | mixture with noise at the same that is in no stem | 0.81–0.91, 0.79–0.89, 0.74–0.83, 0.57–0.65, 0.24–0.27 |
    | the ideal Wiener mask, V² / (V² + A²) of the true magnitudes, vocal SDR 9.4 to 12.4 dB | 0.73 to 0.83 |
    | the same blurred, exponent 1, 0.5, 0.25 (SDR 8.8–11.5, 7.3–9.2, 5.5–6.7 dB) | 0.45–0.54, 0.16–0.22, 0.03–0.05 |

    A sharp mask leaves the stems less in common than true stems of one key have: in short segments it can score 0.05 above them;
    and in 12 s chance hides bleed under −30 dB.
    Both measures inside `leakage` suit separated stems: a mask leaves phases as they are, so that what it lets through coheres.
    """

    residual_db: float
    """Level of mixture − (vocal + accompaniment) against that of the mixture, −120 dB or more."""
    vocal_bleed: float
    """0 to 1: how much of the vocal is heard in the accompaniment (`model.metrics.leakage.leakage`)."""
    band_bleed: float
    """0 to 1: how much of the accompaniment is heard in the vocal."""

    @property
    def score(self) -> float:
        kept = max(0.0, 1 - 10 ** (self.residual_db / 20))
        return (1 - self.vocal_bleed) * (1 - self.band_bleed) * kept


def separation_quality(mixture_CN: np.ndarray, vocal_CN: np.ndarray, accompaniment_CN: np.ndarray) -> SeparationQuality:
    """Figures of one segment: (C, N) each, at 44.1 kHz, of one shape. Raises ModelError where they are not."""
    shapes = {np.shape(mixture_CN), np.shape(vocal_CN), np.shape(accompaniment_CN)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise ModelError(f"separation quality: mixture and stems of shapes {sorted(shapes)}; want (channels, samples), the same for all")
    vocal_db, band_db = _level_db(vocal_CN), _level_db(accompaniment_CN)
    vocal_bleed = band_bleed = 0.0
    if abs(vocal_db - band_db) < -INAUDIBLE_DB:
        vocal_N, band_N = mono(vocal_CN), mono(accompaniment_CN)
        vocal_bleed, band_bleed = leakage(vocal_N, band_N), leakage(band_N, vocal_N)
    # Of silence nothing is lost.
    residual_db = _level_db(mixture_CN - vocal_CN - accompaniment_CN) - max(_SILENCE_DB, _level_db(mixture_CN))
    return SeparationQuality(residual_db=max(FLOOR_DB, residual_db), vocal_bleed=vocal_bleed, band_bleed=band_bleed)


def _level_db(audio_CN: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(audio_CN, dtype=np.float64)) + 1e-40))
