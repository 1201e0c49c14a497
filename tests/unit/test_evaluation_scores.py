"""Scores: what each measure answers for sounds whose answer is known, and what the intervals mean."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from model.geometry import SAMPLE_RATE_HZ
from training.evaluation import EvaluateConfig
from training.scores import OTHER, REAL, EvaluationReport, Measures, bands_db, measure, summarise

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


def report_of(**values: float) -> EvaluationReport:
    rows = tuple(summarise(name, [same(value)], ["a"]) for name, value in values.items())
    names = {"real": REAL, "other": OTHER}
    rows = tuple(replace(row, name=names.get(row.name, row.name)) for row in rows)
    return EvaluationReport(rows=rows, songs=1, seconds=6.0, checkpoint="c", model="m", step=3, dataset="d", out="o", wins=0.5)


def test_the_report_is_a_table_in_json_and_markdown() -> None:
    report = report_of(generated=0.5, real=0.6, other=0.1, silence=0.0)
    assert json.loads(report.to_json())["rows"][3]["name"] == "silence"
    assert EvaluationReport.from_json(report.to_json()) == report
    text = report.to_markdown()
    assert "50% of segments" in text
    assert "harmony 80%, rhythm 80%" in text
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert names == ["accompaniment", "generated", REAL, OTHER, "silence"]
    assert {len(cells) for cells in report.cells()} == {len(report.header())}


def test_the_way_runs_from_another_songs_to_the_real_one() -> None:
    assert report_of(generated=0.1, real=0.6, other=0.1).way("harmony") == 0
    assert report_of(generated=0.7, real=0.6, other=0.1).way("rhythm") == pytest.approx(1.2)
    assert np.isnan(report_of(generated=0.7, real=0.1, other=0.1).way("rhythm"))


@pytest.mark.parametrize(
    ("changes", "remedy"), [({"samples": 0}, "number of"), ({"seconds": 1.0}, "4 or more"), ({"audio_files": -1}, "0 or more")]
)
def test_a_wrong_config_names_its_remedy(changes: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        EvaluateConfig(checkpoint="c", data="d", out="o", **changes)
