"""How far what is heard of a band agrees with what was composed, frame by frame as both are stored, and what listening and storing cost.

`OMP_NUM_THREADS=1 python infra/benchmarks/data/truth.py [--songs 24] [--seed 1000] [--seconds 62]`

Chord frames are those under a composed chord. Beats and downbeats: F-measure of mir_eval, 70 ms. CPU seconds are of one process.
"""

import argparse
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import mir_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.dataset.truth import FrameTruth, frame_columns
from model.chords import quality_chroma
from model.dimensions import FRAME_RATE_HZ, SEGMENT_FRAMES
from pipelines.corpus import compose, render
from pipelines.corpus.score.record import SongRecord, as_json
from pipelines.corpus.sound.banks.open import open_banks
from pipelines.song import SongTruth
from pipelines.stages.truth import estimated_truth, frames_of, parsed_truth

THIRDS = quality_chroma()


@dataclass(frozen=True, kw_only=True)
class Score:
    """One song."""

    record: SongRecord
    heard: SongTruth
    root: float
    third: float
    """Root and third: major or minor, as far as the composed chord has a third."""
    bass: float
    beats: float
    downbeats: float
    phase: float
    """Share of the frames whose phase in the beat is within a tenth of a beat."""
    tempo: bool
    """Within 4%."""
    key: bool
    metre: bool
    cpu_s: float


def score(seed: int, seconds: float) -> tuple[Score, FrameTruth, FrameTruth]:
    record = compose(seed, seconds)
    song = render(record, open_banks(("numpy",)))
    begun_s = time.process_time()
    heard = estimated_truth(song.accompaniment_CN)
    cpu_s = time.process_time() - begun_s
    segments = range(-(-song.accompaniment_CN.shape[1] // (SEGMENT_FRAMES * 2_048)))
    starts_s = [segment * SEGMENT_FRAMES / FRAME_RATE_HZ for segment in segments]
    whole, last = [SEGMENT_FRAMES] * (len(segments) - 1), song.accompaniment_CN.shape[1] // 2_048 - SEGMENT_FRAMES * (len(segments) - 1)
    truth, found = (frames_of(given, starts_s, [*whole, last], SEGMENT_FRAMES) for given in (parsed_truth(as_json(record)), heard))
    chord_RT = truth.chord_root_RT >= 0
    major_RT, minor_RT = (THIRDS[truth.chord_quality_RT][..., interval] > 0 for interval in (4, 3))
    third_RT = chord_RT & (major_RT | minor_RT)
    same_third_RT = (THIRDS[found.chord_quality_RT][..., 4] > 0) == major_RT
    same_root_RT = truth.chord_root_RT == found.chord_root_RT
    both_RT = np.isfinite(truth.beat_phase_RT)
    apart_RT = np.abs(truth.beat_phase_RT.astype(float) - found.beat_phase_RT)
    times_s = [beat.time_s for beat in heard.beats]
    downs_s = [beat.time_s for beat in heard.beats if beat.position == 0 and beat.bar_beats]
    tempo = heard.tempo_bpm or 0.0
    return (
        Score(
            record=record,
            heard=heard,
            root=float(same_root_RT[chord_RT].mean()),
            third=float((same_root_RT & same_third_RT)[third_RT].mean()),
            bass=float((truth.chord_bass_RT == found.chord_bass_RT)[chord_RT].mean()),
            beats=_f_measure(record.beats_s, times_s),
            downbeats=_f_measure(record.downbeats_s, downs_s),
            phase=float((np.minimum(apart_RT, 1 - apart_RT) < 0.1)[both_RT].mean()),
            tempo=abs(tempo / record.tempo_bpm - 1) < 0.04,
            key=heard.key == record.key,
            metre=heard.metre == record.metre,
            cpu_s=cpu_s,
        ),
        truth,
        found,
    )


def _f_measure(truth_s: Sequence[float], found_s: Sequence[float]) -> float:
    return float(mir_eval.beat.f_measure(np.array(truth_s), np.array(found_s))) if found_s else 0.0


def row_bytes(truth: FrameTruth) -> tuple[float, float]:
    """Bytes of a row's columns, in memory and in a file as datasets are written."""
    table = pa.table(frame_columns(truth, "composed"))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    empty = io.BytesIO()
    pq.write_table(table.slice(0, 0), empty, compression="zstd", use_dictionary=False)
    return table.nbytes / len(truth), (buffer.tell() - empty.tell()) / len(truth)


def rank_correlation(confidence: Sequence[float], measure: Sequence[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (confidence, measure)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=62.0)
    given = parser.parse_args()
    scores: list[Score] = []
    sizes = []
    print("| song | style | metre | root | root and third | bass | beats | downbeats | phase | CPU s a minute |\n" + "|---" * 10 + "|")
    for seed in range(given.seed, given.seed + given.songs):
        one, truth, found = score(seed, given.seconds)
        scores.append(one)
        sizes.append((row_bytes(truth), row_bytes(found)))
        figures = (one.root, one.third, one.bass, one.beats, one.downbeats, one.phase, 60 * one.cpu_s / one.record.duration_s)
        said = f"{one.record.style}{', drifts' if one.record.drift else ''} | {one.record.metre}"
        print(f"| {seed} | {said} | {' | '.join(f'{value:.2f}' for value in figures)} |", flush=True)
    for name in ("root", "third", "bass", "beats", "downbeats", "phase"):
        values = [getattr(one, name) for one in scores]
        print(f"{name}: mean {np.mean(values):.3f}, median {np.median(values):.3f}, least {min(values):.3f}")
    for name in ("tempo", "key", "metre"):
        print(f"{name}: right in {sum(getattr(one, name) for one in scores)} of {len(scores)}")
    for confidence, measure in (("chord_confidence", "root"), ("beat_confidence", "beats"), ("bar_confidence", "downbeats")):
        rank = rank_correlation([getattr(one.heard, confidence) for one in scores], [getattr(one, measure) for one in scores])
        print(f"{confidence} beside {measure}: rank correlation {rank:.2f}")
    minutes = sum(one.record.duration_s for one in scores) / 60
    print(f"CPU: {sum(one.cpu_s for one in scores) / minutes:.2f} s a minute of song, over {minutes:.1f} minutes")
    (memory, composed), (_, heard) = np.mean(sizes, axis=0)
    print(f"a row: {memory:.0f} bytes in memory, {composed:.0f} in a file where composed, {heard:.0f} where heard")


if __name__ == "__main__":
    main()
