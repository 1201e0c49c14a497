"""Every command of training/tutorial.md, in its order, in one folder, as its reader would type them."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import serving_parts as parts

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "training" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TUTORIAL, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
# What makes the reader's minutes seconds; everything else is run as it is written.
SHORT = {
    "--max-minutes 10": "--max-minutes 0.2 --steps 2 --batch-size 2 --crop-frames 32 --validation-segments 1 --samples 0",
    "--candidates 4": "--candidates 2 --steps 2",
    "--out champion.wav": "--out champion.wav --steps 2",
    "--out scores/first": "--out scores/first --samples 1 --seconds 6 --reference 2 --generation.steps 1",
    "--out scores/tuned": "--out scores/tuned --samples 1 --seconds 6 --reference 2 --generation.steps 1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def typed(line: str) -> list[str]:
    """The command as a program and its arguments."""
    for long, short in SHORT.items():
        line = line.replace(long, short)
    program, *arguments = shlex.split(line.replace("model/weights", str(ROOT / "model" / "weights")))
    assert program in ("backline", "mlflow")
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'backline'; from infra.cli.main import main; main()"
    return [sys.executable, "-c", start, *arguments] if program == "backline" else [sys.executable, "-m", "mlflow", *arguments]


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_a_reader_gets_from_songs_to_a_registered_model(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    environment = dict(os.environ)
    write_songs(tmp_path, environment)
    (tmp_path / "vocal.wav").write_bytes(parts.vocal(4))
    ran = []
    for line in COMMANDS:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            environment[name] = value.replace("$PWD", str(tmp_path))
            continue
        ran.append(line)
        if line.startswith("mlflow ui"):
            port = free_port()
            command = typed(line.replace("$MLFLOW_TRACKING_URI", environment["MLFLOW_TRACKING_URI"]).replace("5000", str(port)))
            answers(command, f"http://127.0.0.1:{port}/", tmp_path, environment)
        elif line.startswith("backline serve"):
            port = free_port()
            answers(typed(f"{line} --port {port}"), f"http://127.0.0.1:{port}/readyz", tmp_path, environment)
        else:
            ends(typed(line), tmp_path, environment)
    assert len(ran) == 13
    for file in ("latents/manifest.json", "dataset-page/index.html", "scores/first/evaluation.md", "band.wav", "champion.wav"):
        assert (tmp_path / file).is_file(), file
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    assert str(client.get_model_version_by_alias("backline", "champion").version) == "2"
    assert {run.info.status for run in client.search_runs([client.get_experiment_by_name("backline").experiment_id])} == {"FINISHED"}


def write_songs(folder: Path, environment: dict[str, str]) -> None:
    """Five songs of seconds, as a reader's own: vocals and accompaniment in a folder each, and nothing else."""
    ends(typed("backline corpus --out songs --songs 5 --seed 3 --duration-s 12"), folder, environment)
    for song in (folder / "songs").iterdir():
        for file in ("mixture.wav", "song.json"):
            (song / file).unlink()


def ends(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command[3:]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def answers(command: list[str], url: str, folder: Path, environment: dict[str, str]) -> None:
    """A server: asked until it answers, then told to end."""
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until_s = time.monotonic() + 240
        while time.monotonic() < until_s:
            assert server.poll() is None, command
            try:
                if httpx.get(url, timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(1)
        pytest.fail(f"{command} did not answer at {url}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(300)  # beside fourteen busy processes it took more than a minute
