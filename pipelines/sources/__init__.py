"""Where songs come from: a SPEC such as pairs:URI, and the songs found there. One kind of source a file."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.errors import UserError
from infra.storage.place import Place
from pipelines.song import FoundSong
from pipelines.sources.catalogue import CatalogueConfig, list_catalogue
from pipelines.sources.folder import list_folder
from pipelines.sources.moisesdb import list_moisesdb
from pipelines.sources.musdb18 import list_musdb18
from pipelines.sources.pairs import STEMS, list_pairs
from pipelines.sources.providers import parse_provider
from pipelines.sources.urls import list_urls

__all__ = ["KINDS", "STEMS", "CatalogueConfig", "Source", "list_songs", "parse_source"]

_LISTERS: dict[str, Callable[[str, Place], list[FoundSong]]] = {
    "demo": list_pairs,
    "pairs": list_pairs,
    "folder": list_folder,
    "musdb18": list_musdb18,
    "moisesdb": list_moisesdb,
    "urls": list_urls,
}
_FILES = ("urls", "catalogue")
PAIRS = ("demo", "pairs")
KINDS = (*_LISTERS, "catalogue")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parsed SPEC."""

    kind: str
    place: Place

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


def parse_source(spec: str) -> Source:
    """KIND:URI or KIND:FILE; UserError names what is supported."""
    kind, colon, uri = spec.partition(":")
    if not colon or kind not in KINDS:
        forms = ", ".join(f"{name}:{'FILE' if name in _FILES else 'URI'}" for name in KINDS)
        raise UserError(f"source {spec!r} is not KIND:URI: use one of {forms}")
    if not uri:
        what = "FILE.csv" if kind in _FILES else "FOLDER"
        raise UserError(
            f"source {spec!r} names no place: write {kind}:{what} or {kind}:s3://bucket/{'file.csv' if kind in _FILES else 'prefix'}"
        )
    return Source(kind=kind, place=Place(uri))


def list_songs(
    source: Source, *, provider: str | None = None, catalogue: CatalogueConfig | None = None, sheet: str | None = None
) -> list[FoundSong]:
    """Every song of the source, one a url; UserError when there is none.

    `provider` resolves a catalogue's titles to media, see `pipelines.sources.providers`; `catalogue` says which of them are taken; `sheet`
    is a file that says whose the songs of a folder of pairs are.
    """
    if source.kind == "catalogue":
        songs, _ = list_catalogue(source.kind, source.place, parse_provider(provider, source.place.access), catalogue or CatalogueConfig())
        return songs
    if provider is not None:
        raise UserError(f"provider is {provider!r}, but {source} names its media itself: leave --provider out")
    if sheet is not None:
        if source.kind not in PAIRS:
            raise UserError(f"sheet is {sheet!r}, but {source} is no folder of pairs: leave --sheet out")
        return list_pairs(source.kind, source.place, Place(sheet, source.place.access))
    return _LISTERS[source.kind](source.kind, source.place)
