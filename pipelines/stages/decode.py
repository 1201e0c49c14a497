"""Read a song: its files hashed, decoded in a process that may die, summed by role.

Reads: found (a `FoundSong`). Gives: a `ReadSong`: its identity and its audio, as stems or as a mixture to be separated.

Shapes: C = 2 channels, N samples at 44.1 kHz.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.audio.decoder import Decoder
from infra.audio.files import AudioError
from infra.dataset.format import Split
from infra.settings import S3Access
from infra.storage.place import MissingObjectError, Place
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.song import SONG_RECORD, FoundSong, MediaFile, ReadSong, Reject, Role, SongError, SongIdentity, audio_identity
from pipelines.stages.segment import SegmentConfig
from pipelines.stages.truth import composed_truth

TAKEDOWN = "takedown"  # the stage of a reject that was taken down
# Ten times what the slowest format needs for the longest song on a busy core.
DECODE_TIMEOUT_S = 600.0
# Twenty minutes of stereo at 96 kHz in 32 bits are 0.92 GB.
MAX_FILE_BYTES = 2**30
MAX_RECORD_BYTES = 2**24
SONG_ID_DIGITS = 16
# What a song's files in S3 may take of a worker's memory between hashing and decoding; of a larger song each file is fetched twice.
HELD_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Stops:
    """Songs that need no decoding: `known` are stored already, `taken` were taken down."""

    known: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    splits: Mapping[str, Split] = field(default_factory=dict)
    """Vocal group → its split, of stored songs that are elsewhere than their hash says."""


def read_song(song: FoundSong, access: S3Access | None, config: SegmentConfig, decoder: Decoder, stops: Stops) -> ReadSong:
    """Hash and decode one song. A song that is stored already is not decoded again.

    What is wrong with the song itself becomes a reject; a storage that fails (other than a missing object) raises, for it says nothing
    about the song.
    """
    identity = unknown_identity(song)
    stage = "source"
    try:
        if song.fault:
            raise SongError(song.fault)
        stage = "read"
        files = SongFiles(song, access)
        record = _record(Place(song.record, access)) if song.record else b"{}"
        identity = _identify(song, list(files.digests.values()), record, identity.title)
        if identity.song_id in stops.taken:
            return ReadSong(identity=identity, reject=taken_down(identity.song_id))
        if identity.song_id in stops.known:
            return ReadSong(identity=identity)
        stage = "decode"
        decoded = ((file, _decode(file, files.source(file.address), config, decoder)) for file in song.media)
        sums = sum_by_role(decoded, config.max_length_difference_s)
        truth, truth_fault = composed_truth(record)
        return ReadSong(
            identity=identity,
            vocal_CN=sums.get("vocals"),
            accompaniment_CN=sums.get("accompaniment"),
            mixture_CN=sums.get("mixture"),
            truth=truth,
            truth_fault=truth_fault,
        )
    except (SongError, AudioError, MissingObjectError) as error:
        return ReadSong(identity=identity, reject=Reject(stage=stage, reason=str(error)))


def taken_down(song_id: str) -> Reject:
    """Why a song does not come back."""
    return Reject(stage=TAKEDOWN, reason=f"this recording was taken down from the dataset ({song_id}): remove it from the source too")


def unknown_identity(song: FoundSong) -> SongIdentity:
    """Of a song whose audio nobody has seen: by its address."""
    name = song.url.rstrip("/").rsplit("/", 1)[-1]
    return SongIdentity(
        song_id=hashlib.sha256(song.url.encode()).hexdigest()[:16],
        title=song.title or name,
        artist=song.artist,
        license=song.license,
        credit=song.credit,
        page_url=song.page_url,
    )


def sum_by_role(
    decoded: Iterable[tuple[MediaFile, NDArray[np.float32]]], max_length_difference_s: float
) -> dict[Role, NDArray[np.float32]]:
    """One array a role, all cut to the shortest; SongError when the files' lengths differ by more than `max_length_difference_s`."""
    sums: dict[Role, NDArray[np.float32]] = {}
    lengths: list[tuple[int, str]] = []
    for file, audio_CN in decoded:
        lengths.append((audio_CN.shape[1], _label(file)))
        before_CN = sums.get(file.role)
        if before_CN is None:
            sums[file.role] = audio_CN
        else:
            samples = min(before_CN.shape[1], audio_CN.shape[1])
            sums[file.role] = before_CN[:, :samples] + audio_CN[:, :samples]
    (shortest, short_name), (longest, long_name) = min(lengths), max(lengths)
    if (difference_s := (longest - shortest) / SAMPLE_RATE_HZ) > max_length_difference_s:
        raise SongError(
            f"the stems' lengths differ by {difference_s:.2f} s ({short_name} {shortest / SAMPLE_RATE_HZ:.2f} s, {long_name} "
            f"{longest / SAMPLE_RATE_HZ:.2f} s), more than {max_length_difference_s:g} s: export all from the same start to the same end"
        )
    return {role: audio_CN[:, :shortest] for role, audio_CN in sums.items()}


class SongFiles:
    """A song's files: all hashed at first, each given to the decoder in its turn.

    A local file the decoder reads itself. What comes from S3 is kept from the hashing when the whole song is small; otherwise one file at a
    time is in memory. Raises SongError for a file that is too large, before a byte of the song is fetched.
    """

    def __init__(self, song: FoundSong, access: S3Access | None) -> None:
        self.places = {file.address: Place(file.address, access) for file in song.media}
        sizes = {address: _checked_size(place, MAX_FILE_BYTES) for address, place in self.places.items()}
        self.keep = sum(size for address, size in sizes.items() if self.places[address].is_s3) <= HELD_BYTES
        self.uses = Counter(file.address for file in song.media)
        self.held: dict[str, bytes] = {}
        self.digests = {address: self._hash(address) for address in self.places}
        """Address → SHA-256 of the file."""

    def source(self, address: str) -> Path | bytes:
        """What the decoder is given. Called once for each stream that is wanted of a file."""
        place = self.places[address]
        if not place.is_s3:
            return place.path
        if address not in self.held:
            if not self.keep:
                self.held.clear()  # one at a time
            self.held[address] = place.read_bytes()
            if hashlib.sha256(self.held[address]).digest() != self.digests[address]:
                raise SongError(f"{place} changed while it was read: run again when it is whole")
        self.uses[address] -= 1
        return self.held[address] if self.uses[address] else self.held.pop(address)

    def _hash(self, address: str) -> bytes:
        place = self.places[address]
        if not place.is_s3 or not self.keep:
            return place.sha256()
        self.held[address] = place.read_bytes()
        return hashlib.sha256(self.held[address]).digest()


def _record(place: Place) -> bytes:
    _checked_size(place, MAX_RECORD_BYTES)
    return place.read_bytes()


def _checked_size(place: Place, most: int) -> int:
    """Bytes stored; SongError when they are more than `most`."""
    size = place.size()
    if size > most:
        raise SongError(f"{place.name} has {size / 2**20:.1f} MiB, more than the {most / 2**20:g} allowed: cut it, or leave the song out")
    return size


def _decode(file: MediaFile, source: Path | bytes, config: SegmentConfig, decoder: Decoder) -> NDArray[np.float32]:
    try:
        return decoder.decode(source, stream=file.stream, max_duration_s=config.max_duration_s, timeout_s=DECODE_TIMEOUT_S)
    except AudioError as error:
        raise type(error)(f"{_label(file)}: {error}") from error


def _label(file: MediaFile) -> str:
    """What the message calls a file: its role where its name says no more."""
    name = file.address.rsplit("/", 1)[-1]
    if file.stream:
        return f"{name}, stream {file.stream}"
    return file.role if name.lower().startswith(file.role) else name


def _identify(song: FoundSong, digests: Sequence[bytes], record: bytes, title: str) -> SongIdentity:
    """Hash of the files' bytes, and what song.json or the source says; SongError when song.json is no JSON object."""
    try:
        given = json.loads(record)
        named = {name: _text(given.get(name)) for name in ("title", "artist", "license", "credit")} if isinstance(given, dict) else {}
    except (ValueError, RecursionError) as error:
        raise SongError(f"{SONG_RECORD} is not JSON ({error}): mend or remove it") from error
    if not isinstance(given, dict):
        raise SongError(f"{SONG_RECORD} is not a JSON object: mend or remove it")
    audio_sha256 = audio_identity(digests)
    return SongIdentity(
        song_id=audio_sha256[:SONG_ID_DIGITS],
        audio_sha256=audio_sha256,
        title=named["title"] or title,
        artist=named["artist"] or song.artist,
        license=named["license"] or song.license,
        credit=named["credit"] or _rendering(given, "credit") or song.credit,
        page_url=song.page_url,
        # The song whose vocal this one shares: in a corpus with several bands a vocal.
        vocal_of=_rendering(given, "vocal_of_audio_sha256")[:SONG_ID_DIGITS],
    )


def _rendering(record: dict[str, Any], name: str) -> str:
    """What song.json of the demo corpus says of how the song was played; empty where it does not."""
    rendering = record.get("rendering")
    return _text(rendering.get(name)) if isinstance(rendering, dict) else ""


def _text(value: object) -> str:
    """JSON may hold half a surrogate pair, which no file can."""
    return str(value or "").encode("utf-8", "replace").decode()
