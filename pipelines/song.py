"""A song as a source finds it: the record that travels from listing through acquisition to the graph."""

from dataclasses import dataclass
from typing import Literal

from infra.errors import UserError

Role = Literal["vocals", "accompaniment", "mixture"]

SONG_RECORD = "song.json"


class SongError(UserError):
    """What is wrong with one song; it becomes a rejected row, and the rest goes on."""


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """One audio stream of one file. Files of one role are summed; a mixture is separated."""

    address: str
    """A local path or s3://bucket/key."""
    role: Role
    stream: int = 0
    """Which audio stream of the file, counted from 0: a MUSDB18 stem file holds five."""


@dataclass(frozen=True, kw_only=True)
class FoundSong:
    """One song of a source. `fault` says why it cannot be used; then there is no media. With `fetch` it has to be downloaded first."""

    url: str
    """Where the song is: its folder, its file, or its web address; one row a url."""
    source: str
    """The kind of its source: pairs, folder, musdb18, …"""
    version: str
    """Changes when one of the song's files does."""
    media: tuple[MediaFile, ...] = ()
    fetch: str = ""
    """The web address to download it from."""
    record: str = ""
    """Address of song.json, if there is one: title, artist and licence."""
    title: str = ""
    artist: str = ""
    license: str = ""
    """What the source itself says; song.json, where there is one, says it better."""
    fault: str = ""
    listed_by: str = ""
    """The source that lists it, as KIND:PLACE."""

    @property
    def is_mixture(self) -> bool:
        """Whether it has to be separated."""
        return bool(self.fetch) or any(file.role == "mixture" for file in self.media)
