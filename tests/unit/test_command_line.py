"""Exit codes and one-line errors, as a user meets them: `main` in this process; three tests start the process that a user starts."""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from infra.cli.main import main
from infra.logs import QUIET

SCRIPT = Path(sys.executable).parent / "backline"


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command line sets up loggers and exports their settings; the tests after it find their own."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {logger: logger.level for logger in (root, *map(logging.getLogger, QUIET))}
    with mock.patch.dict(os.environ):
        yield
    root.handlers[:] = handlers
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs a command line's `main` with these arguments."""

    def run(start: Callable[[], object], *tokens: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["backline", *tokens])
        with pytest.raises(SystemExit) as left:
            start()
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, said.out, said.err)

    return run


def test_help_names_every_command() -> None:
    answered = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=120, check=False)
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
        (("corpus", "--out", "x", "--songs", "1", "--band", "fluidsynth"), "--band fluidsynth: --bank took its place, for example"),
        (("corpus", "--out", "x", "--songs", "1", "--bank", "/nowhere.sf2"), "/nowhere.sf2 does not exist"),
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
def test_wrong_usage_is_one_line_and_exit_code_2(
    tokens: tuple[str, ...], said: str, ended: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answered = ended(main, *tokens)
    lines = answered.stderr.strip().splitlines()
    assert answered.code == 2, answered.stderr
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_script_ends_with_the_exit_code(tmp_path: Path) -> None:
    answered = subprocess.run([SCRIPT, "corpse"], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (answered.returncode, answered.stderr.count("\n")) == (2, 1)
    assert "corpus" in answered.stderr


@pytest.mark.parametrize("module", ["infra.cli.main", "pipelines", "training"])
@pytest.mark.parametrize("variable", ["BACKLINE_LOG_LEVEL", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_variable_is_one_line_and_exit_code_2(
    module: str, variable: str, ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "chatty")
    start = main if module == "infra.cli.main" else lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)
    answered = ended(start, "--help")
    assert (answered.code, answered.stderr.count("\n")) == (2, 1)
    assert variable in answered.stderr


def test_a_wrong_variable_ends_a_module_s_process() -> None:
    environment = {**os.environ, "BACKLINE_LOG_LEVEL": "chatty"}
    command = [sys.executable, "-m", "training", "--help"]
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (answered.returncode, answered.stderr.count("\n")) == (2, 1)
    assert "BACKLINE_LOG_LEVEL" in answered.stderr


def test_help_starts_without_torch_and_ray() -> None:
    code = """
import sys
from infra.cli import exit_codes as commands
from infra.cli.main import app
commands.run(app, ["--help"])
sys.exit("torch" in sys.modules or "ray" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60).returncode == 0
