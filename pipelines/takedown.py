"""A song out of a dataset, with everything derived from it: latents, rows, downloads; and which checkpoints have heard it.

The order: first a note that the song is not wanted, which every later run obeys, then a commit without it, then the removal of what is
left. Killed anywhere, the same command (or the next prepare) ends the work.
"""

from dataclasses import dataclass

from infra.errors import UserError
from infra.lease import held
from infra.records import read_manifest
from infra.snapshots import digests_with
from infra.storage import Place
from infra.trainings import Training, trainings_on
from model.codec_base import CodecIdentity
from pipelines import dataset
from pipelines.acquire import remove_media
from pipelines.commits import finish
from pipelines.read import taken_down
from pipelines.songs import FoundSong
from pipelines.stored import note_takedown, read_stored


@dataclass(frozen=True, kw_only=True)
class TakedownConfig:
    """Remove a song from a dataset for good."""

    data: str
    """The dataset's place."""
    song: str
    """The song's id, as in songs/ and latents/."""
    media: str | None = None
    """Where downloads are kept, when it is not media/ below --data."""


@dataclass(frozen=True, kw_only=True)
class TakedownSummary:
    """What was removed, and who has heard it."""

    song_id: str
    title: str
    segments: int
    """Rows of latents removed by this run."""
    trainings: tuple[Training, ...]

    def __str__(self) -> str:
        lines = [f"{self.song_id} {self.title!r}: {self.segments} segments removed; no later prepare brings it back"]
        if self.trainings:
            lines.append(f"{len(self.trainings)} runs were trained on it; their checkpoints remember it and want to be trained anew:")
            lines += [f"  {training.checkpoint} (dataset {training.dataset_digest[:8]}, {training.began})" for training in self.trainings]
        else:
            lines.append("no run that was trained on it is known")
        return "\n".join(lines)


def takedown(config: TakedownConfig) -> TakedownSummary:
    """Remove the song; UserError when the dataset never held it."""
    data = Place(config.data)
    read_manifest(data)  # where no dataset is, nothing is written
    with held(data, "takedown"):
        return _takedown(data, config)


def _takedown(data: Place, config: TakedownConfig) -> TakedownSummary:
    manifest = read_manifest(data)
    stored = read_stored(data)
    row = stored.songs.get(config.song)
    digests = digests_with(data, config.song)
    if row is None and not digests and config.song not in stored.taken:
        raise UserError(f"{data} holds no song {config.song!r}: give a song_id of {data}/songs/*.parquet")
    note_takedown(data, stored, config.song)
    codec = CodecIdentity(id=manifest.codec_id, weights_sha256=manifest.codec_weights_sha256)
    now = read_stored(data)
    # Songs that a prepare has not settled yet are its to commit.
    waiting = frozenset(file for song_id, file in now.files.items() if song_id not in now.committed)
    finish(data, now.only(now.committed), codec, (), keep=waiting)
    media = Place(config.media) if config.media else data / "media"
    # Its addresses, and those of its copies, stay known as such: the next prepare does not even ask for them.
    versions = {str(row["url"]): str(row["source_version"])} if row else {}
    versions |= {str(reject["url"]): str(reject["source_version"]) for reject in stored.rejects if reject["song_id"] == config.song}
    for url, version in versions.items():
        found = FoundSong(url=url, source="", version=version)
        dataset.write_rejects(data, found, config.song, [taken_down(config.song)])
        remove_media(media, url)
    return TakedownSummary(
        song_id=config.song,
        title=str(row["title"]) if row else "",
        segments=int(row["segments"]) if row else 0,
        trainings=tuple(trainings_on(data, digests)),
    )
