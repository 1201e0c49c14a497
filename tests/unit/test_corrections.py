"""What a source corrects or drops: a licence that is forbidden now, addresses that it has no more."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_dataset_life import CODEC, encoded, hold_media, killed_before
from test_settle import Run, result_of, urls

import pipelines.run.prepare
from infra.dataset.format import read_manifest
from infra.storage.atomic import write_partial
from infra.storage.place import Place
from pipelines.acquire.acquire import LICENSE, AcquireConfig
from pipelines.acquire.provenance import record_place
from pipelines.dataset import write as dataset
from pipelines.dataset.belonging import without_left
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.compact import CompactConfig, compact
from pipelines.dataset.contents import read_stored
from pipelines.dataset.kept_stems import NAMES, kept_stems, remove_stems_but
from pipelines.dataset.reconcile import remove_forbidden
from pipelines.dataset.takedown import TakedownConfig, takedown
from pipelines.run.prepare import PrepareConfig, prepare
from pipelines.song import EncodedSong, FoundSong, Reject, SongResult
from pipelines.sources import list_songs, parse_source
from pipelines.stages.decode import unknown_identity
from tests.dataset_parts import finished

GATE = Reject(stage="gate", reason="silence", segment=7)
A, B, COPY = "https://h/a", "https://h/b", "https://h/copy"
FORBIDDEN = "All rights reserved"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return filled(Run(tmp_path / "latents"))


def filled(run: Run) -> Run:
    """Two songs, of which the first has a rejected segment, a download, and stems."""
    run((A, 1), (B, 2))
    dataset.write_rejects(run.out, run.present[A], f"{1:016x}", [GATE])
    hold_media(run.media, A)
    hold_stems(run.out, 1)
    return run


def hold_stems(out: Place, seed: int, names: Sequence[str] = NAMES) -> Place:
    """The song's stems as they are kept, in this folder."""
    for name in names:
        (out / f"stems/{seed:016x}/{name}").write_bytes(np.random.default_rng(seed).bytes(9))
    return out / f"stems/{seed:016x}"


def begin(run: Run) -> None:
    """What a run does before it asks what is missing."""
    remove_forbidden(run.media, run.read(), {url for url, found in run.present.items() if found.license != FORBIDDEN})


def forbid(run: Run) -> SongResult:
    """The list's row of the first song names a licence that is forbidden, and the graph says so."""
    found = run.present[A] if run.present[A].license else run.change(A, license=FORBIDDEN)
    fault = Reject(stage=LICENSE, reason=f"licence {FORBIDDEN!r} is not one of CC0-1.0")
    unseen = EncodedSong(identity=unknown_identity(found), duration_s=0.0, segments=(), rejects=(fault,))
    dataset.write_song(run.out, found, unseen, "train")
    return result_of(A, unseen)


def copied(run: Run) -> SongResult:
    """The first song is at another address too, under a licence that is permitted; its audio is known."""
    found = run.present.setdefault(COPY, FoundSong(url=COPY, source="pairs", version="1"))
    song = encoded(1)
    if song.identity.song_id in run.read().songs:
        song = replace(song, segments=())
    dataset.write_song(run.out, found, song, "train")
    return result_of(COPY, song)


def rejects(run: Run) -> set[tuple[str, str, int | None]]:
    return {(row["url"], row["stage"], row["segment"]) for row in run.read().rejects}


@pytest.mark.parametrize("joined", [False, True])
def test_a_song_whose_licence_is_forbidden_now_leaves_with_its_download_and_is_a_reject(run: Run, joined: bool) -> None:
    if joined:
        compact(CompactConfig(data=str(run.out)))
    before = run.read()
    stored = run.settled([forbid(run)], before)
    assert urls(stored) == {B}
    assert rejects(run) == {(A, "license", None)}
    assert (run.missing(), run.media.list(), kept_stems(run.out)) == (set(), [], {})
    assert f"{1:016x}" not in stored.row_files
    manifest = read_manifest(run.out)
    assert (manifest.counts.songs, manifest.counts.rejected_songs, manifest.counts.rejected_segments) == (1, 1, 0)
    assert (check(CheckConfig(data=str(run.out))).faults, check(CheckConfig(data=str(run.out))).remarks) == ((), ())


def test_a_permitted_copy_takes_over_the_row_of_a_song_that_is_forbidden_now(run: Run) -> None:
    before = run.read()
    stored = run.settled([forbid(run), copied(run)], before)
    assert urls(stored) == {COPY, B}
    assert rejects(run) == {(A, "license", None), (COPY, "gate", 7)}
    assert run.missing() == set()
    assert check(CheckConfig(data=str(run.out))).faults == ()


@pytest.mark.parametrize("with_copy", [False, True])
def test_a_kill_while_a_forbidden_song_leaves_is_mended_by_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_copy: bool
) -> None:
    whole = filled(Run(tmp_path / "whole"))
    compact(CompactConfig(data=str(whole.out)))
    remove_stems_but(whole.out, ())
    operation = 0
    while True:
        operation += 1
        run = Run(shutil.copytree(tmp_path / "whole", tmp_path / f"killed-{operation}"))
        run.present = dict(whole.present)
        if with_copy:
            run.present[COPY] = FoundSong(url=COPY, source="pairs", version="1")
        with killed_before(operation, monkeypatch) as count:
            before = run.read()
            run.settled([forbid(run), copied(run)] if with_copy else [forbid(run)], before)
        missing, before = run.missing(), run.read()
        results = [{A: forbid, COPY: copied}[url](run) for url in sorted(missing)]
        if results:
            run.settled(results, before)
        else:
            finished(run.out, before, CODEC)
        assert urls(run.read()) == ({COPY, B} if with_copy else {B}), operation
        assert (run.missing(), run.media.list()) == (set(), []), operation
        assert (A, "license", None) in rejects(run), operation
        assert not {row for row in rejects(run) if row[0] == A and row[2] is not None}, operation
        assert check(CheckConfig(data=str(run.out))).faults == (), operation
        if count[0] < operation:
            break
    assert operation > 6


@pytest.mark.parametrize("earlier", ["duplicate", "decode", None])
def test_a_download_without_a_row_goes_with_its_licence_wherever_the_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str | None
) -> None:
    whole = Run(tmp_path / "whole")
    whole((B, 2))
    whole.present[A] = FoundSong(url=A, source="pairs", version="1")
    if earlier:
        reject(whole.out, A, earlier, song_id=f"{2:016x}")
    for url in (A, B):
        hold_media(whole.media, url)
    operation = 0
    while True:
        operation += 1
        run = Run(shutil.copytree(tmp_path / "whole", tmp_path / f"killed-{operation}"))
        run.present = dict(whole.present)
        with killed_before(operation, monkeypatch) as count:
            begin(run)
            run.settled([forbid(run)], run.read())
        begin(run)
        before = run.read()
        run.settled([forbid(run) for _ in run.missing()], before)
        assert urls(run.read()) == {B}, operation
        assert (rejects(run), run.missing()) == ({(A, "license", None)}, set()), operation
        assert {place.name for place in run.media.list()} == {"b.wav", record_place(run.media, B).name}, operation
        if count[0] < operation:
            break
    assert operation > 3  # the reject, the file, its record


def test_a_download_goes_though_the_list_has_dropped_its_address_and_stays_where_it_is_permitted_now(tmp_path: Path) -> None:
    run = Run(tmp_path / "latents")
    for url in (A, B):
        hold_media(run.media, url)
        reject(run.out, url, LICENSE, listed_by="urls:/list.csv")
    hold_media(run.media, COPY)
    reject(run.out, COPY, "duplicate")
    run.present[B] = FoundSong(url=B, source="urls", version="2", license="CC0-1.0")
    begin(run)
    assert {place.name for place in (run.media / "files").list()} == {"b.wav", "copy.wav"}
    assert len((run.media / "records").list()) == 2
    begin(run)


def test_a_run_that_has_nothing_to_do_takes_away_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text(f"url,title,artist,license\n{A},A Song,The Example,{FORBIDDEN}\n")
    source, out = f"urls:{tmp_path / 'list.csv'}", Place(str(tmp_path / "latents"))
    (found,) = list_songs(parse_source(source))
    dataset.write_rejects(out, replace(found, listed_by=source), "x", [Reject(stage=LICENSE, reason="")])
    hold_media(out / "media", A)
    monkeypatch.setattr(pipelines.run.prepare, "_separator", lambda *_: None)  # its weights are not here, and nothing is to be separated
    config = PrepareConfig(source=source, out=str(out), acquire=AcquireConfig(operator="tests@example.org", licenses=("CC0-1.0",)))
    assert len(prepare(config).rejects) == 1
    assert (out / "media").list() == []


def reject(out: Place, url: str, stage: str = "decode", segment: int | None = None, listed_by: str = "", song_id: str = "x") -> None:
    found = FoundSong(url=url, source="folder", version="1", listed_by=listed_by)
    dataset.write_rejects(out, found, song_id, [Reject(stage=stage, reason="damaged", segment=segment)])


def test_a_reject_goes_when_its_address_leaves_the_folder_and_no_other_does(tmp_path: Path) -> None:
    out = Place(str(tmp_path))
    dataset.write_song(out, FoundSong(url="/songs/gone-but-stored", source="folder", version="1"), encoded(1), "train")
    dataset.write_song(out, FoundSong(url="/songs/there", source="folder", version="1"), encoded(2), "train")
    for url in ("/songs/bad.wav", "/songs/gone.wav", "/songs-of-another/bad.wav"):
        reject(out, url)
    reject(out, "/songs/older.wav", listed_by="folder:/songs")
    reject(out, "/songs/pair", listed_by="pairs:/songs")
    reject(out, "/songs/taken.wav", "takedown")
    reject(out, "/songs/gone-but-stored", "gate", 3, song_id=f"{1:016x}")
    reject(out, "/songs/gone-with-its-song", "gate", 3)
    kept = {"/songs/bad.wav", "/songs-of-another/bad.wav", "/songs/pair", "/songs/taken.wav", "/songs/gone-but-stored"}
    stored = without_left(out, read_stored(out), parse_source("folder:/songs"), {"/songs/bad.wav", "/songs/there"})
    assert {row["url"] for row in stored.rejects} == kept
    assert {row["url"] for row in read_stored(out).rejects} == kept
    manifest = finished(out, stored, CODEC)
    assert manifest is not None
    assert (manifest.counts.rejected_songs, manifest.counts.rejected_segments) == (4, 1)


def test_a_list_drops_only_rejects_of_addresses_that_it_named_itself(tmp_path: Path) -> None:
    out = Place(str(tmp_path))
    for name, listed_by in (("there", "urls:/list.csv"), ("gone", "urls:/list.csv"), ("other", "urls:/other.csv"), ("unknown", "")):
        reject(out, f"https://h/{name}", "acquire", listed_by=listed_by)
    stored = without_left(out, read_stored(out), parse_source("urls:/list.csv"), {"https://h/there"})
    assert {row["url"].rpartition("/")[2] for row in stored.rejects} == {"there", "other", "unknown"}
    assert without_left(out, stored, parse_source("urls:/list.csv"), {"https://h/there"}) is stored


def test_stems_go_with_their_song_and_with_a_takedown_only_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path / "latents")
    run((A, 1), (B, 2))
    for seed in (1, 2, 9):
        hold_stems(run.out, seed)
    assert check(CheckConfig(data=str(run.out))).remarks == ("1 folders of stems belong to no song: the next prepare removes them",)
    takedown(TakedownConfig(data=str(run.out), song=f"{1:016x}"))
    assert kept_stems(run.out) == {f"{2:016x}": {"vocals.flac", "accompaniment.flac"}}
    assert (check(CheckConfig(data=str(run.out))).faults, check(CheckConfig(data=str(run.out))).remarks) == ((), ())


def test_half_a_pair_of_stems_goes_with_the_next_commit_though_its_song_is_stored(tmp_path: Path) -> None:
    """A run was killed between the two files; the next, without --keep-stems, stored the song."""
    run = Run(tmp_path / "latents")
    run((A, 1), (B, 2))
    hold_stems(run.out, 1, NAMES[:1])
    hold_stems(run.out, 2)
    (fault,) = check(CheckConfig(data=str(run.out))).faults
    assert fault == f"stems/{1:016x} holds vocals.flac, not vocals.flac and accompaniment.flac: the next prepare removes what is amiss"
    finished(run.out, run.read(), CODEC)
    assert kept_stems(run.out) == {f"{2:016x}": set(NAMES)}
    assert check(CheckConfig(data=str(run.out))).faults == ()


@pytest.mark.parametrize("way", ["commit", "licence", "takedown"])
def test_what_a_killed_write_of_stems_left_goes_too(tmp_path: Path, way: str) -> None:
    run = Run(tmp_path / "latents")
    run((A, 1), (B, 2))
    hold_stems(run.out, 2)
    parts = [write_partial(Path(str(hold_stems(run.out, seed, ()))) / NAMES[0], b"half a voice") for seed in (1, 2, 9)]
    Path(str(run.out / "stems/empty")).mkdir()
    assert all(part.exists() for part in parts)
    assert set(kept_stems(run.out)) == {f"{1:016x}", f"{2:016x}", f"{9:016x}", "empty"}
    if way == "commit":
        finished(run.out, run.read(), CODEC)
    elif way == "licence":
        run.settled([forbid(run)], run.read())
    else:
        takedown(TakedownConfig(data=str(run.out), song=f"{1:016x}"))
    left = {path.relative_to(run.out.path).as_posix() for path in (run.out / "stems").path.rglob("*")}
    assert left == {f"stems/{2:016x}", *(f"stems/{2:016x}/{name}" for name in NAMES)}
