"""Keys by which two spellings of one song are the same: case, accents, punctuation, guests and remasters do not count.

All on whole columns: a catalogue has a million rows.
"""

from collections.abc import Callable

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
_FIRST_ARTIST = (r"""^\[\s*['"]""", r"""['"]\s*,\s*['"].*$""", r"""['"]\s*\]$""", r";.*$", rf"\s{_GUEST}\s.*$")


def title_keys(titles: pa.Array) -> pa.Array:
    """One key a title; never empty where the title is not."""

    def quiet(keys: pa.Array) -> pa.Array:
        for noise in _TITLE_NOISE:
            keys = pc.replace_substring_regex(keys, noise, "")
        return keys

    return _plain(_where(pc.utf8_lower(titles), rf"{_GUEST}|[(\[]with\s|remaster", quiet), titles)


def artist_keys(artists: pa.Array) -> pa.Array:
    """One key an artist, of the first where the data lists several."""
    return _plain(pc.utf8_lower(first_artists(artists)), artists)


def first_artists(artists: pa.Array) -> pa.Array:
    """The artist as it is written, or the first of a list."""

    def first(artists: pa.Array) -> pa.Array:
        for mark in _FIRST_ARTIST:
            artists = pc.replace_substring_regex(artists, f"(?i){mark}", "")
        return pc.utf8_trim_whitespace(artists)

    return _where(artists, rf"(?i)^\[|;|{_GUEST}", first)


def _plain(keys: pa.Array, written: pa.Array) -> pa.Array:
    keys = _where(keys, r"[^\x00-\x7f]", lambda keys: pc.replace_substring_regex(pc.utf8_normalize(keys, "NFKD"), r"\p{Mn}+", ""))
    keys = pc.replace_substring(keys, "&", " and ")
    keys = _where(keys, r"['’`´]", lambda keys: pc.replace_substring_regex(keys, r"['’`´]+", ""))
    keys = pc.utf8_trim_whitespace(pc.replace_substring_regex(keys, r"[^\p{L}\p{N}]+", " "))
    # A title of signs alone has only its signs.
    return pc.if_else(pc.equal(keys, ""), pc.utf8_lower(pc.utf8_trim_whitespace(written)), keys)


def _where(column: pa.Array, pattern: str, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The column with the rows changed in which the pattern is found, which are few: looking costs a fifth of replacing."""
    rows = pc.match_substring_regex(column, pattern)
    return pc.replace_with_mask(column, rows, change(column.filter(rows)))
