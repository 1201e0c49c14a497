"""The rooms of the house and the doors between them, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("model", "infra", "pipelines", "training", "serving")
MAY_IMPORT = {
    "model": {"model"},
    "infra": {"infra"},
    "pipelines": {"pipelines", "model", "infra"},
    "training": {"training", "model", "infra"},
    "serving": {"serving", "model", "infra"},
}
# The command line is where the rooms meet, and only inside its functions.
COMMAND_LINE = {"infra/cli/main.py", "infra/cli/demo.py", "infra/cli/doctor.py", "infra/cli/generate.py"}
# Benchmarks are commands too, and nothing imports them.
BENCHMARKS = "infra/benchmarks/"
ONLY_HERE = {
    "stable_audio_tools": {"model/codec/load.py"},
    "demucs": {"model/separation/load.py"},
    "transformers": {"model/metrics/clap.py", "infra/benchmarks/model/peers_systems.py"},
    "audiobox_aesthetics": {"model/metrics/aesthetics.py"},
    "mlflow": {"infra/tracking/client.py", "infra/tracking/deliver.py", "infra/tracking/system_metrics.py"},
    "boto3": {"infra/storage/place.py"},
    "botocore": {"infra/storage/place.py"},
}
FORBIDDEN = {"model": {"ray", "mlflow", "boto3", "pyarrow", "fastapi"}}


def imports_of(path: Path) -> list[tuple[str, int, bool]]:
    """(top-level module, line, at module level) of each import in a file."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node.lineno, node.col_offset == 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append((path.relative_to(ROOT).parts[0], node.lineno, node.col_offset == 0))
            elif node.module:
                found.append((node.module.split(".")[0], node.lineno, node.col_offset == 0))
    return found


def faults_of(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    faults = []
    for module, line, at_top in imports_of(path):
        if module in ROOMS and module not in MAY_IMPORT[room]:
            if name.startswith(BENCHMARKS):
                continue
            if name not in COMMAND_LINE:
                faults.append(f"{name}:{line} {room} must not import {module}")
            elif at_top:
                faults.append(f"{name}:{line} the command line imports {module} only inside its functions")
        if module in ONLY_HERE and name not in ONLY_HERE[module]:
            faults.append(f"{name}:{line} {module} is imported only in {', '.join(sorted(ONLY_HERE[module]))}")
        if module in FORBIDDEN.get(room, ()):
            faults.append(f"{name}:{line} {room} must not import {module}")
    if name != "infra/settings.py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "getenv":
                faults.append(f"{name}:{node.lineno} only infra/settings.py reads the environment")
    return faults


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert [fault for path in files for fault in faults_of(path)] == []


def test_the_walker_sees_a_wrong_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    wrong = tmp_path / "model" / "wrong.py"
    wrong.write_text("import ray\nfrom training import loop\nimport boto3\n")
    monkeypatch.setattr("test_import_direction.ROOT", tmp_path)
    assert len(faults_of(wrong)) == 4
