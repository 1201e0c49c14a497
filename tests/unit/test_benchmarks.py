"""The benchmarks start, and what `peers.py` says follows from what it measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.benchmarks.model.peers import Row, crowded, short, table
from infra.benchmarks.model.peers_systems import Part, check_size
from model.checkpoint import load_checkpoint, save_checkpoint
from model.codec.load import load_codec
from model.diffusion.sampling import Sampling
from tests.serving_parts import tiny_checkpoint
from tests.tiny_latents import write_latents

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path for path in (ROOT / "infra/benchmarks").rglob("*.py") if "__main__" in path.read_text())
LOCKED = [path.read_text() for path in (ROOT / "infra/benchmarks/model/peers.lock", ROOT / "requirements.lock")]


def row(system: str, *parts: Part, load: tuple[float, float] = (0.1, 1.9), gflops: tuple[float, float] = (150.0, 148.0)) -> Row:
    return Row(system=system, parameters=15_000_000, parts=parts, memory_gb=0.5, gflops=gflops, load=load)


def started(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -I: no PYTHONPATH, so that what `make peers` installed is out of sight
    return subprocess.run([sys.executable, "-I", str(path), *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_benchmark_explains_itself(path: Path) -> None:
    answered = started(path, "--help")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith(f"usage: {path.name}")


def test_steps_measures_solvers_and_students(tmp_path: Path) -> None:
    codec = load_codec("embedded").identity
    data = write_latents(tmp_path / "latents", codec_id=codec.id, codec_sha256=codec.weights_sha256)
    checkpoint = load_checkpoint(tiny_checkpoint(tmp_path / "tiny"))
    save_checkpoint(tmp_path / "student", replace(checkpoint, sampling=Sampling(solver="ddim", steps=3, guidance=1.0)))
    answered = started(
        ROOT / "infra/benchmarks/model/steps.py", "--data", data, "--checkpoint", str(tmp_path / "tiny"),
        "--students", str(tmp_path / "student"),
        "--steps", "2", "40", "--songs", "2", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    written = (tmp_path / "out/steps.md").read_text()
    assert written.strip() == answered.stdout.strip()
    rows = json.loads((tmp_path / "out/steps.json").read_text())["rows"]
    asked = [("ddim", 40), *(("dpmpp-2m", steps) for steps in (40, 3, 2)), ("ddim", 3), ("ddim", 2)]
    asked += [*(("ancestral", steps) for steps in (40, 3, 2)), ("student, ddim", 3)]
    assert [(row["name"], row["sampling"]["steps"]) for row in rows] == asked
    assert all(f"| {name} | {steps} |" in written for name, steps in asked)
    evaluations = {(row["name"], row["sampling"]["steps"]): row["evaluations"] for row in rows}
    assert (evaluations["ddim", 3], evaluations["student, ddim", 3]) == (6, 3)
    to_ddim = {(row["name"], row["sampling"]["steps"]): row["to_ddim"] for row in rows}
    assert to_ddim["ddim", 40] is None
    assert to_ddim["dpmpp-2m", 40] < to_ddim["ddim", 3] < to_ddim["ancestral", 40]


@pytest.mark.parametrize("arguments", [(), ("--peers", "musicgen"), ("--one", "stable-audio", "--quick")])
def test_a_peer_without_its_packages_names_the_remedy(arguments: tuple[str, ...]) -> None:
    path = str(ROOT / "infra/benchmarks/model/peers.py")
    # As if transformers were not there: it may be installed beside backline.
    program = f"import runpy, sys; sys.modules['transformers'] = None; runpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-I", "-c", program, *arguments]
    answered = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (answered.returncode, answered.stdout) == (1, "")
    assert len(answered.stderr.splitlines()) == 1
    assert "make peers" in answered.stderr


def test_stable_audio_longer_than_it_can_is_refused_before_anything_runs() -> None:
    answered = started(ROOT / "infra/benchmarks/model/peers.py", "--duration", "60")
    assert answered.returncode == 1
    assert len(answered.stderr.splitlines()) == 1


def test_a_part_is_extrapolated_in_proportion() -> None:
    assert Part(what="steps", seconds=6.0, done=2, whole=100).whole_s == 300.0
    assert Part(what="request", seconds=1.8).whole_s == 1.8
    peer = row("stable-audio", Part(what="text", seconds=1.0), Part(what="steps", seconds=6.0, done=2, whole=100))
    assert peer.seconds == 301.0
    assert peer.extrapolated
    assert not row("musicgen", Part(what="tokens", seconds=170.0, done=2378, whole=2378)).extrapolated


def test_a_row_survives_the_way_from_its_process() -> None:
    sent = row("musicgen", Part(what="tokens", seconds=1.0, done=24, whole=2378))
    assert Row.from_json(sent.to_json()) == sent


def test_the_table_sets_every_system_against_the_request() -> None:
    rows = [
        row("backline", Part(what="request", seconds=2.0)),
        row("musicgen", Part(what="tokens", seconds=170.0, done=2378, whole=2378)),
        row("stable-audio", Part(what="steps", seconds=6.0, done=2, whole=100)),
    ]
    lines = table(rows, 47.55).splitlines()
    assert lines[2].split(" | ")[1:] == ["15.0 M", "2.00", "1.00", "0.50 GB |"]
    assert lines[3].split(" | ")[1:] == ["15.0 M", "170", "85.0", "0.50 GB |"]
    assert lines[4].split(" | ")[1:] == ["15.0 M", "300 (extrapolated)", "150", "≥ 0.50 GB |"]
    assert "2 of 100 steps 6.00 s" in lines[-3]
    assert "85.0 times as long as backline's whole request; the bar is 40" in lines[-1]
    alone = table(rows[1:], 47.55)
    assert "| 170 | – |" in alone
    assert "the bar" not in alone


def test_a_shared_machine_is_named() -> None:
    request = Part(what="request", seconds=2.0)
    assert not crowded([row("backline", request)], cores=2)
    assert crowded([row("backline", request, load=(1.0, 4.0))], cores=2)
    assert not crowded([row("backline", request, load=(1.0, 4.0))], cores=16)
    assert crowded([row("backline", request), row("musicgen", request, gflops=(150.0, 60.0))], cores=2)


@pytest.mark.parametrize(("value", "said"), [(1.789, "1.79"), (9.996, "10.0"), (97.14, "97.1"), (99.96, "100"), (2912.4, "2,912")])
def test_figures_have_three_digits(value: float, said: str) -> None:
    assert short(value) == said


def test_a_shrunk_peer_is_not_measured() -> None:
    check_size("MusicGen", 419_584_000, 420e6)
    with pytest.raises(SystemExit, match=r"published are 420\.0 M"):
        check_size("MusicGen", 300_000_000, 420e6)


def test_the_lock_of_the_peers_repeats_nothing_that_users_install() -> None:
    peers, users = ({line.split("==")[0] for line in text.splitlines() if "==" in line} for text in LOCKED)
    assert "transformers" in peers
    assert not peers & users
    assert all("--hash=sha256:" in line or "==" in line for line in LOCKED[0].splitlines())
