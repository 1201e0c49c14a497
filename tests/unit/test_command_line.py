"""Exit codes and one-line errors, as a user meets them: the installed script in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "backline"


def backline(*tokens: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *tokens], capture_output=True, text=True, timeout=120, check=False)


def test_help_names_every_command() -> None:
    answered = backline("--help")
    assert answered.returncode == 0
    for name in (
        *("demo", "doctor", "corpus", "listening-set", "prepare", "dataset-report"),
        *("train", "distil", "evaluate", "sweep", "generate", "serve", "submit", "track", "promote"),
    ):
        assert f" {name} " in answered.stdout


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (("corpse",), "corpus"),
        (("corpus",), "--out"),
        (("corpus", "--out", "x", "--songs", "0"), "songs"),
        (("corpus", "--out", "x", "--songs", "many"), "many"),
        (("listening-set", "--out", "x", "--songs", "2", "--seed", "1000"), "never train"),
        (("prepare", "--out", "x"), "--source"),
        (("prepare", "--source", "tape:x", "--out", "x"), "tape"),
        (("prepare", "--source", "pairs:/nowhere/at/all", "--out", "x"), "/nowhere/at/all"),
        (("train", "--data", "/nowhere/at/all", "--out", "x"), "/nowhere/at/all"),
        (("train", "--data", "x", "--out", "y", "--preset", "huge"), "huge"),
        (("distil", "--teacher", "x", "--data", "y", "--out", "z", "--student-steps", "3"), "doubled"),
        (("distil", "--teacher", "/nowhere/at/all", "--data", "y", "--out", "z"), "/nowhere/at/all"),
        (("train", "--data", "x", "--out", "y", "--register", "a/b"), "a/b"),
        (("train", "--data", "x", "--out", "y", "--depth", "9"), "2 to 7"),
        (("sweep", "--data", "x", "--out", "y"), "nothing varies"),
        (("sweep", "--data", "x", "--out", "y", "--depth", "2,deep"), "deep"),
        (("sweep", "--data", "/nowhere/at/all", "--out", "x", "--depth", "2,3"), "/nowhere/at/all"),
        (("track", "/nowhere/at/all"), "/nowhere/at/all"),
        (("promote", "backline", "1"), "MLFLOW_TRACKING_URI"),
        (("evaluate", "--checkpoint", "models:/backline@champion", "--data", "x", "--out", "y"), "MLFLOW_TRACKING_URI"),
        (("generate", "/nowhere/vocal.wav", "--out", "band.wav"), "/nowhere/vocal.wav"),
        (("generate", "vocal.wav", "--out", "band.aiff"), ".aiff"),
        (("serve", "--port", "99999"), "99999"),
        (("demo", "--songs", "1"), "songs"),
        (("submit", "127.0.0.1:8265", "train", "--data", "x", "--out", "y"), "http://"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tokens: tuple[str, ...], said: str, tmp_path: Path) -> None:
    answered = subprocess.run([SCRIPT, *tokens], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    lines = answered.stderr.strip().splitlines()
    assert answered.returncode == 2, answered.stderr
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [(str(SCRIPT),), (sys.executable, "-m", "pipelines"), (sys.executable, "-m", "training")])
@pytest.mark.parametrize("variable", ["BACKLINE_LOG_LEVEL", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_variable_is_one_line_and_exit_code_2(command: tuple[str, ...], variable: str) -> None:
    environment = {**os.environ, variable: "chatty"}
    answered = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (answered.returncode, answered.stderr.count("\n")) == (2, 1)
    assert variable in answered.stderr


def test_help_starts_without_torch_and_ray() -> None:
    code = """
import sys
from infra.cli import exit_codes as commands
from infra.cli.main import app
commands.run(app, ["--help"])
sys.exit("torch" in sys.modules or "ray" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60).returncode == 0
