"""Banks: who plays a part. The computed instruments are the bank that needs nothing; recorded ones are in `banks/`."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import SongRecord, Track
from pipelines.corpus.score.styles import PROGRAMS
from pipelines.corpus.sound.amplifier import AMPLIFIED, amplify
from pipelines.corpus.sound.drumkit import load_kit
from pipelines.corpus.sound.instruments import INSTRUMENTS, Key


class Bank(Protocol):
    name: str
    """Names the bank's content in `song.json`: the same name, the same sound."""
    licence: str
    """Of its recordings, an SPDX identifier and behind a comma whom to credit; "unknown"; empty where there are none."""

    def plays(self, instrument: str) -> bool:
        """`instrument` is "drums" or a key of `styles.PROGRAMS`."""

    def play(self, track: Track, record: SongRecord, samples: int) -> Array:
        """The part alone, dry, shape (2, samples). Equal records give equal bytes, whatever was played before."""


@dataclass(frozen=True, kw_only=True)
class BankSet:
    """Several banks with their weights; each part of a song is drawn one of those that play its instrument."""

    banks: tuple[Bank, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        missing = [name for name in ("drums", *PROGRAMS) if not any(bank.plays(name) for bank in self.banks)]
        if missing:
            lacks = ", ".join(f"{name} (program {PROGRAMS[name][0]})" if name in PROGRAMS else f"{name} (bank 128)" for name in missing[:4])
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise UserError(
                f"--bank {', '.join(bank.name.partition('@')[0] for bank in self.banks)}: no preset or sample for {lacks}{more}; "
                "give another bank that has them as well, for example --bank numpy"
            )

    @property
    def renderer(self) -> str:
        """What `song.json` calls this set; weights count."""
        names = (bank.name if len(self.banks) == 1 else f"{bank.name}={w:g}" for bank, w in zip(self.banks, self.weights, strict=True))
        return " + ".join(names)

    def draw(self, track: Track, record: SongRecord) -> Bank:
        able = [(bank, weight) for bank, weight in zip(self.banks, self.weights, strict=True) if bank.plays(track.instrument)]
        at = Chance("bank", record.band_seed, track.name).uniform(0, sum(weight for _, weight in able))
        for bank, weight in able:
            at -= weight
            if at < 0:
                return bank
        return able[-1][0]


class NumpyBank:
    """Sums of partials and shaped noise: no file, no package."""

    name = "numpy"
    licence = ""

    def plays(self, instrument: str) -> bool:
        return instrument == "drums" or instrument in INSTRUMENTS

    def play(self, track: Track, record: SongRecord, samples: int) -> Array:
        """Equal notes are sounded once and reused."""
        out = np.zeros((2, samples))
        kit = load_kit(record.mix.kit, record.mix.kit_tune, record.mix.kit_damp) if track.name == "drums" else {}
        sounded: dict[tuple[int, int, int], Array] = {}
        for note in track.notes:
            start = int(note.onset_s * SAMPLE_RATE_HZ)
            if track.name == "drums":
                sound = kit[note.midi] * note.velocity**1.4
            else:
                key = (note.midi, round(note.duration_s * 20), round(note.velocity * 4))
                if key not in sounded:
                    sounded[key] = INSTRUMENTS[track.instrument](Key(note.midi, max(key[1], 1) / 20, key[2] / 4))
                sound = sounded[key] * note.velocity
            stop = min(start + sound.shape[1], samples)
            if stop > start:
                out[:, start:stop] += sound[:, : stop - start]
        return amplify(out, track.instrument) if track.instrument in AMPLIFIED else out


NUMPY = BankSet(banks=(NumpyBank(),), weights=(1.0,))
