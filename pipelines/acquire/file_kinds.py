"""Which kind of file it is, by its bytes: a name or a Content-Type may lie."""

import threading
from collections.abc import Sequence
from pathlib import Path

from infra.audio.decoder import Decoder
from infra.audio.files import AudioError
from pipelines.song import SongError

_OWN = threading.local()
SYNCHSAFE_ID3 = 10
"""Bytes of an ID3v2 header; its last four hold the length of what follows, seven bits each."""
ACCEPTED = "WAV, FLAC, MP3, OGG, Opus, AAC, M4A, MP4, WebM, Matroska, AIFF, AU, CAF"
# (offset, bytes there, what it is): what hosts send in a song's place.
REFUSED: Sequence[tuple[bytes, str]] = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"#EXTM3U", "a playlist"),
    (b"[playlist]", "a playlist"),
)
# Types that no sound comes under; many hosts send sound as application/octet-stream or text/plain.
REFUSED_TYPES = ("application/json", "application/zip", "application/pdf", "application/xml", "text/xml", "image/")
# FFmpeg's demuxer is named, never guessed: a text could pass for a playlist that opens other files and addresses.
DEMUXERS = {
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3",
    "aac": "aac",
    "ogg": "ogg",
    "opus": "ogg",
    "m4a": "mov",
    "mp4": "mov",
    "webm": "matroska",
    "mkv": "matroska",
    "aiff": "aiff",
    "au": "au",
    "caf": "caf",
}


def check_start(content_type: str, start: bytes) -> None:
    """SongError when a file that begins so cannot be sound or video."""
    if content_type.startswith(REFUSED_TYPES):
        raise _refused(f"a file of type {content_type}")
    if not start.startswith(b"ID3") and not sniff(start):
        raise _refused(next((kind for signature, kind in REFUSED if start.startswith(signature)), _text_or_unknown(start)))


def sniff(start: bytes) -> str:
    """The suffix of the container that begins so; empty when it is none that is accepted."""
    form = start[8:12]
    if start[:4] in (b"RIFF", b"RF64", b"RIFX") and form == b"WAVE":
        return "wav"
    if start[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "aiff"
    if start[4:8] == b"ftyp":
        return "m4a" if form in (b"M4A ", b"M4B ") else "mp4"
    if start[:4] == b"\x1aE\xdf\xa3":
        return "webm" if b"webm" in start[:64] else "mkv"
    if start[:4] == b"OggS":
        return "opus" if b"OpusHead" in start[:64] else "ogg"
    simple = {b"fLaC": "flac", b".snd": "au", b"caff": "caf"}
    if start[:4] in simple:
        return simple[start[:4]]
    if len(start) >= 2 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and not start.startswith(b"\xff\xd8\xff"):
        layer = start[1] >> 1 & 3
        return ("aac" if start[1] & 0xF0 == 0xF0 else "") if layer == 0 else "mp3"
    return ""


def probe(path: Path, *, max_duration_s: float) -> str:
    """The suffix of the file's container; SongError unless a decoder opens it, finds sound, and its header claims no more than allowed.

    Nothing is decoded here, and what a stranger sent is opened in a process that may die of it.
    """
    with path.open("rb") as file:
        start = file.read(512)
        if start.startswith(b"ID3") and len(start) >= SYNCHSAFE_ID3:
            size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(start[6:10])))
            file.seek(SYNCHSAFE_ID3 + size)
            suffix = sniff(file.read(64)) or "mp3"  # encoders pad after the tag
        else:
            suffix = sniff(start)
    if not suffix:
        raise _refused(_text_or_unknown(start))
    try:
        streams, duration_s = decoder().probe(path, DEMUXERS[suffix])
    except AudioError as error:
        reason = str(error).partition(";")[0]  # what follows is a remedy for a file of one's own
        raise SongError(f"the {suffix} file is damaged ({reason}): give another address") from error
    if not streams:
        raise SongError(f"the {suffix} file holds no sound: give another address")
    if duration_s is not None and duration_s > max_duration_s:
        raise SongError(f"{duration_s:.0f} s are more than max_duration_s = {max_duration_s:g}: raise that, or leave the song out")
    return suffix


def decoder() -> Decoder:
    """This thread's own, with its child process; both end with the thread."""
    if not hasattr(_OWN, "decoder"):
        _OWN.decoder = Decoder()
    own: Decoder = _OWN.decoder
    return own


def _text_or_unknown(start: bytes) -> str:
    try:
        start[:256].decode("ascii")
    except UnicodeDecodeError:
        return "of an unknown kind"
    return "a text"


def _refused(kind: str) -> SongError:
    return SongError(f"it is {kind}, not a recording ({ACCEPTED}): give the address of the recording itself")
