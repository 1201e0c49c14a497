"""musdb18:URI: MUSDB18 (Rafii et al., 2017, doi 10.5281/zenodo.1117372) and MUSDB18-HQ (2019, doi 10.5281/zenodo.3338373).

MUSDB18:     train|test/ARTIST - TITLE.stem.mp4, five stereo streams in AAC: mixture, drums, bass, other, vocals
MUSDB18-HQ:  train|test/ARTIST - TITLE/mixture.wav, drums.wav, bass.wav, other.wav, vocals.wav

The mixture is not read: the stems add up to it, but for what AAC did to each of them.
"""

from collections import defaultdict

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong, MediaFile
from pipelines.sources.folder import title_of
from pipelines.sources.listing import NOT_UTF8, is_shown_as_is, shown, version_of, visible_files

STEM_SUFFIX = ".stem.mp4"
VOCALS_STREAM, ACCOMPANIMENT_STREAMS = 4, (1, 2, 3)
VOCALS_FILE, ACCOMPANIMENT_FILES = "vocals.wav", ("drums.wav", "bass.wav", "other.wav")
LICENSE = "MUSDB18: for academic and educational use only; each track has its own licence"
LAYOUT = (
    f"train|test/ARTIST - TITLE{STEM_SUFFIX}, or MUSDB18-HQ's train|test/ARTIST - TITLE/ with {VOCALS_FILE}, drums.wav, bass.wav, other.wav"
)


def list_musdb18(kind: str, place: Place) -> list[FoundSong]:
    """Every song of both subsets, sorted by address; UserError when there is none."""
    files = visible_files(place, f"MUSDB18's folder, which holds {LAYOUT}")
    folders: dict[str, set[str]] = defaultdict(set)
    for name in files:
        folder, _, file = name.rpartition("/")
        folders[folder].add(file)
    songs = [_stem_file(kind, place, files, name) for name in files if name.endswith(STEM_SUFFIX)]
    songs += [
        _stem_folder(kind, place, files, folder, held)
        for folder, held in folders.items()
        if folder and held & {VOCALS_FILE, *ACCOMPANIMENT_FILES}
    ]
    if not songs:
        raise UserError(f"{kind}:{place} holds no songs of MUSDB18: expected {LAYOUT}")
    return sorted(songs, key=lambda song: song.url)


def _stem_file(kind: str, place: Place, files: dict[str, str], name: str) -> FoundSong:
    address = str(place / name)
    media = [MediaFile(address=address, role="vocals", stream=VOCALS_STREAM)]
    media += [MediaFile(address=address, role="accompaniment", stream=stream) for stream in ACCOMPANIMENT_STREAMS]
    return _song(kind, address, version_of(files, {name}), name.rsplit("/", 1)[-1].removesuffix(STEM_SUFFIX), media, "")


def _stem_folder(kind: str, place: Place, files: dict[str, str], folder: str, held: set[str]) -> FoundSong:
    needed = (VOCALS_FILE, *ACCOMPANIMENT_FILES)
    missing = [file for file in needed if file not in held]
    media = [
        MediaFile(address=str(place / folder / file), role="vocals" if file == VOCALS_FILE else "accompaniment")
        for file in needed
        if file in held
    ]
    version = version_of(files, {f"{folder}/{file}" for file in needed if file in held})
    fault = f"{', '.join(missing)} missing in its folder: unpack MUSDB18-HQ again" if missing else ""
    return _song(kind, str(place / folder), version, folder.rsplit("/", 1)[-1], media, fault)


def _song(kind: str, address: str, version: str, name: str, media: list[MediaFile], fault: str) -> FoundSong:
    if not is_shown_as_is(address):
        fault = NOT_UTF8
    if fault:
        return FoundSong(url=shown(address), source=kind, version=version, fault=fault)
    title, artist = title_of(name)
    return FoundSong(url=address, source=kind, version=version, media=tuple(media), title=title, artist=artist, license=LICENSE)
