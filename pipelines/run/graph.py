"""The Ray Data graph of `prepare` (its stages: `pipelines.run.ray_stages`), and who gets what of a cluster.

    acquire (tasks) ─▶ read (tasks) ─▶ separate (actors) ─▶ segment (tasks) ─▶ encode (actors) ─▶ write (tasks)

acquire and separate are there only when a song needs them. Where encoding takes no GPU and nothing is separated, reading, segmenting and
encoding are one stage: a segment is 17 MB, and copying it between processes costs more than it gains (infra/benchmarks/data/prepare.md).

Stages overlap; a stage that is behind holds the ones before it back.
"""

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.audio.decoder import ATTEMPTS as DECODER_ATTEMPTS
from infra.errors import UserError
from pipelines.run.crashes import MAX_ATTEMPTS
from pipelines.run.ray_stages import EncodeRows, Job, ReadEncodeRows, SeparateRows, Stage, acquire_row, read_row, segment_row, write_row
from pipelines.song import FoundSong, SongResult
from pipelines.stages.decode import DECODE_TIMEOUT_S, Stops

# A pipeline that stands still for so long beyond what its slowest step may take is stuck: a cluster may be adding a machine meanwhile.
NO_PROGRESS_S = 900.0
# Seconds that a busy core may take to separate or encode one second of audio; it takes about one.
SLOWEST = 5.0
SONGS_A_TASK = 4
# Tickets for a task to read and one to write; without them the actors would wait for ever.
TASK_CPUS = 2
# Of each GPU, when songs are separated: it costs several times what encoding costs.
SEPARATION_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes each stage gets, and what each takes of the cluster."""

    downloads: int
    separators: int
    encoders: int
    separator_gpus: float
    encoder_gpus: float
    batch_songs: int
    """Songs that an actor takes at once."""
    together: bool
    """Whether the encoding actors read and segment too."""


def run_graph(job: Job, workers: Workers, songs: Sequence[FoundSong], stops: Stops) -> Iterator[SongResult]:
    """The graph over `songs`; results in the order in which songs are done."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = patience_s(job, workers, songs)
    shared = ray.put(stops)
    # A task costs two busy cores some 30 ms, whatever it does. Where songs are large on their way, each is a task of its own.
    at_once = min(SONGS_A_TASK, max(1, len(songs) // (8 * workers.encoders))) if workers.together else 1
    with DataContext.current(context):
        blocks = -(-len(songs) // at_once)
        rows: ray.data.Dataset = ray.data.from_items([{"found": pickle.dumps(song)} for song in songs], override_num_blocks=blocks)

        def with_actors(rows: "ray.data.Dataset", stage: type, count: int, gpus: float, **given: Any) -> "ray.data.Dataset":
            return rows.map_batches(
                stage,
                fn_constructor_kwargs={"job": job, **given},
                batch_size=workers.batch_songs,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ActorPoolStrategy(size=min(count, len(songs))),
                num_cpus=1,
                num_gpus=gpus or None,
            )

        if workers.together:
            rows = with_actors(rows, ReadEncodeRows, workers.encoders, workers.encoder_gpus, stops=shared)
        else:
            if any(song.fetch for song in songs):
                tasks = TaskPoolStrategy(size=min(workers.downloads, len(songs)))
                rows = rows.map(Stage(job, acquire_row), num_cpus=0.25, compute=tasks)
            rows = rows.map(Stage(job, read_row, stops=shared), num_cpus=1)
            if any(song.is_mixture for song in songs):
                rows = with_actors(rows, SeparateRows, workers.separators, workers.separator_gpus)
            rows = rows.map(Stage(job, segment_row), num_cpus=1)
            rows = with_actors(rows, EncodeRows, workers.encoders, workers.encoder_gpus)
        rows = rows.map(Stage(job, write_row, stops=shared), num_cpus=0.5)
        for row in rows.iter_rows():
            yield pickle.loads(row["result"])


def patience_s(job: Job, workers: Workers, songs: Sequence[FoundSong]) -> float:
    """How long the graph may stand still: longer than its longest step as long as that is permitted, as often as it is tried.

    Ray counts what comes out of a stage, not what goes on within: the last song on its way is silence. Ray's own limit is half an hour.
    """
    read_s = max(len(song.media) for song in songs) * DECODER_ATTEMPTS * DECODE_TIMEOUT_S
    compute_s = SLOWEST * job.segment.max_duration_s
    # The page, then the file.
    acquire_s = 2 * job.acquire.max_download_s if any(song.fetch for song in songs) else 0.0
    step_s = workers.batch_songs * (read_s + compute_s) if workers.together else max(acquire_s, read_s, workers.batch_songs * compute_s)
    return NO_PROGRESS_S + MAX_ATTEMPTS * (job.storage_patience_s + step_s)


def least_cpus(separates: bool) -> int:
    """Tickets that the graph needs: one each for the actors, and for a task to read and one to write."""
    return TASK_CPUS + (2 if separates else 1)


def plan_workers(
    *, cpus: int, gpus: int, separates: bool, encoders: int | None, separators: int | None, downloads: int, batch_songs: int | None
) -> Workers:
    """Who gets what of a cluster: a GPU's larger share goes to separation, which costs most; on CPUs the actors leave half to the tasks.

    An actor takes a CPU beside its share of a GPU, and two CPUs stay to read and write with. Raises UserError when the cluster is too
    small, or the numbers asked for do not leave them.
    """
    least = least_cpus(separates)
    if cpus < least:
        raise UserError(f"the cluster has {cpus} CPUs, prepare needs {least}: start it with --num-cpus={least} (they are tickets)")
    room = cpus - TASK_CPUS
    default = gpus or max(1, cpus // (4 if separates else 2))
    separators = (separators or max(1, min(default, room - (encoders or 1)))) if separates else 0
    encoders = encoders or max(1, min(default, room - separators))
    if encoders + separators > room:
        raise UserError(
            f"{encoders} encoders and {separators} separators leave less than {TASK_CPUS} of {cpus} CPUs to read and write: "
            f"choose at most {room} together"
            if separates
            else f"{encoders} encoders leave less than {TASK_CPUS} of {cpus} CPUs to read and write: choose at most {room}"
        )
    return Workers(
        downloads=downloads,
        separators=separators,
        encoders=encoders,
        separator_gpus=_share(SEPARATION_SHARE, separators, gpus),
        encoder_gpus=_share(1 - SEPARATION_SHARE if separates else 1.0, encoders, gpus),
        batch_songs=batch_songs or (4 if gpus else 1),
        together=not gpus and not separates,
    )


def _share(of_each: float, actors: int, gpus: int) -> float:
    """What one of so many actors takes of one GPU: an actor stands on one device, so the fullest device decides. Ray knows four digits."""
    if not gpus or not actors:
        return 0.0
    return math.floor(of_each / math.ceil(actors / gpus) * 10_000) / 10_000
