"""What `plan.py` takes from this machine: the costs of the stages in one process, and a real `prepare` beside its prediction."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.benchmarks.plan_waves import Cluster, Stage, Wave
from pipelines.dataset.contents import read_stored

if TYPE_CHECKING:
    from pipelines.song import FoundSong

MIXTURE_S, ROUNDS = 200.0, 3
ROWS = 400
WARM_SONGS, FIRST_SONGS, ENCODERS = 4, 6, 2


def handed(value: Any, seconds: dict[str, float], stage: str) -> Any:
    """The value as the next stage gets it; what writing the pickle takes is this stage's, what reading takes the caller's."""
    import pickle

    begun = time.perf_counter()
    data = pickle.dumps(value, protocol=5)
    seconds[stage] += time.perf_counter() - begun
    return data


def timed_song(song: "FoundSong", out: str, stems: "tuple[np.ndarray, np.ndarray] | None" = None, hand: bool = False) -> dict[str, float]:
    """Seconds of each stage over one song in this process; with `hand` each gets its song pickled, as separate stages do."""
    import pickle

    from infra.benchmarks.data import prepare
    from infra.storage.place import Place
    from pipelines.acquire.file_kinds import decoder
    from pipelines.dataset import write as dataset
    from pipelines.run.ray_stages import segment_read
    from pipelines.stages.decode import Stops, read_song
    from pipelines.stages.segment import SegmentConfig

    assert prepare._encoder is not None
    encoder, config = prepare._encoder, SegmentConfig()
    seconds = dict.fromkeys(("read", "separate_host", "segment", "encode_host", "encode_cpu", "write"), 0.0)

    def step(stage: str, work: Callable[[Any], Any], value: Any) -> Any:
        begun = time.perf_counter()
        result = work(pickle.loads(value) if hand and value is not song else value)
        seconds[stage] += time.perf_counter() - begun
        return handed(result, seconds, stage) if hand else result

    value = step("read", lambda found: read_song(found, None, config, decoder(), Stops()), song)
    if stems is not None:

        def separated(read: Any) -> Any:
            count = read.mixture_CN.shape[1]
            vocal_CN, accompaniment_CN = (np.ascontiguousarray(np.resize(stem_CN, (2, count))) for stem_CN in stems)
            return replace(read, vocal_CN=vocal_CN, accompaniment_CN=accompaniment_CN, separator_id="none")

        value = step("separate_host", separated, value)
    value = step("segment", lambda read: segment_read(read, config), value)
    if hand:
        step("encode_host", lambda _: None, value)
    value = step("encode_cpu", lambda segmented: encoder.encode([segmented])[0], value)
    split = dataset.split_of(song.version, 0.1)
    step("write", lambda encoded: dataset.write_song(Place(out), song, encoded, split), value)
    return seconds


def begin(out: Path) -> Any:
    """An empty dataset at `out` for the embedded codec, whose identity it gives."""
    from infra.settings import Settings
    from infra.storage.lease import held
    from infra.storage.place import Place
    from pipelines.dataset import write as dataset
    from pipelines.stages.encode import open_codec
    from pipelines.stages.segment import SegmentConfig

    identity = open_codec("embedded", Settings.from_environment().s3, "cpu").identity
    with held(Place(str(out)), "benchmark"):
        dataset.begin(Place(str(out)), identity, SegmentConfig(), 0.1)
    return identity


def measure(folder: Path) -> Iterator[str]:
    """One song of 200 s as an MP3, so a mixture, and its stems; the least of three rounds, one thread."""
    import soundfile

    from infra.benchmarks.data import prepare
    from pipelines.corpus import compose, render
    from pipelines.sources import list_songs, parse_source

    rendered = render(compose(2000, MIXTURE_S))
    stems = (rendered.vocals_CN.astype(np.float32), rendered.accompaniment_CN.astype(np.float32))
    minutes = stems[0].shape[1] / 44_100 / 60
    (folder / "songs").mkdir()
    soundfile.write(folder / "songs/song.mp3", (stems[0] + stems[1]).T, 44_100, bitrate_mode="CONSTANT", compression_level=0.0)
    (song,) = list_songs(parse_source(f"folder:{folder / 'songs'}"))
    out = folder / "out"
    prepare.open_encoder("embedded", begin(out))
    rounds = [timed_song(song, str(out), stems, hand=True) for _ in range(1 + ROUNDS)][1:]
    yield f"A song of {60 * minutes:.0f} s, {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} (1 minute), 1 thread.\n"
    yield "| cost | seconds a minute of audio, least | median |\n|---|---|---|"
    for stage in rounds[0]:
        taken = [one[stage] / minutes for one in rounds]
        yield f"| {stage} | {min(taken):.3f} | {statistics.median(taken):.3f} |"
    (latents,) = (out / "latents").rglob("*.parquet")
    (media,) = (folder / "songs").iterdir()
    yield f"\nMB a minute: MP3 {media.stat().st_size / 1e6 / minutes:.3f}, latents with zstd {latents.stat().st_size / 1e6 / minutes:.4f}"
    row_s, joined_s, row_mb = rows_s(folder / "rows", out)
    alone = f"{1000 * row_s:.3f} ms in a file of its own ({1000 * row_mb:.1f} kB)"
    yield f"A stored row in a commit: {alone}, {1000 * joined_s:.3f} ms in a joined one"


def rows_s(folder: Path, out: Path) -> tuple[float, float, float]:
    """(seconds a row in files of their own, in one joined file, MB a file) of reading what is stored."""
    import pyarrow.parquet as pq

    from infra.storage.place import Place
    from pipelines.dataset import write as dataset

    (file,) = (out / "songs").iterdir()
    row = pq.read_table(file).to_pylist()[0]
    latents = folder / f"latents/split={row['split']}"
    latents.mkdir(parents=True)
    names = [f"{index:016x}" for index in range(ROWS)]
    for name in names:
        dataset.write_row(Place(str(folder)), {**row, "song_id": name})
        (latents / f"{name}.parquet").touch()

    def read_s() -> float:
        begun = time.perf_counter()
        if len(read_stored(Place(str(folder))).songs) != ROWS:
            raise SystemExit("not every row was read")
        return (time.perf_counter() - begun) / ROWS

    alone_s = min(read_s() for _ in range(ROUNDS))
    joined = pq.read_table(sorted((folder / "songs").iterdir()))
    for path in (folder / "songs").iterdir():
        path.unlink()
    pq.write_table(joined, folder / "songs/part-0.parquet", compression="zstd", use_dictionary=False)
    return alone_s, min(read_s() for _ in range(ROUNDS)), file.stat().st_size / 1e6


def together(costs: Sequence[dict[str, float]], songs: int, start_s: float) -> float:
    """Predicted seconds of the graph on this machine: where nothing is separated and no GPU encodes, actors read, segment and encode."""
    draws = np.random.default_rng(0)
    of_song = draws.integers(len(costs), size=songs)
    work_s = np.array([cost["read"] + cost["segment"] + cost["encode_cpu"] for cost in costs])[of_song]
    write_s = np.array([cost["write"] for cost in costs])[of_song]
    stages = [Stage(name="encode", cpu_s=work_s, actors=1, out_mb=np.full(songs, 0.3)), Stage(name="write", cpu_s=write_s, tickets=0.5)]
    return Wave(stages, Cluster(workers=ENCODERS, cpus=2), range(songs), 0, 0.0, start_s).finish().seconds


def validate(folder: Path, songs: int) -> Iterator[str]:
    """A real `prepare` of stems on CPUs with two encoders, beside the simulation from costs of two processes on the same songs."""
    from infra.benchmarks.data import prepare
    from infra.cluster import connect
    from pipelines.corpus.processes import in_processes
    from pipelines.sources import list_songs, parse_source

    prepare.write_songs(folder / "songs", songs, 47.0)
    found = list_songs(parse_source(f"pairs:{folder / 'songs'}"))

    def costs(turn: str) -> tuple[list[dict[str, float]], float]:
        identity = begin(folder / turn)
        begun = time.perf_counter()
        work = partial(timed_song, out=str(folder / turn))
        initial = {"initializer": prepare.open_encoder, "initargs": ("embedded", identity)}
        taken = list(in_processes(work, found[: WARM_SONGS * ENCODERS], ENCODERS, **initial))  # type: ignore[arg-type]
        busy_s = sum(sum(one.values()) for one in taken) / ENCODERS
        return taken, time.perf_counter() - begun - busy_s

    yield f"{songs} songs of 47 s in stems, 2 encoders, load {os.getloadavg()[0]:.1f} (1 minute) at the start\n"
    before, start_s = costs("before")
    for song in found[:FIRST_SONGS]:
        shutil.copytree(song.url, folder / "first" / Path(song.url).name)
    with connect(num_cpus=4):
        first_s, _ = prepare.with_ray(folder / "first", folder / "first-out", "embedded", ENCODERS)
        run_s, song_s = prepare.with_ray(folder / "songs", folder / "ray", "embedded", ENCODERS)
    after, _ = costs("after")
    steady_s = (together(before + after, 10 * songs, 0.0) - together(before + after, songs, 0.0)) / (9 * songs)
    ray_start_s = first_s - together(before + after, FIRST_SONGS, 0.0)
    rows = [
        ("a song while all stages run, s", steady_s, song_s),
        ("the graph, s, with the start of plain processes", together(before + after, songs, start_s), run_s),
        (f"the graph, s, with Ray's cold start, from {FIRST_SONGS} songs before", together(before + after, songs, ray_start_s), run_s),
    ]
    yield "| | predicted | measured | predicted / measured |\n|---|---|---|---|"
    for name, predicted, real in rows:
        yield f"| {name} | {predicted:.3f} | {real:.3f} | {predicted / real:.2f} |"
    for name, taken in (("before", before), ("after", after)):
        means = ", ".join(
            f"{stage} {statistics.mean(one[stage] for one in taken):.3f}" for stage in ("read", "segment", "encode_cpu", "write")
        )
        yield f"\nCosts {name} the run, seconds a song, two processes at once: {means}"
    yield f"\nStart of two processes with the codec {start_s:.1f} s, of Ray's {ray_start_s:.1f} s; load at the end {os.getloadavg()[0]:.1f}"
