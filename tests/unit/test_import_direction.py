"""The rooms of the house, the floors in each room and the doors between them, read from the syntax trees."""

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
# From the bottom up: a folder, or a file that lies in the room itself, imports only from its own floor and from those named before it.
FLOORS = {
    "model": (
        "errors", "dimensions", "threads", "weight_files", "chords", "controls", "listen", "codec", "diffusion", "network", "inference",
        "metrics", "separation", "checkpoint", "accompany",
    ),
    "infra": ("errors", "settings", "logs", "plots", "memory", "audio", "storage", "dataset", "tracking", "resolve", "cluster", "cli"),
    "pipelines": (
        "song", "chance", "sources", "acquire", "stages", "dataset", "run", "report",
        "corpus/score", "corpus/bands", "corpus/sound", "corpus/sound/banks", "corpus/sound/voices", "corpus/vocals", "corpus", "__main__",
    ),
    "training": ("config", "ranks", "state", "data", "evaluation", "publish", "run", "codec", "sweep", "__main__"),
    "serving": (
        "schema", "config", "problems", "messages", "client", "observe", "http", "engine", "replica", "deployments", "__main__",
    ),
}  # fmt: skip
# The ingress carries bytes and imports no torch; the engine knows no HTTP.
APART = {("serving/engine", "serving/http"), ("serving/replica", "serving/http")}
# All that another room may know of the command line.
SHARED_CLI = "infra.cli.exit_codes"
FULLEST_FOLDER = 14
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
    """(dotted module, line, at module level) of each import in a file; a module that is imported from its package has its own name."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, node.col_offset == 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parts[: -node.level]
                module = ".".join((*package, module)).strip(".")
            for alias in node.names:
                place = ROOT.joinpath(*module.split("."), alias.name)
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                found.append((f"{module}.{alias.name}" if is_module else module, node.lineno, node.col_offset == 0))
    return found


def floor_of(path: Path) -> str:
    """The floor of a file: its folder inside the room, or its own name where it lies in the room itself."""
    inside = path.relative_to(ROOT).parts[1:]
    return "/".join(inside[:-1]) or path.stem


def floor_faults_of(path: Path) -> list[str]:
    """Imports within a room that do not point down or stay level."""
    name = path.relative_to(ROOT).as_posix()
    room, floor = name.split("/")[0], floor_of(path)
    if name.startswith(BENCHMARKS) or floor == "__init__":
        return []
    floors = FLOORS[room]
    if floor not in floors:
        return [f"{name}: {floor} is no floor of {room}: give it its place in FLOORS"]
    faults = []
    for module, line, _ in imports_of(path):
        if module.split(".")[0] == room:
            place = ROOT.joinpath(*module.split("."))
            other = "/".join(module.split(".")[1:]) if place.is_dir() else floor_of(place.with_suffix(".py"))
            if not other:
                faults.append(f"{name}:{line} import what is wanted of {room}, not the room")
            elif other.startswith("benchmarks"):
                faults.append(f"{name}:{line} nothing imports a benchmark")
            elif floors.index(other) > floors.index(floor) or (name.rpartition("/")[0], f"{room}/{other}") in APART:
                faults.append(f"{name}:{line} {floor} must not import {other}")
    return faults


def faults_of(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    faults = []
    for dotted, line, at_top in imports_of(path):
        module = dotted.split(".")[0]
        if dotted.startswith(("infra.cli", "infra.benchmarks")) and room != "infra" and dotted != SHARED_CLI:
            faults.append(f"{name}:{line} {room} must not import {dotted}")
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


@pytest.mark.parametrize("room", ROOMS)
def test_an_import_points_down_or_stays_level(room: str) -> None:
    assert [fault for path in sorted((ROOT / room).rglob("*.py")) for fault in floor_faults_of(path)] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }
    uses = {name: {module for module, _, _ in imports_of(path) if module in files} for name, path in files.items()}
    while free := [name for name, used in uses.items() if not used]:
        uses = {name: used - set(free) for name, used in uses.items() if name not in free}
    assert uses == {}


def test_no_folder_is_crowded() -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    crowded = {str(folder.relative_to(ROOT)): count for folder in folders if (count := len(list(folder.glob("*.py")))) > FULLEST_FOLDER}
    assert crowded == {}


def test_the_walker_sees_a_wrong_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    wrong = tmp_path / "model" / "wrong.py"
    wrong.write_text("import ray\nfrom training import loop\nimport boto3\n")
    monkeypatch.setattr("test_import_direction.ROOT", tmp_path)
    assert len(faults_of(wrong)) == 4


def test_the_walker_sees_an_arrow_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_import_direction.ROOT", tmp_path)
    for folder in ("network", "metrics", "attic"):
        (tmp_path / "model" / folder).mkdir(parents=True)
    (tmp_path / "model" / "accompany.py").touch()
    (tmp_path / "model" / "metrics" / "fit.py").touch()
    wrong = tmp_path / "model" / "network" / "wrong.py"
    wrong.write_text(
        "from model.metrics import fit\nfrom model.accompany import Accompanist\nimport model.network.wrong\nfrom model import metrics\n"
    )
    assert [fault.split(":")[1].split()[0] for fault in floor_faults_of(wrong)] == ["1", "2", "4"]
    unplaced = tmp_path / "model" / "attic" / "old.py"
    unplaced.touch()
    assert "no floor" in floor_faults_of(unplaced)[0]
