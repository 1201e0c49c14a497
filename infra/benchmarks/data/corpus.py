"""How good the demo corpus is, heard by independent ears: `python infra/benchmarks/data/corpus.py --songs 20 --seed 0`.

Prints a Markdown row a song and the medians. Needs the development dependencies (mir_eval, pyloudnorm).
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.corpus import RenderedSong, SongRecord


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was heard in one song."""

    cpu_s_per_min: float
    f0_frame_cents: float
    """Median over all frames of the absolute distance between the heard pitch and the note, vibrato and glides included."""
    f0_note_cents: float
    """Median over notes of the distance between a note's median pitch and the note."""
    notes_within_50: float
    chord_frames: float
    beat_f: float
    loudness_lufs: float
    peak_dbfs: float
    side_to_mid_db: float
    vocal_over_band_db: float
    sung_share: float


def pitch_errors(record: "SongRecord", vocals_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed cents of every voiced frame from its note, and of every note's median."""
    from model.listen import f0

    times_s, hz, voiced = f0(vocals_CN)
    frames, notes = [], []
    for note in record.vocal:
        inside = (times_s > note.onset_s + 0.03) & (times_s < note.offset_s - 0.03) & voiced & (hz > 0)
        if inside.any():
            cents = 1200 * np.log2(hz[inside] / (440 * 2 ** ((note.midi - 69) / 12)))
            frames.append(cents)
            notes.append(np.median(cents))
    return np.concatenate(frames), np.array(notes)


def triads(record: "SongRecord") -> list[tuple[float, float, int]]:
    """The chords as the recogniser names them: major or minor triads, sevenths and added notes counted with their triad."""
    return [(chord.start_s, chord.end_s, 2 * chord.root + ("min" in chord.quality)) for chord in record.chords]


def beat_f_measure(record: "SongRecord", audio_CN: np.ndarray) -> float:
    import mir_eval

    from model.listen import track_beats

    truth = mir_eval.beat.trim_beats(np.array(record.beats_s))
    return float(mir_eval.beat.f_measure(truth, mir_eval.beat.trim_beats(track_beats(audio_CN))))


def listen(record: "SongRecord", song: "RenderedSong", cpu_s: float) -> Figures:
    """Every figure of one rendered song."""
    import pyloudnorm

    from model.dimensions import SAMPLE_RATE_HZ
    from model.listen import chord_agreement, recognise_chords

    frames, notes = pitch_errors(record, song.vocals_CN)
    mixture = song.mixture_CN.astype(np.float64)
    mid, side = mixture[0] + mixture[1], mixture[0] - mixture[1]
    active = np.abs(song.vocals_CN).max(axis=0) > 1e-3
    return Figures(
        cpu_s_per_min=cpu_s / record.duration_s * 60,
        f0_frame_cents=float(np.median(np.abs(frames))),
        f0_note_cents=float(np.median(np.abs(notes))),
        notes_within_50=float(np.mean(np.abs(notes) < 50)),
        chord_frames=chord_agreement(triads(record), recognise_chords(song.mixture_CN)),
        beat_f=beat_f_measure(record, song.mixture_CN),
        loudness_lufs=float(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(mixture.T)),
        peak_dbfs=float(20 * np.log10(np.abs(mixture).max())),
        side_to_mid_db=float(10 * np.log10(np.mean(side**2) / np.mean(mid**2))),
        vocal_over_band_db=float(20 * np.log10(song.vocals_CN[:, active].std() / song.accompaniment_CN[:, active].std())),
        sung_share=sum(note.offset_s - note.onset_s for note in record.vocal) / record.duration_s,
    )


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from pipelines.corpus import compose, render
    from pipelines.corpus.sound.banks.open import open_banks
    from pipelines.corpus.sound.voices.open import open_voices

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bank", action="append", help="as of `backline corpus`; numpy if none is given")
    parser.add_argument("--voice", action="append", help="as of `backline corpus`; numpy if none is given")
    options = parser.parse_args()
    banks, voices = open_banks(tuple(options.bank or ("numpy",))), open_voices(tuple(options.voice or ("numpy",)))
    names = [field.name for field in fields(Figures)]
    print("| song | style | key | bpm | s |", " | ".join(names), "|")
    print("|" + "---|" * (5 + len(names)))
    heard: list[Figures] = []
    for seed in range(options.seed, options.seed + options.songs):
        record = voices.perform(compose(seed))
        start = time.process_time()
        song = render(record, banks, voices)
        figures = listen(record, song, time.process_time() - start)
        heard.append(figures)
        row = " | ".join(f"{getattr(figures, name):.2f}" for name in names)
        print(f"| {seed} | {record.style} | {record.key} | {record.tempo_bpm} | {record.duration_s:.1f} | {row} |", flush=True)
    for word, fold in (("median", statistics.median), ("worst low", min), ("worst high", max)):
        print(f"| {word} | | | | |", " | ".join(f"{fold([getattr(f, name) for f in heard]):.2f}" for name in names), "|")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
