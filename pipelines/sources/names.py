"""Keys by which two spellings of one song are the same: case, accents, punctuation, guests and remasters do not count.

All on whole columns: a catalogue has a million rows.
"""

import pyarrow as pa
import pyarrow.compute as pc

_GUEST = r"(?:feat(?:uring)?|ft)\b\.?"
_REMASTER = r"(?:\d{4}\s+)?(?:digital(?:ly)?\s+)?remaster(?:ed)?(?:\s+version)?(?:\s+\d{4})?(?:\s+version)?"
_TITLE_NOISE = (
    rf"[(\[]\s*(?:{_GUEST}|with\s)[^)\]]*[)\]]",
    rf"[(\[]\s*{_REMASTER}\s*[)\]]",
    rf"\s[-–—]\s+{_REMASTER}\s*$",
    rf"\s{_GUEST}\s.*$",
)
# ['Elton John', 'Dua Lipa'] and Elton John;Dua Lipa: the first is who a file is named after.
_FIRST_ARTIST = (
    (r"""^\[\s*['"]""", ""),
    (r"""['"]\s*,\s*['"].*$""", ""),
    (r"""['"]\s*\]$""", ""),
    (r";.*$", ""),
    (rf"\s{_GUEST}\s.*$", ""),
)


def title_keys(titles: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """One key a title; never empty where the title is not."""
    keys = pc.utf8_lower(titles)
    for noise in _TITLE_NOISE:
        keys = pc.replace_substring_regex(keys, noise, "")
    return _plain(keys, titles)


def artist_keys(artists: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """One key an artist, of the first where the data lists several."""
    return _plain(pc.utf8_lower(first_artists(artists)), artists)


def first_artists(artists: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The artist as it is written, or the first of a list."""
    for mark, replacement in _FIRST_ARTIST:
        artists = pc.replace_substring_regex(artists, f"(?i){mark}", replacement)
    return pc.utf8_trim_whitespace(artists)


def _plain(keys: pa.ChunkedArray | pa.Array, written: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    keys = pc.replace_substring_regex(pc.utf8_normalize(keys, "NFKD"), r"\p{Mn}+", "")
    keys = pc.replace_substring(keys, "&", " and ")
    keys = pc.replace_substring_regex(keys, r"['’`´]+", "")
    keys = pc.utf8_trim_whitespace(pc.replace_substring_regex(keys, r"[^\p{L}\p{N}]+", " "))
    # A title of signs alone has only its signs.
    return pc.if_else(pc.equal(keys, ""), pc.utf8_lower(pc.utf8_trim_whitespace(written)), keys)
