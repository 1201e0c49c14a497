"""What several bands for one vocal cost and how they fit it: `python infra/benchmarks/data/bands.py --songs 12 --seed 7000`.

Prints a Markdown row a song and the means: CPU seconds a minute of song, what the chords are to the melody's strong notes, the fit of each
band to the vocal beside that of another song's band, and how far the fingerprints of two bands' mixtures lie apart.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.corpus.sound.bank import BankSet


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one vocal."""

    first_cpu_s_per_min: float
    """Composing, singing and playing the first band."""
    other_cpu_s_per_min: float
    """Composing and playing another band, the mean."""
    first_tones: float
    """Share of the strong notes that are chord tones."""
    other_tones: float
    other_tensions: float
    other_chords: float
    """Share of the time in which root or family differ from the first band's."""
    first_fit: float
    other_fit: float
    stranger_fit: float
    """Of the band of the song before, which has nothing to do with this vocal."""
    fingerprint_errors: float
    """The least share of differing bits among the mixtures' fingerprints."""


def measure(seed: int, bands: int, duration_s: float, banks: "BankSet", stranger_CN: np.ndarray) -> tuple[Figures, np.ndarray]:
    """The figures, and the first band for the next song."""
    from model.listen.fingerprint import bit_error_rate
    from model.metrics.fit import Listener
    from pipelines.chance import Chance
    from pipelines.corpus import compose, render
    from pipelines.corpus.bands.rearrange import band_style, compose_bands
    from pipelines.corpus.bands.reharmonise import carried, changed_share, reharmonise
    from pipelines.corpus.score.compose import write_lead_sheet
    from pipelines.corpus.sound.render import render_band
    from pipelines.stages.segment import middle_fingerprint

    began = time.process_time()
    compose(seed, duration_s)
    composed_s = time.process_time() - began
    began = time.process_time()
    records = compose_bands(seed, bands, duration_s)
    rearranged_s = (time.process_time() - began - composed_s) / (bands - 1)
    began = time.process_time()
    first = render(records[0], banks)
    first_s = composed_s + time.process_time() - began
    began = time.process_time()
    others = [render_band(record, first.sung, banks) for record in records[1:]]
    other_s = rearranged_s + (time.process_time() - began) / (bands - 1)

    sheet = write_lead_sheet(seed, duration_s)
    counts = carried(sheet.chords, sheet.melody, sheet.frame.accent)
    strong = sum(counts.values())
    rearranged, changed = {"tone": 0, "tension": 0, "avoid": 0}, []
    for band in range(1, bands):
        style = band_style(sheet.frame, seed, band)
        name = f"{seed}/{band}"
        chords = reharmonise(replace(sheet.frame, style=style), sheet.chords, sheet.melody, style, Chance("reharmony", name))
        changed.append(changed_share(sheet.chords, chords))
        for kind, count in carried(chords, sheet.melody, sheet.frame.accent).items():
            rearranged[kind] += count

    listener = Listener(first.vocals_CN)
    marks = [np.array(middle_fingerprint(song.mixture_CN), np.uint32) for song in (first, *others)]
    minutes = records[0].duration_s / 60
    samples = first.vocals_CN.shape[1]
    stranger_CN = np.resize(stranger_CN, (2, samples)) if stranger_CN.shape[1] < samples else stranger_CN[:, :samples]
    figures = Figures(
        first_cpu_s_per_min=first_s / minutes,
        other_cpu_s_per_min=other_s / minutes,
        first_tones=counts["tone"] / strong,
        other_tones=rearranged["tone"] / strong / (bands - 1),
        other_tensions=rearranged["tension"] / strong / (bands - 1),
        other_chords=statistics.mean(changed),
        first_fit=listener.fit(first.accompaniment_CN).overall,
        other_fit=statistics.mean(listener.fit(song.accompaniment_CN).overall for song in others),
        stranger_fit=listener.fit(stranger_CN).overall,
        fingerprint_errors=min(bit_error_rate(one, other) for index, one in enumerate(marks) for other in marks[index + 1 :]),
    )
    styles = ", ".join(record.style for record in records)
    print(f"| {seed} | {styles} |", " | ".join(f"{getattr(figures, field.name):.2f}" for field in fields(Figures)), "|", flush=True)
    return figures, first.accompaniment_CN


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from pipelines.corpus import compose, render
    from pipelines.corpus.sound.banks.open import open_banks

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=44.0)
    parser.add_argument("--bank", action="append", help="as of `backline corpus`; numpy if none is given")
    options = parser.parse_args()
    banks = open_banks(tuple(options.bank or ("numpy",)))
    names = [field.name for field in fields(Figures)]
    stranger_CN = render(compose(options.seed - 1, options.duration_s), banks).accompaniment_CN
    print("| vocal | styles |", " | ".join(names), "|")
    print("|" + "---|" * (2 + len(names)))
    measured = []
    for seed in range(options.seed, options.seed + options.songs):
        figures, stranger_CN = measure(seed, options.bands, options.duration_s, banks, stranger_CN)
        measured.append(figures)
    means = [statistics.mean(getattr(figures, name) for figures in measured) for name in names]
    print("| mean | |", " | ".join(f"{mean:.2f}" for mean in means), "|")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
