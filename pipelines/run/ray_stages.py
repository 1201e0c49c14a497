"""The stages of `prepare` as Ray's workers run them: a row in, a row out.

A row is a song and comes out of every stage: on its way, known or rejected. Records travel pickled: Ray would do the same to them, with a
warning for each block.
"""

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from infra.errors import UserError
from infra.settings import S3Access, Settings
from infra.storage.place import Place, UnreachableStorageError
from model.errors import ModelError
from pipelines.acquire.acquire import LICENSE, AcquireConfig, ForbiddenLicenseError, acquire_song, remove_media
from pipelines.acquire.file_kinds import decoder
from pipelines.dataset import write as dataset
from pipelines.dataset.kept_stems import write_stems
from pipelines.run.crashes import attempts, counted, died
from pipelines.song import EncodedSong, FoundSong, ReadSong, Reject, SegmentedSong, SongError, SongResult
from pipelines.stages.decode import TAKEDOWN, Stops, read_song, unknown_identity
from pipelines.stages.encode import Encoder
from pipelines.stages.segment import SegmentConfig, middle_fingerprint, segment_audio
from pipelines.stages.separate import SongSeparator
from pipelines.stages.truth import TruthMode, truth_of

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity
    from model.separation.load import SeparatorIdentity

log = logging.getLogger(__name__)
Result = TypeVar("Result")

STORAGE_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a run knows."""

    out: Place
    media: Place
    access: S3Access
    codec: str
    codec_identity: "CodecIdentity"
    separator: str
    separator_identity: "SeparatorIdentity | None"
    segment: SegmentConfig
    acquire: AcquireConfig
    validation_share: float
    storage_patience_s: float
    ledger: Any = field(repr=False)
    """The run's `pipelines.run.run_state.Ledger`, an actor."""
    hosts: Any = field(default=None, repr=False)
    """The run's `pipelines.acquire.shared_hosts.SharedHosts`, when there is something to download."""
    keep_stems: bool = False
    truth: TruthMode = "estimate"


class Stage:
    """A row's function with what it needs, as Ray ships it to its workers."""

    def __init__(self, job: Job, function: Callable[..., dict[str, Any]], **given: Any) -> None:
        self.job, self.function, self.given = job, function, given

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with telling(self.job):
            return self.function(row, self.job, **self.given)


@contextmanager
def telling(job: Job) -> Iterator[None]:
    """An error that ends the run is told to the ledger first: what Ray hands to the driver has lost its class."""
    import ray

    try:
        yield
    except (UserError, ModelError) as error:
        ray.get(job.ledger.fail.remote(str(error)))
        raise


def acquire_row(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Reads found; gives found, with its media where it had to be downloaded, or with the fault."""
    begun = time.perf_counter()
    found: FoundSong = pickle.loads(row["found"])
    if not found.fetch or found.fault:
        return {"found": row["found"], "failed": pickle.dumps(None)}

    def acquired() -> tuple[FoundSong, Reject | None]:
        try:
            song = patiently(lambda: acquire_song(found, job.media, job.acquire, job.hosts, Settings.from_environment().cache), job)
        except SongError as error:
            return found, Reject(stage=LICENSE if isinstance(error, ForbiddenLicenseError) else "acquire", reason=str(error))
        # Its version stays that of the list's row, which is what the next run compares.
        return replace(song, version=found.version), None

    song, failed = counted(job.ledger, "acquire", found.url, acquired, lambda reject: (found, reject))
    job.ledger.done.remote("acquire", 1, 0.0, time.perf_counter() - begun)
    return {"found": pickle.dumps(song), "failed": pickle.dumps(failed)}


def read_row(row: dict[str, Any], job: Job, stops: Any) -> dict[str, Any]:
    """Reads found, and failed where there was something to acquire; gives found and read."""
    found: FoundSong = pickle.loads(row["found"])
    failed: Reject | None = pickle.loads(row["failed"]) if "failed" in row else None
    if failed is None:
        song = counted(job.ledger, "read", found.url, lambda: read(found, job, stops), lambda reject: failed_song(found, reject))
    else:
        song = failed_song(found, failed)
    return {"found": row["found"], "read": pickle.dumps(song, protocol=5)}


def read(found: FoundSong, job: Job, stops: Any) -> ReadSong:
    """One song's audio, by this worker's decoder."""
    begun = time.perf_counter()
    song = patiently(lambda: read_song(found, job.access, job.segment, decoder(), stops_of(stops)), job)
    if song.reject is not None and song.reject.stage == TAKEDOWN:
        remove_media(job.media, found.url)  # downloaded anew before it was known again
    job.ledger.done.remote("read", 1, song.duration_s, time.perf_counter() - begun)
    return song


class SeparateRows:
    """Reads read; gives it separated."""

    def __init__(self, job: Job) -> None:
        if job.separator_identity is None:
            raise RuntimeError("a song is to be separated, and no separator was opened")
        self.job = job
        with telling(job):
            self.separator = SongSeparator(job.separator, job.separator_identity, job.access)

    def __call__(self, batch: pa.Table) -> pa.Table:
        with telling(self.job):
            return self.separated(batch)

    def separated(self, batch: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        songs: list[ReadSong] = [pickle.loads(read) for read in batch["read"].to_pylist()]
        mixtures = [index for index, song in enumerate(songs) if song.mixture_CN is not None]

        def fatal(index: int) -> None:
            songs[index] = songs[index].rejected("crash", died("separate"))

        urls = urls_of(batch)
        for group in attempts(self.job.ledger, "separate", {index: urls[index] for index in mixtures}, fatal):
            for index, song in zip(group, self.separator.separate([songs[index] for index in group]), strict=True):
                songs[index] = song
        audio_s = sum(songs[index].duration_s for index in mixtures)
        self.job.ledger.done.remote("separate", len(mixtures), audio_s, time.perf_counter() - begun)
        return pa.table({"found": batch["found"], "read": pickled(songs)})


def segment_row(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Reads found and read; gives found and segmented."""
    song: ReadSong = pickle.loads(row["read"])
    url = pickle.loads(row["found"]).url
    pieces = counted(
        job.ledger, "segment", url, lambda: segmented(song, job), lambda reject: SegmentedSong(identity=song.identity, rejects=(reject,))
    )
    return {"found": row["found"], "segmented": pickle.dumps(pieces, protocol=5)}


def segmented(song: ReadSong, job: Job) -> SegmentedSong:
    """One read song in segments."""
    begun = time.perf_counter()
    pieces = segment_read(song, job.segment)
    if job.keep_stems and pieces.segments and song.separator_id is not None:
        patiently(lambda: write_stems(job.out, song), job)
    job.ledger.done.remote("segment", 1, song.duration_s, time.perf_counter() - begun)
    return with_truth(pieces, song, job)


def with_truth(pieces: SegmentedSong, song: ReadSong, job: Job) -> SegmentedSong:
    """The segments of a song that is kept, with what its band plays."""
    if not pieces.segments or song.accompaniment_CN is None:
        return pieces
    begun = time.perf_counter()
    name = song.identity.title or song.identity.song_id
    truth, fault = truth_of(song.truth, song.truth_fault, song.accompaniment_CN, job.truth, name)
    if truth is not None and truth.source == "estimated":
        job.ledger.done.remote("listen", 1, song.duration_s, time.perf_counter() - begun)
    return replace(pieces, truth=truth, truth_fault=fault)


def segment_read(read: ReadSong, config: SegmentConfig) -> SegmentedSong:
    """A read song in segments; without, when it was rejected or is known."""
    if read.reject is not None:
        return SegmentedSong(identity=read.identity, rejects=(read.reject,))
    if read.vocal_CN is None or read.accompaniment_CN is None:
        return SegmentedSong(identity=read.identity)
    segmented = segment_audio(read.identity, read.vocal_CN, read.accompaniment_CN, config, read.mixture_CN)
    if not segmented.segments:
        return segmented
    mixture_CN = read.vocal_CN + read.accompaniment_CN if read.mixture_CN is None else read.mixture_CN
    words = middle_fingerprint(mixture_CN) if config.max_fingerprint_errors else None
    return replace(segmented, separator_id=read.separator_id, fingerprint=words)


class EncodeRows:
    """Reads segmented; gives encoded in its place."""

    def __init__(self, job: Job) -> None:
        self.job = job
        with telling(job):
            self.encoder = Encoder(job.codec, job.codec_identity, job.access)

    def __call__(self, batch: pa.Table) -> pa.Table:
        with telling(self.job):
            return self.encoded(batch)

    def encoded(self, batch: pa.Table) -> pa.Table:
        songs: list[SegmentedSong] = [pickle.loads(segmented) for segmented in batch["segmented"].to_pylist()]
        return pa.table({"found": batch["found"], "encoded": pickled(self.encode(songs, urls_of(batch)))})

    def encode(self, songs: Sequence[SegmentedSong], urls: Sequence[str]) -> list[EncodedSong]:
        """The songs in their order; `urls` are theirs."""
        begun = time.perf_counter()
        encoded: dict[int, EncodedSong] = {}

        def fatal(index: int) -> None:
            reject = Reject(stage="crash", reason=died("encode"))
            encoded[index] = EncodedSong(identity=songs[index].identity, duration_s=0.0, segments=(), rejects=(reject,))

        for group in attempts(self.job.ledger, "encode", dict(enumerate(urls)), fatal):
            encoded.update(zip(group, self.encoder.encode([songs[index] for index in group]), strict=True))
        audio_s = sum(song.duration_s for song in songs)
        self.job.ledger.done.remote("encode", len(songs), audio_s, time.perf_counter() - begun)
        return [encoded[index] for index in range(len(songs))]


class ReadEncodeRows(EncodeRows):
    """Reads found; gives found and encoded, and no copy of the audio leaves the process."""

    def __init__(self, job: Job, stops: Any) -> None:
        super().__init__(job)
        self.stops = stops

    def encoded(self, batch: pa.Table) -> pa.Table:
        songs = self.read([pickle.loads(found) for found in batch["found"].to_pylist()])
        return pa.table({"found": batch["found"], "encoded": pickled(self.encode(songs, urls_of(batch)))})

    def read(self, found: Sequence[FoundSong]) -> list[SegmentedSong]:
        """The songs in their order, in segments."""
        songs: dict[int, SegmentedSong] = {}

        def fatal(index: int) -> None:
            reject = Reject(stage="crash", reason=died("read"))
            songs[index] = SegmentedSong(identity=unknown_identity(found[index]), rejects=(reject,))

        for group in attempts(self.job.ledger, "read", {index: song.url for index, song in enumerate(found)}, fatal):
            for index in group:
                songs[index] = segmented(read(found[index], self.job, self.stops), self.job)
        return [songs[index] for index in range(len(found))]


def write_row(row: dict[str, Any], job: Job, stops: Any) -> dict[str, Any]:
    """Reads found and encoded; commits the song and gives its `SongResult`."""
    begun = time.perf_counter()
    found: FoundSong = pickle.loads(row["found"])
    song: EncodedSong = pickle.loads(row["encoded"])
    song_id = song.identity.song_id
    group = song.identity.vocal_group
    split = found.split or stops_of(stops).splits.get(group) or dataset.split_of(group, job.validation_share)
    patiently(lambda: dataset.write_song(job.out, found, song, split), job)
    job.ledger.done.remote("write", 1, song.duration_s, time.perf_counter() - begun)
    whole = song.rejects[0] if song.rejects and not song.segments else None
    result = SongResult(
        url=found.url,
        song_id=song_id,
        stored=bool(song.segments),
        rejected_by=whole.stage if whole else "",
        reason=whole.reason if whole else "",
        audio_s=song.duration_s,
        identity=song.identity,
    )
    return {"result": pickle.dumps(result)}


def urls_of(batch: pa.Table) -> list[str]:
    """The addresses of a batch's songs: two of them may have the same audio, and so the same id."""
    return [pickle.loads(found).url for found in batch["found"].to_pylist()]


def patiently(work: Callable[[], Result], job: Job) -> Result:
    """`work()`, again while the storage cannot be reached, for as long as the config's patience lasts."""
    give_up_s = time.monotonic() + job.storage_patience_s
    pause_s = STORAGE_PAUSE_S
    while True:
        try:
            return work()
        except UnreachableStorageError as error:
            if time.monotonic() + pause_s > give_up_s:
                raise
            log.warning("%s; again in %.0f s", error, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)


def failed_song(found: FoundSong, reject: Reject) -> ReadSong:
    """A song that could not be had."""
    return ReadSong(identity=unknown_identity(found), reject=reject)


def pickled(values: Sequence[Any]) -> pa.Array:
    """Large: two gigabytes are 25 songs."""
    return pa.array([pickle.dumps(value, protocol=5) for value in values], pa.large_binary())


@lru_cache(maxsize=2)
def stops_of(reference: Any) -> Stops:
    """What the driver put into the object store, once a worker."""
    import ray

    stops: Stops = ray.get(reference)
    return stops
