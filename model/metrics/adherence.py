"""Accompaniment Prompt Adherence (Grachten and Nistal 2025, arXiv 2503.06346): whether a set of bands was made for its vocals.

Embedded are not bands but mixes of vocal and band. A reference of true pairs R and the same vocals with one another's bands R′ are the two
ends: APA = ½ + (d(C, R′) − d(C, R)) / 2 d(R, R′), within 0 and 1, with the Fréchet distance d. 1: as near to true pairs as can be; ½: as
near to one as to the other. It can hear what the embedding hears of a mix, and no more.

Shapes: C channels, N samples, R windows, D dimensions.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from model.listen import loudness_db
from model.listen.loudness import FLOOR_DB
from model.metrics.set_distances import EmbeddedSet, FrechetDistance, Interval, around, draws

# Vocal and band alike loud, the mix at one level.
MIX_LUFS = -20.0


class Adherence:
    """The two ends, against which sets of mixes are measured."""

    def __init__(self, paired_RD: np.ndarray, mismatched_RD: np.ndarray) -> None:
        """Windows of the mixes of true pairs, and of the same vocals each with another song's band."""
        self._paired, self._mismatched = FrechetDistance(paired_RD), FrechetDistance(mismatched_RD)
        self._apart = self._paired(mismatched_RD)

    def __call__(self, mixes_RD: np.ndarray) -> float:
        return float(np.clip(self._unclipped(mixes_RD), 0, 1))

    def with_interval(self, sample: EmbeddedSet) -> Interval:
        """APA of all windows, with an interval from drawing songs with replacement."""
        drawn = [self._unclipped(sample.drawn(songs).windows_RD) for songs in draws(sample.songs)]
        found = around(self._unclipped(sample.windows_RD), drawn)
        value, low, high = (float(np.clip(part, 0, 1)) for part in (found.value, found.low, found.high))
        return Interval(value=value, low=low, high=high)

    def _unclipped(self, mixes_RD: np.ndarray) -> float:
        gain = self._mismatched(mixes_RD) - self._paired(mixes_RD)
        return 0.5 + gain / (2 * self._apart) if self._apart > 0 else 0.5


def mixed(vocal_CN: np.ndarray, band_CN: np.ndarray) -> np.ndarray:
    """Vocal and band at the same loudness, their mix at −20 LUFS; as long as the shorter. One that is silent adds nothing."""
    samples = min(vocal_CN.shape[-1], band_CN.shape[-1])
    mix_CN = np.zeros_like(vocal_CN[:, :samples])
    for part_CN in (vocal_CN, band_CN):
        mix_CN = mix_CN + _at_level(part_CN[:, :samples])
    return _at_level(mix_CN)


def _at_level(audio_CN: np.ndarray) -> np.ndarray:
    level_db = loudness_db(audio_CN)
    return audio_CN * np.float32(10 ** ((MIX_LUFS - level_db) / 20)) if level_db > FLOOR_DB else np.zeros_like(audio_CN)


def paired_and_swapped(pairs: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> Iterator[tuple[bool, str, np.ndarray]]:
    """(song, vocal, band) of each reference pair → (whether true, the vocal's song, its mix): every pair, and every vocal with the band of
    the next pair of another song, the last ones with one of the first. Of a single song there is nothing to swap.

    Holds no more than a few pairs at a time."""
    waiting: list[tuple[str, np.ndarray]] = []
    first: dict[str, np.ndarray] = {}
    for song, vocal_CN, band_CN in pairs:
        yield True, song, mixed(vocal_CN, band_CN)
        for other, waiting_CN in waiting:
            if other != song:
                yield False, other, mixed(waiting_CN, band_CN)
        waiting = [(other, waiting_CN) for other, waiting_CN in waiting if other == song] + [(song, vocal_CN)]
        if len(first) < 2:
            first.setdefault(song, band_CN)
    for song, vocal_CN in waiting:
        for other, band_CN in first.items():
            if other != song:
                yield False, song, mixed(vocal_CN, band_CN)
                break
