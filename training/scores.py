"""Measures of an accompaniment, and the table of an evaluation.

Shapes: C channels, N samples, F bins, R rows, M measures.
"""

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np

from model.fit import fit
from model.geometry import SAMPLE_RATE_HZ
from model.listen import loudness_db, spectral_statistics

GENERATED, REAL, OTHER = "generated", "real, through the codec", "another song's, through the codec"
BOOTSTRAP_DRAWS = 1_000
BANDS = 40


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of one accompaniment."""

    harmony: float
    rhythm: float
    overall: float
    leakage: float
    loudness_lufs: float
    centroid_hz: float
    flatness: float
    flux: float
    spectrum_db: float
    """Mean absolute difference of the long-term spectrum from the real accompaniment's, in 40 bands, level removed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One kind of accompaniment: means over segments, and 90% bootstrap intervals over songs."""

    name: str
    segments: int
    mean: Measures
    low: Measures
    high: Measures

    @property
    def overall(self) -> float:
        return self.mean.overall


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The table, and what it was made from."""

    rows: tuple[EvaluationRow, ...]
    songs: int
    seconds: float
    checkpoint: str
    model: str
    """The checkpoint's name, which tells it from any other."""
    step: int
    dataset: str
    out: str
    wins: float
    """Share of segments where the generated accompaniment fits better than another song's real one."""

    def way(self, measure: str) -> float:
        """How far generated accompaniments are on the way from another song's (0) to the real one (1) in one measure; may pass 1."""
        generated, real, other = (
            next(getattr(row.mean, measure) for row in self.rows if row.name == name) for name in (GENERATED, REAL, OTHER)
        )
        return float((generated - other) / (real - other)) if real != other else float("nan")

    def header(self) -> list[str]:
        return ["accompaniment", *(field.name.replace("_", " ") for field in fields(Measures))]

    def cells(self) -> list[list[str]]:
        """The rows as text: fit with its interval, the rest as means."""
        table = []
        for row in self.rows:
            cells = [row.name]
            for field in fields(Measures):
                value, low, high = (getattr(part, field.name) for part in (row.mean, row.low, row.high))
                if field.name in ("harmony", "rhythm", "overall"):
                    cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
                else:
                    cells.append(f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 1_000 else f"{value:.0f}")
            table.append(cells)
        return table

    def to_markdown(self) -> str:
        lines = [
            f"# Evaluation of {self.checkpoint} (step {self.step})",
            "",
            f"{self.rows[0].segments} held-out segments of {self.songs} songs of {self.dataset}, at most {self.seconds:.1f} s each. "
            "Means; in brackets 90% bootstrap intervals over songs. The generated accompaniment fits better than another song's real one "
            f"in {100 * self.wins:.0f}% of segments. On the way from another song's to the real one: harmony "
            f"{100 * self.way('harmony'):.0f}%, rhythm {100 * self.way('rhythm'):.0f}%.",
            "",
            "Vocals and real accompaniments are decoded from their latents, so *real* is also the codec's round trip.",
            "",
            "| " + " | ".join(self.header()) + " |",
            "|" + "---|" * len(self.header()),
            *("| " + " | ".join(cells) + " |" for cells in self.cells()),
        ]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str | bytes) -> "EvaluationReport":
        """Inverse of `to_json`."""
        document = json.loads(text)
        rows = [
            EvaluationRow(**{**row, **{part: Measures(**row[part]) for part in ("mean", "low", "high")}}) for row in document.pop("rows")
        ]
        return EvaluationReport(rows=tuple(rows), **document)


def measure(vocal_CN: np.ndarray, real_CN: np.ndarray, accompaniment_CN: np.ndarray) -> Measures:
    """All measures of one accompaniment to a vocal whose real one is known."""
    heard, shape = fit(vocal_CN, accompaniment_CN), spectral_statistics(accompaniment_CN)
    return Measures(
        **asdict(heard),
        loudness_lufs=loudness_db(accompaniment_CN),
        centroid_hz=shape.centroid_hz,
        flatness=shape.flatness,
        flux=shape.flux,
        spectrum_db=float(np.abs(bands_db(accompaniment_CN) - bands_db(real_CN)).mean()),
    )


def bands_db(audio_CN: np.ndarray) -> np.ndarray:
    """Long-term average spectrum in bands that are even in log frequency from 40 Hz to 16 kHz, dB, mean removed."""
    window = 8_192
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio_CN.mean(axis=0), (0, window)), window)[:: window // 2]
    power_F = (np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2).mean(axis=0)
    edges_F = np.geomspace(40, 16_000, BANDS + 1) / SAMPLE_RATE_HZ * window
    level = np.array([power_F[int(a) : max(int(a) + 1, int(b))].mean() for a, b in pairwise(edges_F)])
    decibels = 10 * np.log10(level + 1e-10)
    return decibels - decibels.mean()


def summarise(name: str, values: list[Measures], song_ids: list[str]) -> EvaluationRow:
    """Means over segments; intervals by drawing whole songs with replacement, for segments of one song are no independent witnesses."""
    table_RM = np.array([[getattr(value, field.name) for field in fields(Measures)] for value in values])
    ids = song_ids[: len(values)]
    songs = [np.flatnonzero(np.array(ids) == song) for song in sorted(set(ids))]
    random = np.random.default_rng(0)
    draws = [
        table_RM[np.concatenate([songs[song] for song in random.integers(len(songs), size=len(songs))])].mean(axis=0)
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    low_M, high_M = np.quantile(draws, (0.05, 0.95), axis=0)
    mean, low, high = (
        Measures(**{field.name: float(value) for field, value in zip(fields(Measures), row_M, strict=True)})
        for row_M in (table_RM.mean(axis=0), low_M, high_M)
    )
    return EvaluationRow(name=name, segments=len(values), mean=mean, low=low, high=high)
