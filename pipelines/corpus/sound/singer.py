"""Singers: who sings a song. The numpy singer needs nothing; those that sing with other people's voices are in `voices/`."""

from dataclasses import dataclass
from typing import Protocol

from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import SongRecord
from pipelines.corpus.sound.delivery import speak_verses
from pipelines.corpus.sound.voice import sing


class Singer(Protocol):
    name: str
    """Names the voice's content in `song.json`: the same name, the same sound."""
    licence: str
    """Of the recordings that it sings with, and whom to credit; empty for a voice that is computed."""
    performs: bool
    """Whether it speaks some songs' verses and doubles some songs' choruses."""

    def timbre(self, record: SongRecord) -> dict[str, float]:
        """How this song's voice differs from the singer's own; for `song.json`."""

    def sing(self, record: SongRecord, samples: int) -> tuple[Array, Array]:
        """The dry vocal, shape (samples,), and its F0 in Hz at 200 Hz, 0 where unvoiced. Zeros before the first breath.

        Equal records give equal bytes, whatever was sung before.
        """


@dataclass(frozen=True, kw_only=True)
class SingerSet:
    """Several singers with their weights; each song is drawn one of them."""

    singers: tuple[Singer, ...]
    weights: tuple[float, ...]

    @property
    def renderer(self) -> str:
        """What `song.json` calls this set; weights count."""
        if len(self.singers) == 1:
            return self.singers[0].name
        return " + ".join(f"{singer.name}={weight:g}" for singer, weight in zip(self.singers, self.weights, strict=True))

    def draw(self, seed: int) -> Singer:
        at = Chance("singer of a song", seed).uniform(0, sum(self.weights))
        for singer, weight in zip(self.singers, self.weights, strict=True):
            at -= weight
            if at < 0:
                return singer
        return self.singers[-1]

    def perform(self, record: SongRecord) -> SongRecord:
        """The record as this song's singer performs it: verses may be spoken, and the notes then say so."""
        return speak_verses(record) if self.draw(record.seed).performs else record


class NumpySinger:
    """A glottal source through formants: no file, no package."""

    name = "numpy"
    licence = ""
    performs = False

    def timbre(self, record: SongRecord) -> dict[str, float]:
        return {"formants": record.voice.tract}

    def sing(self, record: SongRecord, samples: int) -> tuple[Array, Array]:
        return sing(record, samples)


NUMPY_VOICE = SingerSet(singers=(NumpySinger(),), weights=(1.0,))
