"""What Ray Data costs `prepare`, what two encoders gain, how memory grows with the number of songs, and what a rerun takes.

`python infra/benchmarks/data/prepare.py overhead|scaling|memory|rerun [--songs N] [--codec embedded]` prints Markdown.
The songs are cuts of demo songs at several speeds, so no two are one recording. Figures and their machine:
infra/benchmarks/data/prepare.md.
"""

import argparse
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import psutil
import soundfile
import soxr

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity
    from pipelines.song import FoundSong
    from pipelines.stages.encode import Encoder

SAMPLE_RATE_HZ = 44_100
BASE_SONGS, BASE_S = 8, 40.0
SPEEDS = np.geomspace(0.75, 1.34, 40)


def write_songs(folder: Path, songs: int, duration_s: float) -> None:
    """`songs` folders of stems of `duration_s`, no two of them one recording: other songs, speeds and places."""
    from pipelines.corpus import compose, render

    samples = round(duration_s * SAMPLE_RATE_HZ)
    stems: dict[int, dict[str, np.ndarray]] = {}
    written = 0
    for speed in SPEEDS:
        for seed in range(BASE_SONGS):
            if written >= songs:
                return
            if seed not in stems:
                rendered = render(compose(2000 + seed, 1.4 * max(BASE_S, duration_s)))
                stems[seed] = {"vocals": rendered.vocals_CN.T, "accompaniment": rendered.accompaniment_CN.T}
            played = {name: soxr.resample(audio_NC, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ) for name, audio_NC in stems[seed].items()}
            for start in range(0, len(played["vocals"]) - samples + 1, samples):
                if written < songs:
                    song = folder / f"song-{written:05}"
                    song.mkdir(parents=True)
                    for name, audio_NC in played.items():
                        soundfile.write(song / f"{name}.wav", audio_NC[start : start + samples], SAMPLE_RATE_HZ)
                    written += 1


def bare_loop(songs: Sequence["FoundSong"], out: Path, codec: str, workers: int) -> tuple[float, float]:
    """(seconds in all, seconds a song): the stages of `prepare` one after another, in plain processes."""
    from infra.settings import Settings
    from infra.storage.place import Place
    from pipelines.corpus.processes import in_processes
    from pipelines.dataset import write as dataset
    from pipelines.stages.encode import open_codec
    from pipelines.stages.segment import SegmentConfig

    begun = time.perf_counter()
    identity = open_codec(codec, Settings.from_environment().s3, "cpu").identity
    dataset.begin(Place(str(out)), identity, SegmentConfig(), 0.1)
    for _ in in_processes(partial(one_song, out=str(out)), songs, workers, initializer=open_encoder, initargs=(codec, identity)):
        pass
    return time.perf_counter() - begun, seconds_a_song(out)


def seconds_a_song(out: Path) -> float:
    """Seconds between songs while all stages run: from the first song's file to the last but two, which a commit may write again."""
    ends = sorted(path.stat().st_mtime for path in (out / "songs").glob("*.parquet"))[:-2]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


_encoder: "Encoder | None" = None


def open_encoder(codec: str, identity: "CodecIdentity") -> None:
    import torch

    from infra.settings import Settings
    from pipelines.stages.encode import Encoder

    global _encoder
    torch.get_num_threads()  # torch overwrites a number set before the first look
    torch.set_num_threads(1)
    _encoder = Encoder(codec, identity, Settings.from_environment().s3)


def one_song(song: "FoundSong", out: str) -> str:
    """Read, segment, encode and write one song in this process."""
    from infra.storage.place import Place
    from pipelines.acquire.file_kinds import decoder
    from pipelines.dataset import write as dataset
    from pipelines.run.ray_stages import segment_read
    from pipelines.stages.decode import Stops, read_song
    from pipelines.stages.segment import SegmentConfig

    assert _encoder is not None
    config = SegmentConfig()
    (encoded,) = _encoder.encode([segment_read(read_song(song, None, config, decoder(), Stops()), config)])
    dataset.write_song(Place(out), song, encoded, dataset.split_of(encoded.identity.song_id, 0.1))
    return song.url


def with_ray(songs: Path, out: Path, codec: str, encoders: int) -> tuple[float, float]:
    """(seconds of the graph, seconds a song while all stages run) of `prepare`."""
    from pipelines.run.prepare import PrepareConfig, prepare

    summary = prepare(PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=codec, encoders=encoders, truth="composed"))
    # A short cut may hold no voice; none may fail otherwise.
    if wrong := [line for line in summary.rejects if "(segment)" not in line and "(duplicate)" not in line]:
        raise SystemExit(f"songs were rejected: {wrong}")
    return summary.stage_s["run"], seconds_a_song(out)


def measure_overhead(folder: Path, songs: int, codec: str) -> Iterator[str]:
    from infra.cluster import connect
    from pipelines.sources import list_songs, parse_source

    write_songs(folder / "songs", songs, 47.0)
    found = list_songs(parse_source(f"pairs:{folder / 'songs'}"))
    yield "| | all | a song, while all stages run |\n|---|---|---|"
    rounds = []
    with connect(num_cpus=4):
        for turn in range(2):
            whole_s, bare_s = bare_loop(found, folder / f"bare-{turn}", codec, 2)
            yield f"| bare loop, 2 processes | {whole_s:.1f} s | {bare_s:.3f} s |"
            run_s, ray_s = with_ray(folder / "songs", folder / f"ray-{turn}", codec, 2)
            yield f"| Ray Data, 2 encoders | {run_s:.1f} s | {ray_s:.3f} s |"
            rounds.append((ray_s / bare_s - 1, run_s / whole_s - 1))
    best = min(rounds)
    yield f"\nOverhead, the better of two rounds: {best[0]:+.1%} while all stages run, {best[1]:+.1%} with the processes' start."


def measure_scaling(folder: Path, songs: int, codec: str) -> Iterator[str]:
    from infra.cluster import connect

    write_songs(folder / "songs", songs, 47.0)
    yield "| encoders | a song, while all stages run |\n|---|---|"
    taken = {}
    with connect(num_cpus=4):
        for encoders in (1, 2):
            _, taken[encoders] = with_ray(folder / "songs", folder / f"out-{encoders}", codec, encoders)
            yield f"| {encoders} | {taken[encoders]:.3f} s |"
    yield f"\nTwo encoders: {taken[1] / taken[2]:.2f} times one."


def measure_memory(folder: Path, songs: int, codec: str) -> Iterator[str]:
    yield "| songs | driver | all processes |\n|---|---|---|"
    peaks = []
    write_songs(folder / "songs", songs, 6.0)
    for count in (songs // 10, songs):
        part = folder / f"part-{count}"
        for song in sorted((folder / "songs").iterdir())[:count]:
            shutil.copytree(song, part / song.name, copy_function=os.link)
        with Peak() as peak:
            with_ray(part, folder / f"out-{count}", codec, 1)
        peaks.append(peak)
        yield f"| {count} | {peak.driver_mb:.0f} MB | {peak.all_mb:.0f} MB |"
    yield f"\n{songs} songs take {peaks[1].all_mb / peaks[0].all_mb:.2f} times the memory of {songs // 10}."


class Peak:
    """Peak memory (proportional set size) of this process and of all that it started."""

    def __enter__(self) -> "Peak":
        self.driver_mb = self.all_mb = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def watch(self) -> None:
        me = psutil.Process()
        while not self.over.wait(1.0):
            total = 0.0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    megabytes = process.memory_full_info().pss / 1e6
                    total += megabytes
                    if process == me:
                        self.driver_mb = max(self.driver_mb, megabytes)
            self.all_mb = max(self.all_mb, total)


def measure_rerun(folder: Path, songs: int, codec: str) -> Iterator[str]:
    from pipelines.run.prepare import PrepareConfig, prepare

    write_songs(folder / "songs", songs, 6.0)
    config = PrepareConfig(source=f"pairs:{folder / 'songs'}", out=str(folder / "out"), codec=codec)
    first = prepare(config)
    yield f"First run: {first.prepared} songs in {first.duration_s:.1f} s."
    again = prepare(config)
    if again.prepared:
        raise SystemExit(f"a rerun did {again.prepared} songs anew")
    yield f"Rerun with nothing to do: {again.duration_s:.1f} s ({again.stage_s})."


MEASURES = {
    "overhead": (measure_overhead, 80),
    "scaling": (measure_scaling, 60),
    "memory": (measure_memory, 1000),
    "rerun": (measure_rerun, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--songs", type=int)
    parser.add_argument("--codec", default="embedded")
    given = parser.parse_args()
    measure, songs = MEASURES[given.what]
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        for line in measure(Path(folder), given.songs or songs, given.codec):
            print(line, flush=True)


if __name__ == "__main__":
    main()
