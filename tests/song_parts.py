"""Songs for `prepare` as folders of two files, and what a dataset holds of them."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile

from model.dimensions import SAMPLE_RATE_HZ


def write_song(folder: Path, seed: int, duration_s: float = 6.0) -> None:
    """A tone over another tone and noise, each seed another song."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    time_N = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    vocal_N = 0.3 * np.sin(2 * np.pi * (220 + 7 * seed) * time_N)
    band_N = 0.3 * np.sin(2 * np.pi * 110 * time_N) + 0.05 * random.standard_normal(len(time_N))
    soundfile.write(folder / "vocals.wav", np.stack([vocal_N, vocal_N], axis=1), SAMPLE_RATE_HZ)
    soundfile.write(folder / "accompaniment.flac", np.stack([band_N, -band_N], axis=1), SAMPLE_RATE_HZ)


def rows_of(out: Path) -> Counter[tuple[str, int]]:
    table = pq.read_table(out / "latents", columns=["song_id", "segment"])
    return Counter(zip(table["song_id"].to_pylist(), table["segment"].to_pylist(), strict=True))


def files_of(out: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}
