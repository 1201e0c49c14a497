"""Scores: what each measure answers for sounds whose answer is known, and what the intervals mean."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from model.geometry import SAMPLE_RATE_HZ
from training.evaluation import EvaluateConfig
from training.scores import EvaluationReport, Measures, bands_db, measure, summarise

SECONDS = 6


def tone(hz: float, gain: float = 0.2) -> np.ndarray:
    time_s = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    pulse = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 2 * time_s))
    return (gain * pulse * np.stack([np.sin(2 * np.pi * hz * time_s)] * 2)).astype(np.float32)


def same(value: float) -> Measures:
    return Measures(**{field.name: value for field in fields(Measures)})


def test_silence_fits_nothing_and_the_real_one_is_no_distance_from_itself() -> None:
    vocal, real = tone(440), tone(220)
    silence, itself = measure(vocal, real, np.zeros_like(real)), measure(vocal, real, real)
    assert (silence.harmony, silence.rhythm, silence.overall) == (0.0, 0.0, 0.0)
    assert silence.loudness_lufs < -100
    assert itself.spectrum_db == 0.0
    assert itself.centroid_hz == pytest.approx(220, rel=0.3)
    assert measure(vocal, real, vocal).leakage > itself.leakage


def test_the_spectrum_ignores_level_and_hears_pitch() -> None:
    quiet, loud, other = bands_db(tone(220, 0.1)), bands_db(tone(220, 0.4)), bands_db(tone(2_000))
    assert np.abs(quiet - loud).max() < 0.5
    assert np.abs(other - loud).mean() > 5


def test_intervals_are_over_songs_not_segments() -> None:
    values = [same(0.0)] * 3 + [same(1.0)]
    row = summarise("x", values, ["a", "a", "a", "b"])
    assert row.mean.overall == row.overall == 0.25
    # Drawing whole songs, a draw is all of a (0), all of b (1), or both.
    assert (row.low.overall, row.high.overall) == (0.0, 1.0)
    certain = summarise("x", [same(0.5)] * 4, ["a", "b", "c", "d"])
    assert (certain.low, certain.high) == (same(0.5), same(0.5))


def test_the_report_is_a_table_in_json_and_markdown() -> None:
    row = summarise("generated", [same(0.5)], ["a"])
    report = EvaluationReport(
        rows=(row, replace(row, name="silence")), songs=1, seconds=6.0, checkpoint="c", step=3, dataset="d", out="o", wins=0.5
    )
    assert json.loads(report.to_json())["rows"][1]["name"] == "silence"
    text = report.to_markdown()
    assert "50% of segments" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == ["accompaniment", "generated", "silence"]
    assert {len(cells) for cells in report.cells()} == {len(report.header())}


@pytest.mark.parametrize(
    ("changes", "remedy"), [({"samples": 0}, "number of"), ({"seconds": 1.0}, "4 or more"), ({"audio_files": -1}, "0 or more")]
)
def test_a_wrong_config_names_its_remedy(changes: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        EvaluateConfig(checkpoint="c", data="d", out="o", **changes)
