"""What a soundfont says of itself: its presets and modulators, read from the headers alone (SoundFont 2.04, sections 4 to 7).

sf2 and sf3 share these headers; sf3 holds Ogg Vorbis where sf2 holds PCM.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError

DRUM_BANK = 128
_PRESET = struct.Struct("<20sHHHIII")
_MODULATOR_BYTES = 10


@dataclass(frozen=True, kw_only=True)
class Soundfont:
    path: Path
    presets: frozenset[tuple[int, int]]
    """(bank, program); drum kits are in bank 128."""
    modulators: int
    """Of presets and instruments together: rules by which velocity and wheels move level and filter beyond the standard ones."""
    digest: str
    """Of size and headers: another font has another, wherever it lies."""


def read_soundfont(path: Path) -> Soundfont:
    """The headers of a font.

    Raises: UserError naming the file, what is wrong with it, and the remedy.
    """
    remedy = "give the file of a soundfont (.sf2, .sf3), or --bank numpy"
    if not path.is_file():
        raise UserError(f"--bank {path}: there is no such file: {remedy}")
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"sfbk":
            raise UserError(f"--bank {path}: this is no soundfont (it does not begin as a RIFF file of kind sfbk): {remedy}")
        end = 8 + struct.unpack("<I", head[4:8])[0]
        if path.stat().st_size < end:
            raise UserError(f"--bank {path}: the font is cut short, {path.stat().st_size} of {end} bytes are there: copy it again")
        headers = b""
        while file.tell() + 12 <= end:
            name, size, kind = struct.unpack("<4sI4s", file.read(12))
            if name == b"LIST" and kind == b"pdta":
                headers = file.read(size - 4)
                break
            file.seek(size - 4 + size % 2, 1)
    chunks = dict(_chunks(headers))
    if not {b"phdr", b"pmod", b"imod"} <= chunks.keys():
        raise UserError(f"--bank {path}: the font has no preset headers: {remedy}")
    rows = list(_PRESET.iter_unpack(chunks[b"phdr"][: len(chunks[b"phdr"]) // _PRESET.size * _PRESET.size]))
    return Soundfont(
        path=path,
        presets=frozenset((bank, program) for _, program, bank, *_ in rows[:-1]),  # the last row is the table's end
        modulators=sum(max(0, len(chunks[name]) // _MODULATOR_BYTES - 1) for name in (b"pmod", b"imod")),
        digest=hashlib.sha256(str(path.stat().st_size).encode() + headers).hexdigest()[:12],
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        found.append((name, data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found
