"""Checkpoints: what is written is what is read, and everything else is refused in one line."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics, load_checkpoint, save_checkpoint
from model.codec.base import CodecIdentity
from model.diffusion.sampling import USUAL_SAMPLING, Sampling
from model.errors import ModelError
from model.network.unet import AccompanimentUNet, UNetConfig
from model.weight_files import INDEX_FILE, weight_files

NETWORK = UNetConfig(channels=(8, 16), vocal_blocks=(1, 1), heads=1, head_channels=8, time_channels=8)


def checkpoint(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    values = torch.randn(3, 64).tolist()
    return Checkpoint(
        name=f"tiny-{seed}",
        network=NETWORK,
        state=AccompanimentUNet(NETWORK).state_dict(),
        statistics=LatentStatistics(
            vocal_mean=tuple(values[0]),
            vocal_std=(0.5,) * 64,
            accompaniment_mean=tuple(values[1]),
            accompaniment_std=tuple(abs(value) + 0.1 for value in values[2]),
            vocal_level_db=-21.5,
        ),
        codec=CodecIdentity(id="embedded", weights_sha256="c" * 64),
        dataset=DatasetIdentity(uri="s3://bucket/data", digest="d" * 64),
        step=1234,
        metrics={"validation/loss": 0.25},
        sampling=Sampling(solver="ddim", steps=4, guidance=1.0),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run" / "best", checkpoint())
    return tmp_path / "run" / "best"


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert replace(one, state={}) == replace(other, state={})
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_round_trip(folder: Path) -> None:
    assert_same(load_checkpoint(folder), checkpoint())
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_a_runs_folder_gives_its_best(folder: Path) -> None:
    assert_same(load_checkpoint(folder.parent), checkpoint())


def test_saving_again_replaces(folder: Path) -> None:
    save_checkpoint(folder, checkpoint(1))
    assert_same(load_checkpoint(folder), checkpoint(1))
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_a_kill_between_the_renames_loses_nothing(folder: Path) -> None:
    folder.rename(folder.with_name(".best.former"))
    assert_same(load_checkpoint(folder), checkpoint())
    assert_same(load_checkpoint(folder.parent), checkpoint())
    save_checkpoint(folder, checkpoint(1))
    assert_same(load_checkpoint(folder), checkpoint(1))


def test_a_failed_save_leaves_the_former(folder: Path) -> None:
    with pytest.raises(ModelError, match="not finite"):
        save_checkpoint(folder, replace(checkpoint(1), metrics={"loss": float("nan")}))
    assert_same(load_checkpoint(folder), checkpoint())
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_the_built_network_answers_as_the_one_saved(folder: Path) -> None:
    torch.manual_seed(0)
    torch.randn(3, 64)
    network = AccompanimentUNet(NETWORK).eval()
    latent_BCT, t_B = torch.randn(1, 64, 10), torch.tensor([7])
    built = load_checkpoint(folder).build()
    assert torch.equal(built(latent_BCT, t_B, built.encode_vocal(latent_BCT)), network(latent_BCT, t_B, network.encode_vocal(latent_BCT)))
    assert not built.training


def test_a_checkpoint_from_before_sampling_was_recorded_loads(folder: Path) -> None:
    path = folder / "checkpoint.json"
    record = json.loads(path.read_text())
    assert record.pop("sampling") == {"solver": "ddim", "steps": 4, "guidance": 1.0}
    path.write_text(json.dumps(record))
    assert_same(load_checkpoint(folder), replace(checkpoint(), sampling=USUAL_SAMPLING))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_refuses_an_unknown_schema_version(folder: Path) -> None:
    edit(folder, schema_version=2)
    with pytest.raises(ModelError, match="schema version 2: this program reads 1"):
        load_checkpoint(folder)


@pytest.mark.parametrize("missing", ["checkpoint.json", "model.safetensors"])
def test_refuses_a_missing_file(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        load_checkpoint(folder)


def test_refuses_a_place_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_refuses_altered_weights(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_checkpoint(folder)


def test_refuses_text_that_is_no_json(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"schema_version": 1,')
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_checkpoint(folder)


@pytest.mark.parametrize("field", ["network", "statistics", "codec", "dataset", "sampling"])
def test_refuses_unknown_fields(folder: Path, field: str) -> None:
    edit(folder, **{field: {"surprise": 1}})
    with pytest.raises(ModelError, match="surprise"):
        load_checkpoint(folder)


def test_refuses_unknown_and_missing_entries(folder: Path) -> None:
    edit(folder, surprise=1)
    with pytest.raises(ModelError, match="unknown \\['surprise'\\]"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ("network", None, None), ("statistics", None, "x"), ("codec", None, []), ("step", None, "x"), ("step", None, None),
        ("metrics", None, None), ("network", "groups", 0), ("network", "channels", None), ("statistics", "vocal_level_db", None),
        ("statistics", "vocal_mean", None), ("statistics", "vocal_std", ["x"] * 64), ("sampling", None, None),
        ("sampling", "solver", "euler"), ("sampling", "steps", "four"), ("sampling", "guidance", None),
    ],
)  # fmt: skip
def test_refuses_damaged_values(folder: Path, entry: str, field: str | None, value: object) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    edit(folder, **{entry: value if field is None else {**record[entry], field: value}})
    with pytest.raises(ModelError):
        load_checkpoint(folder)


def test_refuses_tensors_of_another_network(folder: Path) -> None:
    wrong = checkpoint()
    wrong.state["output.bias"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"1 of another shape \['output\.bias'\]"):
        save_checkpoint(folder, wrong)
    del wrong.state["output.bias"]
    with pytest.raises(ModelError, match=r"1 missing \['output\.bias'\]"):
        save_checkpoint(folder, wrong)
    assert_same(load_checkpoint(folder), checkpoint())


def test_refuses_a_file_that_holds_another_networks_tensors(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["extra"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    edit(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="1 unknown \\['extra'\\]"):
        load_checkpoint(folder)


def test_statistics_are_checked_and_invert() -> None:
    statistics = checkpoint().statistics
    with pytest.raises(ModelError, match="vocal_std holds 0"):
        replace(statistics, vocal_std=(0.0,) * 64)
    with pytest.raises(ModelError, match="vocal_mean has 3 values"):
        replace(statistics, vocal_mean=(0.0,) * 3)
    latent_BCT = torch.randn(2, 64, 5)
    again = statistics.restore_accompaniment(statistics.normalise_accompaniment(latent_BCT))
    torch.testing.assert_close(again, latent_BCT, rtol=1e-5, atol=1e-5)


def test_halved_and_sharded_weights_come_back_as_float32(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path / "small", saved, dtype=torch.float16, shard_bytes=7_000)
    files = weight_files(tmp_path / "small")
    assert len(files) > 2
    # A header of JSON comes with each file's tensors.
    assert all(path.stat().st_size < 7_000 + 8_000 for path in files)
    loaded = load_checkpoint(tmp_path / "small")
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state.values())
    assert all(torch.equal(loaded.state[name], tensor.half().float()) for name, tensor in saved.state.items())
    names = [name for path in files for name in load_file(path)]
    assert sorted(names) == sorted(saved.state)
    index = json.loads((tmp_path / "small" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in saved.state.values())


def test_refuses_a_missing_altered_or_foreign_shard(tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        save_checkpoint(tmp_path / name, checkpoint(), shard_bytes=13_000)
        return tmp_path / name

    missing = saved("missing")
    weight_files(missing)[1].unlink()
    with pytest.raises(ModelError, match="lacks model-00002"):
        load_checkpoint(missing)
    altered = saved("altered")
    file = weight_files(altered)[-1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_checkpoint(altered)
    outside = saved("outside")
    index = json.loads((outside / INDEX_FILE).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../altered/model-00001-of-00002.safetensors")
    (outside / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not in its folder"):
        load_checkpoint(outside)
    with pytest.raises(ModelError, match="more than the 10 of a shard"):
        save_checkpoint(tmp_path / "never", checkpoint(), shard_bytes=10)
    assert not (tmp_path / "never").exists()


def test_reading_one_imports_no_compiler(tmp_path: Path) -> None:
    """A replica that starts anew would wait for seconds."""
    save_checkpoint(tmp_path / "tiny", checkpoint())
    script = (
        "import sys; from pathlib import Path; from model.checkpoint import load_checkpoint; load_checkpoint(Path(sys.argv[1])).build(); "
        "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "tiny")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
