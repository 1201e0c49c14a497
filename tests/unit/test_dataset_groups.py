"""Songs that share a vocal are in one split, whatever moves; a split that a source chose stays; credits of what is stored."""

from pathlib import Path

import numpy as np
import pytest

from infra.dataset.credits import Credit, credits_of, joined, read_credits, stored_credits, write_credits
from infra.dataset.format import read_latents, read_manifest
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.dataset import write as dataset
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.commit import finish
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import read_stored
from pipelines.dataset.reconcile import adopt
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.song import EncodedSegment, EncodedSong, FoundSong, SongIdentity
from training.publish.model_card import sources

CODEC = CodecIdentity(id="tiny", weights_sha256="ab" * 32)
SHARE = 0.2


def song_id(vocal: int, band: int = 0) -> str:
    return f"{vocal:08x}{band:08x}"


def identity_of(vocal: int, band: int = 0, **said: str) -> SongIdentity:
    name = song_id(vocal, band)
    shared = song_id(vocal) if band else ""
    return SongIdentity(song_id=name, audio_sha256=name * 4, title=f"song {vocal}", license="CC0-1.0", vocal_of=shared, **said)


def write(out: Place, vocal: int, band: int = 0, *, found: FoundSong | None = None, **said: str) -> None:
    """Stores a song of one segment where the run that wrote it would."""
    identity = identity_of(vocal, band, **said)
    stems_BCT = np.random.default_rng(vocal).standard_normal((2, LATENT_CHANNELS, SEGMENT_FRAMES)).astype(np.float16)
    piece = EncodedSegment(
        index=0, start_s=0.0, duration_s=47.5, valid_frames=SEGMENT_FRAMES, vocal_CT=stems_BCT[0], accompaniment_CT=stems_BCT[1],
        vocal_active=0.5, vocal_level_db=-20.0, gain_db=1.0,
    )  # fmt: skip
    found = found or FoundSong(url=f"/songs/{vocal}-{band}", source="demo", version="1")
    moved = dataset.moved_groups(read_stored(out), SHARE)
    split = found.split or moved.get(identity.vocal_group) or dataset.split_of(identity.vocal_group, SHARE)
    dataset.write_song(out, found, EncodedSong(identity=identity, duration_s=47.5, segments=(piece,), rejects=()), split)


def splits(out: Place) -> dict[str, set[str]]:
    """Vocal → the splits that its songs are in, as a reader sees them."""
    found: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        for name in read_latents(out, split).song_ids:
            found.setdefault(name[:8], set()).add(split)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "latents"))


def test_the_songs_of_a_vocal_are_in_one_split(out: Place) -> None:
    for vocal in range(24):
        for band in range(3):
            write(out, vocal, band)
    finish(out, read_stored(out), CODEC, ())
    held = splits(out)
    assert {len(where) for where in held.values()} == {1}
    assert 2 <= sum(where == {"validation"} for where in held.values()) <= 10
    alone = {song_id(vocal): dataset.split_of(song_id(vocal), SHARE) for vocal in range(24)}
    assert all(held[name[:8]] == {split} for name, split in alone.items()), "the first band lies where it would alone"
    assert check(CheckConfig(data=str(out))).faults == ()


def one_split_only(split: str) -> list[int]:
    """Vocals that hashes would all put into this split."""
    return [vocal for vocal in range(200) if dataset.split_of(song_id(vocal), SHARE) == split][:4]


@pytest.mark.parametrize("joined_files", [False, True])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_given_a_whole_vocal(out: Place, split: str, joined_files: bool) -> None:
    vocals = one_split_only(split)
    for vocal in vocals:
        for band in range(3):
            write(out, vocal, band)
    if joined_files:  # rows of several songs in one file, and one split emptied
        finish(out, read_stored(out), CODEC, ())
        compact(CompactConfig(data=str(out)))
        other = "validation" if split == "train" else "train"
        for name in [name for name, row in read_stored(out).songs.items() if row["split"] == other]:
            takedown(TakedownConfig(data=str(out), song=name))
        compact(CompactConfig(data=str(out)))
    finish(out, read_stored(out), CODEC, list(read_stored(out).songs))
    held = splits(out)
    assert {len(where) for where in held.values()} == {1}
    assert {next(iter(where)) for where in held.values()} == {"train", "validation"}
    moved = next(vocal for vocal in vocals if held.get(song_id(vocal)[:8]) not in (None, {split}))
    write(out, moved, 3)
    finish(out, read_stored(out), CODEC, [song_id(moved, 3)])
    assert splits(out)[song_id(moved)[:8]] == held[song_id(moved)[:8]], "what is added to a vocal that was moved follows it"
    assert check(CheckConfig(data=str(out))).faults == ()


def test_two_bands_of_one_vocal_alone_are_not_parted(out: Place) -> None:
    vocal = one_split_only("train")[0]
    write(out, vocal, 0)
    write(out, vocal, 1)
    finish(out, read_stored(out), CODEC, ())
    assert splits(out) == {song_id(vocal)[:8]: {"train"}}


def test_a_takedown_names_the_songs_with_the_same_vocal(out: Place) -> None:
    for vocal, band in ((0, 0), (0, 1), (1, 0), (1, 1)):
        write(out, vocal, band)
    finish(out, read_stored(out), CODEC, ())
    summary = takedown(TakedownConfig(data=str(out), song=song_id(0)))
    assert summary.same_vocal == (song_id(0, 1),)
    assert f"its vocal is in {song_id(0, 1)} too" in str(summary)
    assert takedown(TakedownConfig(data=str(out), song=song_id(0, 1))).same_vocal == ()


def test_a_split_that_the_source_chose_stays(out: Place) -> None:
    for vocal in range(3):
        write(out, vocal, found=FoundSong(url=f"/{vocal}", source="pairs", version="1", split="validation" if vocal == 2 else "train"))
    finish(out, read_stored(out), CODEC, ())
    assert splits(out) == {song_id(0)[:8]: {"train"}, song_id(1)[:8]: {"train"}, song_id(2)[:8]: {"validation"}}
    stored = read_stored(out)
    assert {row["split_given"] for row in stored.songs.values()} == {True}
    # The sheet changes its mind: the song moves, nothing is encoded anew.
    found = FoundSong(url="/1", source="pairs", version="2", split="validation", license="CC-BY-4.0", credit="One by Ann")
    adopt(out, stored, {song_id(1): (found, identity_of(1, credit="One by Ann", page_url="https://a.example"))})
    finish(out, read_stored(out), CODEC, ())
    assert splits(out)[song_id(1)[:8]] == {"validation"}
    row = read_stored(out).songs[song_id(1)]
    assert (row["credit"], row["page_url"], row["split_given"]) == ("One by Ann", "https://a.example", True)
    assert check(CheckConfig(data=str(out))).faults == ()


def test_credits_are_stored_with_each_commit_and_reach_the_card(out: Place, tmp_path: Path) -> None:
    write(
        out, 0, credit="Blue by Ann", page_url="https://ann.example", found=FoundSong(url="/0", source="pairs", version="1", split="train")
    )
    write(out, 1, found=FoundSong(url="/1", source="demo", version="1", split="train"))
    write(out, 2, found=FoundSong(url="/2", source="demo", version="1", split="validation"))
    finish(out, read_stored(out), CODEC, ())
    manifest = read_manifest(out)
    credits = read_credits(out, manifest)
    assert {(credit.source, credit.split, credit.songs, credit.credit) for credit in credits} == {
        ("pairs", "train", 1, "Blue by Ann"), ("demo", "train", 1, ""), ("demo", "validation", 1, ""),
    }  # fmt: skip
    assert credits == stored_credits(out) == credits_of(read_stored(out).songs)
    (out / "credits.json").delete()
    assert read_credits(out, manifest) == credits, "a dataset of before there were credits names its songs' own"
    earlier = Credit(source="urls", license="CC-BY-4.0", split="train", songs=1, duration_h=0.1, credit="Red by Bob")
    write_credits(Place(str(tmp_path)), joined(credits, (earlier,), credits))
    kept = stored_credits(Place(str(tmp_path)))
    assert kept == (*credits, earlier)
    lines = sources(kept)
    assert "- Blue by Ann (CC0-1.0), https://ann.example" in lines
    assert "- Red by Bob (CC-BY-4.0)" in lines
    assert "| demo | CC0-1.0 | 1 | 0.01 | held out |" in lines
    assert sources(()) == []


def test_a_licence_that_asks_for_a_credit_gets_one_from_the_artist() -> None:
    row = {"title": "Blue", "source": "urls", "split": "train", "duration_s": 60.0, "credit": None, "page_url": None}
    songs = {"a": {**row, "artist": "Ann", "license": "CC-BY-4.0"}, "b": {**row, "artist": "Ann", "license": "CC0-1.0"}}
    assert {(credit.license, credit.credit) for credit in credits_of(songs)} == {("CC-BY-4.0", "Blue by Ann"), ("CC0-1.0", "")}
