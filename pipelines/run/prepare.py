"""Any source of songs to a latent dataset: what is missing goes through the graph in waves, each committed.

    list songs ─▶ what is missing ─▶ wave: the graph (`pipelines.run.graph`) ─▶ settle ─▶ commit ─▶ next wave

A row is a song. Rows in and rows out are counted: every song that was found is prepared, stored already, or rejected with a reason.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from infra.cluster import connect
from infra.dataset.format import Manifest
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.lease import held
from infra.storage.place import Place
from pipelines.acquire.acquire import AcquireConfig
from pipelines.acquire.shared_hosts import start_shared_hosts
from pipelines.dataset import write as dataset
from pipelines.dataset.belonging import elsewhere, without_left
from pipelines.dataset.commit import finish
from pipelines.dataset.contents import Stored, Tables, read_stored
from pipelines.dataset.reconcile import Recordings, remove_forbidden, settle, without_copies
from pipelines.run import progress
from pipelines.run.graph import Workers, plan_workers, run_graph
from pipelines.run.ray_stages import Job
from pipelines.run.run_state import start_ledger
from pipelines.song import FoundSong, SongResult
from pipelines.sources import CatalogueConfig, Source, list_songs, parse_source
from pipelines.stages.decode import Stops
from pipelines.stages.encode import open_codec
from pipelines.stages.segment import SegmentConfig
from pipelines.stages.separate import open_separator
from pipelines.stages.truth import TruthMode

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity
    from model.separation.load import SeparatorIdentity

log = logging.getLogger(__name__)

SHOWN_REJECTS = 10
DEFAULT_SEPARATOR = "htdemucs"
SEPARATED = ("folder", "urls", "catalogue")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Any source of songs to a latent dataset. Run again, it does only what is missing."""

    source: str
    """pairs:URI or demo:URI (a folder a song with vocals.* and accompaniment.*), folder:URI (finished songs), musdb18:URI, moisesdb:URI,
    urls:FILE (CSV or Parquet with url, title, artist, license), catalogue:FILE (the Song Popularity Dataset's CSV, with --provider)."""
    out: str
    """The dataset's place, a local folder or s3://bucket/prefix."""
    codec: str = "embedded"
    """embedded, stable-audio-open, stable-audio-open:URI, or a URI to a folder with model_config.json and weights."""
    separator: str | None = None
    """For finished songs: htdemucs (the default) or another model that demucs knows, or a URI to a local demucs repository."""
    keep_stems: bool = False
    """Keep what songs are separated into, to be heard: OUT/stems/SONG_ID/vocals.flac and accompaniment.flac, about 10 MB a minute. Of songs
    that this run separates: those that are stored already are not separated again."""
    truth: TruthMode = "estimate"
    """What the band plays, stored with the latents: chords and beats by frame, style, tempo, key and sections by song. As song.json states
    it; of other songs as it is heard (estimate) or not at all (composed). none stores no truth."""
    provider: str | None = None
    """For a catalogue, where its songs are: library:URI (a folder of finished songs), or a URL with {title} and {artist}."""
    sheet: str | None = None
    """For a folder of pairs: a CSV or Parquet file with the columns folder and license and, where they are known, title, artist, credit,
    url, split (train or validation). Without it, songs.csv in the folder, where there is one."""
    validation_share: float = 0.1
    """Share of the songs held out, by a hash of each song; at least one song as soon as there are two."""
    encoders: int | None = None
    """Encoding actors; by default one for each GPU, or for every second CPU (with separation, every fourth)."""
    separators: int | None = None
    """Separating actors, likewise."""
    downloads: int = 8
    """Downloads at once, over all hosts."""
    batch_songs: int | None = None
    """Songs that an actor takes at once; by default 4 on a GPU, 1 on a CPU."""
    wave: int = 5_000
    """Songs between two commits: so often the manifest moves on, and so many songs' records are in memory."""
    retry: tuple[str, ...] = ()
    """Stages whose rejects are tried again, for example acquire, license, crash."""
    media: str | None = None
    """Where downloads are kept; by default media/ below --out."""
    storage_patience_s: float = 300.0
    """How long a stage waits for a storage that does not answer, before the run ends (and goes on when it is run again)."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    acquire: AcquireConfig = field(default_factory=AcquireConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise UserError(f"validation_share is {self.validation_share}: choose above 0 and below 1, for example 0.1")
        for name in ("encoders", "separators", "downloads", "batch_songs", "wave"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise UserError(f"{name} is {given}: choose 1 or more, or leave it out")
        if self.storage_patience_s < 0:
            raise UserError(f"storage_patience_s is {self.storage_patience_s}: choose 0 or more")
        kind = parse_source(self.source).kind
        if kind not in SEPARATED and self.separator is not None:
            raise UserError(f"separator is {self.separator!r}, but {self.source!r} holds stems already: leave --separator out")
        if kind not in SEPARATED and self.keep_stems:
            raise UserError(f"keep_stems is set, but {self.source!r} holds stems already: leave --keep-stems out")


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What a run did."""

    out: str
    found: int
    prepared: int
    """Songs encoded and stored by this run."""
    already: int
    """Songs that needed no work."""
    rejects: tuple[str, ...]
    """One line for each song of this source that is not in the dataset: address, stage, reason."""
    manifest: Manifest | None
    """None when not one song could be used."""
    duration_s: float
    stage_s: Mapping[str, float]
    """Wall seconds of list, start, run and commit."""
    table: tuple[str, ...] = ()
    """What each stage did; empty when there was nothing to do."""

    @property
    def exit_code(self) -> int:
        return 1 if self.rejects else 0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stage_s.items())
        lines = [
            f"{self.out}: {self.found} songs found, {self.prepared} prepared, {self.already} already there, {len(self.rejects)} rejected",
            f"dataset: {self.manifest.counts}; {self.manifest.duration_h:.2f} h"
            if self.manifest
            else "dataset: none, no song could be used",
            *self.table,
            f"took {self.duration_s:.1f} s ({stages})",
        ]
        lines += [f"rejected: {line}" for line in self.rejects[:SHOWN_REJECTS]]
        if self.rejects:
            lines.append(f"every reject, with its stage and reason: {self.out}/rejects/*.parquet")
        return "\n".join(lines)


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Bring the dataset at `config.out` up to date with the source; after each wave of songs the manifest moves on.

    Raises: UserError before any work when the source is empty, a place cannot be reached, or the dataset was begun with another codec,
    separator or other settings; ModelError when the codec or the separator cannot be had.
    """
    with ExitStack() as stack:
        return _prepare(config, stack)


def _prepare(config: PrepareConfig, stack: ExitStack) -> PrepareSummary:
    clock = Clock()
    source, out, access = parse_source(config.source), Place(config.out), Settings.from_environment().s3
    listed = list_songs(source, provider=config.provider, catalogue=config.catalogue, sheet=config.sheet)
    songs = [replace(song, listed_by=str(source)) for song in listed]
    out.check()
    if any(song.fetch for song in songs):
        config.acquire.check_identity()
    codec = open_codec(config.codec, access, "cpu").identity
    separator = _separator(config, songs)
    lease = stack.enter_context(held(out, "prepare"))
    dataset.begin(out, codec, config.segment, config.validation_share)
    if separator is not None:
        dataset.begin_separation(out, separator.id, separator.weights_sha256)
    tables = Tables()
    present = {song.url: song for song in songs}
    stored = read_stored(out, tables)
    remove_forbidden(_media(config, out), stored, {song.url for song in songs if config.acquire.permits(song.license)})
    stored = without_left(out, stored, source, present.keys())
    missing = _missing(songs, stored, source, config)
    log.info("%s: %d songs, %d of them to do", source, len(songs), len(missing))
    clock.lap("list")
    done: list[SongResult] = []
    table: tuple[str, ...] = ()
    manifest = None
    if missing:
        with connect():
            clock.lap("start")
            job = _job(config, out, codec, separator)
            job = start_actors(job, source, missing)
            recordings = Recordings(out, config.segment.max_fingerprint_errors)
            begun = time.perf_counter()
            with progress.shown(job.ledger, len(missing)):
                for wave in _waves(missing, config.wave):
                    results = run_wave(job, config, wave, stored, len(missing) - len(done))
                    done += results
                    lease.check()
                    stored = settle(out, present, results, stored, recordings, elsewhere(source), tables, job.media)
                    stored, manifest = finish(out, stored, codec, [result.song_id for result in results if result.stored])
            import ray

            table = tuple(progress.table(ray.get(job.ledger.read_totals.remote()), time.perf_counter() - begun))
        clock.lap("run")
    else:
        # What a killed run wrote and never settled is in no commit yet.
        recordings = Recordings(out, config.segment.max_fingerprint_errors)
        stored = without_copies(out, present, stored, recordings, elsewhere(source), tables, _media(config, out))
        stored, manifest = finish(out, stored, codec, ())
    clock.lap("commit")
    rejects = sorted((row for row in stored.rejects if row["segment"] is None and row["url"] in present), key=lambda row: row["url"])
    useless = {row["url"] for row in rejects}
    prepared = sum(result.stored and result.url not in useless for result in done)
    return PrepareSummary(
        out=str(out),
        found=len(songs),
        prepared=prepared,
        already=len(songs) - prepared - len(rejects),
        rejects=tuple(f"{row['url']} ({row['stage']}): {row['reason']}" for row in rejects),
        manifest=manifest,
        duration_s=clock.total_s,
        stage_s={stage: round(seconds, 3) for stage, seconds in clock.stage_s.items()},
        table=table,
    )


def run_wave(job: Job, config: PrepareConfig, wave: Sequence[FoundSong], stored: Stored, waiting: int) -> list[SongResult]:
    """One wave through the graph; every song of it comes out."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    stops = Stops(known=frozenset(stored.songs), taken=stored.taken, splits=dataset.moved_groups(stored, config.validation_share))
    results: list[SongResult] = []
    try:
        for result in run_graph(job, _workers(config, wave), wave, stops):
            results.append(result)
            job.ledger.finished.remote(waiting - len(results), result.rejected_by or None)
            if result.rejected_by:
                log.warning("rejected %s (%s): %s", result.url, result.rejected_by, result.reason)
    except ray.exceptions.RayError as error:
        if reason := ray.get(job.ledger.read_failure.remote()):
            raise UserError(f"{reason} (what is done is kept: run it again to go on)") from error
        raise
    except ExecutionTimeoutError as error:
        raise UserError(
            f"the pipeline stands still ({str(error).splitlines()[0]}): see whether a machine is lost or a worker is stuck "
            f"(ray status, ray list tasks); what is done is kept: run it again to go on"
        ) from error
    if len(results) != len(wave):
        raise RuntimeError(f"{len(wave)} songs went in and {len(results)} came out: the pipeline lost some; run it again")
    return results


def start_actors(job: Job, source: Source, missing: Sequence[FoundSong]) -> Job:
    """The same job with the run's actors."""
    hosts = start_shared_hosts(job.acquire) if any(song.fetch for song in missing) else None
    return replace(job, ledger=start_ledger(str(source), str(job.out)), hosts=hosts)


def _job(config: PrepareConfig, out: Place, codec: "CodecIdentity", separator: "SeparatorIdentity | None") -> Job:
    return Job(
        out=out,
        media=_media(config, out),
        access=Settings.from_environment().s3,
        codec=config.codec,
        codec_identity=codec,
        separator=config.separator or DEFAULT_SEPARATOR,
        separator_identity=separator,
        segment=config.segment,
        acquire=config.acquire,
        validation_share=config.validation_share,
        storage_patience_s=config.storage_patience_s,
        ledger=None,
        keep_stems=config.keep_stems,
        truth=config.truth,
    )


def _media(config: PrepareConfig, out: Place) -> Place:
    return Place(config.media) if config.media else out / "media"


def _separator(config: PrepareConfig, songs: Sequence[FoundSong]) -> "SeparatorIdentity | None":
    """Opened before any work, when a song needs it: missing weights are one error now, not one a song."""
    if not any(song.is_mixture for song in songs):
        return None
    return open_separator(config.separator or DEFAULT_SEPARATOR, Settings.from_environment().s3, "cpu").identity


def _workers(config: PrepareConfig, wave: Sequence[FoundSong]) -> Workers:
    import ray

    resources = ray.cluster_resources()
    return plan_workers(
        cpus=int(resources.get("CPU", 1)),
        gpus=int(resources.get("GPU", 0)),
        separates=any(song.is_mixture for song in wave),
        encoders=config.encoders,
        separators=config.separators,
        downloads=config.downloads,
        batch_songs=config.batch_songs,
    )


def _missing(songs: Sequence[FoundSong], stored: Stored, source: Source, config: PrepareConfig) -> list[FoundSong]:
    done = stored.done({song.url: song.version for song in songs}, elsewhere(source))
    again = {row["url"] for row in stored.rejects if row["segment"] is None and row["stage"] in config.retry}
    missing = [song for song in songs if done.get(song.url) != song.version or song.url in again]
    # A forbidden licence takes a stored song away: first, so that a copy of it at another address finds its place free.
    return sorted(missing, key=lambda song: not song.fetch or config.acquire.permits(song.license))


def _waves(songs: Sequence[FoundSong], size: int) -> Iterator[Sequence[FoundSong]]:
    for start in range(0, len(songs), size):
        yield songs[start : start + size]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.begun = self.last = time.perf_counter()
        self.stage_s: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stage_s[stage] = now - self.last
        self.last = now

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self.begun
