"""A dataset through its life: commits, joined files, takedowns, checks, and a kill before any single write or removal."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_lease import another_process

from infra.dataset.format import MANIFEST, SPLITS, read_latents, read_manifest
from infra.dataset.trained_on import note_training
from infra.errors import UserError
from infra.storage.lease import FOLDER, held
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from model.dimensions import LATENT_CHANNELS, SEGMENT_FRAMES
from pipelines.acquire.provenance import AcquiredMedia, record_place
from pipelines.dataset import write as dataset
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.commit import commit, finish
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import read_stored
from pipelines.dataset.kept_stems import kept_stems
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.song import EncodedSegment, EncodedSong, FoundSong, Reject, SongIdentity
from pipelines.stages.segment import SegmentConfig
from tests.dataset_parts import finished

CODEC = CodecIdentity(id="tiny", weights_sha256="ab" * 32)


def encoded(seed: int, segments: int = 2) -> EncodedSong:
    random = np.random.default_rng(seed)
    valid = [SEGMENT_FRAMES] * (segments - 1) + [200]
    pieces = []
    for index, frames in enumerate(valid):
        stems_BCT = np.zeros((2, LATENT_CHANNELS, SEGMENT_FRAMES), np.float16)
        stems_BCT[:, :, :frames] = random.standard_normal((2, LATENT_CHANNELS, frames))
        pieces.append(
            EncodedSegment(
                index=index, start_s=index * 47.5, duration_s=frames / 21.5, valid_frames=frames, vocal_CT=stems_BCT[0],
                accompaniment_CT=stems_BCT[1], vocal_active=0.5, vocal_level_db=-20.0, gain_db=1.0,
            )
        )  # fmt: skip
    identity = SongIdentity(song_id=f"{seed:016x}", audio_sha256=f"{seed:064x}", title=f"song {seed}", license="CC0-1.0")
    return EncodedSong(identity=identity, duration_s=60.0, segments=tuple(pieces), rejects=())


def write(out: Place, *seeds: int) -> None:
    for seed in seeds:
        song = encoded(seed)
        found = FoundSong(url=f"/songs/{seed}", source="pairs", version="1")
        dataset.write_song(out, found, song, dataset.split_of(song.identity.song_id, 0.3))


def commit_all(out: Place) -> None:
    finished(out, read_stored(out), CODEC)


def seen(out: Place) -> list[str]:
    """Songs as a reader through the manifest sees them; one row a segment, or it fails."""
    rows = [
        (song, segment)
        for split in SPLITS
        for table in [read_latents(out, split)]
        for song, segment in zip(table.song_ids, table.segments, strict=True)
    ]
    assert len(rows) == len(set(rows))
    return sorted({song for song, _ in rows})


def globbed(out: Place) -> Counter[tuple[str, int]]:
    """Rows as whoever lists the folder sees them."""
    table = pq.read_table(out.path / "latents", columns=["song_id", "segment"])
    return Counter(zip(table["song_id"].to_pylist(), table["segment"].to_pylist(), strict=True))


@pytest.fixture
def out(tmp_path: Path) -> Place:
    place = Place(str(tmp_path / "latents"))
    write(place, *range(8))
    commit_all(place)
    return place


CHANGES: dict[str, Callable[[Place], object]] = {
    "begin": lambda out: dataset.begin(out, CODEC, SegmentConfig(), 0.1),
    "commit": lambda out: commit(out, read_stored(out), CODEC),
    "finish": lambda out: finish(out, read_stored(out), CODEC, ()),
    "remove rows": lambda out: dataset.remove_rows(out, read_stored(out), {f"{1:016x}"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("holder", ["nobody", "another process", "whoever took it over"])
def test_whoever_does_not_hold_a_dataset_cannot_change_it(out: Place, change: Callable[[Place], object], holder: str) -> None:
    (out / "latents/split=train/in-flight.parquet").write_bytes(b"")
    before = {place.uri: place.version() for place in out.list()}
    with ExitStack() as stack:
        if holder == "another process":
            stack.enter_context(another_process(out))
        if holder == "whoever took it over":
            stack.enter_context(held(out, "compact"))
            (lease,) = (out / FOLDER).list()
            taken = json.loads(lease.read_bytes()) | {"id": "b", "machine": "node-7"}
            (out / FOLDER / "99999999.json").write_bytes(json.dumps(taken).encode())
        with pytest.raises(UserError, match=r"not, or no longer, held by this command.*: nothing is written; run it again"):
            change(out)
        assert {uri: version for uri, version in before.items() if Place(uri).version() != version} == {}
        assert {place.uri for place in out.list() if f"/{FOLDER}/" not in place.uri} == before.keys()


def test_songs_that_are_not_committed_yet_are_not_seen_and_break_nothing(out: Place) -> None:
    before = seen(out)
    assert len(before) == 8
    write(out, 20, 21)
    assert seen(out) == before
    assert check(CheckConfig(data=str(out))).remarks[0].startswith("2 songs are stored and in no commit yet")
    commit_all(out)
    assert len(seen(out)) == 10
    assert (check(CheckConfig(data=str(out))).faults, check(CheckConfig(data=str(out))).remarks) == ((), ())


def test_compacting_changes_no_row_and_no_digest(out: Place) -> None:
    before = {split: read_latents(out, split) for split in SPLITS}
    digest = read_manifest(out).digest
    summary = compact(CompactConfig(data=str(out)))
    assert (summary.before, summary.after) == (16, 3)
    assert [place.name[:5] for place in (out / "latents").list()] == ["part-", "part-"]
    assert read_manifest(out).digest == digest
    for split in SPLITS:
        after = read_latents(out, split)
        assert (after.song_ids, after.segments) == (before[split].song_ids, before[split].segments)
        np.testing.assert_array_equal(after.vocal_RCT, before[split].vocal_RCT)
    assert max(globbed(out).values()) == 1
    assert check(CheckConfig(data=str(out))).exit_code == 0
    write(out, 30, 31, 32)
    commit_all(out)
    assert (len(seen(out)), check(CheckConfig(data=str(out))).faults) == (11, ())
    again = compact(CompactConfig(data=str(out)))
    assert again.manifest.counts.songs == 11
    assert check(CheckConfig(data=str(out))).exit_code == 0


def test_a_joined_file_is_cut_at_the_size_asked_for_and_never_within_a_song(out: Place) -> None:
    compact(CompactConfig(data=str(out), file_mib=1.0))
    held = [pq.read_table(place.path, columns=["song_id"])["song_id"].to_pylist() for place in (out / "latents").list()]
    assert max(len(songs) for songs in held) == 4  # two songs of two segments of 256 KiB
    assert max(Counter(song for songs in held for song in set(songs)).values()) == 1
    with pytest.raises(UserError, match=r"at least 0\.25"):
        CompactConfig(data=str(out), file_mib=0.1)


@pytest.mark.parametrize("joined", [False, True])
def test_a_takedown_leaves_nothing_of_the_song_and_names_who_heard_it(out: Place, joined: bool) -> None:
    heard = read_manifest(out).digest
    note_training(out, "/runs/heard-it", heard)
    note_training(out, "/runs/another-dataset", "f" * 64)
    if joined:
        compact(CompactConfig(data=str(out)))
    victim = f"{3:016x}"
    found = FoundSong(url="/songs/3", source="pairs", version="1")
    dataset.write_rejects(out, found, victim, [Reject(stage="gate", reason="silence", segment=7)])
    dataset.settle_duplicate(out, FoundSong(url="/songs/copy", source="pairs", version="1"), victim, "/songs/3")
    summary = takedown(TakedownConfig(data=str(out), song=victim))
    assert summary.segments == 2
    assert [training.checkpoint for training in summary.trainings] == ["/runs/heard-it"]
    assert victim not in seen(out)
    assert len(seen(out)) == 7
    assert not any(song == victim for song, _ in globbed(out))
    for place in (out / "songs").list():
        assert victim not in pq.read_table(place.path)["song_id"].to_pylist()
    rejects = {row["url"]: row["stage"] for row in read_stored(out).rejects}
    assert rejects == {"/songs/3": "takedown", "/songs/copy": "takedown"}, "neither is asked for again"
    assert read_stored(out).done({}).keys() >= rejects.keys()
    assert check(CheckConfig(data=str(out))).faults == ()
    assert victim in read_stored(out).taken
    write(out, 3)  # a prepare that was running meanwhile
    commit_all(out)
    assert victim not in seen(out)
    assert not any(song == victim for song, _ in globbed(out))
    assert takedown(TakedownConfig(data=str(out), song=victim)).trainings == summary.trainings
    with pytest.raises(UserError, match="holds no song"):
        takedown(TakedownConfig(data=str(out), song="f" * 16))


def test_a_check_finds_what_is_damaged(out: Place) -> None:
    first = (out / "latents").list()[0]
    table = pq.read_table(first.path)
    values = table["vocal_latent"].combine_chunks().storage.flatten().to_numpy().copy()
    values[5] += 1
    changed = encoded(int(table["song_id"][0].as_py(), 16))
    changed.segments[0].vocal_CT[0, 5] += 1
    latents = dataset._latent_rows(changed, "pairs")
    dataset.write_table(first, latents)
    (fault,) = check(CheckConfig(data=str(out))).faults
    assert "vocal_latent is not what was written" in fault
    first.delete()
    faults = check(CheckConfig(data=str(out))).faults
    assert any("does not exist" in fault for fault in faults)
    assert check(CheckConfig(data=str(out))).exit_code == 1


class Killed(BaseException):
    """Stands for the moment at which a process is gone: nothing may catch it."""


@contextmanager
def killed_before(operation: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The process ends before its write or removal number `operation`; gives how many were reached."""
    count = [0]
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "put_if_absent", "delete", "delete_tree"):
            real = getattr(Place, name)

            def counted(place: Place, *data: bytes, real: Callable[..., object] = real) -> object:
                count[0] += 1
                if count[0] == operation:
                    raise Killed
                return real(place, *data)

            patch.setattr(Place, name, counted)
        try:
            yield count
        except Killed:
            return


def hold_media(media: Place, url: str) -> None:
    """A download as it is kept: the file and its record."""
    name = f"files/{url.rpartition('/')[2]}.wav"
    (media / name).write_bytes(b"sound")
    record = AcquiredMedia(
        url=url, final_url=url, file=name, sha256="", bytes=5, content_type="", etag="", title="", artist="", license="", fetched_at="",
        operator="", how="http", tool="",
    )  # fmt: skip
    record_place(media, url).write_bytes(record.to_json().encode())


def compacted(out: Place) -> None:
    compact(CompactConfig(data=str(out)))


def taken_down(out: Place) -> None:
    takedown(TakedownConfig(data=str(out), song=f"{3:016x}"))


def joined_then_taken_down(out: Place) -> None:
    compacted(out)
    taken_down(out)


def grown(out: Place) -> None:
    write(out, 40, 41, 42)
    commit_all(out)


@pytest.mark.parametrize("change", [compacted, taken_down, joined_then_taken_down, grown])
def test_a_kill_before_any_write_or_removal_leaves_one_commit_and_the_same_command_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Place], None]
) -> None:
    whole = Place(str(tmp_path / "whole"))
    write(whole, *range(4))
    commit_all(whole)
    before = seen(whole)
    change(whole)
    after = seen(whole)
    operation = 0
    while True:
        operation += 1
        out = Place(str(tmp_path / f"killed-{operation}"))
        write(out, *range(4))
        commit_all(out)
        with killed_before(operation, monkeypatch) as count:
            change(out)
        assert seen(out) in (before, after), operation
        change(out)
        assert seen(out) == after, operation
        assert max(globbed(out).values()) == 1, operation
        assert check(CheckConfig(data=str(out))).faults == (), operation
        if count[0] < operation:
            break
    assert operation > 3


def test_duckdb_reads_a_dataset_before_and_after_it_is_joined(out: Place) -> None:
    import duckdb

    def rows() -> list[tuple[object, ...]]:
        glob = f"{out}/latents/**/*.parquet"
        query = f"select song_id, segment, split, len(vocal_latent) from read_parquet('{glob}', hive_partitioning=true) order by all"
        return duckdb.sql(query).fetchall()

    before = rows()
    assert len(before) == 16
    assert {row[3] for row in before} == {LATENT_CHANNELS * SEGMENT_FRAMES}
    compacted(out)
    assert rows() == before


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("others", [0, 2])
def test_a_takedown_killed_anywhere_is_ended_by_the_same_command_and_costs_no_other_song(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, joined: bool
) -> None:
    victim = f"{3:016x}"
    kept = [f"{seed:016x}" for seed in range(20, 20 + others)]
    whole = Place(str(tmp_path / "whole"))
    for seed in (3, *range(20, 20 + others)):
        found = FoundSong(url=f"https://h/{seed}", source="urls", version="1")
        # The only song of its split: another has to take its place.
        dataset.write_song(whole, found, encoded(seed, segments=1), "validation" if seed == 3 else "train")
    commit_all(whole)
    if joined:
        compacted(whole)
    dataset.settle_duplicate(whole, FoundSong(url="https://h/copy", source="urls", version="1"), victim, "https://h/3")
    for url in ("https://h/3", "https://h/copy"):
        hold_media(whole / "media", url)
    for song_id in (victim, *kept):
        (whole / f"stems/{song_id}/vocals.flac").write_bytes(b"vocals")
        (whole / f"stems/{song_id}/accompaniment.flac").write_bytes(b"accompaniment")
    operation = 0
    while True:
        operation += 1
        out = Place(str(shutil.copytree(whole.path, tmp_path / f"killed-{operation}")))
        media = out / "media"
        with killed_before(operation, monkeypatch) as count:
            takedown(TakedownConfig(data=str(out), song=victim))
        if (out / MANIFEST).exists():
            assert set(kept) <= set(seen(out)), operation
        takedown(TakedownConfig(data=str(out), song=victim))
        assert media.list() == [], operation
        assert sorted(kept_stems(out)) == kept, operation
        stored = read_stored(out)
        assert {row["url"]: row["stage"] for row in stored.rejects} == {"https://h/3": "takedown", "https://h/copy": "takedown"}, operation
        assert sorted(stored.songs) == kept, operation
        assert victim not in stored.row_files, operation
        if kept:
            assert seen(out) == kept, operation
            assert globbed(out) == Counter((song_id, 0) for song_id in kept), operation
            assert check(CheckConfig(data=str(out))).faults == (), operation
        else:
            assert (out / "latents").list() == [], operation
        if count[0] < operation:
            break
    assert operation > 8


def test_a_takedown_says_what_it_removed_when_it_ends_a_killed_one(out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_before(2, monkeypatch):
        taken_down(out)
    assert takedown(TakedownConfig(data=str(out), song=f"{3:016x}")).segments == 2
    assert takedown(TakedownConfig(data=str(out), song=f"{3:016x}")).segments == 0


def test_a_takedown_repeated_spares_another_song_that_has_its_address_since(out: Place) -> None:
    taken_down(out)
    dataset.write_song(out, FoundSong(url="/songs/3", source="pairs", version="2"), encoded(33), "train")
    commit_all(out)
    hold_media(out / "media", "/songs/3")
    taken_down(out)
    assert len((out / "media").list()) == 2
    assert read_stored(out).rejects == []


def test_a_takedown_refuses_a_dataset_whose_manifest_names_no_songs(out: Place) -> None:
    older = replace(read_manifest(out), snapshot=None).to_json().encode()
    (out / MANIFEST).write_bytes(older)
    with pytest.raises(UserError, match="run prepare once"):
        taken_down(out)
    assert (out / MANIFEST).read_bytes() == older
    assert len(read_stored(out).songs) == 8
