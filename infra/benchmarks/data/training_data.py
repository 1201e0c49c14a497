"""What the data side of training costs: wait, rates and memory, from memory and streamed through Ray Data.

`python infra/benchmarks/data/training_data.py --out DIR [--segments 640] [--steps 120] [--rows 4096]` writes a dataset of random latents
in the real format, then measures each mode in a process of its own. Prints a table; writes DIR/training_data.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import machine, peak_resident_gb, resident_gb

if TYPE_CHECKING:
    from training.config import DataMode

MODES = ("memory", "stream")
SEGMENTS_A_SONG = 5
HELD_OUT_SONGS = 4
CHANNELS, FRAMES = 64, 1_024
BATCH = 16
# Steps before the wait counts: the network's first steps are slower than the rest.
WARM_UP = 10
BAR = 0.02
NOTES = """
*Ready*: from opening the split to the first batch. *Alone*: {rows} rows of whole segments drawn with no network behind them, so what a GPU
could be fed with at most; a step is {batch} of them. *Wait*: share of a step of the small network (crops of 256 frames, {steps} steps, the
first {warm} left out) in which it stood for want of data; the bar is {bar:.0%}. *Memory*: the most that the process held beyond what it
held before it opened the split; streamed blocks count, though they lie in Ray's store. The split is {gb:.2f} GB.
"""


def write_dataset(folder: Path, segments: int) -> str:
    """Random latents: `segments` of training and a few held out, five a song and file. Returns the place."""
    import pyarrow as pa

    from infra.dataset.format import Counts, Manifest, latents, tensors
    from infra.dataset.parquet import write_table
    from infra.dataset.snapshots import SNAPSHOT, write_snapshot
    from infra.dataset.truth import frame_columns, no_truth
    from infra.storage.place import Place

    place, random, rows = Place(str(folder)), np.random.default_rng(0), list[dict[str, Any]]()
    training, count = -(-segments // SEGMENTS_A_SONG), SEGMENTS_A_SONG
    for song in range(HELD_OUT_SONGS + training):
        split = "validation" if song < HELD_OUT_SONGS else "train"
        name = f"latents/split={split}/song-{song:05d}.parquet"
        columns: dict[str, pa.Array] = {
            "song_id": pa.array([f"song-{song:05d}"] * count),
            "segment": pa.array(range(count), pa.int32()),
            "start_s": pa.array([0.0] * count),
            "duration_s": pa.array([47.5] * count),
            "valid_frames": pa.array([FRAMES] * count, pa.int32()),
            **{
                f"{stem}_latent": tensors(random.standard_normal((count, CHANNELS, FRAMES), np.float32).astype(np.float16))
                for stem in ("vocal", "accompaniment")
            },
            "vocal_active": pa.array([1.0] * count, pa.float32()),
            "gain_db": pa.array([0.0] * count, pa.float32()),
            "source": pa.array(["benchmark"] * count),
            "license": pa.array(["CC0-1.0"] * count),
            "separation_quality": pa.array([None] * count, pa.float32()),
            **frame_columns(no_truth(count, FRAMES), None),
        }
        write_table(place / name, pa.table(columns, schema=latents(CHANNELS, FRAMES)))
        rows.append({"song_id": f"song-{song:05d}", "split": split, "segments": count, "file": name})
    flat, unit = (0.0,) * CHANNELS, (1.0,) * CHANNELS
    manifest = Manifest(
        codec_id="benchmark", codec_weights_sha256="0" * 64, separator_id=None, sample_rate_hz=44_100, hop_samples=2_048,
        latent_channels=CHANNELS, segment_frames=FRAMES, vocal_mean=flat, vocal_std=unit, accompaniment_mean=flat, accompaniment_std=unit,
        vocal_level_db=-20.0, duration_h=1.0, content_sha256="0" * 64, commit="benchmark",
        counts=Counts(
            songs=len(rows), train_songs=training, validation_songs=HELD_OUT_SONGS, segments=count * len(rows),
            train_segments=count * training, validation_segments=count * HELD_OUT_SONGS, rejected_songs=0, rejected_segments=0,
        ),
        snapshot=write_snapshot(place, "0" * 64, pa.Table.from_pylist(rows, schema=SNAPSHOT)),
    )  # fmt: skip
    (place / "manifest.json").write_bytes(manifest.to_json().encode())
    return place.uri


def measure(mode: "DataMode", data: str, out: Path, steps: int, rows: int) -> dict[str, float]:
    """One mode in this process: rows alone, then under the small network."""
    from infra.cluster import connect
    from infra.dataset.format import read_manifest
    from infra.storage.place import Place
    from training.config import TrainConfig
    from training.data.batches import Batches, statistics_of
    from training.data.datasets import open_datasets
    from training.data.open import open_segments
    from training.ranks import Workers
    from training.run.loop import run
    from training.state import read_metrics

    place = Place(data)
    manifest = read_manifest(place)
    config = TrainConfig(
        data=data, out=str(out / mode), preset="small", workers=0, steps=rows // BATCH, batch_size=BATCH, crop_frames=FRAMES, log_every=1,
        validate_every=10**6, validation_segments=4, validation_timesteps=1, samples=0, data_mode=mode,
    )  # fmt: skip
    with connect():  # the same for both modes: Ray's own processes take their share of a small machine
        before_gb, started = resident_gb(), time.monotonic()
        segments = open_segments(config, open_datasets(config), Workers(), begin=0)
        batches = Batches(
            segments, statistics_of(manifest), seed=0, batch_size=BATCH, micro_batch=BATCH, crop_frames=FRAMES, timesteps=800,
            condition_dropout=0.1,
        )  # fmt: skip
        ahead = batches.ahead(0, config.steps)
        ready = time.monotonic()
        drawn = sum(len(micro.t_B) for step in ahead for micro in step)
        alone_s = time.monotonic() - ready
        ahead.close()
        memory_gb = peak_resident_gb() - before_gb
        trained = {**config.to_dict(), "steps": steps, "crop_frames": 256, "loss": config.loss, "betas": config.betas}
        run(TrainConfig(**trained))
    history = [row for row in read_metrics(Place(str(out / mode))) if row["step"] > WARM_UP and "train/data_wait" in row]
    seconds = [BATCH / row["train/samples_per_s"] for row in history]
    waits = [row["train/data_wait"] * second for row, second in zip(history, seconds, strict=True)]
    return {
        "ready_s": ready - started,
        "rows_per_s": drawn / alone_s,
        "memory_gb": memory_gb,
        "step_s": statistics.median(seconds),
        "wait": sum(waits) / sum(seconds),
        "longest_wait_s": max(waits),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["| mode | ready | alone | steps/s it can feed | a step | wait | longest wait | memory |", "|---|---|---|---|---|---|---|---|"]
    for mode, row in results.items():
        lines.append(
            f"| {mode} | {row['ready_s']:.1f} s | {row['rows_per_s']:.0f} rows/s | {row['rows_per_s'] / BATCH:.1f} | "
            f"{1e3 * row['step_s']:.0f} ms | {row['wait']:.2%} | {1e3 * row['longest_wait_s']:.1f} ms | {row['memory_gb']:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--segments", type=int, default=640)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rows", type=int, default=4_096)
    parser.add_argument("--mode", choices=MODES, help="one mode, in this process")
    given = parser.parse_args()
    folder = given.out / f"latents-{given.segments}"
    if given.mode:
        print(json.dumps(measure(given.mode, str(folder.absolute()), given.out / "runs", given.steps, given.rows)))
        return
    if not (folder / "manifest.json").exists():
        write_dataset(folder, given.segments)
    results = {}
    for mode in MODES:
        shutil.rmtree(given.out / "runs" / mode, ignore_errors=True)
        asked = [sys.executable, __file__, "--out", str(given.out), "--mode", mode]
        asked += [f"--{name}={getattr(given, name)}" for name in ("segments", "steps", "rows")]
        answered = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
        results[mode] = json.loads(answered.stdout.splitlines()[-1])
        print(f"{mode}: {results[mode]}", file=sys.stderr)
    gb = given.segments * 4 * CHANNELS * FRAMES / 1e9
    notes = NOTES.format(rows=given.rows, batch=BATCH, steps=given.steps, warm=WARM_UP, bar=BAR, gb=gb)
    print(f"{given.segments} segments; {machine()}\n\n{table(results)}\n{notes}")
    (given.out / "training_data.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
