"""What fails while songs are prepared: killed workers, a file that kills its decoder, a storage that goes away, a full disk."""

import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import lacks

from infra.cluster import Cluster
from infra.dataset.format import read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.corpus import compose, render
from pipelines.dataset.check import CheckConfig, check
from pipelines.dataset.kept_stems import NAMES, kept_stems
from pipelines.run.crashes import MAX_ATTEMPTS, attempts
from pipelines.run.prepare import PrepareConfig, prepare
from pipelines.run.run_state import start_ledger
from pipelines.stages.separate import open_separator
from tests.demucs_parts import write_tiny_repository
from tests.song_parts import rows_of, write_song

pytestmark = pytest.mark.ray


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work` in a thread for as long as the block takes; what it raises is raised at the end."""
    over, failed = threading.Event(), []

    def run() -> None:
        try:
            work(over)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def stage_workers() -> list[psutil.Process]:
    """This cluster's processes that run a stage of Ray Data."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(("ray::MapWorker", "ray::Map(")):
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def test_killed_workers_and_a_file_that_kills_its_decoder_cost_nothing_else(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    """Finished songs, so that tasks and two kinds of actors are at work: three are killed, and whoever opens the poison dies of it. Stems
    are kept meanwhile."""
    assert ray_cluster.started_here
    songs, out = tmp_path / "songs", tmp_path / "out"
    songs.mkdir()
    for seed in range(8):
        song = render(compose(100 + seed, 10.0))
        soundfile.write(songs / f"good {seed}.flac", (song.vocals_CN + song.accompaniment_CN).T, SAMPLE_RATE_HZ)
    write_song(tmp_path / "material", 99, duration_s=400)
    (tmp_path / "material/accompaniment.flac").rename(songs / "poison.flac")
    repository = write_tiny_repository(tmp_path / "demucs")
    killed: list[str] = []
    poisoned: list[int] = []

    def kill(over: threading.Event) -> None:
        while not over.wait(0.005):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "infra.audio.decoder_child" in process.cmdline() and any("poison" in file.path for file in process.open_files()):
                        process.send_signal(signal.SIGSEGV)
                        poisoned.append(process.pid)
                except psutil.Error:
                    continue
            done = len(list((out / "songs").glob("*.parquet")))
            if len(killed) < 3 and done > len(killed) and (workers := stage_workers()):
                victim = workers[done % len(workers)]
                killed.append(victim.cmdline()[0])
                victim.kill()

    config = PrepareConfig(
        source=f"folder:{songs}", out=str(out), codec=str(tiny_codec), separator=str(repository), encoders=1, keep_stems=True
    )
    with meanwhile(kill):
        summary = prepare(config)
    assert len(killed) == 3
    assert len(set(poisoned)) >= 2
    assert summary.prepared == 8, summary
    (reject,) = summary.rejects
    assert "poison.flac (decode)" in reject
    assert "SIGSEGV" in reject
    assert rows_of(out).total() == 8
    assert max(rows_of(out).values()) == 1
    assert check(CheckConfig(data=str(out))).faults == ()

    rows = pq.read_table(out / "songs").to_pylist()
    assert kept_stems(Place(str(out))) == {row["song_id"]: {"vocals.flac", "accompaniment.flac"} for row in rows}
    kept_NS = np.stack([soundfile.read(out / f"stems/{rows[0]['song_id']}/{name}")[0] for name in NAMES], axis=-1)
    mixture_NC, _ = soundfile.read(rows[0]["url"], dtype="float32")
    (stems,) = open_separator(str(repository), Place(str(out)).access, "cpu").separate([mixture_NC.T])
    expected_NS = np.stack([stems.vocal_CN.T, stems.accompaniment_CN.T], axis=-1)
    assert np.abs(kept_NS - expected_NS * min(1, 1 / np.abs(expected_NS).max())).max() < 1e-3
    before = dict((Place(str(out)) / "stems").entries())
    assert prepare(config).prepared == 0
    assert dict((Place(str(out)) / "stems").entries()) == before


def test_a_song_over_which_processes_die_is_tried_alone_and_then_given_up(ray_cluster: Cluster) -> None:
    assert ray_cluster.address
    ledger = start_ledger("pairs:/x", "/y")
    given_up: list[int] = []
    songs = {0: "/innocent", 1: "/killer"}
    # A process that dies over a group does not ask for the next one.
    assert next(attempts(ledger, "encode", songs, given_up.append)) == [0, 1]
    for _ in range(MAX_ATTEMPTS - 1):
        groups = attempts(ledger, "encode", songs, given_up.append)
        assert [next(groups), next(groups)] == [[0], [1]]
    assert given_up == []
    assert list(attempts(ledger, "encode", songs, given_up.append)) == [[0]]
    assert given_up == [1]


class Gate:
    """A TCP proxy in front of a server, that can be shut: connections are refused and those that are open end."""

    def __init__(self, port: int) -> None:
        self.target, self.open, self.refused = port, True, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not self.open:
                self.refused += 1
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self.pairs.append((client, server))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self.pass_on, args=(one, other), daemon=True).start()

    def pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65_536):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()

    def shut(self) -> None:
        self.open = False
        for pair in self.pairs:
            for end in pair:
                end.close()


@pytest.mark.soak
def test_a_storage_that_goes_away_is_waited_for_or_ends_the_run_which_goes_on_later(
    tmp_path: Path, bucket: str, ray_cluster: Cluster, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_cluster.address
    songs = tmp_path / "songs"
    for seed in range(6):
        write_song(songs / f"song{seed}", seed)
    gate = Gate(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
    out = Place(f"{bucket}/latents")

    def go_away(over: threading.Event) -> None:
        while not over.wait(0.02):
            if len((out / "songs").list()) >= 2:
                gate.shut()
                over.wait(away_s)
                gate.open = True
                return

    away_s = 600.0
    impatient = PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec), encoders=1, wave=3, storage_patience_s=0.0)
    with meanwhile(go_away), pytest.raises(UserError, match="cannot be reached"):
        prepare(impatient)
    gate.open = True
    committed = len((out / "songs").list())
    assert 2 <= committed < 6
    away_s = 5.0
    for place in (out / "songs").list():
        place.delete()  # so that the next run has them all to do, and meets the gap
    with meanwhile(go_away):
        summary = prepare(PrepareConfig(**{**vars(impatient), "storage_patience_s": 120.0}))
    assert gate.refused
    assert (summary.prepared, summary.rejects) == (6, ())
    assert read_manifest(out).counts.songs == 6
    assert check(CheckConfig(data=str(out))).faults == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        lacks(f"this user may not mount a small disk: {mounted.stderr.strip()}: run it as root, in a container with the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.soak
def test_a_full_disk_ends_the_run_in_one_sentence_and_more_room_ends_the_work(
    tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path, small_disk: Path
) -> None:
    assert ray_cluster.address
    songs = tmp_path / "songs"
    for seed in range(14):
        write_song(songs / f"song{seed:02}", seed)
    out = small_disk / "latents"
    config = PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec), encoders=1, wave=5)
    with pytest.raises(UserError, match=r"No space left on device: free some space, then run the command again"):
        prepare(config)
    manifest = read_manifest(Place(str(out)))
    assert 5 <= manifest.counts.songs < 14
    held = Counter(pq.read_table(out / "songs", columns=["song_id"])["song_id"].to_pylist())
    assert max(held.values()) == 1
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    summary = prepare(config)
    assert summary.manifest is not None
    assert (summary.manifest.counts.songs, summary.rejects) == (14, ())
    assert rows_of(out).total() == 14
    assert check(CheckConfig(data=str(out))).faults == ()
