"""What a dataset holds already: which songs need no work, and what stays when files are touched or moved."""

from pathlib import Path
from typing import Any

import pytest

from infra.dataset.format import REJECTS
from infra.dataset.parquet import read_table
from infra.errors import UserError
from infra.storage.lease import held
from infra.storage.place import Place
from model.codec.base import CodecIdentity
from pipelines.dataset.contents import DUPLICATE, Stored
from pipelines.dataset.write import begin, settle_duplicate, write_rejects, write_song
from pipelines.song import EncodedSong, FoundSong, Reject, SongIdentity
from pipelines.stages.segment import SegmentConfig


def song(url: str, version: str = "1") -> dict[str, Any]:
    return {"url": url, "source_version": version}


def reject(url: str, song_id: str, stage: str = DUPLICATE, segment: int | None = None) -> dict[str, Any]:
    return {"url": url, "source_version": "1", "song_id": song_id, "stage": stage, "segment": segment}


def test_an_address_with_two_rows_is_done_again() -> None:
    stored = Stored(songs={"old": song("/a", "1"), "new": song("/a", "2"), "other": song("/b")}, rejects=[])
    assert stored.done({"/a": "2", "/b": "1"}) == {"/b": "1"}


@pytest.mark.parametrize(("present", "stands"), [({"/a": "1"}, True), ({"/a": "2"}, False), ({}, False)])
def test_a_duplicate_is_done_while_its_owner_is_there_unchanged(present: dict[str, str], stands: bool) -> None:
    stored = Stored(songs={"x": song("/a")}, rejects=[reject("/b", "x"), reject("/c", "y"), reject("/d", "z", "decode")])
    done = stored.done({**present, "/b": "1", "/c": "1", "/d": "1"})
    assert ("/b" in done) is stands
    assert "/c" not in done  # its owner's row is gone
    assert "/d" in done


def test_touching_a_known_song_keeps_its_rejected_segments_and_ends_a_duplicate(tmp_path: Path) -> None:
    out = Place(str(tmp_path))
    known = EncodedSong(identity=SongIdentity(song_id="x"), duration_s=0, segments=(), rejects=())
    touched = FoundSong(url="/a", source="pairs", version="2")
    write_rejects(out, touched, "x", [Reject(stage="gate", segment=3, reason="silence")])
    write_song(out, touched, known, "train")
    (row,) = read_table((out / "rejects").list(), REJECTS).to_pylist()
    assert (row["segment"], row["source_version"]) == (3, "2")
    settle_duplicate(out, touched, "x", "/b")
    write_song(out, touched, known, "train")
    assert (out / "rejects").list() == []


def test_another_validation_share_is_refused(tmp_path: Path) -> None:
    codec = CodecIdentity(id="tiny", weights_sha256="ab" * 32)
    with held(Place(str(tmp_path)), "test"):
        begin(Place(str(tmp_path)), codec, SegmentConfig(), 0.1)
        begin(Place(str(tmp_path)), codec, SegmentConfig(), 0.1)
    with held(Place(str(tmp_path)), "test"), pytest.raises(UserError, match=r"validation_share 0\.1 → 0\.2"):
        begin(Place(str(tmp_path)), codec, SegmentConfig(), 0.2)
