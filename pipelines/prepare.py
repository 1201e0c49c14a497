"""Songs to a latent dataset: the Ray Data graph, and what surrounds it.

    list songs ─▶ segment (tasks) ─▶ encode (actors, weights loaded once) ─▶ write (tasks) ─▶ settle, split, manifest

A row is a song. Rows in and rows out are counted: every song that was found is prepared, stored already, or rejected with a reason.
"""

import logging
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from infra.cluster import connect
from infra.errors import UserError
from infra.records import MANIFEST, Manifest
from infra.settings import S3Access, Settings
from infra.storage import Place
from pipelines import dataset
from pipelines.dataset import Stored
from pipelines.encode import EncodedSong, Encoder, open_codec
from pipelines.segment import SegmentConfig, SegmentedSong, segment_song
from pipelines.songs import FoundSong
from pipelines.sources import list_songs, parse_source

if TYPE_CHECKING:
    from model.codec_base import CodecIdentity

log = logging.getLogger(__name__)

# A pipeline that stands still for so long is stuck, for example on a song that kills each process that encodes it. Ray's own limit is
# half an hour.
NO_PROGRESS_S = 600.0
SHOWN_REJECTS = 10
LEAST_CPUS = 3  # to read, to encode and to write


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Any source of songs to a latent dataset. Run again, it does only what is missing."""

    source: str
    """demo:URI or pairs:URI: a folder a song with vocals.* and accompaniment.* (WAV, FLAC, MP3, OGG)."""
    out: str
    """The dataset's place, a local folder or s3://bucket/prefix."""
    codec: str = "embedded"
    """embedded, stable-audio-open, stable-audio-open:URI, or a URI to a folder with model_config.json and weights."""
    separator: str | None = None
    """Only for sources that have to be separated."""
    validation_share: float = 0.1
    """Share of the songs held out, by a hash of each song; at least one song as soon as there are two."""
    encoders: int | None = None
    """Encoding actors; by default one for each GPU, or for every second CPU."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise UserError(f"validation_share is {self.validation_share}: choose above 0 and below 1, for example 0.1")
        if self.encoders is not None and self.encoders < 1:
            raise UserError(f"encoders is {self.encoders}: choose 1 or more, or leave it out")
        if self.separator is not None and parse_source(self.source).kind in ("demo", "pairs"):
            raise UserError(f"separator is {self.separator!r}, but {self.source!r} holds stems already: leave --separator out")


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
    """Wall seconds of listing, starting, running, committing; process seconds, added over songs, of segment, encode, write."""

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
            f"took {self.duration_s:.1f} s ({stages})",
        ]
        lines += [f"rejected: {line}" for line in self.rejects[:SHOWN_REJECTS]]
        if self.rejects:
            lines.append(f"every reject, with its stage and reason: {self.out}/rejects/*.parquet")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SongResult:
    """What the graph gives back of a song: no arrays."""

    url: str
    song_id: str
    rejected: str
    stored: bool
    segment_s: float
    encode_s: float
    write_s: float


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Bring the dataset at `config.out` up to date with the source; the manifest is written last.

    Raises: UserError before any work when the source is empty, a place cannot be reached, or the dataset was begun with another codec or
    other settings; ModelError when the codec cannot be had.
    """
    clock = Clock()
    source, out = parse_source(config.source), Place(config.out)
    songs = list_songs(source)
    out.check()
    codec = open_codec(config.codec, Settings.from_environment().s3, "cpu").identity
    dataset.begin(out, codec, config.segment, config.validation_share)
    before = dataset.read_stored(out)
    done = before.done({song.url: song.version for song in songs})
    missing = [song for song in songs if done.get(song.url) != song.version]
    log.info("%s: %d songs, %d of them to do", source, len(songs), len(missing))
    clock.lap("list")
    results: list[SongResult] = []
    if missing:
        with connect():
            clock.lap("start")
            for result in _progress(run_graph(config, missing, source.place, out, codec, frozenset(before.songs)), len(missing)):
                results.append(result)
                if result.rejected:
                    log.warning("rejected %s: %s", result.url, result.rejected)
        clock.lap("run")
        if len(results) != len(missing):
            raise RuntimeError(f"{len(missing)} songs went in and {len(results)} came out: the pipeline lost some; run it again")
    settle(out, songs, results, before)
    manifest = finish(out, codec, config, [result.song_id for result in results if result.stored])
    after = dataset.read_stored(out)
    clock.lap("commit")
    current = {song.url for song in songs}
    rejects = [row for row in after.rejects if row["segment"] is None and row["url"] in current]
    for stage in ("segment", "encode", "write"):
        clock.stage_s[stage] = sum(getattr(result, f"{stage}_s") for result in results)
    useless = {row["url"] for row in rejects}
    prepared = sum(result.stored and result.url not in useless for result in results)
    return PrepareSummary(
        out=str(out),
        found=len(songs),
        prepared=prepared,
        already=len(songs) - prepared - len(rejects),
        rejects=tuple(f"{row['url']} ({row['stage']}): {row['reason']}" for row in sorted(rejects, key=lambda row: row["url"])),
        manifest=manifest,
        duration_s=clock.total_s,
        stage_s={stage: round(seconds, 3) for stage, seconds in clock.stage_s.items()},
    )


def run_graph(
    config: PrepareConfig, songs: Sequence[FoundSong], place: Place, out: Place, codec: "CodecIdentity", known: frozenset[str]
) -> Iterator[SongResult]:
    """The Ray Data graph over `songs`; results in the order in which songs are done."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    encoders = min(config.encoders or gpus or max(1, cpus // 2), len(songs))
    if cpus < LEAST_CPUS:
        raise UserError(f"the cluster has {cpus} CPUs, prepare needs {LEAST_CPUS}: start it with --num-cpus=4 (they are tickets)")
    if not gpus and encoders > cpus - 2:
        raise UserError(f"{encoders} encoders leave less than 2 of {cpus} CPUs to read and write: choose at most {max(1, cpus - 2)}")
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    with DataContext.current(context):
        rows: ray.data.Dataset = ray.data.from_items([{"found": pickle.dumps(song)} for song in songs], override_num_blocks=len(songs))
        rows = rows.map(partial(segment_row, place=place, config=config.segment, known=known), num_cpus=1)
        rows = rows.map(
            EncodeRow,  # type: ignore[arg-type]  # Ray takes a callable class too; its hint does not say so
            fn_constructor_kwargs={"codec": config.codec, "identity": codec, "access": Settings.from_environment().s3},
            compute=ActorPoolStrategy(size=encoders),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
        rows = rows.map(partial(write_row, out=out, validation_share=config.validation_share), num_cpus=0.5)
        for row in rows.iter_rows():
            yield SongResult(**row)


def segment_row(row: dict[str, Any], *, place: Place, config: SegmentConfig, known: frozenset[str]) -> dict[str, Any]:
    """Reads found, a `FoundSong`; gives found, segmented and segment_s.

    Records travel pickled: Ray would do the same to them, with a warning for each block.
    """
    begun = time.perf_counter()
    found: FoundSong = pickle.loads(row["found"])
    segmented = segment_song(found, place, config, known)
    return {"found": row["found"], "segmented": pickle.dumps(segmented, protocol=5), "segment_s": time.perf_counter() - begun}


class EncodeRow:
    """Reads segmented; gives encoded and encode_s in its place."""

    def __init__(self, codec: str, identity: "CodecIdentity", access: S3Access) -> None:
        self.encoder = Encoder(codec, identity, access)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        segmented: SegmentedSong = pickle.loads(row["segmented"])
        encoded = pickle.dumps(self.encoder.encode(segmented), protocol=5)
        return {"found": row["found"], "encoded": encoded, "segment_s": row["segment_s"], "encode_s": time.perf_counter() - begun}


def write_row(row: dict[str, Any], *, out: Place, validation_share: float) -> dict[str, Any]:
    """Reads found and encoded; commits the song and gives a `SongResult`."""
    begun = time.perf_counter()
    found: FoundSong = pickle.loads(row["found"])
    song: EncodedSong = pickle.loads(row["encoded"])
    song_id = song.identity.song_id
    dataset.write_song(out, found, song, dataset.split_of(song_id, validation_share))
    result = SongResult(
        url=found.url,
        song_id=song_id,
        rejected="" if song.segments or not song.rejects else song.rejects[0].reason,
        stored=bool(song.segments),
        segment_s=row["segment_s"],
        encode_s=row["encode_s"],
        write_s=time.perf_counter() - begun,
    )
    return asdict(result)


def settle(out: Place, songs: Sequence[FoundSong], results: Sequence[SongResult], before: Stored) -> None:
    """Songs whose files moved, were touched, copied or replaced: one row a song, none for what is gone."""
    if not results:
        return
    found = {song.url: song for song in songs}
    addresses: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if not result.rejected:
            addresses[result.song_id].add(result.url)
    now = dataset.read_stored(out)
    for song_id, urls in addresses.items():
        earlier = before.songs[song_id]["url"] if song_id in before.songs else None
        stands = earlier in urls or (earlier in found and earlier not in {result.url for result in results})
        owner = earlier if earlier is not None and stands else min(urls)
        row = now.songs[song_id]
        if owner in urls and (row["url"], row["source_version"]) != (owner, found[owner].version):
            dataset.adopt(out, row, found[owner])
        for url in sorted(urls - {owner}):
            dataset.settle_duplicate(out, found[url], song_id, owner)
    worked = {result.url: result.song_id for result in results}
    for song_id, row in before.songs.items():
        if row["url"] in worked and worked[row["url"]] != song_id and song_id not in addresses:
            dataset.remove_song(out, song_id)


def finish(out: Place, codec: "CodecIdentity", config: PrepareConfig, prepared: Sequence[str]) -> Manifest | None:
    """Balance the splits, remove what no row vouches for, and write the manifest if it changed."""
    stored = dataset.read_stored(out)
    if not stored.songs:
        (out / MANIFEST).delete()  # an earlier one would vouch for songs that are gone
        return None
    # Before the first manifest nobody has trained on a split, so any song may move.
    movable = prepared if (out / MANIFEST).exists() else list(stored.songs)
    dataset.balance(out, stored.songs, movable)
    dataset.remove_orphans(out, stored)
    return dataset.commit(out, stored, codec, config.separator)


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


def _progress(results: Iterator[SongResult], total: int) -> Iterator[SongResult]:
    """A bar on a terminal, a line about every tenth of the way in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(results, total=total, unit="song", desc="prepare")
        return
    for done, result in enumerate(results, start=1):
        if done * 10 // total != (done - 1) * 10 // total:
            log.info("%d of %d songs", done, total)
        yield result
