"""The optional band: each part as a MIDI file, played from the FluidR3 soundfont by the fluidsynth program, dry."""

import importlib.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from infra.errors import UserError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array
from pipelines.corpus.score.record import SongRecord, Track

SOUNDFONTS = tuple(
    Path(folder) / "FluidR3_GM.sf2"
    for folder in ("/usr/share/sounds/sf2", "/usr/share/soundfonts", "/usr/local/share/soundfonts", "/opt/homebrew/share/soundfonts")
)
_TICKS_PER_S = 10_000
_DRUM_CHANNEL = 9
_TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Fluidsynth:
    program: str
    soundfont: Path


def find_fluidsynth() -> Fluidsynth:
    """The installed synthesiser and its soundfont; UserError with the remedy where something is missing."""
    remedy = 'apt-get install fluidsynth fluid-soundfont-gm and pip install "backline[fluidsynth]", or take --band numpy'
    if importlib.util.find_spec("mido") is None:
        raise UserError(f"--band fluidsynth needs the Python package mido, which is not installed: {remedy}")
    program = shutil.which("fluidsynth")
    if program is None:
        raise UserError(f"--band fluidsynth needs the program fluidsynth, which is not on the PATH: {remedy}")
    soundfont = next((path for path in SOUNDFONTS if path.is_file()), None)
    if soundfont is None:
        raise UserError(
            f"--band fluidsynth needs FluidR3_GM.sf2, found in none of {', '.join(str(p.parent) for p in SOUNDFONTS)}: {remedy}"
        )
    return Fluidsynth(program, soundfont)


def play_sampled(record: SongRecord, samples: int) -> dict[str, Array]:
    """Every part of a record by name, shape (2, samples), without reverberation or chorus."""
    synth = find_fluidsynth()
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for track in record.tracks:
            midi, wav = Path(folder) / f"{track.name}.mid", Path(folder) / f"{track.name}.wav"
            write_midi(track, midi)
            _run(synth, midi, wav)
            audio_NC, _ = sf.read(wav, dtype="float64", always_2d=True)
            part = np.zeros((2, samples))
            part[:, : min(samples, len(audio_NC))] = audio_NC[:samples].T
            parts[track.name] = part
    return parts


def write_midi(track: Track, path: Path) -> None:
    """One part as a standard MIDI file with a tick of 0.1 ms, so that the performance's timing survives."""
    import mido

    channel = _DRUM_CHANNEL if track.name == "drums" else 0
    events: list[tuple[int, int, mido.Message]] = []
    for note in track.notes:
        start = round(note.onset_s * _TICKS_PER_S)
        stop = max(start + 1, round((note.onset_s + note.duration_s) * _TICKS_PER_S))
        velocity = max(1, min(127, round(note.velocity * 115)))
        events.append((start, 1, mido.Message("note_on", channel=channel, note=note.midi, velocity=velocity)))
        events.append((stop, 0, mido.Message("note_off", channel=channel, note=note.midi, velocity=0)))
    file = mido.MidiFile(ticks_per_beat=_TICKS_PER_S // 2)  # at MIDI's own tempo of 120 beats a minute
    line = mido.MidiTrack()
    file.tracks.append(line)
    line.append(mido.Message("program_change", channel=channel, program=track.program if channel == 0 else 0))
    now = 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        line.append(message.copy(time=tick - now))
        now = tick
    file.save(str(path))


def _run(synth: Fluidsynth, midi: Path, wav: Path) -> None:
    command = [synth.program, "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(SAMPLE_RATE_HZ), "-O", "float", "-T", "wav"]
    command += ["-F", str(wav), str(synth.soundfont), str(midi)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False)
    if done.returncode or not wav.exists():
        raise UserError(f"fluidsynth ended with {done.returncode} and said {done.stderr.strip()[-200:]!r}: check it, or take --band numpy")
