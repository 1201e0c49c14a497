"""After the graph: songs that moved, were touched, copied or replaced, and recordings that are there already under another hash.

One row a recording, none for what is gone. What stays does not depend on the order in which songs came out of the graph.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.dataset.format import latents
from infra.dataset.parquet import READERS, read_table, write_table
from infra.storage.place import Place
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from model.listen.fingerprint import FingerprintIndex, bit_error_rate, sketch
from pipelines.acquire.acquire import LICENSE, remove_media
from pipelines.acquire.provenance import RECORDS, record_place
from pipelines.dataset import write as dataset
from pipelines.dataset.contents import Stored, Tables, read_fingerprints, read_song, read_stored, read_takedown
from pipelines.song import FoundSong, SongIdentity, SongResult
from pipelines.stages.decode import taken_down, unknown_identity

ORIGINS = ("source", "license")  # what latents/ repeats of a song's row
FILES_AT_ONCE = 64
FRESH_AT_ONCE = 256

Elsewhere = Callable[[Mapping[str, Any]], bool]


def settle(
    out: Place,
    present: Mapping[str, FoundSong],
    results: Sequence[SongResult],
    before: Stored,
    recordings: "Recordings",
    elsewhere: Elsewhere,
    tables: Tables,
    media: Place,
) -> Stored:
    """What is stored now, one row a recording.

    `present` are all songs of the source by address, `results` those that came out of the graph; `elsewhere` says of a row that its song
    belongs to another source; `media` is where downloads are kept.
    """
    now = read_stored(out, tables)
    if not results:
        return now
    forbidden = {result.url for result in results if result.rejected_by == LICENSE}
    # A song that could not be had this time says nothing about the one that is stored; one that may not be had does.
    worked = {
        result.url: result.song_id
        for result in results
        if result.url in forbidden or result.song_id != unknown_identity(present[result.url]).song_id
    }
    identities = {(result.url, result.song_id): result.identity for result in results}
    addresses: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if not result.rejected_by:
            addresses[result.song_id].add(result.url)
    adopted: dict[str, tuple[FoundSong, SongIdentity]] = {}
    for song_id, urls in addresses.items():
        earlier = before.songs.get(song_id)
        # The song's earlier address stands while a song is there that nobody has found to be another one.
        stands = earlier is not None and (
            earlier["url"] in urls or elsewhere(earlier) or (earlier["url"] in present and earlier["url"] not in worked)
        )
        owner = earlier["url"] if earlier is not None and stands else min(urls)
        row = now.songs[song_id]
        if owner in urls and (row["url"], row["source_version"]) != (owner, present[owner].version):
            adopted[song_id] = present[owner], identities[owner, song_id]
        for url in sorted(urls - {owner}):
            dataset.settle_duplicate(out, present[url], song_id, owner)
    replaced = {
        song_id
        for song_id, row in before.songs.items()
        if row["url"] in worked and worked[row["url"]] != song_id and song_id not in addresses
    }
    # Before any row goes or moves: as long as it stands, a killed run is done again. Of those without a row, which may have a download all
    # the same, a kill here leaves the reject: see `remove_forbidden`. Not in the graph: a permitted song may be reading the same file.
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(partial(remove_media, media), sorted(forbidden)))
    for song_id in replaced:
        if (url := before.songs[song_id]["url"]) in forbidden:
            dataset.drop_segment_rejects(out, url, song_id)
    adopt(out, now, adopted)
    # Together: each joined file is written anew once.
    dataset.remove_rows(out, now, replaced | adopted.keys(), keep=[dataset.song_place(out, song_id) for song_id in adopted])
    now = read_stored(out, tables)
    return without_copies(out, present, now, recordings, elsewhere, tables, media)


def remove_forbidden(media: Place, stored: Stored, permitted: Set[str]) -> None:
    """Take away the downloads of the addresses that are rejects for their licence; not of those in `permitted`, which may be had now.

    For a run's start: one that was killed after it wrote such a reject, and before it settled, has left the download, and the address
    counts as done. Before any reject goes, for only rejects tell of it.
    """
    urls = {str(row["url"]) for row in stored.rejects if row["stage"] == LICENSE and row["segment"] is None} - permitted
    if not urls:
        return
    # The record goes last, so it tells where something is left to do: one listing instead of two requests an address.
    left = {name for name, _ in (media / RECORDS).entries()}
    for url in sorted(url for url in urls if record_place(media, url).name in left):
        remove_media(media, url)


def adopt(out: Place, stored: Stored, songs: Mapping[str, tuple[FoundSong, SongIdentity]]) -> None:
    """Stored songs, by id, whose files were moved or touched: note the new address and version, and what the source says of them now.

    Each gets a file of its own for its row; rows in joined files stay until the caller takes them away.
    """
    words = read_fingerprints(out, stored, sorted(songs))
    rows = {}
    for song_id, (found, identity) in songs.items():
        row = {**stored.row(song_id), "fingerprint": words.get(song_id), "url": found.url, "source_version": found.version}
        said = {name: getattr(identity, name) for name in ("title", "artist", "license", "credit", "page_url", "vocal_of")}
        split = {"split": found.split or row["split"], "split_given": found.split is not None}
        rows[song_id] = {**row, "source": found.source, **said, **split}
    _rewrite_origins(out, stored, rows)
    for song_id, row in rows.items():
        if row["split"] != stored.songs[song_id]["split"]:
            write_table(dataset.latents_place(out, song_id, row["split"]), read_song(out, stored, song_id))
        found, url = songs[song_id][0], stored.songs[song_id]["url"]
        if url != found.url and (kept := dataset.segment_rejects(out, url, song_id)):
            dataset.write_rejects(out, found, song_id, kept)
            dataset.drop_segment_rejects(out, url, song_id)
        dataset.write_row(out, row)


def _rewrite_origins(out: Place, stored: Stored, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Licence and source of these songs' latents as in `rows`, where they differ; each file is replaced at once, whoever shares it."""
    changed: dict[str, list[str]] = {}
    for song_id, row in rows.items():
        if any(row[name] != stored.songs[song_id][name] for name in ORIGINS):
            changed.setdefault(stored.files[song_id], []).append(song_id)
    for file, song_ids in sorted(changed.items()):
        table = read_table([out / file], latents(LATENT_CHANNELS, SEGMENT_FRAMES))
        held = table["song_id"].to_pylist()
        for name in ORIGINS:
            now = {song_id: rows[song_id][name] for song_id in song_ids}
            values = [now.get(song_id, value) for song_id, value in zip(held, table[name].to_pylist(), strict=True)]
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
        write_table(out / file, table)


def without_copies(
    out: Place, present: Mapping[str, FoundSong], now: Stored, recordings: "Recordings", elsewhere: Elsewhere, tables: Tables, media: Place
) -> Stored:
    """What is stored without the songs, of those in no commit yet, whose recording is there already or was taken down.

    A stored song that left its source (`present` are the addresses in it, `elsewhere` as for `settle`) gives way to its copy instead.
    """
    left = {song_id for song_id, row in now.songs.items() if row["url"] not in present and not elsewhere(row)}
    copies, followed = recordings.copies(now, now.songs.keys() - now.committed, left)
    for song_id, copy in copies.items():
        row = now.songs[song_id]
        listed_by = present[row["url"]].listed_by if row["url"] in present else ""
        found = FoundSong(url=row["url"], source=row["source"], version=row["source_version"], listed_by=listed_by)
        if copy.of in now.songs:
            how = f"the same recording (fingerprints differ in {copy.bit_errors:.0%} of their bits) as"
            dataset.settle_duplicate(out, found, copy.of, now.songs[copy.of]["url"], how)
        else:
            dataset.write_rejects(out, found, copy.of, [taken_down(copy.of)])
            remove_media(media, row["url"])
    dataset.remove_rows(out, now, copies.keys() | followed)
    return read_stored(out, tables) if copies or followed else now


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A song that is a recording which is there already, or was taken down."""

    of: str
    """The other's song id."""
    bit_errors: float
    """Share of the fingerprints' bits that differ."""


class Recordings:
    """Sketches of the dataset's songs, to find a recording again; filled when first asked, half a kilobyte a song."""

    def __init__(self, out: Place, max_errors: float) -> None:
        self.out, self.max_errors = out, max_errors
        self.index = FingerprintIndex()
        self.indexed: set[str] = set()
        self.taken: dict[str, NDArray[np.uint32]] = {}

    def copies(self, stored: Stored, new: Set[str], left: Set[str] = frozenset()) -> tuple[dict[str, Copy], set[str]]:
        """Of the `new` songs, by id, those that are a recording which is there already or was taken down; and of the songs in `left`, which
        nothing is a copy of, those whose recording is here under another id.

        Of two new ones the one at the lower address stays.
        """
        copies: dict[str, Copy] = {}
        followed: set[str] = set()
        if not new or not self.max_errors:
            return copies, followed
        for song_id in stored.taken - self.taken.keys():
            self.taken[song_id] = read_takedown(self.out, song_id).words
            self.index.add(song_id, sketch(self.taken[song_id]))
        self._fill(stored, sorted(stored.songs.keys() - self.indexed - new))
        # Those that stay in the source first: what left it gives way to them.
        fresh = sorted(new & stored.songs.keys(), key=lambda song_id: (song_id in left, stored.songs[song_id]["url"]))
        for start in range(0, len(fresh), FRESH_AT_ONCE):
            self._compare(stored, fresh[start : start + FRESH_AT_ONCE], left, copies, followed)
        return copies, followed

    def _compare(self, stored: Stored, fresh: Sequence[str], left: Set[str], copies: dict[str, Copy], followed: set[str]) -> None:
        words = read_fingerprints(self.out, stored, fresh)
        sketches = {song_id: sketch(words[song_id]) for song_id in fresh if song_id in words}
        candidates = {other for marks in sketches.values() for other in self.index.candidates(marks)}
        known = {**read_fingerprints(self.out, stored, sorted(candidates & stored.songs.keys() - words.keys())), **words, **self.taken}
        for song_id, marks in sketches.items():
            others = [other for other in self.index.candidates(marks) if other != song_id and other in known]
            distances = [(bit_error_rate(words[song_id], known[other]), other) for other in others]
            near = [(errors, other) for errors, other in distances if errors <= self.max_errors]
            standing = [(errors, other) for errors, other in near if other not in left]
            if standing:
                errors, nearest = min(standing)
                copies[song_id] = Copy(of=nearest, bit_errors=errors)
            else:
                followed.update(other for _, other in near)
                self.index.add(song_id, marks)
                self.indexed.add(song_id)

    def _fill(self, stored: Stored, song_ids: Sequence[str]) -> None:
        by_file: dict[str, list[str]] = defaultdict(list)
        for song_id in song_ids:
            by_file[stored.row_files[song_id][0]].append(song_id)
        files = sorted(by_file)
        for start in range(0, len(files), FILES_AT_ONCE):
            group = [song_id for file in files[start : start + FILES_AT_ONCE] for song_id in by_file[file]]
            for song_id, words in read_fingerprints(self.out, stored, group).items():
                self.index.add(song_id, sketch(words))
            self.indexed.update(group)
