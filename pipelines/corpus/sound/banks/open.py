"""Which banks a run plays: those that are named, or those that are found, or the computed instruments."""

import logging
import sys
from functools import lru_cache
from pathlib import Path

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import localise
from pipelines.corpus.score.styles import PROGRAMS
from pipelines.corpus.sound.bank import NUMPY, Bank, BankSet, NumpyBank
from pipelines.corpus.sound.banks.drum_folder import DrumFolder, is_drum_folder
from pipelines.corpus.sound.banks.note_folder import NoteFolder, instruments_of
from pipelines.corpus.sound.banks.players import NO_WHEEL, TINY_REMEDY, missing_player
from pipelines.corpus.sound.banks.samples import AUDIO_KINDS
from pipelines.corpus.sound.banks.sf2 import read_soundfont
from pipelines.corpus.sound.banks.soundfont_bank import SoundfontBank

log = logging.getLogger(__name__)

FONT_KINDS = (".sf2", ".sf3")
# Where distributions put soundfonts, and the complete ones whose licence (MIT) lets trained weights be shipped.
FONT_FOLDERS = tuple(
    Path(folder)
    for folder in (
        "/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts", "/usr/local/share/soundfonts",
        "/opt/homebrew/share/soundfonts",
    )
)  # fmt: skip
_KNOWN_FONTS = ("fluidr3_gm", "musescore_general", "musescore_general_full", "musescore_general_lite")
_BETTER = f"the band is computed; recorded instruments sound better: apt-get install fluid-soundfont-gm, {TINY_REMEDY.partition(',')[0]}"


def choose_banks(named: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """`named`, or else what BACKLINE_BANKS holds, or the known fonts of the distribution's folders that can be played here, or numpy.

    Raises: UserError when a bank that was asked for is unusable; a font that was only found is passed over in one line.
    """
    chosen = named or _in_setting(settings.banks)
    if not chosen:
        fonts = found_fonts()
        faults = {path: font_fault(path) for path in fonts}
        for path, fault in faults.items():
            if fault:
                log.info("%s is not played: %s", path, fault)
        chosen = tuple(str(path) for path, fault in faults.items() if not fault)
        if not chosen:
            if not fonts:
                log.info("%s", _BETTER if sys.version_info < (3, 13) else NO_WHEEL)
            chosen = ("numpy",)
    open_banks(chosen)
    return chosen


def found_fonts() -> list[Path]:
    """The known fonts in the distribution's folders, each once."""
    fonts = {path.resolve(): path for folder in FONT_FOLDERS if folder.is_dir() for path in sorted(folder.iterdir()) if _is_known(path)}
    return list(fonts.values())


def font_fault(path: Path) -> str:
    """Why a font that was only found cannot play every part, with the remedy; empty when it can."""
    try:
        open_banks((str(path),))
    except UserError as error:
        return str(error).removeprefix(f"--bank {path}: ")
    return ""


def describe_banks(settings: Settings) -> str:
    """One line on what the corpus plays when no bank is named.

    Raises: UserError when a bank of BACKLINE_BANKS is unusable, and when nothing but the computed instruments is there.
    """
    chosen = choose_banks((), settings)
    passed = [f"{path}: {fault}" for path in found_fonts() if (fault := font_fault(path))] if not settings.banks else []
    if chosen == ("numpy",) and not settings.banks:
        raise UserError("; ".join(passed) or f"no soundfont in {', '.join(map(str, FONT_FOLDERS))}: the corpus computes its instruments")
    played = [f"{spec} ({bank.licence or 'computed'})" for spec, bank in zip(chosen, open_banks(chosen).banks, strict=True)]
    return "; ".join([", ".join(played), *(f"not played: {line}" for line in passed)])


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in FONT_KINDS and path.stem.lower() in _KNOWN_FONTS


def _in_setting(banks: tuple[str, ...]) -> tuple[str, ...]:
    """Each entry is a bank, or a folder of banks."""
    found: list[str] = []
    for spec in banks:
        uri, weight = parse_weighted(spec)
        folder = localise(uri) if uri != "numpy" else Path(uri)
        inside = (
            [path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix.lower() in FONT_KINDS] if folder.is_dir() else []
        )
        if inside and not is_drum_folder(folder) and not instruments_of(folder):
            found += [f"{path}={weight:g}" for path in inside]
        else:
            found.append(spec)
    return tuple(found)


def parse_weighted(spec: str, option: str = "--bank") -> tuple[str, float]:
    """URI and weight of `URI[=WEIGHT]`; the weight is 1 where none is given."""
    uri, equals, weight = spec.rpartition("=")
    if not equals:
        return spec, 1.0
    try:
        number = float(weight)
    except ValueError:
        return spec, 1.0  # an equals sign of the path's own
    if not (uri and 0 < number < float("inf")):
        raise UserError(f"{option} {spec}: the weight must be above 0, for example {option} {uri or 'numpy'}=1")
    return uri, number


@lru_cache(maxsize=4)
def open_banks(specs: tuple[str, ...]) -> BankSet:
    """The banks, each checked; a process opens them once.

    Raises: UserError naming file, reason and remedy.
    """
    if specs in ((), ("numpy",)):
        return NUMPY
    parsed = [parse_weighted(spec) for spec in specs]
    return BankSet(banks=tuple(_open(uri) for uri, _ in parsed), weights=tuple(weight for _, weight in parsed))


def _open(uri: str) -> Bank:
    if uri == "numpy":
        return NumpyBank()
    # A font of the distribution may be named without its folder.
    here = uri if "/" in uri or Path(uri).exists() else next((str(found) for at in FONT_FOLDERS if (found := at / uri).is_file()), uri)
    path = localise(here)
    if path.is_file():
        font = read_soundfont(path)
        missing = missing_player(font)
        if missing:
            raise UserError(f"--bank {path}: {missing}")
        bank = SoundfontBank(font)
        if not any(bank.plays(instrument) for instrument in ("drums", *PROGRAMS)):
            raise UserError(f"--bank {path}: the font has none of General MIDI's presets that songs ask for: give a General MIDI font")
        return bank
    if not any(file.suffix.lower() in AUDIO_KINDS for file in path.rglob("*")):
        raise UserError(
            f"--bank {path}: no notes, the folder holds no {', '.join(AUDIO_KINDS)} file: give a folder of samples, or a soundfont"
        )
    if is_drum_folder(path):
        return DrumFolder(path)
    if not instruments_of(path):
        raise UserError(
            f"--bank {path}: which instrument is it? Rename the folder so that its name says it, with guitar, bass, piano, sax, "
            f"or one of {', '.join(PROGRAMS)}; a drum kit needs folders named kick, snare, hihatclosed"
        )
    return NoteFolder(path)
