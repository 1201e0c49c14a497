"""The README tells the truth: its commands parse, its Python runs, its files exist."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import serving_parts as parts
import soundfile
import uvicorn
from conftest import needs

from infra.cli.main import app
from serving.engine.async_engine import LocalBackend
from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig, create_app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "training" / "tutorial.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    lines = [line.split("  #")[0].strip() for text in (README, TUTORIAL) for block in blocks("sh", text) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("backline ")))


@pytest.mark.parametrize("line", command_lines())
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    tokens = shlex.split(line.replace("$PWD", "/somewhere"))[1:]
    command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert callable(command)
    assert bound.arguments or tokens in (["serve"], ["doctor"])


def test_submitted_commands_are_understood_where_they_arrive() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if " -- python -m " in line]
    assert len(lines) == 2
    for line in lines:
        _, room, *tokens = shlex.split(line.replace("$PWD", "/somewhere").split(" -- python ")[1])
        assert room in ("pipelines", "training")
        command, _, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert callable(command)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = blocks("python")
    at_s = np.arange(6 * 44_100) / 44_100
    voice = 0.2 * np.sin(2 * np.pi * 220 * at_s) * (np.sin(2 * np.pi * at_s) > 0)
    soundfile.write(tmp_path / "vocal.wav", np.stack([voice, voice], axis=1), 44_100)
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "harmony" in ran.stdout
    band_NC, rate_hz = soundfile.read(tmp_path / "band.wav")
    assert (band_NC.shape, rate_hz) == ((voice.size, 2), 44_100)


def curl_lines() -> list[str]:
    return [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.startswith("curl ")]


@contextmanager
def answering(backend: LocalBackend, key: str | None) -> Iterator[str]:
    """HTTP on loopback by the real application; its address."""
    service = create_app(backend, AppConfig(api_key_digests=(digest(key),) if key else ()))
    server = uvicorn.Server(uvicorn.Config(service, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_curl_lines_of_the_readme_are_answered(tmp_path: Path) -> None:
    """Each on its own, as it stands but for the port; the one with a key at a service that wants it."""
    needs("curl", "install the package curl")
    lines = curl_lines()
    assert [sum(word in line for line in lines) for word in ("output=mix", "output=stems", "stream=true", "/v1/progress/", "$KEY")] == [
        1
    ] * 5
    (tmp_path / "vocal.wav").write_bytes(parts.vocal(2.0))
    engine = load_engine(
        checkpoint=str(parts.tiny_checkpoint(tmp_path / "tiny")),
        codec=None,
        device="cpu",
        threads=1,
        max_duration_s=60.0,
        hang_after_s=60.0,
    )
    with ExitStack() as stack:
        stack.callback(engine.close)
        backend = LocalBackend(engine)
        addresses = {key: stack.enter_context(answering(backend, key)) for key in (None, "right")}
        for line in lines:
            keyed = "$KEY" in line
            line = line.replace("127.0.0.1:8000", addresses["right" if keyed else None])
            for key, fails in (("right", False), ("wrong", True)) if keyed else (("", False),):
                ran = subprocess.run(
                    ["bash", "-c", line.replace("curl ", "curl --fail ")], cwd=tmp_path, env={**os.environ, "KEY": key},
                    capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                assert (ran.returncode != 0) == fails, f"{line}: {ran.stderr}"
                if fails:
                    continue
                if "/v1/progress/" in line:
                    assert json.loads(ran.stdout)["state"] == "done"
                elif "output=stems" in line:
                    assert zipfile.ZipFile(tmp_path / "stems.zip").namelist() == ["vocal.wav", "accompaniment.wav", "mix.wav"]
                else:
                    made = tmp_path / line.partition(" -o ")[2].split()[0]
                    assert soundfile.info(made).duration == pytest.approx(2.0, abs=0.01)
                    made.unlink()


def test_files_and_folders_that_the_readme_names_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:model|infra|pipelines|training|serving|tests)/[\w./-]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
