"""The listening set: reserved demo songs sung under every condition, in a folder or a bucket."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

from tqdm import tqdm

from infra.dataset.format import RESERVED_SEEDS
from infra.errors import UserError
from infra.storage.place import Place
from pipelines.corpus.processes import in_processes
from pipelines.corpus.score.compose import compose
from pipelines.corpus.score.record import GENERATOR_VERSION
from pipelines.corpus.sound.render import render
from pipelines.corpus.vocals.conditions import CONDITIONS, SAME_PERFORMANCE, Severity, vocal_under
from pipelines.corpus.write import wav_bytes

log = logging.getLogger(__name__)

LISTENING_SET = "listening-set.json"


@dataclass(frozen=True, kw_only=True)
class ListeningSetConfig:
    """What to write: `songs` songs, song i from seed `seed + i`, each under every condition."""

    out: str
    """Local folder or s3://bucket/prefix."""
    songs: int
    seed: int = 900
    """Of the seeds that nothing is trained on."""
    workers: int = 2
    """Processes."""
    duration_s: float = 36.0
    """About how long a song is."""

    def __post_init__(self) -> None:
        if self.songs < 1:
            raise UserError(f"--songs {self.songs}: must be at least 1")
        if not (RESERVED_SEEDS.start <= self.seed and self.seed + self.songs <= RESERVED_SEEDS.stop):
            raise UserError(
                f"--seed {self.seed} --songs {self.songs}: seeds must lie in {RESERVED_SEEDS.start}..{RESERVED_SEEDS.stop - 1}, "
                "which models never train on"
            )
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1, 2 is a good start")
        if not 10 <= self.duration_s <= 600:
            raise UserError(f"--duration-s {self.duration_s}: must be from 10 to 600 seconds; 36 leaves 24 of singing")


@dataclass(frozen=True, kw_only=True)
class ListeningSong:
    """A song of the set; its vocals are <song_id>/<condition>.wav."""

    song_id: str
    seed: int
    record_sha256: str
    style: str
    voice: str
    tempo_bpm: float
    duration_s: float
    entry_s: float
    """Where the singing begins, as written."""


@dataclass(frozen=True, kw_only=True)
class ListeningSet:
    """What `listening-set.json` holds."""

    conditions: tuple[str, ...]
    same_performance: tuple[str, ...]
    """Conditions whose vocal is the clean one, captured otherwise."""
    severity: Severity
    songs: tuple[ListeningSong, ...]
    generator_version: str = GENERATOR_VERSION

    def __str__(self) -> str:
        return f"{len(self.songs)} songs under {len(self.conditions)} conditions: {', '.join(self.conditions)}"

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def write_listening_set(config: ListeningSetConfig) -> ListeningSet:
    """Writes every song under every condition, and the description last. Equal configs write equal bytes on one installation."""
    with tqdm(total=config.songs, desc="listening set", unit="song", disable=None) as bar:
        songs = []
        for song in _each_song(config):
            log.info("wrote %s: %s, %s", song.song_id, song.style, song.voice)
            songs.append(song)
            bar.update()
    songs.sort(key=lambda song: song.seed)
    listening_set = ListeningSet(conditions=CONDITIONS, same_performance=tuple(SAME_PERFORMANCE), severity=Severity(), songs=tuple(songs))
    (Place(config.out) / LISTENING_SET).write_bytes(listening_set.to_json())
    return listening_set


def _each_song(config: ListeningSetConfig) -> Iterator[ListeningSong]:
    seeds = range(config.seed, config.seed + config.songs)
    if config.workers == 1 or config.songs == 1:
        yield from (_write_song(seed, config) for seed in seeds)
    else:
        yield from in_processes(partial(_write_song, config=config), seeds, config.workers)


def _write_song(seed: int, config: ListeningSetConfig) -> ListeningSong:
    record = compose(seed, config.duration_s)
    song = render(record)
    for condition in CONDITIONS:
        wav = wav_bytes(vocal_under(condition, record, song))
        (Place(config.out) / record.song_id / f"{condition}.wav").write_bytes(wav)
    return ListeningSong(
        song_id=record.song_id,
        seed=seed,
        record_sha256=record.sha256(),
        style=record.style,
        voice=record.voice.kind,
        tempo_bpm=record.tempo_bpm,
        duration_s=record.duration_s,
        entry_s=record.vocal[0].onset_s,
    )
