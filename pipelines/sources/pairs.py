"""demo:URI and pairs:URI: a folder a song with vocals.* and accompaniment.*, song.json beside them where there is one,
and songs.csv for all of them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import SONG_RECORD, FoundSong, MediaFile
from pipelines.sources.listing import AUDIO_SUFFIXES, is_audio, is_shown_as_is, shown, version_of, visible_files
from pipelines.sources.pairs_sheet import SONGS_SHEET, read_songs_sheet

STEMS = ("vocals", "accompaniment")


def list_pairs(kind: str, place: Place, sheet: Place | None = None) -> list[FoundSong]:
    """Every song folder, sorted by address; UserError when there is none.

    `sheet` says whose the songs are, see `pipelines.sources.pairs_sheet`; without it songs.csv in the folder does, where there is one.

    A folder counts as a song when a file lies directly in it. The source's own folder counts only if it holds a stem.
    """
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for name, version in visible_files(place, "the folder that holds a folder for each song").items():
        folder, _, file = name.rpartition("/")
        folders[folder][file] = version
    if sheet is None and SONGS_SHEET in folders.get("", {}):
        sheet = place / SONGS_SHEET
    if not any(_stem_files(folders.get("", {}), stem) for stem in STEMS):
        folders.pop("", None)
    if not folders:
        raise UserError(
            f"{kind}:{place} holds no songs: expected a folder for each song with vocals.wav and accompaniment.wav (or .flac, .mp3, …)"
        )
    songs = {folder: _song(kind, place / folder if folder else place, folders[folder]) for folder in sorted(folders)}
    if sheet is not None:
        rows = read_songs_sheet(sheet, songs.keys())
        songs = {folder: rows[folder].applied(song) for folder, song in songs.items()}
    return list(songs.values())


def _song(kind: str, place: Place, files: dict[str, str]) -> FoundSong:
    url = shown(str(place))
    found = {stem: _stem_files(files, stem) for stem in STEMS}
    used = {name for names in found.values() for name in names} | ({SONG_RECORD} & files.keys())
    version = version_of(files, used)
    faults = [f"no {stem}.* ({', '.join(AUDIO_SUFFIXES)})" for stem, names in found.items() if not names]
    faults += [f"{len(names)} files for {stem}: {', '.join(names)}; keep one" for stem, names in found.items() if len(names) > 1]
    if not is_shown_as_is(str(place)):
        faults = ["its folder's name is not UTF-8: rename it"]
    if faults:
        return FoundSong(url=url, source=kind, version=version, fault="; ".join(faults))
    return FoundSong(
        url=url,
        source=kind,
        version=version,
        media=(
            MediaFile(address=str(place / found["vocals"][0]), role="vocals"),
            MediaFile(address=str(place / found["accompaniment"][0]), role="accompaniment"),
        ),
        record=str(place / SONG_RECORD) if SONG_RECORD in files else "",
    )


def _stem_files(files: dict[str, str], stem: str) -> Sequence[str]:
    return [name for name in sorted(files) if PurePosixPath(name).stem.lower() == stem and is_audio(name)]
