"""The README tells the truth: its commands parse, its Python runs, its files exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from infra.cli import app

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


def test_files_and_folders_that_the_readme_names_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:model|infra|pipelines|training|serving|tests)/[\w./-]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
