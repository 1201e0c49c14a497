"""What stands after songs came out of the graph: one row a recording, whoever it came from; nothing that was taken down."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_dataset_life import CODEC, encoded, hold_media, killed_before

from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place
from model.listen.fingerprint import MOST_BIT_ERRORS
from pipelines.dataset import write as dataset
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.commit import finish
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import Stored, Tables, read_fingerprints, read_stored
from pipelines.dataset.reconcile import Recordings, settle, without_copies
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.song import EncodedSong, FoundSong, Reject, SongResult
from pipelines.stages.decode import unknown_identity


class Run:
    """A prepare without its graph: songs are written as the graph would, then settled and committed, wave after wave."""

    def __init__(self, folder: Path) -> None:
        self.out, self.tables = Place(str(folder)), Tables()
        self.media = self.out / "media"
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
            results.append(result_of(url, song))
        return self.settled(results, before, elsewhere=elsewhere)

    def settled(self, results: Sequence[SongResult], before: Stored, *, elsewhere: bool = False) -> Stored:
        recordings = Recordings(self.out, MOST_BIT_ERRORS)
        with held(self.out, "test"):
            stored = settle(self.out, self.present, results, before, recordings, lambda _: elsewhere, self.tables, self.media)
            finish(self.out, stored, CODEC, ())
        return self.read()

    def missing(self) -> set[str]:
        """Addresses that the next run would work on."""
        versions = {url: found.version for url, found in self.present.items()}
        done = self.read().done(versions)
        return {url for url, version in versions.items() if done.get(url) != version}

    def change(self, url: str, **changes: str) -> FoundSong:
        """The source says something else of this address now."""
        self.present[url] = replace(self.present[url], version=f"{self.present[url].version}'", **changes)
        return self.present[url]

    def read(self) -> Stored:
        """What is stored, read from what was kept and anew: equal."""
        after = read_stored(self.out, self.tables)
        whole = read_stored(self.out)
        assert (after.songs, after.files, after.rejects, after.table) == (whole.songs, whole.files, whole.rejects, whole.table)
        return after


def result_of(url: str, song: EncodedSong) -> SongResult:
    whole = song.rejects[0].stage if song.rejects and not song.segments else ""
    return SongResult(url=url, song_id=song.identity.song_id, stored=bool(song.segments), rejected_by=whole, identity=song.identity)


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
    present = {url: FoundSong(url=url, source="pairs", version="1", listed_by="pairs:/") for url in ("/a", "/copy")}
    with held(run.out, "test"):
        stored = without_copies(run.out, present, stored, Recordings(run.out, MOST_BIT_ERRORS), lambda _: False, run.tables, run.media)
    assert urls(stored) == {"/a"}
    assert [(row["url"], row["stage"], row["listed_by"]) for row in stored.rejects] == [("/copy", "duplicate", "pairs:/")]


def test_a_takedown_leaves_what_waits_for_its_commit(run: Run) -> None:
    stored = run(("/a", 1), ("/b", 2))
    dataset.write_song(run.out, FoundSong(url="/waiting", source="pairs", version="1"), encoded(3), "train")
    victim = next(song_id for song_id, row in stored.songs.items() if row["url"] == "/a")
    takedown(TakedownConfig(data=str(run.out), song=victim))
    after = run.read()
    assert urls(after) == {"/b", "/waiting"}
    assert {after.songs[song_id]["url"] for song_id in after.committed} == {"/b"}


@pytest.mark.parametrize("stage", ["source", "acquire", "read"])
def test_a_song_that_could_not_be_had_this_time_stays_as_it_is_stored_and_is_tried_again(run: Run, stage: str) -> None:
    run(("/a", 1), ("/b", 2))
    gate = Reject(stage="gate", reason="silence", segment=7)
    dataset.write_rejects(run.out, run.present["/a"], f"{1:016x}", [gate])
    before = run.read()
    found = run.change("/a", title="corrected")
    fault = Reject(stage=stage, reason="503: run again later")
    unseen = EncodedSong(identity=unknown_identity(found), duration_s=0.0, segments=(), rejects=(fault,))
    dataset.write_song(run.out, found, unseen, "train")
    stored = run.settled([result_of("/a", unseen)], before)
    assert urls(stored) == {"/a", "/b"}
    assert {(row["url"], row["stage"]) for row in stored.rejects} == {("/a", stage), ("/a", "gate")}
    assert run.missing() == {"/a"}
    stored = run(("/a", 1))
    assert run.missing() == set()
    assert [(row["stage"], row["segment"]) for row in stored.rejects] == [("gate", 7)]


def test_a_song_whose_new_audio_is_of_no_use_goes(run: Run) -> None:
    run(("/a", 1), ("/b", 2))
    before = run.read()
    found = run.change("/a")
    useless = replace(encoded(9), segments=(), rejects=(Reject(stage="decode", reason="damaged"),))
    dataset.write_song(run.out, found, useless, "train")
    stored = run.settled([result_of("/a", useless)], before)
    assert (urls(stored), [row["stage"] for row in stored.rejects]) == ({"/b"}, ["decode"])


def test_songs_are_touched_moved_and_replaced_after_their_rows_were_joined(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*[(f"/{seed}", seed) for seed in range(1, 7)], words={seed: words(seed) for seed in range(1, 7)})
    compact(CompactConfig(data=str(run.out)))
    run.change("/1")
    run.change("/2")
    run.change("/3")
    del run.present["/4"]
    removed: list[str] = []
    monkeypatch.setattr(Place, "delete", lambda place, real=Place.delete: (removed.append(place.name), real(place))[1])
    run(("/1", 1), ("/2", 2), ("/3", 13), ("/moved", 4))
    stored = run.read()
    assert {row["song_id"]: row["url"] for row in stored.songs.values()} == {
        f"{seed:016x}": url for seed, url in [(1, "/1"), (2, "/2"), (13, "/3"), (4, "/moved"), (5, "/5"), (6, "/6")]
    }
    assert run.missing() == set()
    assert sum(name.startswith("part-") for name in removed) == 2, "rows and latents: each joined file is written anew once"
    found = read_fingerprints(run.out, stored, list(stored.songs))
    for seed in (1, 2, 4, 5, 6):
        np.testing.assert_array_equal(found[f"{seed:016x}"], words(seed))
    assert check(CheckConfig(data=str(run.out))).faults == ()


def test_a_kill_while_joined_songs_are_touched_moved_and_replaced_is_mended_by_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path / "whole")
    whole(*[(f"/{seed}", seed) for seed in range(1, 5)])
    compact(CompactConfig(data=str(whole.out)))
    operation = 0
    while True:
        operation += 1
        run = Run(shutil.copytree(tmp_path / "whole", tmp_path / f"killed-{operation}"))
        run.present = dict(whole.present)
        run.change("/1", license="CC BY 4.0")
        run.change("/2")
        del run.present["/3"]
        run.present["/moved"] = FoundSong(url="/moved", source="pairs", version="1")
        seeds = {"/1": 1, "/2": 12, "/moved": 3}
        with killed_before(operation, monkeypatch) as count:
            run(*seeds.items())
        run(*[(url, seeds[url]) for url in sorted(run.missing())])
        assert run.missing() == set(), operation
        assert urls(run.read()) == {"/1", "/2", "/moved", "/4"}, operation
        assert check(CheckConfig(data=str(run.out))).faults == (), operation
        if count[0] < operation:
            break
    assert operation > 6


@pytest.mark.parametrize("joined", [False, True])
def test_what_a_list_corrects_arrives_in_rows_and_latents(run: Run, joined: bool) -> None:
    run(("/a", 1), ("/b", 2), ("/c", 3))
    if joined:
        compact(CompactConfig(data=str(run.out)))
    before = run.read()
    found = run.change("/a", title="New", artist="Somebody", license="CC BY 4.0")
    known = replace(encoded(1), segments=())
    known = replace(known, identity=replace(known.identity, title=found.title, artist=found.artist, license=found.license))
    dataset.write_song(run.out, found, known, "train")
    stored = run.settled([result_of("/a", known)], before)
    row = stored.songs[known.identity.song_id]
    assert (row["title"], row["artist"], row["license"]) == ("New", "Somebody", "CC BY 4.0")
    licenses = {
        song_id: license
        for place in (run.out / "latents").list()
        for song_id, license in zip(*pq.read_table(place.path, columns=["song_id", "license"]).to_pydict().values(), strict=True)
    }
    assert licenses == {f"{1:016x}": "CC BY 4.0", f"{2:016x}": "CC0-1.0", f"{3:016x}": "CC0-1.0"}
    assert run.missing() == set()
    assert check(CheckConfig(data=str(run.out))).faults == ()


def test_a_recording_follows_its_copy_when_its_own_address_leaves_the_source(run: Run) -> None:
    stored = run(("/a", 1), ("/b", 2), ("/c", 3), ("/z", 4), words=dict.fromkeys([1, 2, 3], words(7)))
    assert urls(stored) == {"/a", "/z"}
    del run.present["/a"]
    assert run.missing() == {"/b", "/c"}
    stored = run(("/b", 2), ("/c", 3), words=dict.fromkeys([2, 3], words(7)))
    assert urls(stored) == {"/b", "/z"}, "one of the two copies"
    assert {row["url"]: row["song_id"] for row in stored.rejects} == {"/c": f"{2:016x}"}
    assert run.missing() == set()


def test_a_kill_while_a_recording_follows_its_copy_is_mended_by_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = dict.fromkeys([1, 2, 3], words(7))
    whole = Run(tmp_path / "whole")
    whole(("/a", 1), ("/z", 4), words=same)
    operation = 0
    while True:
        operation += 1
        run = Run(shutil.copytree(tmp_path / "whole", tmp_path / f"killed-{operation}"))
        run.present = {"/z": whole.present["/z"]} | {url: FoundSong(url=url, source="pairs", version="1") for url in ("/b", "/c")}
        with killed_before(operation, monkeypatch) as count:
            run(("/b", 2), ("/c", 3), words=same)
        if missing := run.missing():
            run(*[(url, {"/b": 2, "/c": 3}[url]) for url in sorted(missing)], words=same)
        else:
            recordings = Recordings(run.out, MOST_BIT_ERRORS)
            with held(run.out, "test"):
                stored = without_copies(run.out, run.present, run.read(), recordings, lambda _: False, run.tables, run.media)
                finish(run.out, stored, CODEC, ())
        stored = run.read()
        assert (len(urls(stored) & {"/a", "/b", "/c"}), len(stored.songs), run.missing()) == (1, 2, set()), operation
        assert check(CheckConfig(data=str(run.out))).faults == (), operation
        if count[0] < operation:
            break
    assert operation > 6


def test_a_recording_of_another_source_does_not_give_way_to_its_copy(run: Run) -> None:
    run(("/other/a", 1), words={1: words(7)})
    run.present.clear()
    assert urls(run(("/b", 2), words={2: words(7)}, elsewhere=True)) == {"/other/a"}


def test_a_download_that_turns_out_to_be_taken_down_is_removed(run: Run) -> None:
    run(("https://h/a", 1), ("https://h/z", 3), words={1: words(7), 3: words(8)})
    takedown(TakedownConfig(data=str(run.out), song=f"{1:016x}"))
    hold_media(run.media, "https://h/again")
    run(("https://h/again", 5), words={5: words(7)})
    assert (run.media.list(), run.missing()) == ([], set())


def test_fingerprints_of_joined_rows_are_read_once_for_many_songs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = words(7).copy()
    noisy[::50] ^= 1
    run(("/a", 1), ("/b", 2), words={1: words(7), 2: words(8)})
    compact(CompactConfig(data=str(run.out)))
    reads: list[str] = []
    monkeypatch.setattr(Place, "read_bytes", lambda place, real=Place.read_bytes: (reads.append(place.name), real(place))[1])
    run(*[(f"/copy-{seed}", seed) for seed in range(10, 15)], words=dict.fromkeys(range(10, 15), noisy))
    assert urls(run.read()) == {"/a", "/b"}
    # Rows twice (kept and anew), sketches, candidates; latents are joined too, and read by none.
    assert sum(name.startswith("part-") for name in reads) <= 6
