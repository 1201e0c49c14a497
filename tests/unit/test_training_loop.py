"""The loop without Ray: it learns, stops, saves, and a resumed run is the uninterrupted one."""

import dataclasses
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import load_checkpoint
from model.diffusion.objective import DiffusionLossConfig
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.run.loop import build, latest, learning_rate, run
from training.state import Average, Progress, read_metrics, read_saved

UNIFORM = DiffusionLossConfig(weighting="uniform")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("latents"))


def config(data: str, out: Path, **changes) -> TrainConfig:
    settings = {
        "preset": "small", "workers": 0, "steps": 12, "batch_size": 4, "crop_frames": 16, "warmup_steps": 2, "validate_every": 6,
        "validation_timesteps": 2, "log_every": 3, **changes,
    }  # fmt: skip
    return TrainConfig(data=data, out=str(out), **settings)


def states_of(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((out / "last" / "training_state.safetensors").read_bytes())


def test_a_resumed_run_equals_an_uninterrupted_one(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "whole"))
    whole = config(data, tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(whole, report=interrupt_at(6))
    assert read_saved(Place(whole.out)).progress.step == 6
    assert run(whole).step == 12
    expected, resumed = states_of(tmp_path / "whole"), states_of(tmp_path / "interrupted")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    # Speeds differ; every loss and rate is the same.
    keep = ("step", "train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss")
    rows = [[{k: row[k] for k in keep if k in row} for row in read_metrics(Place(str(tmp_path / n)))] for n in ("whole", "interrupted")]
    assert rows[0] == rows[1]


def interrupt_at(step: int):
    def report(metrics: dict[str, float]) -> None:
        if metrics["step"] == step:
            raise KeyboardInterrupt

    return report


def test_it_learns_and_keeps_the_best(data: str, tmp_path: Path) -> None:
    outcome = run(config(data, tmp_path, steps=36, learning_rate=4e-3, ema_decay=0.9, validate_every=12, loss=UNIFORM))
    losses = [row["validation/loss"] for row in read_metrics(Place(str(tmp_path))) if "validation/loss" in row]
    assert len(losses) == 3
    # An untrained network answers zero, and the velocity's mean square is 1.
    assert losses[2] < losses[0] < 1.0
    assert losses[2] < 0.95
    best, last = load_checkpoint(tmp_path), load_checkpoint(tmp_path / "last")
    assert best.metrics["validation/loss"] == min(losses)
    assert last.step == outcome.step == 36
    assert best.codec.id == "tiny"
    assert best.dataset.uri == data
    # The checkpoint holds the averaged weights, which are not the trained ones.
    state = states_of(tmp_path)
    assert torch.equal(last.state["stem.weight"], state["average.stem.weight"])
    assert not torch.equal(last.state["stem.weight"], state["network.stem.weight"])
    described = json.loads((tmp_path / "last" / "training_state.json").read_text())
    assert described["streams"] == {"seed": 0, "samples_drawn": 144}


def test_micro_batches_add_up_to_the_batch(data: str, tmp_path: Path) -> None:
    whole = run(config(data, tmp_path / "whole", steps=4))
    parts = run(config(data, tmp_path / "parts", steps=4, micro_batch_size=1))
    assert parts.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"], rel=1e-4)
    assert parts.metrics["validation/loss"] == pytest.approx(whole.metrics["validation/loss"], rel=1e-3)


def test_patience_and_minutes_end_a_run(data: str, tmp_path: Path) -> None:
    # A rate that moves nothing cannot improve for long.
    stuck = run(config(data, tmp_path / "stuck", steps=40, learning_rate=1e-12, validate_every=2, patience=2))
    assert stuck.step < 40
    assert "no better validation" in stuck.ended
    timed = run(config(data, tmp_path / "timed", steps=100_000, validate_every=100_000, max_minutes=0.02))
    assert "minutes are over" in timed.ended
    assert load_checkpoint(tmp_path / "timed").step == timed.step
    assert run(config(data, tmp_path / "timed", steps=100_000, validate_every=100_000, max_minutes=0.02)).step == timed.step


def test_a_run_that_was_saved_before_networks_had_sizes_goes_on(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path, steps=2))
    path = tmp_path / "last" / "training_state.safetensors"
    with safetensors.safe_open(path, "pt") as saved:
        described = json.loads(saved.metadata()["state"])
    del described["config"]["depth"], described["config"]["width"]
    safetensors.torch.save_file(states_of(tmp_path), path, {"state": json.dumps(described)})
    with pytest.raises(UserError, match="depth 4 → 5"):
        run(config(data, tmp_path, steps=4, depth=5))
    with pytest.raises(UserError, match=r"width 1.0 → 0.5"):
        run(config(data, tmp_path, steps=4, width=0.5))
    assert run(config(data, tmp_path, steps=4)).step == 4


def test_another_codec_or_setting_is_refused_in_a_sentence(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(data, out, steps=2))
    foreign = write_latents(tmp_path / "foreign", codec_sha256="0ther" * 12)
    with pytest.raises(UserError, match=r"latents of codec tiny \(c0decc0d\).*0ther0th") as refusal:
        run(config(foreign, out, steps=4))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="learning_rate"):
        run(config(data, out, steps=4, learning_rate=1e-4))
    other = write_latents(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="trained on the dataset"):
        run(config(other, out, steps=4))


def test_a_dataset_without_held_out_songs_trains(tmp_path: Path) -> None:
    outcome = run(config(write_latents(tmp_path / "data", songs=2, held_out=0), tmp_path / "run", steps=2))
    assert "validation/loss" not in outcome.metrics
    assert load_checkpoint(tmp_path / "run").step == 2


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        run(config(data, tmp_path, steps=30, learning_rate=1e12, gradient_clip=1e12, warmup_steps=0))
    saved = read_saved(Place(str(tmp_path)))
    assert saved is None or all(bool(value.isfinite().all()) for value in saved.tensors.values())


def test_the_rate_warms_up_and_anneals(data: str, tmp_path: Path) -> None:
    settings = config(data, tmp_path, steps=100, warmup_steps=10, learning_rate=1.0, final_rate=0.1)
    rates = [learning_rate(settings, Progress(step=step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    by_time = dataclasses.replace(settings, anneal_by_time=True, max_minutes=2.0)
    assert learning_rate(by_time, Progress(step=20, minutes=1.9)) < 0.2 < learning_rate(by_time, Progress(step=20, minutes=0.1))


def test_the_average_follows_the_weights(data: str, tmp_path: Path) -> None:
    network, average, _ = build(config(data, tmp_path), torch.device("cpu"))
    start = network.stem.weight.detach().clone()
    with torch.no_grad():
        network.stem.weight += 1
    average.update(network, 0)
    assert torch.allclose(average.network.stem.weight, start + 0.9, atol=1e-6)
    steady = Average(network, 0.5)
    with torch.no_grad():
        network.stem.weight += 1
    steady.update(network, 10_000)
    assert torch.allclose(steady.network.stem.weight, start + 1.5, atol=1e-6)


def test_first_weights_depend_on_the_seed_alone(data: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = build(config(data, tmp_path), torch.device("cpu"))[0]
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), expected)  # building drew nothing from the process's stream
    torch.manual_seed(2)
    same, other = (build(config(data, tmp_path, seed=seed), torch.device("cpu"))[0] for seed in (0, 5))
    assert torch.equal(one.stem.weight, same.stem.weight)
    assert not torch.equal(one.stem.weight, other.stem.weight)


def test_latest_takes_the_last_of_each() -> None:
    assert latest([{"step": 1, "a": 1.0, "b": 2.0}, {"step": 2, "a": 3.0}]) == {"a": 3.0, "b": 2.0}


def test_a_run_begins_from_a_checkpoint_with_its_normalisation(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "first"))
    first = load_checkpoint(tmp_path / "first")
    other = write_latents(tmp_path / "other", songs=5)
    changed = {"init": str(tmp_path / "first"), "learning_rate": 1e-9, "steps": 2, "validate_every": 2}
    run(config(other, tmp_path / "tuned", **changed))
    tuned = load_checkpoint(tmp_path / "tuned")
    assert tuned.statistics == first.statistics
    assert tuned.dataset != first.dataset
    assert all(torch.allclose(tuned.state[name], first.state[name], atol=1e-6) for name in first.state)
    fresh = config(other, tmp_path / "fresh", **{**changed, "init": None})
    run(fresh)
    assert any(not torch.allclose(load_checkpoint(tmp_path / "fresh").state[name], first.state[name], atol=1e-3) for name in first.state)


def test_a_checkpoint_of_another_preset_or_codec_is_refused(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "first", steps=1))
    init = str(tmp_path / "first")
    with pytest.raises(UserError, match="not a checkpoint of preset paper"):
        run(config(data, tmp_path / "run", preset="paper", init=init))
    foreign = write_latents(tmp_path / "foreign", codec_sha256="f" * 64)
    with pytest.raises(UserError, match="belongs to codec"):
        run(config(foreign, tmp_path / "run", init=init))


def test_a_run_goes_on_from_the_weights_that_it_began_from_wherever_they_lie(data: str, tmp_path: Path) -> None:
    run(config(data, tmp_path / "first", steps=2, validate_every=2))
    (tmp_path / "first").rename(tmp_path / "moved")
    tuning = config(data, tmp_path / "tuned", init=str(tmp_path / "moved"), steps=2, validate_every=2)
    run(tuning)
    run(config(data, tmp_path / "second", steps=2, validate_every=2, seed=5))
    with pytest.raises(UserError, match="began from other weights"):
        run(dataclasses.replace(tuning, init=str(tmp_path / "second"), steps=4))
    (tmp_path / "moved").rename(tmp_path / "again")
    assert run(dataclasses.replace(tuning, init=str(tmp_path / "again"), steps=4)).step == 4
    names = {load_checkpoint(tmp_path / place).name for place in ("again", "second", "tuned")}
    assert len(names) == 3
