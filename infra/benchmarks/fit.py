"""Does the fit tell true pairs from broken ones, and what do the tricks score: `python infra/benchmarks/fit.py --songs 20`.

Prints Markdown: the AUC of true pairs against each kind of broken pair, then the median of every control. Figures: infra/benchmarks/fit.md.
"""

import argparse
import dataclasses
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.signal
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from model.fit import Fit
    from pipelines.corpus import SongRecord

RATE_HZ = 44_100
FIGURES = ("harmony", "rhythm", "overall", "leakage")
PAIRS = (
    "another song",
    "another song, moved to the same key",
    "shift of 2 to 9 s",
    "transposed by 1 to 11",
    "shift of ⅛ beat",
    "shift of ¼ beat",
    "shift of ½ beat",
    "shift of 1 beat",
    "shift of 1 bar",
)


def band_of(record: "SongRecord", *, semitones: int = 0, only: str | None = None) -> np.ndarray:
    """(N,) the band of a record, moved by semitones, or one of its tracks alone."""
    from pipelines.corpus.mix import blend
    from pipelines.corpus.render import play_track

    tracks = []
    for track in record.tracks:
        if only is None or track.name == only:
            step = 0 if track.name == "drums" else semitones
            notes = tuple(dataclasses.replace(note, midi=note.midi + step) for note in track.notes)
            tracks.append(dataclasses.replace(track, notes=notes))
    moved = dataclasses.replace(record, tracks=tuple(tracks))
    samples = int(record.duration_s * RATE_HZ)
    parts = {track.name: play_track(track, moved, samples) for track in moved.tracks}
    return blend(moved, parts, []).mean(axis=0).astype(np.float32)


def with_lost_phase(audio_N: np.ndarray, rounds: int = 10) -> np.ndarray:
    """The spectrogram kept, the phase found again (Griffin and Lim 1984): a copy through a magnitude codec."""
    spectrum_FT = scipy.signal.stft(audio_N, RATE_HZ, nperseg=4_096, noverlap=3_072)[2]
    phase_FT = np.exp(2j * np.pi * np.random.default_rng(0).random(spectrum_FT.shape))
    guess_N = audio_N
    for _ in range(rounds):
        guess_N = scipy.signal.istft(np.abs(spectrum_FT) * phase_FT, RATE_HZ, nperseg=4_096, noverlap=3_072)[1]
        again_FT = scipy.signal.stft(guess_N, RATE_HZ, nperseg=4_096, noverlap=3_072)[2][:, : spectrum_FT.shape[1]]
        phase_FT = np.exp(1j * np.angle(again_FT))
    return guess_N[: len(audio_N)].astype(np.float32)


def controls(record: "SongRecord", vocal_N: np.ndarray, band_N: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """What is no accompaniment, or games the figures."""
    samples, spread = len(band_N), band_N.std()
    t = np.arange(samples) / RATE_HZ
    clicks_N = np.zeros(samples, np.float32)
    for beat_s in record.beats_s:
        start = round(beat_s * RATE_HZ)
        clicks_N[start : start + 400] = 0.3 * rng.normal(size=len(clicks_N[start : start + 400]))
    yield "drums only", band_of(record, only="drums")
    yield "clicks on the beats", clicks_N
    yield (
        "tonic drone",
        0.1 * np.sum([np.sin(2 * np.pi * 440 * 2 ** ((octave + record.tonic - 69) / 12) * t) for octave in (36, 48, 60)], axis=0),
    )
    yield "silence", np.zeros(samples, np.float32)
    yield "noise", 0.1 * rng.normal(size=samples)
    for gain_db in (-12, -6):
        yield f"true, the vocal leaking at {gain_db} dB of the band", band_N + 10 ** (gain_db / 20) * spread / vocal_N.std() * vocal_N
    redrawn_N = with_lost_phase(vocal_N)
    yield "true, leaking at -6 dB without its phase", band_N + 0.5 * spread / redrawn_N.std() * redrawn_N
    yield "the vocal copied", vocal_N
    yield "the vocal copied without its phase", redrawn_N


def broken(
    record: "SongRecord", other: "SongRecord", band_N: np.ndarray, other_N: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """A pair's accompaniment, replaced, moved in time or in pitch; rows of PAIRS."""
    beat = RATE_HZ * 60 / record.tempo_bpm
    yield PAIRS[0], other_N
    yield PAIRS[1], band_of(other, semitones=(record.tonic - other.tonic + 6) % 12 - 6)
    yield PAIRS[2], np.roll(band_N, round(rng.uniform(2, 9) * RATE_HZ))
    yield PAIRS[3], band_of(record, semitones=int(rng.integers(1, 12)) - 6 or 6)
    for name, beats in zip(PAIRS[4:], (1 / 8, 1 / 4, 1 / 2, 1, 4), strict=True):
        yield name, np.roll(band_N, round(beats * beat))


def auc(true: list[float], other: list[float]) -> float:
    """Chance that a true pair scores above a broken one; ties count half (Hanley and McNeil 1982)."""
    difference = np.subtract.outer(np.array(true), np.array(other))
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def main() -> None:
    from model.fit import fit
    from pipelines.corpus import compose, render

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=100, help="first song; the demo corpus starts at 0")
    parser.add_argument("--duration", type=float, default=40.0, help="seconds a song")
    options = parser.parse_args()
    records = [compose(seed, options.duration) for seed in range(options.seed, options.seed + options.songs)]
    songs = [render(record) for record in tqdm(records, desc="songs", disable=None)]
    vocals = [song.vocals_CN.mean(axis=0) for song in songs]
    bands = [song.accompaniment_CN.mean(axis=0) for song in songs]
    found: dict[str, list[Fit]] = defaultdict(list)
    spent_s = heard_s = 0.0
    for index, record in enumerate(tqdm(records, desc="pairs", disable=None)):
        rng = np.random.default_rng(record.seed)
        vocal_N, band_N = vocals[index], bands[index]
        # Seven on: another style, another tempo, another key.
        other = (index + 7) % len(records)
        tried = [("true", band_N), *broken(record, records[other], band_N, bands[other], rng), *controls(record, vocal_N, band_N, rng)]
        for name, accompaniment_N in tried:
            start_s = time.process_time()
            found[name].append(fit(vocal_N, accompaniment_N))
            spent_s += time.process_time() - start_s
            heard_s += len(vocal_N) / RATE_HZ
    columns = {name: {figure: [getattr(row, figure) for row in rows] for figure in FIGURES} for name, rows in found.items()}
    print(f"{options.songs} songs of about {options.duration:g} s from seed {options.seed}; {platform.machine()}, {os.cpu_count()} cores,")
    print(f"Python {platform.python_version()}, numpy {np.__version__}; {60 * spent_s / heard_s:.2f} CPU seconds a minute of audio.\n")
    print("| AUC of true pairs against | harmony | rhythm | overall |\n|---|---|---|---|")
    for name in PAIRS:
        row = " | ".join(f"{auc(columns['true'][figure], columns[name][figure]):.3f}" for figure in FIGURES[:3])
        print(f"| {name} | {row} |")
    print("\n| median (lowest to highest) | harmony | rhythm | overall | leakage | AUC of overall |\n|---|---|---|---|---|---|")
    for name, column in columns.items():
        cells = [f"{np.median(column[figure]):.2f} ({min(column[figure]):.2f} to {max(column[figure]):.2f})" for figure in FIGURES]
        print(f"| {name} | {' | '.join(cells)} | {auc(columns['true']['overall'], column['overall']):.3f} |")


if __name__ == "__main__":
    main()
