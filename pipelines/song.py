"""The records of a song on its way: FoundSong, ReadSong, SegmentedSong, EncodedSong, SongResult; and what its band plays, SongTruth."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infra.dataset.format import Split
from infra.dataset.truth import TruthSource
from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ

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
    credit: str = ""
    """The attribution that its licence asks for."""
    page_url: str = ""
    """Where it can be read about."""
    split: Split | None = None
    """The split that the source chose; None: by a hash of the song."""
    fault: str = ""
    listed_by: str = ""
    """The source that lists it, as KIND:PLACE."""

    @property
    def is_mixture(self) -> bool:
        """Whether it has to be separated."""
        return bool(self.fetch) or any(file.role == "mixture" for file in self.media)


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Why a song, or one segment of it, is not in the dataset."""

    stage: str
    reason: str
    segment: int | None = None


def audio_identity(digests: Iterable[bytes]) -> str:
    """`audio_sha256` of a song: over the SHA-256 of each of its files, vocals first."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SongIdentity:
    """Which song it is. The id comes from the audio, so that a copied or moved song is the same song."""

    song_id: str
    audio_sha256: str = ""
    title: str = ""
    artist: str = ""
    license: str = ""
    credit: str = ""
    page_url: str = ""
    vocal_of: str = ""
    """The song id of the song that the vocal is shared with; empty where the vocal is its own."""

    @property
    def vocal_group(self) -> str:
        """Equal for songs that share a vocal."""
        return self.vocal_of or self.song_id


@dataclass(frozen=True, kw_only=True)
class ChordSpan:
    """One chord of a song."""

    start_s: float
    end_s: float
    root: int
    """Pitch class, 0 = C."""
    quality: int
    """A place in `model.chords.QUALITIES`."""
    bass: int
    """Pitch class."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One beat of a song."""

    time_s: float
    position: int
    """Place in its bar, 0 = downbeat."""
    bar_beats: int
    """Beats of its bar; 0 where no bar is known."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a song."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, kw_only=True)
class SongTruth:
    """What the band plays, as composed or as heard. None and empty: not known. Confidences are 0 to 1."""

    source: TruthSource
    chords: tuple[ChordSpan, ...] | None = None
    """In order; between them no chord sounds."""
    beats: tuple[Beat, ...] = ()
    style: str | None = None
    tempo_bpm: float | None = None
    key: str | None = None
    """As "F# minor"."""
    metre: str | None = None
    """As "6/8"."""
    sections: tuple[Section, ...] = ()
    tempo_confidence: float = 1.0
    key_confidence: float = 1.0
    chord_confidence: float = 1.0
    beat_confidence: float = 1.0
    bar_confidence: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadSong:
    """A song's audio: stems, or a mixture to be separated; nothing when it is rejected or stored already."""

    identity: SongIdentity
    vocal_CN: NDArray[np.float32] | None = None
    accompaniment_CN: NDArray[np.float32] | None = None
    mixture_CN: NDArray[np.float32] | None = None
    separator_id: str | None = None
    """What the stems come from; None when they came separate."""
    truth: SongTruth | None = None
    """As song.json states it."""
    truth_fault: str = ""
    """What is wrong with it there."""
    reject: Reject | None = None

    @property
    def duration_s(self) -> float:
        audio_CN = self.mixture_CN if self.mixture_CN is not None else self.vocal_CN
        return 0.0 if audio_CN is None else audio_CN.shape[1] / SAMPLE_RATE_HZ

    def rejected(self, stage: str, reason: str) -> "ReadSong":
        """The song without its audio, and why."""
        return ReadSong(identity=self.identity, reject=Reject(stage=stage, reason=reason))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """One segment; both stems under the same gain, so that their balance survives."""

    index: int
    start_s: float
    vocal_CN: NDArray[np.float32]
    accompaniment_CN: NDArray[np.float32]
    vocal_active: float
    vocal_level_db: float
    gain_db: float
    separation_quality: float | None = None
    """0 to 1; None when the stems came separate."""

    @property
    def duration_s(self) -> float:
        return self.vocal_CN.shape[1] / SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentedSong:
    """A song ready for the codec; without segments it is rejected as a whole, without rejects too it is stored already."""

    identity: SongIdentity
    duration_s: float = 0.0
    segments: tuple[Segment, ...] = ()
    rejects: tuple[Reject, ...] = ()
    separator_id: str | None = None
    fingerprint: tuple[int, ...] | None = None
    """Of the middle of the mixture (`model.listen.fingerprint`)."""
    truth: SongTruth | None = None
    truth_fault: str = ""
    """Why there is no truth, or none of the better kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSegment:
    """One segment as stored: (64, 1024) float16 latents, zeros after `valid_frames`."""

    index: int
    start_s: float
    duration_s: float
    valid_frames: int
    vocal_CT: NDArray[np.float16]
    accompaniment_CT: NDArray[np.float16]
    vocal_active: float
    vocal_level_db: float
    gain_db: float
    separation_quality: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSong:
    """A song ready to be stored; without segments it is rejected as a whole."""

    identity: SongIdentity
    duration_s: float
    segments: tuple[EncodedSegment, ...]
    rejects: tuple[Reject, ...]
    separator_id: str | None = None
    fingerprint: tuple[int, ...] | None = None
    truth: SongTruth | None = None
    truth_fault: str = ""


@dataclass(frozen=True, kw_only=True)
class SongResult:
    """What the graph gives back of a song: no arrays."""

    url: str
    song_id: str
    stored: bool
    rejected_by: str = ""
    """The stage that rejected it as a whole."""
    reason: str = ""
    audio_s: float = 0.0
    identity: SongIdentity
    """What the source says of it now: a song that is stored already may have another title or licence since."""
