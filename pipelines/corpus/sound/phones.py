"""Speech sounds as targets for the singing synthesiser: formants of a grown man's vowels, manner and length of consonants.

Vowel formants after Peterson and Barney (1952); consonant loci after Klatt (1980), rounded.
"""

from dataclasses import dataclass
from typing import Literal

Manner = Literal["sonorant", "stop", "fricative"]


@dataclass(frozen=True)
class Consonant:
    manner: Manner
    length_s: float
    formants_hz: tuple[float, float, float]
    voicing: float
    """Amplitude of the voice during it, beside a vowel's 1."""
    hiss_db: float
    """Level of its noise beside the voice."""
    hiss_hz: tuple[float, float]
    """Band of its noise; (0, 0) takes the vowel's own formants, as in H."""


VOWELS: dict[str, tuple[float, float, float]] = {
    "AA": (730, 1120, 2520),
    "AE": (680, 1680, 2450),
    "AH": (640, 1220, 2480),
    "AO": (570, 880, 2480),
    "EH": (550, 1780, 2500),
    "ER": (490, 1350, 1720),
    "IH": (420, 1920, 2560),
    "IY": (340, 2180, 2900),
    "UH": (450, 1050, 2340),
    "UW": (370, 930, 2300),
}
DIPHTHONGS: dict[str, tuple[str, str]] = {
    "AY": ("AA", "IH"),
    "EY": ("EH", "IY"),
    "OW": ("AO", "UH"),
    "AW": ("AA", "UH"),
    "OY": ("AO", "IH"),
}
CONSONANTS: dict[str, Consonant] = {
    "M": Consonant("sonorant", 0.075, (270, 1000, 2200), 0.35, -60, (0, 0)),
    "N": Consonant("sonorant", 0.065, (280, 1600, 2500), 0.35, -60, (0, 0)),
    "NG": Consonant("sonorant", 0.075, (280, 1900, 2300), 0.32, -60, (0, 0)),
    "L": Consonant("sonorant", 0.065, (360, 1150, 2700), 0.5, -60, (0, 0)),
    "R": Consonant("sonorant", 0.07, (400, 1150, 1550), 0.5, -60, (0, 0)),
    "W": Consonant("sonorant", 0.07, (310, 680, 2250), 0.45, -60, (0, 0)),
    "Y": Consonant("sonorant", 0.06, (280, 2200, 3000), 0.45, -60, (0, 0)),
    "B": Consonant("stop", 0.05, (250, 900, 2200), 0.08, -24, (400, 2500)),
    "D": Consonant("stop", 0.05, (250, 1700, 2600), 0.08, -22, (2500, 6500)),
    "G": Consonant("stop", 0.055, (250, 1900, 2300), 0.08, -23, (1300, 3500)),
    "P": Consonant("stop", 0.065, (400, 900, 2200), 0.0, -21, (400, 3000)),
    "T": Consonant("stop", 0.07, (400, 1700, 2600), 0.0, -18, (3000, 8500)),
    "K": Consonant("stop", 0.07, (400, 1900, 2300), 0.0, -19, (1400, 4000)),
    "F": Consonant("fricative", 0.08, (400, 1100, 2200), 0.0, -29, (1500, 9000)),
    "TH": Consonant("fricative", 0.075, (400, 1400, 2500), 0.0, -30, (1800, 9500)),
    "S": Consonant("fricative", 0.095, (400, 1700, 2600), 0.0, -19, (5200, 10500)),
    "SH": Consonant("fricative", 0.095, (400, 1800, 2500), 0.0, -18, (2300, 6500)),
    "HH": Consonant("fricative", 0.06, (0, 0, 0), 0.0, -24, (0, 0)),
    "V": Consonant("fricative", 0.055, (280, 1100, 2200), 0.3, -34, (1500, 8000)),
    "DH": Consonant("fricative", 0.05, (300, 1400, 2500), 0.3, -36, (1800, 8000)),
    "Z": Consonant("fricative", 0.07, (280, 1700, 2600), 0.25, -25, (5000, 10000)),
}


def nucleus(phones: tuple[str, ...]) -> int:
    """Position of a syllable's vowel."""
    return next(i for i, phone in enumerate(phones) if phone in VOWELS or phone in DIPHTHONGS)


def glide(vowel: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Formants at a vowel's beginning and end: a plain one stays, a diphthong moves late."""
    first, second = DIPHTHONGS.get(vowel, (vowel, vowel))
    return VOWELS[first], VOWELS[second]
