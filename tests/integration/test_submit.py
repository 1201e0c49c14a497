"""`ray job submit` and `backline submit` against a head node of their own, as the README has it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from infra.dataset.format import read_latents, read_manifest
from infra.storage.place import Place
from model.checkpoint import load_checkpoint

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


def free_ports(count: int) -> list[int]:
    # Not from the range that Ray keeps for its workers (10002 to 19999).
    sockets = [socket.socket() for _ in range(count)]
    ports = []
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
        ports.append(probe.getsockname()[1])
        probe.close()
    return ports


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """As in a shell whose virtual environment is active: a job's `python` is the head node's."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a head node started as the README says, in a process group that ends with the tests."""
    port, dashboard, client, agent = free_ports(4)
    log = tmp_path_factory.mktemp("head") / "log"
    # A folder of its own, where it notes its address for later commands (short: sockets lie in it); the machine's is left alone.
    own = tempfile.mkdtemp(prefix="ray-")
    with log.open("w") as sink:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=4",
             f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
             f"--dashboard-agent-listen-port={agent}", f"--temp-dir={own}"],  # its default belongs to whichever cluster was here first
            env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for(address, process, log)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            shutil.rmtree(own, ignore_errors=True)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{address}/api/version", timeout=5).status_code in (200, 401):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no dashboard at {address}: {log.read_text()}")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for song in range(2):
        (folder / f"song-{song}").mkdir()
        rng = np.random.default_rng(song)
        for stem in ("vocals", "accompaniment"):
            soundfile.write(folder / f"song-{song}" / f"{stem}.wav", rng.uniform(-0.3, 0.3, (12 * 44_100, 2)), 44_100)
    return folder


@pytest.mark.soak
def test_prepare_by_ray_job_submit_and_train_by_backline_submit(
    head: str, environment: dict[str, str], songs: Path, tiny_codec: Path, tmp_path: Path
) -> None:
    latents, run = tmp_path / "latents", tmp_path / "run"
    prepared = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--",
         "python", "-m", "pipelines", "prepare", "--source", f"pairs:{songs}", "--out", latents, "--codec", tiny_codec],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert "2 songs found, 2 prepared" in prepared.stdout
    assert read_manifest(Place(str(latents))).counts
    assert len(read_latents(Place(str(latents)), "train")) == 1

    trained = subprocess.run(
        [BIN / "backline", "submit", head, "train", "--data", latents, "--out", run, "--preset", "small", "--steps", "2",
         "--crop-frames", "32", "--batch-size", "2", "--codec", tiny_codec, "--samples", "0"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "SUCCEEDED" in trained.stdout
    assert load_checkpoint(run).step == 2


@pytest.mark.soak
def test_a_job_that_fails_gives_its_exit_code_and_log(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    answered = subprocess.run(
        [BIN / "backline", "submit", head, "prepare", "--source", "pairs:/nowhere/at/all", "--out", tmp_path / "latents"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert answered.returncode == 2
    assert "/nowhere/at/all" in answered.stdout


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    answered = subprocess.run(
        [BIN / "backline", "submit", f"http://127.0.0.1:{port}", "prepare", "--source", "pairs:x", "--out", "y"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert answered.returncode == 2
    assert answered.stderr.count("\n") == 1
    assert str(port) in answered.stderr
