"""A drum kit as a folder of pieces, each with its hits, soft to loud in any order: their measured loudness is their velocity."""

from pathlib import Path

import numpy as np

from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Array, Chance
from pipelines.corpus.score.record import SongRecord, Track
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.sound.banks.licence import bank_licence
from pipelines.corpus.sound.banks.samples import audio_files, digest, read_sample, rms
from pipelines.corpus.sound.drumkit import load_kit

# A drum to what its folder's name begins with, small letters only.
_PIECES = {
    "kick": ("kdruml", "kdrum", "kick", "bassdrum"), "snare": ("snare",), "hat": ("hihatclosed", "closedhat"),
    "open": ("hihatopen", "openhat"), "ride": ("ridel", "ride"), "crash": ("crash",), "rim": ("rim", "sidestick"), "clap": ("clap",),
    "shaker": ("shaker", "maracas"), "tambourine": ("tambourine",),
}  # fmt: skip
_NOT_PLAYED = ("rest", "bell", "rider", "kdrumr", "bottom", "custom")
_TOMS = ("tom_high", "tom_mid", "tom_low")
_TOM_WORDS = ((("floor",), 3), (("high", "hitom", "tomhi"), 0), (("low", "lotom", "tomlo"), 2), (("mid",), 1))
_RANGE_DB = 30.0
_NEAREST, _ALIKE_DB = 4, 6.0
_LOUDNESS_S = 0.1
_CHOKE_FADE = 1200


class DrumFolder:
    """Drums that the folder lacks (often rim, clap, shaker, tambourine) are the computed ones."""

    def __init__(self, folder: Path) -> None:
        files = audio_files(folder)
        pieces = _pieces([path for path in files if path.parent != folder])
        heard = {drum: sorted((rms(read_sample(path, 0.5), _LOUDNESS_S), path) for path in paths) for drum, paths in pieces.items()}
        self._hits = {DRUM_KEYS[drum]: hits for drum, hits in heard.items()}
        read_sample.cache_clear()
        self.name = f"{folder.name}@{digest(folder, files)}"
        self.licence = bank_licence(folder)

    def plays(self, instrument: str) -> bool:
        return instrument == "drums"

    def play(self, track: Track, record: SongRecord, samples: int) -> Array:
        out = np.zeros((2, samples))
        chance, last = Chance("drums", record.band_seed), dict.fromkeys(self._hits, -1)
        full = self._hits[DRUM_KEYS["kick"]][-1]
        unit = float(np.max(np.abs(read_sample(full[1]))))
        computed = load_kit(record.mix.kit, record.mix.kit_tune, record.mix.kit_damp)
        hats_s = [note.onset_s for note in track.notes if note.midi in (DRUM_KEYS["hat"], DRUM_KEYS["open"])]
        for note in track.notes:
            start = int(note.onset_s * SAMPLE_RATE_HZ)
            if note.midi not in self._hits:
                sound = computed[note.midi] * note.velocity**1.4
            else:
                hits = self._hits[note.midi]
                wanted = hits[-1][0] * 10 ** ((note.velocity - 1) * _RANGE_DB / 20)
                far_db = [abs(20 * np.log10(loudness / wanted)) for loudness, _ in hits]
                nearest = [
                    index for index in np.argsort(far_db, kind="stable")[:_NEAREST] if far_db[index] < max(_ALIKE_DB, 1.01 * min(far_db))
                ]
                fresh = [index for index in nearest if index != last[note.midi]] or nearest
                last[note.midi] = chance.choice(fresh)
                loudness, path = hits[last[note.midi]]
                sound = read_sample(path) * (wanted / loudness / unit)
            if note.midi == DRUM_KEYS["open"]:
                sound = _choked(sound, next((at - note.onset_s for at in hats_s if at > note.onset_s + 0.02), None))
            stop = min(start + sound.shape[1], samples)
            if stop > start:
                out[:, start:stop] += sound[:, : stop - start]
        return out


def is_drum_folder(folder: Path) -> bool:
    """Whether there are pieces enough for a kit: kick, snare and a closed hat."""
    paths = [path / "one" for path in folder.iterdir() if path.is_dir()]
    return {"kick", "snare", "hat"} <= _pieces(paths).keys()


def _pieces(paths: list[Path]) -> dict[str, list[Path]]:
    """Each drum's files, by the names of their folders; of several toms the highest, the second and the lowest."""
    folders: dict[str, list[Path]] = {}
    for path in paths:
        folders.setdefault("".join(letter for letter in path.parent.name.lower() if letter.isalnum()), []).append(path)
    found: dict[str, list[Path]] = {}
    for drum, beginnings in _PIECES.items():
        for name, files in sorted(folders.items()):
            if name.startswith(beginnings) and not any(word in name for word in _NOT_PLAYED):
                found.setdefault(drum, []).extend(files)
    toms = sorted((name for name in folders if "tom" in name and not any(word in name for word in _NOT_PLAYED)), key=_tom_order)
    if len(toms) >= len(_TOMS):
        found |= {drum: folders[name] for drum, name in zip(_TOMS, (toms[0], toms[1], toms[-1]), strict=True)}
    return found


def _tom_order(name: str) -> tuple[int, int, str]:
    """High before middle before low before floor, as the names say it; within that small numbers first, be they turns or inches."""
    rank = next((rank for words, rank in _TOM_WORDS if any(word in name for word in words)), 1)
    digits = "".join(letter for letter in name if letter.isdigit())
    return rank, int(digits or 0), name


def _choked(sound: Array, seconds: float | None) -> Array:
    """An open hat until the next stroke closes it."""
    n = sound.shape[1] if seconds is None else min(sound.shape[1], int(seconds * SAMPLE_RATE_HZ) + _CHOKE_FADE)
    shape = np.ones(n)
    fade = min(_CHOKE_FADE, n)
    shape[n - fade :] = np.linspace(1, 0, fade)
    return sound[:, :n] * shape
