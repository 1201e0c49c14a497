"""Stems that songs were separated into, kept to be heard: stems/SONG_ID/vocals.flac and accompaniment.flac below the dataset.

They are written before the song's row. What no stored song answers to goes with the next commit, and so does half a pair, which a run
that was killed between the two left.
"""

from collections import defaultdict
from collections.abc import Container
from contextlib import suppress

import numpy as np

from infra.audio.files import encode
from infra.storage.place import Place
from pipelines.song import ReadSong

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
    """Song id → names of its files; locally those of killed writes too, which hold sound and which `Place.entries` hides."""
    found: dict[str, set[str]] = defaultdict(set)
    root = out / FOLDER
    if root.is_s3:
        for name, _ in root.entries():
            song_id, _, file = name.partition("/")
            if file:
                found[song_id].add(file)
    elif root.path.is_dir():
        for folder in root.path.iterdir():
            # A file, or gone since it was listed: a check may run beside a prepare.
            with suppress(FileNotFoundError, NotADirectoryError):
                found[folder.name] = {path.name for path in folder.iterdir()}
    return found


def remove_stems_but(out: Place, song_ids: Container[str]) -> None:
    """Remove every stem but the whole pairs of `song_ids`."""
    for song_id, names in kept_stems(out).items():
        folder = out / FOLDER / song_id
        if song_id not in song_ids or not names.issuperset(NAMES):
            folder.delete_tree()
        else:
            for name in sorted(names.difference(NAMES)):
                (folder / name).delete()
