"""Can the joins of a long song be heard? `python infra/benchmarks/model/seams.py [--songs 3] [--duration 200]`.

Demo songs that no weights were trained on, accompanied by the checkpoint that ships. At the joins of its windows: level, its change from
frame to frame, and spectral flux, each as a rank among the same figures of all other frames (50%: nothing happened). The control joins
windows that were denoised apart: what a join costs when windows do not know of each other. Figures: infra/benchmarks/model/scaling.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import machine

if TYPE_CHECKING:
    from model.accompany import Accompanist
    from model.inference.windows import Window

NEAR_FRAMES = 4
"""Latent frames on either side of a handover's middle that count as its join, where both windows have a say."""


def figures(audio_CN: np.ndarray) -> dict[str, np.ndarray]:
    """For each latent frame (2,048 samples): level in dB, change of level in dB, and spectral flux."""
    from model.dimensions import HOP_SAMPLES
    from model.listen import onset_strength

    frames = audio_CN.shape[1] // HOP_SAMPLES
    power_T = np.square(audio_CN[:, : frames * HOP_SAMPLES].reshape(2, frames, HOP_SAMPLES), dtype=np.float64).mean(axis=(0, 2))
    level_T = 10 * np.log10(power_T + 1e-10)
    flux_T = onset_strength(audio_CN)
    per_frame = len(flux_T) // frames
    flux_T = flux_T[: frames * per_frame].reshape(frames, per_frame).max(axis=1)
    return {"level": level_T, "level step": np.abs(np.diff(level_T, prepend=level_T[0])), "flux": flux_T}


def ranks(figure_T: np.ndarray, is_join_T: np.ndarray, counts_T: np.ndarray) -> np.ndarray:
    """(joins,) share of the other sounding frames that lie below each frame of a join."""
    others = np.sort(figure_T[counts_T & ~is_join_T])
    return np.searchsorted(others, figure_T[is_join_T & counts_T]) / len(others)


def apart(accompanist: "Accompanist", vocal_CN: np.ndarray, cut: "Sequence[Window]") -> np.ndarray:
    """(2, N): every window a song of its own with a seed of its own, cut where the next begins."""
    from model.accompany import GenerationConfig
    from model.dimensions import HOP_SAMPLES

    parts = []
    for seed, window in enumerate(cut):
        sung_CN = vocal_CN[:, window.start * HOP_SAMPLES : (window.start + window.frames) * HOP_SAMPLES]
        parts.append(accompanist.accompany(sung_CN, GenerationConfig(seed=seed)).audio_CN[:, : window.settled * HOP_SAMPLES])
    return np.concatenate(parts, axis=1)


def main() -> None:
    from model.accompany import Accompanist, GenerationConfig
    from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint
    from model.codec.load import load_codec
    from model.dimensions import HOP_SAMPLES
    from model.inference.windows import windows
    from pipelines.corpus import compose, render

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=200, help="first song")
    parser.add_argument("--duration", type=float, default=200.0, help="seconds a song")
    parser.add_argument("--slopes", type=int, nargs="*", default=[256, 128, 64, 16], help="frames over which a window takes over")
    arguments = parser.parse_args()
    checkpoint, codec = load_checkpoint(SHIPPED_CHECKPOINT), load_codec()
    print(
        f"{machine()}; {arguments.songs} songs of about {arguments.duration:g} s from seed {arguments.seed}, checkpoint {checkpoint.name}\n"
    )
    vocals = [render(compose(seed, arguments.duration)).vocals_CN for seed in range(arguments.seed, arguments.seed + arguments.songs)]
    print("| joins | frames | level: median rank (lowest to highest) | level step | flux | highest flux, of the others' highest |")
    print("|---|---|---|---|---|---|")
    for slope in (*arguments.slopes, 0):
        accompanist = Accompanist(checkpoint, codec, slope_frames=slope or 64)
        found: dict[str, list[np.ndarray]] = {}
        highest = []
        for vocal_CN in vocals:
            vocal_CN = np.asarray(vocal_CN, np.float32)
            cut = windows(-(-vocal_CN.shape[1] // HOP_SAMPLES), accompanist.window_frames, accompanist.overlap_frames)
            audio_CN = accompanist.accompany(vocal_CN, GenerationConfig()).audio_CN if slope else apart(accompanist, vocal_CN, cut)
            of_song = figures(audio_CN)
            frames = len(of_song["level"])
            is_join_T = np.zeros(frames, bool)
            for window in cut[1:]:
                middle = window.start + window.shared - slope // 2 if slope else window.start
                is_join_T[middle - NEAR_FRAMES : middle + NEAR_FRAMES] = True
            counts_T = of_song["level"] > -60
            for name, figure_T in of_song.items():
                found.setdefault(name, []).append(ranks(figure_T, is_join_T, counts_T))
            highest.append(of_song["flux"][is_join_T].max() / of_song["flux"][counts_T & ~is_join_T].max())
        cells = []
        for parts in found.values():
            rank = 100 * np.concatenate(parts)
            cells.append(f"{np.median(rank):.0f}% ({rank.min():.0f} to {rank.max():.0f})")
        name = f"slope of {slope} frames" if slope else "control: windows denoised apart, cut hard"
        print(f"| {name} | {len(rank)} | {' | '.join(cells)} | {max(highest):.2f} |", flush=True)


if __name__ == "__main__":
    main()
