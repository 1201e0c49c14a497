"""Does the fit tell true pairs from broken ones, and what do the tricks score?

`python infra/benchmarks/model/fit.py --songs 40 --seed 300`.

Prints Markdown: the AUC of true pairs against each kind of broken pair, the median of every control, both against their bars, then what a
long song costs. Ends with 1 where a bar is missed. Figures: infra/benchmarks/model/fit.md.
"""

import argparse
import dataclasses
import os
import platform
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if TYPE_CHECKING:
    from model.metrics.fit import Fit
    from pipelines.corpus import SongRecord, compose, render

RATE_HZ = 44_100
FIGURES = ("harmony", "rhythm", "overall", "leakage")
# What the AUC of `overall` must reach; None: shown, without a bar.
PAIRS: dict[str, float | None] = {
    "another song": 0.95,
    "another song, moved to the same key": 0.95,
    "shift of 2 to 9 s": 0.95,
    "transposed by 1 to 11": 0.95,
    "shift of ⅛ beat": 0.95,
    "shift of ¼ beat": 0.95,
    "shift of ½ beat": 0.85,
    "shift of −½ beat": 0.85,
    "shift of 1 beat": 0.85,
    "shift of −1 beat": 0.85,
    "shift of 1 bar": 0.95,
}
SHIFTS_BEATS = (1 / 8, 1 / 4, 1 / 2, -1 / 2, 1, -1, 4)  # of the last rows, in their order
CONTROLS: dict[str, float | None] = {
    "drums only": 0.95,
    "clicks on the beats": 0.95,
    "tonic drone": 0.95,
    "silence": 0.95,
    "noise": 0.95,
    "true, the vocal leaking at -12 dB of the band": None,
    "true, the vocal leaking at -6 dB of the band": None,
    "true, leaking at -6 dB without its phase": None,
    "the vocal copied": 0.95,
    "the vocal copied without its phase": 0.95,
}


def band_of(record: "SongRecord", *, semitones: int = 0, only: str | None = None) -> np.ndarray:
    """(N,) the band of a record, moved by semitones, or one of its tracks alone."""
    from pipelines.corpus.sound.bank import NumpyBank
    from pipelines.corpus.sound.mix import blend

    tracks = []
    for track in record.tracks:
        if only is None or track.name == only:
            step = 0 if track.name == "drums" else semitones
            notes = tuple(dataclasses.replace(note, midi=note.midi + step) for note in track.notes)
            tracks.append(dataclasses.replace(track, notes=notes))
    moved = dataclasses.replace(record, tracks=tuple(tracks))
    samples = int(record.duration_s * RATE_HZ)
    parts = {track.name: NumpyBank().play(track, moved, samples) for track in moved.tracks}
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
    octaves = np.array([36, 48, 60])[:, None]
    drone_N = 0.1 * np.sin(2 * np.pi * 440 * 2 ** ((octaves + record.tonic - 69) / 12) * t).sum(axis=0)
    leaks = [band_N + 10 ** (gain_db / 20) * spread / vocal_N.std() * vocal_N for gain_db in (-12, -6)]
    redrawn_N = with_lost_phase(vocal_N)
    redrawn_leak_N = band_N + 0.5 * spread / redrawn_N.std() * redrawn_N
    silence_N, noise_N = np.zeros(samples, np.float32), 0.1 * rng.normal(size=samples)
    sounds = (band_of(record, only="drums"), clicks_N, drone_N, silence_N, noise_N, *leaks, redrawn_leak_N, vocal_N, redrawn_N)
    yield from zip(CONTROLS, sounds, strict=True)


def broken(
    record: "SongRecord", other: "SongRecord", band_N: np.ndarray, other_N: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """A pair's accompaniment, replaced, moved in time or in pitch; rows of PAIRS."""
    names, beat = list(PAIRS), RATE_HZ * 60 / record.tempo_bpm
    yield names[0], other_N
    yield names[1], band_of(other, semitones=(record.tonic - other.tonic + 6) % 12 - 6)
    yield names[2], np.roll(band_N, round(rng.uniform(2, 9) * RATE_HZ))
    yield names[3], band_of(record, semitones=int(rng.integers(1, 12)) - 6 or 6)
    for name, beats in zip(names[4:], SHIFTS_BEATS, strict=True):
        yield name, np.roll(band_N, round(beats * beat))


def auc(true: list[float], other: list[float]) -> float:
    """Chance that a true pair scores above a broken one; ties count half (Hanley and McNeil 1982)."""
    difference = np.subtract.outer(np.array(true), np.array(other))
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def verdict(reached: float, bar: float | None) -> str:
    return "| |" if bar is None else f"| {bar:.2f} | {'PASS' if reached >= bar else 'MISS'} |"


def long_songs(vocal_N: np.ndarray, band_N: np.ndarray) -> Iterator[str]:
    """Rows of what a song of some length costs: CPU time, and memory beyond the two inputs at its peak."""
    from model.dimensions import SEGMENT_SAMPLES
    from model.metrics.fit import fit

    yield "| length | CPU seconds | a minute of audio | peak beyond the inputs |\n|---|---|---|---|"
    for samples in (SEGMENT_SAMPLES, 3 * 60 * RATE_HZ, 10 * 60 * RATE_HZ):
        vocal_CN, band_CN = (np.stack([np.resize(audio_N, samples)] * 2) for audio_N in (vocal_N, band_N))
        start_s = time.process_time()
        fit(vocal_CN, band_CN)
        spent_s, minutes = time.process_time() - start_s, samples / RATE_HZ / 60
        tracemalloc.start()
        fit(vocal_CN, band_CN)
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield f"| {60 * minutes:.1f} s | {spent_s:.2f} | {spent_s / minutes:.2f} | {peak_mib:.0f} MiB |"


def main() -> int:
    from model.metrics.fit import fit

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=300, help="first song; the demo corpus starts at 0")
    parser.add_argument("--duration", type=float, default=40.0, help="seconds a song")
    options = parser.parse_args()
    if options.songs % 7 == 0 or options.songs == 1:
        parser.error(
            f"--songs {options.songs}: the song seven on would be the song itself; give a number that 7 does not divide, 2 or more"
        )
    records = [compose(seed, options.duration) for seed in range(options.seed, options.seed + options.songs)]
    vocals, bands = [], []
    for record in tqdm(records, desc="songs", disable=None):
        song = render(record)
        vocals.append(song.vocals_CN.mean(axis=0))
        bands.append(song.accompaniment_CN.mean(axis=0))
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
    reached = {name: auc(columns["true"]["overall"], column["overall"]) for name, column in columns.items()}
    print("| AUC of true pairs against | harmony | rhythm | overall | bar | |\n|---|---|---|---|---|---|")
    for name, bar in PAIRS.items():
        row = " | ".join(f"{auc(columns['true'][figure], columns[name][figure]):.3f}" for figure in FIGURES[:2])
        print(f"| {name} | {row} | {reached[name]:.3f} {verdict(reached[name], bar)}")
    print("\n| median (lowest to highest) | harmony | rhythm | overall | leakage | AUC of overall | bar | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, column in columns.items():
        cells = [f"{np.median(column[figure]):.2f} ({min(column[figure]):.2f} to {max(column[figure]):.2f})" for figure in FIGURES]
        print(f"| {name} | {' | '.join(cells)} | {reached[name]:.3f} {verdict(reached[name], (PAIRS | CONTROLS).get(name))}")
    print()
    for line in long_songs(vocals[0], bands[0]):
        print(line)
    return int(any(bar is not None and reached[name] < bar for name, bar in (PAIRS | CONTROLS).items()))


if __name__ == "__main__":
    raise SystemExit(main())
