"""The separation-quality figure falls with every fault it is to find, on songs whose true stems are known."""

from itertools import pairwise

import numpy as np
import pytest
import scipy

from model.errors import ModelError
from model.separation.quality import FLOOR_DB, separation_quality
from pipelines.corpus import compose, render

GAINS = [10 ** (level_db / 20) for level_db in (-40, -30, -20, -10, 0)]
Stems = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module", params=[2, 4])
def stems(request: pytest.FixtureRequest) -> Stems:
    song = render(compose(request.param, 20.0))
    return song.vocals_CN.astype(np.float32), song.accompaniment_CN.astype(np.float32)


def score(vocal_CN: np.ndarray, band_CN: np.ndarray, mixture_CN: np.ndarray) -> float:
    return separation_quality(mixture_CN, vocal_CN, band_CN).score


def falls(scores: list[float]) -> bool:
    return all(before > after for before, after in pairwise(scores))


def test_true_stems_score_high(stems: Stems) -> None:
    vocal_CN, band_CN = stems
    quality = separation_quality(vocal_CN + band_CN, vocal_CN, band_CN)
    assert 0.75 < quality.score <= 1
    assert quality.residual_db < -100


# Added to the other stem, or moved there so that the sum stays the mixture, and the residual says nothing: then, in twenty seconds, chance
# hides what lies under −30 dB. At 0 dB nothing would be left of the stem that it is moved from.
BLEED = pytest.mark.parametrize(("whole", "gains"), [(False, [0.0, *GAINS]), (True, [0.0, *GAINS[2:4]])], ids=["added", "moved"])


@BLEED
def test_the_score_falls_with_bleed_of_the_vocal_into_the_band(stems: Stems, whole: bool, gains: list[float]) -> None:
    vocal_CN, band_CN = stems
    scores = [score(vocal_CN * (1 - gain * whole), band_CN + vocal_CN * gain, vocal_CN + band_CN) for gain in gains]
    assert falls(scores), scores
    assert scores[gains.index(GAINS[3])] < 0.6 * scores[0]
    assert whole or scores[-1] < 0.1


@BLEED
def test_the_score_falls_with_bleed_of_the_band_into_the_vocal(stems: Stems, whole: bool, gains: list[float]) -> None:
    vocal_CN, band_CN = stems
    scores = [score(vocal_CN + band_CN * gain, band_CN * (1 - gain * whole), vocal_CN + band_CN) for gain in gains]
    assert falls(scores), scores
    assert scores[gains.index(GAINS[3])] < 0.6 * scores[0]
    assert whole or scores[-1] < 0.1


def test_the_score_falls_as_a_mask_blurs(stems: Stems) -> None:
    """What a network does: the mixture, masked in time and frequency, less and less sharply."""
    vocal_CN, band_CN = stems
    vocal_CFT, band_CFT = (scipy.signal.stft(audio_CN, 44_100, nperseg=4096)[2] for audio_CN in stems)
    true, scores = score(vocal_CN, band_CN, vocal_CN + band_CN), []
    for power in (2, 1, 0.5, 0.25):
        own, other = np.abs(vocal_CFT) ** power, np.abs(band_CFT) ** power
        masked_CFT = (vocal_CFT + band_CFT) * own / (own + other + 1e-12)
        found_CN = scipy.signal.istft(masked_CFT, 44_100, nperseg=4096)[1][:, : vocal_CN.shape[1]].astype(np.float32)
        scores.append(score(found_CN, vocal_CN + band_CN - found_CN, vocal_CN + band_CN))
    assert falls(scores), scores
    assert scores[0] > 0.6
    # A sharp mask gives each sound to one stem, so that they share less than true stems of one key do.
    assert true > scores[1]
    assert scores[3] < 0.1


def test_what_no_stem_accounts_for_is_measured(stems: Stems) -> None:
    vocal_CN, band_CN = stems
    noise_CN = np.random.default_rng(0).normal(size=vocal_CN.shape).astype(np.float32)
    scores = []
    for level_db in (-40, -20, -6):
        whole_CN = vocal_CN + band_CN
        lost_CN = noise_CN * np.sqrt((whole_CN**2).mean()) * np.float32(10 ** (level_db / 20))
        quality = separation_quality(whole_CN + lost_CN, vocal_CN, band_CN)
        # The mixture holds the noise too.
        assert quality.residual_db == pytest.approx(level_db - 10 * np.log10(1 + 10 ** (level_db / 10)), abs=0.1)
        scores.append(quality.score)
    assert falls(scores)


def test_level_does_not_matter(stems: Stems) -> None:
    vocal_CN, band_CN = stems
    loud, quiet = (score(vocal_CN * gain, band_CN * gain, (vocal_CN + band_CN) * gain) for gain in (1.0, 0.01))
    assert loud == pytest.approx(quiet, abs=0.01)


def test_silence_speaks_against_nothing(stems: Stems) -> None:
    vocal_CN, band_CN = stems
    nothing_CN = np.zeros_like(vocal_CN)
    for first_CN, second_CN in ((vocal_CN, nothing_CN), (nothing_CN, band_CN), (nothing_CN, nothing_CN), (1e-4 * band_CN, band_CN)):
        quality = separation_quality(first_CN + second_CN, first_CN, second_CN)
        assert quality.score == pytest.approx(1, abs=1e-4)
        assert quality.residual_db >= FLOOR_DB
    assert separation_quality(band_CN, nothing_CN, nothing_CN).score == 0, "all of it is lost"


@pytest.mark.parametrize("shapes", [((2, 9), (2, 9), (2, 8)), ((9,), (9,), (9,)), ((2, 0), (2, 0), (2, 0))])
def test_what_does_not_fit_together_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ModelError, match="shapes"):
        separation_quality(*(np.zeros(shape, np.float32) for shape in shapes))
