"""The truth of one demo song, as composed and as rendered: what `song.json` holds."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

GENERATOR_VERSION = "3"
SCHEMA_VERSION = 1
LICENSE = "CC0-1.0"


@dataclass(frozen=True, kw_only=True)
class Chord:
    start_s: float
    end_s: float
    root: int
    """Pitch class, 0 = C."""
    quality: str
    """A key of `harmony.QUALITIES`."""
    pitch_classes: tuple[int, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class Section:
    name: str
    start_s: float
    end_s: float
    first_bar: int
    bars: int
    intensity: float


@dataclass(frozen=True, kw_only=True)
class VocalNote:
    score_onset_s: float
    """Where the score puts it: on the beat grid, swing included."""
    onset_s: float
    """Where the vowel begins as sung; consonants come before it."""
    offset_s: float
    midi: int
    velocity: float
    syllable: str
    phones: tuple[str, ...]
    """ARPAbet-like; exactly one vowel."""
    phrase: int
    spoken: bool = False
    """Half spoken, in time: the pitch falls through the syllable and is only near `midi`. `song.json` leaves it out where it is false."""


@dataclass(frozen=True, kw_only=True)
class Note:
    onset_s: float
    duration_s: float
    midi: int
    """A pitch, or for drums a General MIDI drum key."""
    velocity: float
    slide: float = 0.0
    """Semitones from which the pitch slides into the note, 0 for none."""


@dataclass(frozen=True, kw_only=True)
class Track:
    name: str
    instrument: str
    program: int
    """General MIDI program, 0-based, for a sampled band."""
    level_db: float
    """Active level relative to the vocal."""
    pan: float
    """-1 left … 1 right."""
    reverb: float
    tilt_db: float
    """Colour: gain of what is above 800 Hz, the opposite below."""
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Voice:
    kind: str
    low_midi: int
    high_midi: int
    tract: float
    """Formant scale: 1 a grown man's vocal tract, about 1.17 a woman's."""
    tilt: float
    """Spectral slope of the glottal source: amplitude of harmonic k falls as k ** -tilt."""
    breathiness_db: float
    """Aspiration beside the voiced sound."""
    vibrato_hz: float
    vibrato_cents: float
    glide_s: float
    scoop_semitones: float


@dataclass(frozen=True, kw_only=True)
class Mix:
    loudness_lufs: float
    peak_dbfs: float
    side_to_mid_db: float
    room_s: float
    """Reverberation time of the band's room."""
    vocal_room_s: float
    vocal_reverb_db: float
    vocal_echo_db: float
    pump: float
    """How far the kick ducks sustained instruments, 0 … 1."""
    kit: str
    kit_tune: float
    """Pitch of drums and cymbals beside the kit's own."""
    kit_damp: float
    """Length of its strokes beside the kit's own."""


@dataclass(frozen=True, kw_only=True)
class SongRecord:
    """A composition: everything that a renderer needs, and the truth that a listener can be tested against."""

    seed: int
    title: str
    style: str
    key: str
    tonic: int
    mode: str
    tempo_bpm: float
    """Beats a minute in the mean: quarters, in 6/8 dotted quarters."""
    metre: str
    """4/4, 3/4 or 6/8."""
    swing: float
    """Share of the first half in a swung pair: 0.5 is straight."""
    swing_unit: int
    """8 or 16: the note value that swings."""
    duration_s: float
    beats_s: tuple[float, ...]
    downbeats_s: tuple[float, ...]
    chords: tuple[Chord, ...]
    sections: tuple[Section, ...]
    vocal: tuple[VocalNote, ...]
    tracks: tuple[Track, ...]
    voice: Voice
    mix: Mix
    drift: float = 0.0
    """How far the tempo wanders, as a share of it: 0 with a click, some hundredths without."""
    generator_version: str = GENERATOR_VERSION
    schema_version: int = SCHEMA_VERSION
    license: str = LICENSE
    band: int = 0
    """Which of the bands for this vocal: 0 is the one that the song was written with."""
    vocal_of: str = ""
    """The song, by its id, whose vocal this one shares; empty where the vocal is its own."""

    @property
    def song_id(self) -> str:
        return f"song-{self.seed:06d}" + (f"-band-{self.band}" if self.band else "")

    @property
    def band_seed(self) -> int | str:
        """What the band's draws are named after; the singer's are named after `seed`."""
        return f"{self.seed}/{self.band}" if self.band else self.seed

    def sha256(self) -> str:
        """Identity of the composition: SHA-256 of its canonical JSON."""
        return hashlib.sha256(json.dumps(as_json(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How a record became audio; hashes are SHA-256 of the files' bytes."""

    renderer: str
    loudness_lufs: float
    peak_dbfs: float
    side_to_mid_db: float
    vocal_gain_db: float
    accompaniment_gain_db: float
    samples: int
    f0_rate_hz: int
    sha256: dict[str, str]
    banks: dict[str, str] = field(default_factory=dict)
    """Which bank played each part; empty in songs of generators 1 and 2."""
    voices: str = "numpy"
    """The singers that the song's was drawn from, with their weights."""
    voice: str = "numpy"
    """Who sang, with the version of what it sings with."""
    timbre: dict[str, float] = field(default_factory=dict)
    """How this song's voice differs from the singer's own."""
    doubled: bool = False
    """Whether the choruses have a second take behind the first."""
    bank_licences: dict[str, str] = field(default_factory=dict)
    """Bank, or voice → the licence of its recordings, and whom to credit."""
    credit: str = ""
    """What the banks' licences ask to be said of the song."""
    vocal_of_audio_sha256: str = ""
    """`audio_sha256` of the song that the vocal is shared with, as `prepare` calls it: vocals.wav and accompaniment.wav together."""


def as_json(record: SongRecord) -> dict[str, Any]:
    """A dictionary ready for JSON; a track's notes are rows of onset, duration, MIDI, velocity and, where
    there is one, slide: there are thousands."""
    document = dataclasses.asdict(record)
    for note in document["vocal"]:
        if not note["spoken"]:
            del note["spoken"]
    for track, row in zip(record.tracks, document["tracks"], strict=True):
        row["notes"] = [
            [note.onset_s, note.duration_s, note.midi, note.velocity, *([note.slide] if note.slide else ())] for note in track.notes
        ]
    return _without_empty(document, ("band", "vocal_of"))


def _without_empty(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Songs with a vocal of their own say nothing of other bands: their records stay what they were."""
    return {name: value for name, value in document.items() if value or name not in names}


def song_json(record: SongRecord, rendering: Rendering) -> bytes:
    """The bytes of `song.json`."""
    document = {"song_id": record.song_id, **as_json(record)}
    document["record_sha256"] = record.sha256()
    document["rendering"] = _without_empty(dataclasses.asdict(rendering), ("bank_licences", "credit", "vocal_of_audio_sha256"))
    return (json.dumps(document, indent=1) + "\n").encode()


def read_song_json(data: bytes | str) -> tuple[SongRecord, Rendering, str]:
    """Inverse of `song_json`: the record, its rendering, and the record hash as stored."""
    document = json.loads(data)
    document.pop("song_id")
    stored = document.pop("record_sha256")
    rendering = Rendering(**document.pop("rendering"))
    document["beats_s"] = tuple(document["beats_s"])
    document["downbeats_s"] = tuple(document["downbeats_s"])
    document["chords"] = tuple(Chord(**{**row, "pitch_classes": tuple(row["pitch_classes"])}) for row in document["chords"])
    document["sections"] = tuple(Section(**row) for row in document["sections"])
    document["vocal"] = tuple(VocalNote(**{**row, "phones": tuple(row["phones"])}) for row in document["vocal"])
    document["tracks"] = tuple(Track(**{**row, "notes": tuple(_note(*values) for values in row["notes"])}) for row in document["tracks"])
    document["voice"] = Voice(**document["voice"])
    document["mix"] = Mix(**document["mix"])
    return SongRecord(**document), rendering, stored


def _note(onset_s: float, duration_s: float, midi: int, velocity: float, slide: float = 0.0) -> Note:
    return Note(onset_s=onset_s, duration_s=duration_s, midi=midi, velocity=velocity, slide=slide)
