"""What stands after songs came out of the graph: one row a recording, whoever it came from; nothing that was taken down."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_dataset_life import CODEC, encoded

from infra.errors import UserError
from infra.storage import Place
from model.fingerprint import MOST_BIT_ERRORS
from pipelines import dataset
from pipelines.commits import finish
from pipelines.compact import CompactConfig, compact
from pipelines.settle import Recordings, settle, without_copies
from pipelines.songs import FoundSong
from pipelines.stages import SongResult
from pipelines.stored import Stored, Tables, read_stored
from pipelines.takedown import TakedownConfig, takedown


class Run:
    """A prepare without its graph: songs are written as the graph would, then settled and committed, wave after wave."""

    def __init__(self, folder: Path) -> None:
        self.out, self.tables = Place(str(folder)), Tables()
        self.present: dict[str, FoundSong] = {}

    def __call__(self, *songs: tuple[str, int], words: dict[int, np.ndarray] | None = None, elsewhere: bool = False) -> Stored:
        """A wave of (address, seed of its audio); `words` are fingerprints by seed."""
        before = read_stored(self.out, self.tables)
        results = []
        for url, seed in songs:
            found = self.present.setdefault(url, FoundSong(url=url, source="pairs", version="1"))
            song = encoded(seed)
            if words and seed in words:
                song = replace(song, fingerprint=tuple(words[seed].tolist()))
            if song.identity.song_id in before.songs:
                song = replace(song, segments=())
            dataset.write_song(self.out, found, song, "train")
            results.append(SongResult(url=url, song_id=song.identity.song_id, stored=bool(song.segments)))
        recordings = Recordings(self.out, MOST_BIT_ERRORS)
        stored = settle(self.out, self.present, results, before, recordings, lambda _: elsewhere, self.tables)
        finish(self.out, stored, CODEC, ())
        return self.read()

    def read(self) -> Stored:
        """What is stored, read from what was kept and anew: equal."""
        after = read_stored(self.out, self.tables)
        whole = read_stored(self.out)
        assert (after.songs, after.files, after.rejects, after.table) == (whole.songs, whole.files, whole.rejects, whole.table)
        return after


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "latents")


def urls(stored: Stored) -> set[str]:
    return {row["url"] for row in stored.songs.values()}


def words(seed: int) -> np.ndarray:
    """A fingerprint of 15 s whose words stay for three frames each, as a song's do."""
    return np.random.default_rng(seed).integers(1, 2**32, 430, dtype=np.uint32).repeat(3)


def test_a_copy_that_comes_later_leaves_the_unchanged_song_its_address(run: Run) -> None:
    run(("/b", 1), ("/c", 2))
    stored = run(("/a", 1))
    assert urls(stored) == {"/b", "/c"}
    done = stored.done(dict.fromkeys(run.present, "1"))
    assert done.keys() == {"/a", "/b", "/c"}, "nothing is to be done again"
    assert any("the same audio as /b" in row["reason"] for row in stored.rejects)


def test_a_song_of_another_source_keeps_its_address_too(run: Run) -> None:
    run(("/other/a", 1))
    run.present.clear()
    stored = run(("/a", 1), elsewhere=True)
    assert urls(stored) == {"/other/a"}
    assert stored.done({"/a": "1"}, lambda row: row["url"].startswith("/other/")).keys() >= {"/a"}


def test_a_moved_song_takes_its_row_along(run: Run) -> None:
    run(("/old", 1), ("/x", 2))
    del run.present["/old"]
    assert urls(run(("/new", 1))) == {"/new", "/x"}


def test_the_same_recording_under_another_hash_is_one_song_in_one_wave_or_two(run: Run) -> None:
    noisy = words(7).copy()
    noisy[::50] ^= 1
    stored = run(("/a", 1), ("/b", 2), ("/z", 3), words={1: words(7), 2: noisy, 3: words(8)})
    assert urls(stored) == {"/a", "/z"}
    stored = run(("/later", 4), words={4: noisy})
    assert urls(stored) == {"/a", "/z"}
    assert {row["url"]: row["stage"] for row in stored.rejects} == {"/b": "duplicate", "/later": "duplicate"}


def test_a_recording_that_was_taken_down_does_not_come_back_under_another_hash(run: Run) -> None:
    stored = run(("/a", 1), ("/z", 3), words={1: words(7), 3: words(8)})
    victim = next(song_id for song_id, row in stored.songs.items() if row["url"] == "/a")
    takedown(TakedownConfig(data=str(run.out), song=victim))
    stored = run(("/again", 5), words={5: words(7)})
    assert urls(stored) == {"/z"}
    assert {row["url"]: row["stage"] for row in stored.rejects} == {"/a": "takedown", "/again": "takedown"}
    assert urls(run(("/another", 6), words={6: words(9)})) == {"/z", "/another"}


def test_what_a_killed_run_wrote_is_settled_by_the_next_though_nothing_is_missing(run: Run) -> None:
    run(("/a", 1), words={1: words(7)})
    copy = replace(encoded(2), fingerprint=tuple(words(7).tolist()))
    dataset.write_song(run.out, FoundSong(url="/copy", source="pairs", version="1"), copy, "train")
    stored = run.read()
    assert stored.songs.keys() - stored.committed == {copy.identity.song_id}
    with pytest.raises(UserError, match="1 songs that are in no commit yet"):
        compact(CompactConfig(data=str(run.out)))
    stored = without_copies(run.out, stored, Recordings(run.out, MOST_BIT_ERRORS), run.tables)
    assert urls(stored) == {"/a"}
    assert {row["url"]: row["stage"] for row in stored.rejects} == {"/copy": "duplicate"}


def test_a_takedown_leaves_what_waits_for_its_commit(run: Run) -> None:
    stored = run(("/a", 1), ("/b", 2))
    dataset.write_song(run.out, FoundSong(url="/waiting", source="pairs", version="1"), encoded(3), "train")
    victim = next(song_id for song_id, row in stored.songs.items() if row["url"] == "/a")
    takedown(TakedownConfig(data=str(run.out), song=victim))
    after = run.read()
    assert urls(after) == {"/b", "/waiting"}
    assert {after.songs[song_id]["url"] for song_id in after.committed} == {"/b"}
