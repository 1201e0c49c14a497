"""What the robustness benchmark counts as a failure, and that its table says what was measured."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from infra.benchmarks.model.robustness import FLATTER, REAL, Run, Sounded, drowned_share, failures_of, flatness_of, interval, table

T = np.arange(4 * 44_100) / 44_100
TONE_CN = np.stack([0.1 * np.sin(2 * np.pi * 220 * T)] * 2).astype(np.float32)
NOISE_CN = 0.1 * np.random.default_rng(0).standard_normal(TONE_CN.shape).astype(np.float32)


def sounded(condition: str, song: int = 900, **changed: object) -> Sounded:
    row = Sounded(
        song_id=f"song-{song:06d}", condition=condition, harmony=0.8, rhythm=0.6, overall=0.7, best=0.75, leakage=0.1, loudness_lufs=-16.0,
        over_clean_lu=0.0, over_real_lu=0.5, peak_dbfs=-1.0, flatness=0.01, drowned=0.2, failures=(),
    )  # fmt: skip
    return replace(row, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measured", "failures"),
    [
        ((True, 2.9, 5.9, 0.019), ()),
        ((True, -30.0, -40.0, -0.2), ()),
        ((True, 3.1, 0.0, 0.0), ("louder",)),
        ((True, 0.0, 6.1, 0.0), ("peaks",)),
        ((False, 3.1, 0.0, 0.021), ("not finite", "louder", "noisier")),
    ],
)
def test_a_failure_is_worse_than_behind_a_clean_vocal(measured: tuple[bool, float, float, float], failures: tuple[str, ...]) -> None:
    assert failures_of(*measured) == failures


def test_noise_is_flat_and_tones_rests_and_silence_are_not() -> None:
    assert flatness_of(NOISE_CN) > 0.4
    assert flatness_of(TONE_CN) < 0.001
    resting_CN = np.where(T < 2, TONE_CN, 1e-3 * NOISE_CN)
    assert flatness_of(resting_CN) < FLATTER
    assert flatness_of(np.where(T < 2, TONE_CN, NOISE_CN)) > 0.2
    assert flatness_of(np.zeros_like(TONE_CN)) == 0.0


def test_a_voice_is_drowned_where_it_sounds_and_the_band_is_far_above() -> None:
    voice_CN = np.where(T < 2, TONE_CN, 0)
    assert drowned_share(voice_CN, 0.5 * TONE_CN) == 0.0
    assert drowned_share(voice_CN, 3 * TONE_CN) == 1.0
    assert drowned_share(voice_CN, np.where(T < 1, 3 * TONE_CN, TONE_CN)) == pytest.approx(0.5, abs=0.06)


def test_an_interval_holds_its_mean_and_one_song_has_none() -> None:
    assert interval(np.array([0.4])) == "0.40 (0.40 to 0.40)"
    mean, low, high = (float(part.strip("()")) for part in interval(np.array([0.2, 0.4, 0.9])).replace("to", "").split())
    assert low < mean == 0.5 < high


def test_the_table_has_a_row_a_condition_and_counts_songs_that_fail(tmp_path: Path) -> None:
    rows = [sounded(condition, song) for song in (900, 901) for condition in (REAL, "clean", "spoken")]
    rows[-1] = replace(rows[-1], failures=("louder", "noisier"), over_clean_lu=5.0)
    run = Run(checkpoint="tiny, step 1", seconds=24.0, candidates=4, rows=tuple(rows))
    lines = table(run).splitlines()
    cells = [line.split("|")[1:-1] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert [row[0].strip() for row in cells[2:]] == [REAL, "clean", "spoken"]
    assert [row[-1].strip() for row in cells[2:]] == ["", "0 of 2", "1 of 2: louder 1, noisier 1"]
    assert cells[4][7].strip() == "2.5"
    (tmp_path / "run.json").write_text(json.dumps(asdict(run)))
    assert Run.read(tmp_path / "run.json") == run
