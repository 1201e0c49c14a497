"""Stems that songs were separated into, kept to be heard: stems/SONG_ID/vocals.flac and accompaniment.flac below the dataset.

They are written before the song's row, so a stored song has both; what no stored song answers to goes with the next commit.
"""

from collections import defaultdict
from collections.abc import Container

import numpy as np

from infra.audio_files import encode
from infra.storage import Place
from pipelines.read import ReadSong

FOLDER = "stems"
NAMES = ("vocals.flac", "accompaniment.flac")


def write_stems(out: Place, song: ReadSong) -> None:
    """Both stems as FLAC (16 bits, 44.1 kHz, stereo); louder than full scale both get one gain, so that none is clipped."""
    if song.vocal_CN is None or song.accompaniment_CN is None:
        raise RuntimeError(f"song {song.identity.song_id} has no stems to keep")
    stems = (song.vocal_CN, song.accompaniment_CN)
    gain = np.float32(min(1.0, 1 / max(1e-9, *(float(np.abs(stem_CN).max()) for stem_CN in stems))))
    for name, stem_CN in zip(NAMES, stems, strict=True):
        (out / f"{FOLDER}/{song.identity.song_id}/{name}").write_bytes(encode(gain * stem_CN, "flac"))


def kept_stems(out: Place) -> dict[str, set[str]]:
    """Song id → names of its files."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, _ in (out / FOLDER).entries():
        song_id, _, file = name.partition("/")
        found[song_id].add(file)
    return found


def remove_stems_but(out: Place, song_ids: Container[str]) -> None:
    """Remove every stem but those of `song_ids`."""
    for song_id, names in kept_stems(out).items():
        if song_id not in song_ids:
            for name in sorted(names):
                (out / f"{FOLDER}/{song_id}/{name}").delete()
