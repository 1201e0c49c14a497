"""After the graph: songs that moved, were touched, copied or replaced, and recordings that are there already under another hash.

One row a recording, none for what is gone. What stays does not depend on the order in which songs came out of the graph.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.storage import Place
from model.fingerprint import FingerprintIndex, bit_error_rate, sketch
from pipelines import dataset
from pipelines.dataset import Stored
from pipelines.graph import SongResult
from pipelines.songs import FoundSong

FILES_AT_ONCE = 64

Elsewhere = Callable[[Mapping[str, Any]], bool]


def settle(
    out: Place, songs: Sequence[FoundSong], results: Sequence[SongResult], before: Stored, recordings: "Recordings", elsewhere: Elsewhere
) -> Stored:
    """What is stored now, one row a recording; `elsewhere` says of a row that its song belongs to another source than `songs`."""
    now = dataset.read_stored(out)
    if not results:
        return now
    found = {song.url: song for song in songs}
    addresses: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if not result.rejected_by:
            addresses[result.song_id].add(result.url)
    for song_id, urls in addresses.items():
        earlier = before.songs.get(song_id)
        stands = earlier is not None and (
            earlier["url"] in urls
            or elsewhere(earlier)
            or (earlier["url"] in found and earlier["url"] not in {result.url for result in results})
        )
        owner = earlier["url"] if earlier is not None and stands else min(urls)
        row = now.songs[song_id]
        if owner in urls and (row["url"], row["source_version"]) != (owner, found[owner].version):
            dataset.adopt(out, now, song_id, found[owner])
        for url in sorted(urls - {owner}):
            dataset.settle_duplicate(out, found[url], song_id, owner)
    worked = {result.url: result.song_id for result in results}
    replaced = {
        song_id
        for song_id, row in before.songs.items()
        if row["url"] in worked and worked[row["url"]] != song_id and song_id not in addresses
    }
    dataset.remove_rows(out, now, replaced)
    now = dataset.read_stored(out)
    copies = recordings.copies(now, {song_id for song_id in addresses if song_id not in before.songs})
    for song_id, (owner, errors) in copies.items():
        copy = found[now.songs[song_id]["url"]]
        how = f"the same recording (fingerprints differ in {errors:.0%} of their bits) as"
        dataset.settle_duplicate(out, copy, owner, now.songs[owner]["url"], how)
    dataset.remove_rows(out, now, copies.keys())
    return dataset.read_stored(out)


class Recordings:
    """Sketches of the dataset's songs, to find a recording again; filled when first asked, 256 bytes a song."""

    def __init__(self, out: Place, max_errors: float) -> None:
        self.out, self.max_errors = out, max_errors
        self.index = FingerprintIndex()
        self.indexed: set[str] = set()

    def copies(self, stored: Stored, new: set[str]) -> dict[str, tuple[str, float]]:
        """Of the `new` songs, those that are a recording which is there already: song id → (id of the other, share of bits that differ).

        Of two new ones the one at the lower address stays.
        """
        if not self.max_errors:
            return {}
        self._fill(stored, sorted(stored.songs.keys() - self.indexed - new))
        fresh = sorted(new & stored.songs.keys(), key=lambda song_id: stored.songs[song_id]["url"])
        words = dataset.read_fingerprints(self.out, stored, fresh)
        copies: dict[str, tuple[str, float]] = {}
        for song_id in (song_id for song_id in fresh if song_id in words):
            candidates = [other for other in self.index.candidates(sketch(words[song_id])) if other in stored.songs and other != song_id]
            others = dataset.read_fingerprints(self.out, stored, candidates)
            distances = [(bit_error_rate(words[song_id], theirs), other) for other, theirs in others.items()]
            errors, nearest = min(distances, default=(1.0, ""))
            if errors <= self.max_errors:
                copies[song_id] = (nearest, errors)
            else:
                self.index.add(song_id, sketch(words[song_id]))
                self.indexed.add(song_id)
        return copies

    def _fill(self, stored: Stored, song_ids: Sequence[str]) -> None:
        by_file: dict[str, list[str]] = defaultdict(list)
        for song_id in song_ids:
            by_file[stored.row_files[song_id][0]].append(song_id)
        files = sorted(by_file)
        for start in range(0, len(files), FILES_AT_ONCE):
            group = [song_id for file in files[start : start + FILES_AT_ONCE] for song_id in by_file[file]]
            for song_id, words in dataset.read_fingerprints(self.out, stored, group).items():
                self.index.add(song_id, sketch(words))
            self.indexed.update(group)
