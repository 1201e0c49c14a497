"""A song out of a dataset, with everything derived from it: latents, rows, downloads; and which checkpoints have heard it.

The order: first a note that the song is not wanted and where it was found, which every later run obeys, then the removal of its
downloads, then a commit without it and the removal of what is left. Killed anywhere, the same command ends the work: the note remembers
the addresses when the rows are gone.
"""

from dataclasses import dataclass

import pyarrow.compute as pc

from infra.dataset.format import MANIFEST, read_manifest
from infra.dataset.snapshots import digests_with, read_rows
from infra.dataset.trained_on import Training, trainings_on
from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from pipelines.acquire.acquire import remove_media
from pipelines.dataset import write as dataset
from pipelines.dataset.commit import finish
from pipelines.dataset.contents import note_takedown, read_stored
from pipelines.song import FoundSong
from pipelines.stages.decode import taken_down


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
    same_vocal: tuple[str, ...] = ()
    """Songs that are still there and share its vocal."""

    def __str__(self) -> str:
        lines = [f"{self.song_id} {self.title!r}: {self.segments} segments removed; no later prepare brings it back"]
        if self.same_vocal:
            lines.append(f"its vocal is in {', '.join(self.same_vocal)} too: take these down as well if the vocal is meant")
        if self.trainings:
            lines.append(f"{len(self.trainings)} runs were trained on it; their checkpoints remember it and want to be trained anew:")
            lines += [f"  {training.checkpoint} (dataset {training.dataset_digest[:8]}, {training.began})" for training in self.trainings]
        else:
            lines.append("no run that was trained on it is known")
        return "\n".join(lines)


def takedown(config: TakedownConfig) -> TakedownSummary:
    """Remove the song; UserError when the dataset never held it, or no commit says which songs it holds."""
    data = Place(config.data)
    # Where no dataset is, nothing is written. A kill after the last song's takedown leaves no manifest either.
    if config.song not in read_stored(data).taken:
        read_manifest(data)
    with held(data, "takedown"):
        return _takedown(data, config)


def _takedown(data: Place, config: TakedownConfig) -> TakedownSummary:
    stored = read_stored(data)
    # A kill after the last song's takedown leaves no manifest, and what it did not come to remove.
    ended = config.song in stored.taken and not (data / MANIFEST).exists()
    codec, segments = (CodecIdentity(id="", weights_sha256=""), 0) if ended else _committed(data, config.song)
    row = stored.songs.get(config.song)
    group = dataset.group_of(row or {"song_id": config.song})
    digests = digests_with(data, config.song)
    if row is None and not digests and config.song not in stored.taken:
        raise UserError(f"{data} holds no song {config.song!r}: give a song_id of {data}/songs/*.parquet")
    note = note_takedown(data, stored, config.song)
    media = Place(config.media) if config.media else data / "media"
    # Its addresses, and those of its copies, stay known as such: the next prepare does not even ask for them.
    others = {row["url"] for song_id, row in stored.songs.items() if song_id != config.song}
    for url, version in note.addresses.items():
        if url in others:  # another recording is there since
            continue
        found = FoundSong(url=url, source="", version=version)
        dataset.write_rejects(data, found, config.song, [taken_down(config.song)])
        remove_media(media, url)
    now = read_stored(data)
    # Songs that a prepare has not settled yet are its to commit.
    waiting = frozenset(file for song_id, file in now.files.items() if song_id not in now.committed)
    finish(data, now.only(now.committed), codec, (), keep=waiting)
    return TakedownSummary(
        song_id=config.song,
        title=str(row["title"]) if row else "",
        segments=int(row["segments"]) if row else segments,
        trainings=tuple(trainings_on(data, digests)),
        same_vocal=tuple(sorted(song_id for song_id, other in now.songs.items() if dataset.group_of(other) == group)),
    )


def _committed(data: Place, song_id: str) -> tuple[CodecIdentity, int]:
    """The codec of the last commit, and how many segments of the song it holds; UserError when there is none, or it names no songs."""
    manifest = read_manifest(data)
    if manifest.snapshot is None:
        raise UserError(f"{data} was written before snapshots were: run prepare once, then take the song down")
    rows = read_rows(data, manifest.snapshot)
    segments = pc.sum(rows.filter(pc.equal(rows["song_id"], song_id))["segments"]).as_py()
    return CodecIdentity(id=manifest.codec_id, weights_sha256=manifest.codec_weights_sha256), segments or 0
