"""Who is counted when a process dies over a song: the one that it died over, and nobody else for long."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_dataset_life import hold_media

from infra.audio.files import decode
from infra.storage.place import Place
from pipelines.acquire.acquire import AcquireConfig
from pipelines.dataset.kept_stems import kept_stems
from pipelines.run import ray_stages as stages
from pipelines.run.crashes import MAX_ATTEMPTS, take_turns
from pipelines.run.ray_stages import Job, ReadEncodeRows, acquire_row, read_row, segment_row, segmented
from pipelines.run.run_state import Ledger
from pipelines.song import FoundSong, ReadSong, SegmentedSong, SongIdentity
from pipelines.stages.decode import unknown_identity


class DiedError(Exception):
    """Stands for a process that ends in the middle of its work; only what the ledger knows is left."""


def work_through(songs: list[str], killers: set[str], *, most_deaths: int) -> tuple[list[str], list[str], int]:
    """(done, given up, deaths) of a batch that is begun anew after every death, as Ray does."""
    ledger = Ledger({"source": "pairs:/x", "dataset": "/y"})

    def ask(method: str, *given: Any) -> Any:
        return getattr(ledger, method)("encode", *given)

    for deaths in range(most_deaths + 1):
        done: list[str] = []
        unfit: list[int] = []
        try:
            for group in take_turns(ask, dict(enumerate(songs)), unfit.append):
                if killers & {songs[index] for index in group}:
                    raise DiedError
                done += [songs[index] for index in group]
        except DiedError:
            continue
        return sorted(done), sorted(songs[index] for index in unfit), deaths
    raise AssertionError("the batch never ends")


@pytest.mark.parametrize("songs", [["a", "KILLER", "c", "d"], ["KILLER", "c"], ["c", "KILLER"], ["KILLER"]])
def test_only_the_song_that_kills_is_given_up_wherever_it_stands(songs: list[str]) -> None:
    innocent = [song for song in songs if song != "KILLER"]
    assert work_through(songs, {"KILLER"}, most_deaths=9) == (sorted(innocent), ["KILLER"], MAX_ATTEMPTS)


def test_two_that_kill_are_both_given_up_and_not_tried_anew_after_each_other() -> None:
    done, given_up, deaths = work_through(["a", "K1", "c", "K2", "d"], {"K1", "K2"}, most_deaths=9)
    assert (done, given_up) == (["a", "c", "d"], ["K1", "K2"])
    assert deaths <= 2 * MAX_ATTEMPTS - 1


class Here:
    """The ledger without its process: what is asked of it is answered at once."""

    def __init__(self) -> None:
        self.ledger = Ledger({"source": "pairs:/x", "dataset": "/y"})

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self.ledger, method))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    import ray

    monkeypatch.setattr(ray, "get", lambda answer: answer)
    made = Job.__new__(Job)
    for name in ("out", "media", "access", "segment", "acquire", "hosts"):
        object.__setattr__(made, name, None)
    object.__setattr__(made, "ledger", Here())
    object.__setattr__(made, "storage_patience_s", 0.0)
    return made


def again_and_again(work: Any) -> tuple[Any, int]:
    """(what comes out in the end, deaths): Ray begins a task anew whose process died."""
    for deaths in range(9):
        try:
            return work(), deaths
        except DiedError:
            continue
    raise AssertionError("the task never ends")


def dies(*_: Any) -> Any:
    raise DiedError


def song(url: str, **options: str) -> FoundSong:
    return FoundSong(url=url, source="pairs", version="1", **options)  # type: ignore[arg-type]


def test_a_song_that_kills_while_it_is_acquired_read_or_segmented_is_given_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acquire_song", "read", "segmented"):
        monkeypatch.setattr(stages, name, dies)
    found = pickle.dumps(song("/killer", fetch="https://h/killer"))
    row, deaths = again_and_again(lambda: acquire_row({"found": found}, job))
    failed = pickle.loads(row["failed"])
    assert (deaths, failed.stage, "tried to acquire it" in failed.reason) == (MAX_ATTEMPTS, "crash", True)
    row, deaths = again_and_again(lambda: read_row({"found": found}, job, None))
    read = pickle.loads(row["read"])
    assert (deaths, read.reject.stage, "tried to read it" in read.reject.reason) == (MAX_ATTEMPTS, "crash", True)
    whole = pickle.dumps(ReadSong(identity=read.identity))
    row, deaths = again_and_again(lambda: segment_row({"found": found, "read": whole}, job))
    (reject,) = pickle.loads(row["segmented"]).rejects
    assert (deaths, reject.stage, "tried to segment it" in reject.reason) == (MAX_ATTEMPTS, "crash", True)


def test_a_forbidden_licence_is_a_stage_of_its_own(job: Job, tmp_path: Path) -> None:
    object.__setattr__(job, "media", Place(str(tmp_path)))
    object.__setattr__(job, "acquire", AcquireConfig(operator="tests@example.org", licenses=("CC0",)))
    found = song("https://h/a", fetch="https://h/a", license="mine")
    hold_media(job.media, "https://h/a")
    failed = pickle.loads(acquire_row({"found": pickle.dumps(found)}, job)["failed"])
    assert (failed.stage, "'mine' is not one of CC0" in failed.reason) == ("license", True)
    assert len(job.media.list()) == 2, "settling removes it: a permitted song of the same wave may be reading the same file"


def test_stems_are_kept_as_loud_as_they_fit_in_one_gain_and_only_of_separated_songs(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    object.__setattr__(job, "out", Place(str(tmp_path)))
    object.__setattr__(job, "keep_stems", True)
    kept = SegmentedSong(identity=SongIdentity(song_id="kept"), segments=(None,))  # type: ignore[arg-type]
    for pieces in (kept, SegmentedSong(identity=SongIdentity(song_id="useless"))):
        monkeypatch.setattr(stages, "segment_read", lambda *_, pieces=pieces: pieces)
        for separator_id in ("htdemucs", None):
            name = pieces.identity.song_id if separator_id else f"{pieces.identity.song_id}, not separated"
            stems = {"vocal_CN": np.full((2, 9), -2, np.float32), "accompaniment_CN": np.full((2, 9), 0.5, np.float32)}
            segmented(ReadSong(identity=SongIdentity(song_id=name), separator_id=separator_id, **stems), job)
    assert kept_stems(job.out) == {"kept": {"vocals.flac", "accompaniment.flac"}}
    loud, quiet = (decode((job.out / f"stems/kept/{name}.flac").read_bytes()).samples_CN for name in ("vocals", "accompaniment"))
    assert (loud.min(), loud.max(), quiet.min(), quiet.max()) == (-1, -1, 0.25, 0.25)


@pytest.mark.parametrize("step", ["read", "segmented"])
def test_the_actor_that_reads_and_encodes_gives_up_the_song_that_kills_it_and_no_other(
    job: Job, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def read(found: FoundSong, *_: Any) -> ReadSong:
        if step == "read" and found.url == "/killer":
            raise DiedError
        return ReadSong(identity=unknown_identity(found))

    def segmented(read: ReadSong, _: Job) -> stages.SegmentedSong:
        if step == "segmented" and read.identity.title == "killer":
            raise DiedError
        return stages.SegmentedSong(identity=read.identity)

    monkeypatch.setattr(stages, "read", read)
    monkeypatch.setattr(stages, "segmented", segmented)
    actor = ReadEncodeRows.__new__(ReadEncodeRows)  # without the codec's weights
    actor.job, actor.stops = job, None
    songs, deaths = again_and_again(lambda: actor.read([song("/a"), song("/killer"), song("/c"), song("/d")]))
    assert deaths == MAX_ATTEMPTS
    assert [[reject.stage for reject in made.rejects] for made in songs] == [[], ["crash"], [], []]
    assert [made.identity.title for made in songs] == ["a", "killer", "c", "d"]
