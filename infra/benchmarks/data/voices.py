"""How well the corpus' voices sing: `python infra/benchmarks/data/voices.py --voice neural --voice numpy --songs 12`.

Prints a Markdown row a voice: pitch heard by SwiftF0 in the finished vocal stem (room and doubles included), and CPU seconds. Needs the
development dependencies, and for syllables:FOLDER `make .venv/.vocoder`.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.corpus import SongRecord

_SURE = 0.5


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One song."""

    off_cents: list[float]
    """Of every sung note's median pitch from the score; 1200 for one that is not heard."""
    spoken: bool
    doubled: bool
    singing_cpu_s_per_min: float
    song_cpu_s_per_min: float


def notes_off(record: "SongRecord", vocals_CN: np.ndarray) -> list[float]:
    from swift_f0 import SwiftF0

    from model.dimensions import SAMPLE_RATE_HZ

    heard = SwiftF0(threads=1).detect(vocals_CN.mean(axis=0), SAMPLE_RATE_HZ)
    off = []
    for note in record.vocal:
        inside = (heard.timestamps > note.onset_s + 0.05) & (heard.timestamps < note.offset_s - 0.05) & (heard.confidence > _SURE)
        if not note.spoken:
            hz = 440 * 2 ** ((note.midi - 69) / 12)
            off.append(abs(float(np.median(1200 * np.log2(heard.pitch_hz[inside] / hz)))) if inside.any() else 1200.0)
    return off


def listen(seed: int, voice: str, bank: str) -> Heard:
    from model.dimensions import SAMPLE_RATE_HZ
    from pipelines.corpus import compose, render
    from pipelines.corpus.sound.banks.open import open_banks
    from pipelines.corpus.sound.voices.open import open_voices

    banks, voices = open_banks((bank,)), open_voices((voice,))
    composed = compose(seed)
    record = voices.perform(composed)
    start = time.process_time()
    voices.singers[0].sing(record, int(record.duration_s * SAMPLE_RATE_HZ))
    sung = time.process_time()
    song = render(record, banks, voices)
    whole = time.process_time() - sung
    minutes = record.duration_s / 60
    return Heard(
        off_cents=notes_off(record, song.vocals_CN),
        spoken=record != composed,
        doubled=song.doubled,
        singing_cpu_s_per_min=(sung - start) / minutes,
        song_cpu_s_per_min=whole / minutes,
    )


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voice", action="append", required=True, help="as of `backline corpus`, one at a time; again for each more")
    parser.add_argument("--bank", default="numpy", help="as of `backline corpus`")
    options = parser.parse_args()
    print("| voice | songs | spoken | doubled | notes | median cents | worst song | within 50 cents | singing CPU s/min | song CPU s/min |")
    print("|" + "---|" * 10)
    rows: dict[str, list[Heard]] = {voice: [] for voice in options.voice}
    for seed in range(options.seed, options.seed + options.songs):
        for voice, heard in rows.items():  # in turn, so that other work on the machine weighs on all alike
            heard.append(listen(seed, voice, options.bank))
    for voice, heard in rows.items():
        off = np.concatenate([song.off_cents for song in heard])
        worst = max(statistics.median(song.off_cents) for song in heard)
        cpu = [
            statistics.median(figures) for figures in zip(*((s.singing_cpu_s_per_min, s.song_cpu_s_per_min) for s in heard), strict=True)
        ]
        print(
            f"| {voice} | {len(heard)} | {sum(song.spoken for song in heard)} | {sum(song.doubled for song in heard)} | {off.size} "
            f"| {np.median(off):.1f} | {worst:.1f} | {np.mean(off < 50):.3f} | {cpu[0]:.2f} | {cpu[1]:.2f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
