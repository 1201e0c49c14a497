"""A General MIDI soundfont as a bank: each part by one preset, dry."""

from functools import cache

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.score.record import SongRecord, Track
from pipelines.corpus.score.styles import PROGRAMS
from pipelines.corpus.sound.amplifier import AMPLIFIED, amplify
from pipelines.corpus.sound.banks.licence import bank_licence
from pipelines.corpus.sound.banks.players import BLOCK, FluidPlayer, Player, TinyPlayer, needs_fluidsynth
from pipelines.corpus.sound.banks.sf2 import DRUM_BANK, Soundfont

# A kit of the record to General MIDI's kits; the standard kit stands in for one that a font lacks.
_KITS = {"studio": (0, 8, 16), "soft": (40, 32, 0), "machine": (25, 24)}
_STANDARD_KIT = 0
_CLEAN_GUITAR = 27
_SLIDE_S = 0.07
_SLIDE_STEPS = 6


class SoundfontBank:
    def __init__(self, font: Soundfont) -> None:
        self.font = font
        self.name = f"{font.path.name}@{font.digest}"
        self.licence = bank_licence(font.path)

    def plays(self, instrument: str) -> bool:
        return not self.missing(instrument)

    def missing(self, instrument: str) -> list[str]:
        """The presets that an instrument may ask for and the font lacks: a player would silently take another."""
        if instrument == "drums":
            return [] if (DRUM_BANK, _STANDARD_KIT) in self.font.presets else [f"drums (bank {DRUM_BANK}, program {_STANDARD_KIT})"]
        wanted = (_CLEAN_GUITAR,) if instrument in AMPLIFIED else PROGRAMS[instrument]
        return [f"{instrument} (bank 0, program {program})" for program in wanted if (0, program) not in self.font.presets]

    def play(self, track: Track, record: SongRecord, samples: int) -> Array:
        player = _player(self.font)
        if track.name == "drums":
            kits = [kit for kit in _KITS[record.mix.kit] if (DRUM_BANK, kit) in self.font.presets]
            player.select(DRUM_BANK, kits[(record.seed + record.band) % len(kits)] if kits else _STANDARD_KIT)
            return _stream(player, track, samples)
        if track.instrument in AMPLIFIED:
            player.select(0, _CLEAN_GUITAR)
            return amplify(_stream(player, track, samples), track.instrument)
        player.select(0, track.program)
        return _stream(player, track, samples)


@cache
def _player(font: Soundfont) -> Player:
    """A font is loaded once a process: some hundred megabytes each."""
    return FluidPlayer(font.path) if needs_fluidsynth(font) else TinyPlayer(font.path)


def _stream(player: Player, track: Track, samples: int) -> Array:
    """The part's events in one fixed order, each on its block of 64 samples (1.5 ms); shape (2, samples)."""
    events: list[tuple[int, int, int, float]] = []  # block, kind (0 off, 1 bend, 2 on), pitch, velocity or semitones
    for note in track.notes:
        start = round(note.onset_s * SAMPLE_RATE_HZ / BLOCK)
        stop = max(start + 1, round((note.onset_s + note.duration_s) * SAMPLE_RATE_HZ / BLOCK))
        events += [(start, 2, note.midi, note.velocity), (stop, 0, note.midi, 0.0)]
        if note.slide:
            for step in range(_SLIDE_STEPS + 1):
                at = start + round(step / _SLIDE_STEPS * _SLIDE_S * SAMPLE_RATE_HZ / BLOCK)
                events.append((at, 1, 0, note.slide * (1 - step / _SLIDE_STEPS)))
    pieces, now, last = [], 0, -(-samples // BLOCK)
    for block, kind, midi, value in sorted(events):
        if block >= last:
            break
        pieces.append(player.render(block - now))
        now = block
        if kind == 2:
            player.note_on(midi, value)
        elif kind == 1:
            player.bend(value)
        else:
            player.note_off(midi)
    pieces.append(player.render(last - now))
    return np.concatenate(pieces)[:samples].T.astype(np.float64)
