"""What the band does behind vocals that are not clean singing.

`python infra/benchmarks/model/robustness.py --songs 12 --json robustness.json`.

Plays every condition of the listening set to a checkpoint (by default the one that ships) and prints Markdown: fit, level and faults by
condition. The fit is against the clean vocal where only the capture differs, else against the very vocal that was played. Songs that the
JSON holds already are kept, so that a long run can go in parts. Ends with 1 where the band fails behind speech, a whisper or a fragment:
there is nothing to fit, and it must still sound no worse than behind a song. Figures: infra/benchmarks/model/robustness.md.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import machine

if TYPE_CHECKING:
    from model.accompany import Accompanist

RATE_HZ = 44_100
LEAD_S = 1.0
NO_SONG = ("spoken", "whisper", "fragment")
REAL = "clean, the real band"
# A failure: worse than behind the same song's clean vocal by more than this.
LOUDER_LU, PEAK_DB, FLATTER = 3.0, 6.0, 0.02
# A frame of 0.1 s where the voice sounds and the band is this much above it drowns it.
DROWNED_DB, SOUNDING_DB, FRAME = 6.0, -30.0, 4_410
# Flatness is of the frames in which the band plays: what is left of a codec's noise in its rests is no roar.
PLAYING_DB, SILENT_POWER = -20.0, 1e-11
BOOTSTRAP_DRAWS = 2_000
FITS = ("harmony", "rhythm", "overall", "best")
LEVELS = ("loudness_lufs", "over_clean_lu", "over_real_lu", "peak_dbfs")
FIGURES = (*FITS, "leakage", *LEVELS, "flatness", "drowned")


@dataclass(frozen=True, kw_only=True)
class Sounded:
    """One song under one condition: how its accompaniment fits and sounds."""

    song_id: str
    condition: str
    harmony: float
    rhythm: float
    overall: float
    leakage: float
    best: float
    """Overall fit of the best of several candidates, chosen by the vocal that was played."""
    loudness_lufs: float
    over_clean_lu: float
    over_real_lu: float
    """Above the song's own band, which is as loud as those that models train on."""
    peak_dbfs: float
    """Before the mix turns everything down to full scale."""
    flatness: float
    drowned: float
    """Share of the voice's frames in which the band is over 6 dB louder."""
    failures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a JSON file holds; rows of another checkpoint or length are never mixed in."""

    checkpoint: str
    seconds: float
    candidates: int
    rows: tuple[Sounded, ...]

    @classmethod
    def read(cls, path: Path) -> "Run":
        document = json.loads(path.read_text())
        rows = tuple(Sounded(**{**row, "failures": tuple(row["failures"])}) for row in document.pop("rows"))
        return cls(**document, rows=rows)


def drowned_share(vocal_CN: np.ndarray, band_CN: np.ndarray) -> float:
    """Share of the frames in which the voice sounds where the band is far above it."""
    whole = vocal_CN.shape[1] // FRAME * FRAME
    sung_T, played_T = (np.square(audio_CN[:, :whole]).reshape(2, -1, FRAME).mean(axis=(0, 2)) for audio_CN in (vocal_CN, band_CN))
    sounding_T = sung_T > sung_T.max() * 10 ** (SOUNDING_DB / 10)
    return float(np.mean(played_T[sounding_T] > sung_T[sounding_T] * 10 ** (DROWNED_DB / 10)))


def flatness_of(band_CN: np.ndarray) -> float:
    """Geometric over arithmetic mean of the power, mean over the frames in which the band plays: 0 tones and silence, towards 1 noise."""
    from model.listen.spectrum import magnitudes, mono

    power_FT = magnitudes(mono(band_CN), window_samples=2_048, hop_samples=1_024).astype(np.float64) ** 2 + 1e-12
    power_T = power_FT.mean(axis=0)
    if power_T.max() < SILENT_POWER:
        return 0.0
    playing_FT = power_FT[:, power_T >= power_T.mean() * 10 ** (PLAYING_DB / 10)]
    return float(np.mean(np.exp(np.log(playing_FT).mean(axis=0)) / playing_FT.mean(axis=0)))


def failures_of(finite: bool, over_clean_lu: float, over_clean_peak_db: float, flatter: float) -> tuple[str, ...]:
    """What is wrong with an accompaniment, beside the one of the same song's clean vocal."""
    checks = {
        "not finite": not finite,
        "louder": over_clean_lu > LOUDER_LU,
        "peaks": over_clean_peak_db > PEAK_DB,
        "noisier": flatter > FLATTER,
    }
    return tuple(name for name, failed in checks.items() if failed)


def play_song(accompanist: "Accompanist", seed: int, seconds: float, candidates: int, audio: Path | None) -> list[Sounded]:
    """Every condition of one song, after a row of its own band behind the clean vocal. audio: where what was heard is written."""
    from infra.audio import files as audio_files
    from model.accompany import GenerationConfig
    from model.inference.gain import mix, within_full_scale
    from model.listen import loudness_db
    from model.metrics.fit import Listener
    from pipelines.corpus import compose, render
    from pipelines.corpus.vocals.conditions import CONDITIONS, SAME_PERFORMANCE, vocal_under

    record = compose(seed, seconds + 12.0)
    song = render(record)
    start = max(0, int((min(record.vocal[0].onset_s - LEAD_S, record.duration_s - seconds)) * RATE_HZ))
    cut = slice(start, start + int(seconds * RATE_HZ))
    clean_CN, real_CN = song.vocals_CN[:, cut], song.accompaniment_CN[:, cut]
    clean, real_lufs = Listener(clean_CN), loudness_db(real_CN)
    rows: list[Sounded] = []

    def heard(condition: str, vocal_CN: np.ndarray, made_CN: np.ndarray, best_CN: np.ndarray) -> Sounded:
        finite = bool(np.isfinite(made_CN).all() and np.isfinite(best_CN).all())
        listener = clean if condition in (REAL, *SAME_PERFORMANCE) else Listener(vocal_CN)
        band_CN = np.nan_to_num(made_CN, posinf=1.0, neginf=-1.0)
        fit, best = listener.fit(band_CN), listener.fit(np.nan_to_num(best_CN, posinf=1.0, neginf=-1.0))
        loudness_lufs, peak_dbfs = loudness_db(band_CN), float(20 * np.log10(np.abs(band_CN).max() + 1e-9))
        flatness = flatness_of(band_CN)
        usual = next((row for row in rows if row.condition == "clean"), None)
        over_clean = (loudness_lufs - usual.loudness_lufs, peak_dbfs - usual.peak_dbfs, flatness - usual.flatness) if usual else (0.0,) * 3
        return Sounded(
            song_id=record.song_id,
            condition=condition,
            **asdict(fit),
            best=best.overall,
            loudness_lufs=loudness_lufs,
            over_clean_lu=over_clean[0],
            over_real_lu=loudness_lufs - real_lufs,
            peak_dbfs=peak_dbfs,
            flatness=flatness,
            drowned=drowned_share(vocal_CN, band_CN),
            failures=failures_of(finite, *over_clean),
        )

    rows.append(heard(REAL, clean_CN, real_CN, real_CN))
    for condition in tqdm(CONDITIONS, desc=record.song_id, disable=None):
        vocal_CN = vocal_under(condition, record, song)[:, cut]
        made_CN = accompanist.accompany(vocal_CN, GenerationConfig()).audio_CN
        best_CN = accompanist.accompany(vocal_CN, GenerationConfig(candidates=candidates)).audio_CN if candidates > 1 else made_CN
        rows.append(heard(condition, vocal_CN, made_CN, best_CN))
        if audio is not None:
            audio.mkdir(parents=True, exist_ok=True)
            sounds = {"vocal": vocal_CN, "band": within_full_scale(made_CN), "mix": mix(vocal_CN, made_CN)[2]}
            for name, sound_CN in sounds.items():
                (audio / f"{condition}-{name}.wav").write_bytes(audio_files.encode(sound_CN))
    return rows


def interval(values: np.ndarray) -> str:
    """Mean, and the 90% bootstrap interval over songs."""
    draws = np.random.default_rng(0).choice(values, (BOOTSTRAP_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.05, 0.95))
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def table(run: Run) -> str:
    """A row a condition."""
    lines = [
        f"| condition | harmony | rhythm | overall | best of {run.candidates} | leakage | LUFS | over clean, LU | over the real band, LU "
        "| peak, dBFS | flatness | drowned | failures |",
        "|" + "---|" * 13,
    ]
    songs = len({row.song_id for row in run.rows})
    for condition in dict.fromkeys(row.condition for row in run.rows):
        rows = [row for row in run.rows if row.condition == condition]
        column = {name: np.array([getattr(row, name) for row in rows]) for name in FIGURES}
        fits = " | ".join(interval(column[name]) for name in FITS)
        level = " | ".join(f"{column[name].mean():.1f}" for name in LEVELS)
        failed = [failure for row in rows for failure in row.failures]
        what = f": {', '.join(f'{name} {failed.count(name)}' for name in dict.fromkeys(failed))}" if failed else ""
        failures = "" if condition == REAL else f"{sum(bool(row.failures) for row in rows)} of {songs}{what}"
        lines.append(
            f"| {condition} | {fits} | {column['leakage'].mean():.2f} | {level} | {column['flatness'].mean():.4f} "
            f"| {100 * column['drowned'].mean():.0f}% | {failures} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a checkpoint's or a training run's place; by default the one that ships")
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=900, help="first song; below 1000 nothing was trained on it")
    parser.add_argument("--seconds", type=float, default=24.0, help="from a second before the singing begins")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where all rows are kept; songs that it holds are not played again")
    parser.add_argument("--audio", type=Path, help="folder for the first song's vocals, bands and mixes")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    from infra.cli.generate import open_accompanist

    accompanist = open_accompanist(arguments.checkpoint, None)
    checkpoint = f"{accompanist.checkpoint.name}, step {accompanist.checkpoint.step}"
    run = Run(checkpoint=checkpoint, seconds=arguments.seconds, candidates=arguments.candidates, rows=())
    if arguments.json and arguments.json.exists():
        kept = Run.read(arguments.json)
        if (kept.checkpoint, kept.seconds, kept.candidates) != (run.checkpoint, run.seconds, run.candidates):
            parser.error(
                f"--json {arguments.json} holds rows of {kept.checkpoint}, {kept.seconds:g} s, best of {kept.candidates}: name another"
            )
        run = kept
    done = {row.song_id for row in run.rows}
    start_s = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.songs):
        if f"song-{seed:06d}" in done:
            continue
        audio = arguments.audio if seed == arguments.seed else None
        rows = play_song(accompanist, seed, arguments.seconds, arguments.candidates, audio)
        run = Run(checkpoint=run.checkpoint, seconds=run.seconds, candidates=run.candidates, rows=(*run.rows, *rows))
        if arguments.json:
            arguments.json.write_text(json.dumps(asdict(run), indent=1) + "\n")
    songs = len({row.song_id for row in run.rows})
    print(
        f"{checkpoint}; {songs} songs, {run.seconds:g} s each; {machine(str(accompanist.device))}; {time.perf_counter() - start_s:.0f} s\n"
    )
    print(table(run))
    failed = [row for row in run.rows if row.condition in NO_SONG and row.failures]
    print(f"\nFailures behind {', '.join(NO_SONG)}: {len(failed)} of {songs * len(NO_SONG)}; the bar is 0.")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
