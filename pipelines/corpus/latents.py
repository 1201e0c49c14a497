"""Demo songs straight to latents: composed, rendered, varied and encoded in worker processes, no WAV in between, no Ray.

For training at scale, and on a machine that has torch and nothing else: two cores make some 1,700 songs an hour. Each song is encoded at
several speeds (1.06 is a semitone higher, its voice smaller and its tempo faster), each time through another microphone and room
(`pipelines.corpus.vocals.capture`), so that no vocal is heard twice. Songs are the unit of commit: run again, only what is missing is
made. What was made with other settings at the same place stays in the dataset beside it.

Shapes: C channels, N samples.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

from infra.cli.exit_codes import LISTED
from infra.dataset.format import RESERVED_SEEDS, Manifest, Split
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.lease import held
from infra.storage.place import Place
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Chance
from pipelines.corpus import SongRecord, render
from pipelines.corpus.bands.rearrange import MOST_BANDS, compose_bands
from pipelines.corpus.processes import in_processes
from pipelines.corpus.score.record import GENERATOR_VERSION, as_json
from pipelines.corpus.sound.banks.licence import bank_credit
from pipelines.corpus.sound.banks.open import choose_banks, open_banks
from pipelines.corpus.sound.render import render_band
from pipelines.corpus.sound.voices.open import choose_voices, open_voices
from pipelines.corpus.vocals.capture import apply_capture, draw_capture
from pipelines.dataset import write as dataset
from pipelines.dataset.commit import commit
from pipelines.dataset.contents import read_stored
from pipelines.song import FoundSong, SongIdentity
from pipelines.stages.encode import Encoder, open_codec
from pipelines.stages.segment import SegmentConfig, segment_audio
from pipelines.stages.truth import parsed_truth, truth_at_speed

if TYPE_CHECKING:
    from model.codec.base import CodecIdentity


@dataclass(frozen=True, kw_only=True)
class DemoLatentsConfig:
    """A latent dataset of `songs` demo songs, song i from seed `seed + i`, each at every speed."""

    out: str
    """Local folder or s3://bucket/prefix."""
    songs: int
    seed: int = RESERVED_SEEDS.stop
    workers: int = 2
    """Processes."""
    duration_s: float = 44.0
    """About how long a song is; near one segment, so that as many songs as possible fit into the time."""
    speeds: tuple[float, ...] = (1.0, 0.944, 1.059)
    bands_per_vocal: int = 1
    """Bands for each vocal, as of `corpus --bands-per-vocal`; all are in the split of their vocal."""
    bank: Annotated[tuple[str, ...], LISTED] = ()
    """What plays, as of `corpus --bank`."""
    voice: Annotated[tuple[str, ...], LISTED] = ()
    """Who sings, as of `corpus --voice`."""
    capture: bool = True
    """Send each vocal through a microphone and a room of its own."""
    codec: str = "embedded"
    validation_share: float = 0.03
    segment: SegmentConfig = field(default_factory=SegmentConfig)

    def __post_init__(self) -> None:
        if self.songs < 2:
            raise UserError(f"--songs {self.songs}: must be at least 2, one is held out")
        if self.seed < RESERVED_SEEDS.stop:
            raise UserError(
                f"--seed {self.seed}: seeds {RESERVED_SEEDS.start} to {RESERVED_SEEDS.stop - 1} are for evaluation and never trained on; "
                f"give {RESERVED_SEEDS.stop} or more"
            )
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if not 4 <= self.duration_s <= 600:
            raise UserError(f"--duration-s {self.duration_s}: must be from 4 to 600 seconds; 44 suits training")
        if not 1 <= self.bands_per_vocal <= MOST_BANDS:
            raise UserError(f"--bands-per-vocal {self.bands_per_vocal}: must be from 1 to {MOST_BANDS}")
        if not self.speeds or len(set(self.speeds)) < len(self.speeds) or not 0.5 <= min(self.speeds) <= max(self.speeds) <= 2:
            raise UserError(f"--speeds {self.speeds}: give one or more, all different, from 0.5 to 2")
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share {self.validation_share}: choose above 0 and below 1, for example 0.03")


@dataclass(frozen=True, kw_only=True)
class DemoLatentsSummary:
    out: str
    songs: int
    made: int
    """Songs that this run rendered."""
    rejected: int
    """Of them and the ones there before, songs at one speed that no segment of could be used."""
    manifest: Manifest

    def __str__(self) -> str:
        rejected = f"; {self.rejected} takes rejected, see {self.out}/rejects" if self.rejected else ""
        return (
            f"{self.out}: {self.songs} songs ({self.made} made, {self.songs - self.made} there already), {self.manifest.counts}, "
            f"{self.manifest.duration_h:.2f} h{rejected}"
        )


def make_demo_latents(config: DemoLatentsConfig) -> DemoLatentsSummary:
    """Makes the songs that are missing and writes the manifest last.

    Raises: UserError when `out` was begun with another codec or settings, or is being changed; ModelError when the codec cannot be had.
    """
    settings = Settings.from_environment()
    config = replace(config, bank=choose_banks(config.bank, settings), voice=choose_voices(config.voice, settings))
    out = Place(config.out)
    out.check()
    codec = open_codec(config.codec, settings.s3, "cpu").identity
    with held(out, "demo-latents"):
        return _make(config, out, codec)


def _make(config: DemoLatentsConfig, out: Place, codec: "CodecIdentity") -> DemoLatentsSummary:
    dataset.begin(out, codec, config.segment, config.validation_share)
    version = take_version(config)
    wanted = {url: version for seed in seeds_of(config) for url in take_urls(seed, config)}
    stored = read_stored(out)
    done = stored.done(wanted)
    missing = [seed for seed in seeds_of(config) if any(done.get(url) != version for url in take_urls(seed, config))]
    splits = take_splits(config) | {seed: row["split"] for row in stored.songs.values() if (seed := take_seed(row["url"])) is not None}
    replaced = {song_id for song_id, row in stored.songs.items() if row["url"] in wanted and done.get(row["url"]) != version}
    dataset.remove_rows(out, stored, replaced)
    jobs = [_Job(seed=seed, split=splits[seed]) for seed in missing]
    with tqdm(total=len(jobs), desc="demo latents", unit="song", disable=None) as bar:
        for _ in in_processes(
            partial(_write_takes, config=config), jobs, config.workers, initializer=_open_encoder, initargs=(config, codec)
        ):
            bar.update()
    stored = read_stored(out)
    manifest = commit(out, stored, codec)
    if manifest is None:
        raise UserError(f"{out}: not one song passed the gates, see {out}/rejects; loosen --segment settings")
    rejected = sum(row["segment"] is None and row["url"] in wanted for row in stored.rejects)
    return DemoLatentsSummary(out=str(out), songs=config.songs, made=len(missing), rejected=rejected, manifest=manifest)


def seeds_of(config: DemoLatentsConfig) -> range:
    return range(config.seed, config.seed + config.songs)


def take_url(seed: int, speed: float, config: DemoLatentsConfig, band: int = 0) -> str:
    """The address of one song at one speed: it names what the audio is made from."""
    address = f"demo:{seed}?duration_s={config.duration_s:g}&speed={speed:g}&capture={int(config.capture)}"
    return f"{address}&band={band}" if band else address


def take_urls(seed: int, config: DemoLatentsConfig) -> list[str]:
    """The addresses of all takes of a vocal."""
    return [take_url(seed, speed, config, band) for speed in config.speeds for band in range(config.bands_per_vocal)]


def take_version(config: DemoLatentsConfig) -> str:
    """Changes with the generator, with what plays and with who sings; the computed voice, which was alone once, is not named."""
    played, sung = open_banks(config.bank).renderer, open_voices(config.voice).renderer
    return f"generator {GENERATOR_VERSION}, {played}" + ("" if sung == "numpy" else f", sung by {sung}")


def take_seed(url: str) -> int | None:
    """The seed in an address of `take_url`; None for another song's."""
    seed = url.removeprefix("demo:").partition("?")[0]
    return int(seed) if url.startswith("demo:") and seed.isdigit() else None


def take_splits(config: DemoLatentsConfig) -> dict[int, Split]:
    """The split of each seed, and so of all its takes; both splits have at least one song."""
    positions = {seed: dataset.position(f"demo {seed}") for seed in seeds_of(config)}
    splits: dict[int, Split] = {
        seed: "validation" if position < config.validation_share else "train" for seed, position in positions.items()
    }
    splits[min(positions, key=positions.__getitem__)] = "validation"
    splits[max(positions, key=positions.__getitem__)] = "train"
    return splits


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One song for a worker."""

    seed: int
    split: Split


_encoder: Encoder | None = None
"""A worker's own, opened once."""


def _open_encoder(config: DemoLatentsConfig, codec: "CodecIdentity") -> None:
    import torch

    global _encoder
    torch.get_num_threads()  # torch overwrites a number set before the first look
    torch.set_num_threads(1)
    _encoder = Encoder(config.codec, codec, Settings.from_environment().s3)


def _write_takes(job: _Job, config: DemoLatentsConfig) -> int:
    """Composes, sings and renders one vocal with its bands, and stores each at each speed."""
    if _encoder is None:
        raise RuntimeError("a worker began without its encoder")
    out = Place(config.out)
    banks, voices = open_banks(config.bank), open_voices(config.voice)
    records = [voices.perform(record) for record in compose_bands(job.seed, config.bands_per_vocal, config.duration_s)]
    first = render(records[0], banks, voices)
    songs = [first, *(render_band(record, first.sung, banks) for record in records[1:])]
    truths = [parsed_truth(as_json(record)) for record in records]
    for speed in config.speeds:
        vocal_CN = at_speed(first.vocals_CN, speed)
        if config.capture:
            name = f"{job.seed}/{speed:g}"
            vocal_CN = apply_capture(vocal_CN, draw_capture(Chance("capture", name)), name).astype(np.float32)
        shared = ""
        for record, song, truth in zip(records, songs, truths, strict=True):
            accompaniment_CN = at_speed(song.accompaniment_CN, speed)
            identity = replace(_identify(record, vocal_CN, accompaniment_CN), vocal_of=shared, credit=bank_credit(song.bank_licences))
            shared = shared or identity.song_id
            segmented = segment_audio(identity, vocal_CN, accompaniment_CN, config.segment)
            segmented = replace(segmented, truth=truth_at_speed(truth, speed))
            found = FoundSong(url=take_url(job.seed, speed, config, record.band), source="demo", version=take_version(config))
            dataset.write_song(out, found, _encoder.encode([segmented])[0], job.split)
    return job.seed


def _identify(record: SongRecord, vocal_CN: NDArray[np.float32], accompaniment_CN: NDArray[np.float32]) -> SongIdentity:
    """By the samples, rounded to 16 bits."""
    digest = hashlib.sha256(np.ascontiguousarray(np.concatenate([vocal_CN, accompaniment_CN]) * 32768).astype(np.int16).tobytes())
    return SongIdentity(
        song_id=digest.hexdigest()[:16],
        audio_sha256=digest.hexdigest(),
        title=record.title,
        artist="backline",
        license=record.license,
    )


def at_speed(audio_CN: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """Played faster, so higher, as a tape is; shape (2, N / speed)."""
    if speed == 1.0:
        return audio_CN
    return np.ascontiguousarray(soxr.resample(audio_CN.T, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="HQ").T)
