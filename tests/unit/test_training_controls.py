"""Training on what is known of the bands: it reaches the network at its frames, each control hidden by itself, and is obeyed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_loop import UNIFORM, config, states_of

from infra.cli import exit_codes as commands
from infra.dataset.format import read_latents, read_manifest, read_truth
from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import load_checkpoint
from model.diffusion.objective import Schedule
from model.network.conditions import CONTROLS
from tests.tiny_latents import write_latents
from training.__main__ import app
from training.data.batches import Batches, statistics_of, told_in
from training.data.datasets import open_datasets, with_styles
from training.data.segments import InMemory, Truths
from training.run.distil import DistilConfig, phase_config, sizes_of
from training.run.launch import train
from training.run.loop import run

STYLES = ("rock", "waltz")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("known"), songs=7, styles=STYLES)


def batches(known: str, **changes: object) -> Batches:
    place = Place(known)
    manifest = read_manifest(place)
    truth = read_truth(place, "train", manifest)
    assert truth is not None
    values: dict[str, object] = {
        "seed": 3, "batch_size": 64, "micro_batch": 64, "crop_frames": 24, "timesteps": 800, "condition_dropout": 0.1,
        "controls": CONTROLS, "styles": STYLES, "control_dropout": 0.4, **changes,
    }  # fmt: skip
    return Batches(InMemory(read_latents(place, "train", manifest), 3, Truths(truth)), statistics_of(manifest), **values)  # type: ignore[arg-type]


def test_what_is_told_is_what_the_dataset_says_of_these_frames(known: str) -> None:
    place = Place(known)
    truth = read_truth(place, "train", read_manifest(place))
    assert truth is not None
    assert len(truth.styles_R) == len(truth.frames) == 12
    assert [truth.styles_R[row] for row in range(0, 12, 2)] == ["waltz", "rock"] * 3
    told = told_in(Truths(truth).of(4), 10, 24, STYLES)
    assert told.style_B.tolist() == [2]
    root_12T = told.chords_BCT[0, :12]
    assert torch.equal(root_12T.argmax(0), torch.from_numpy(truth.frames.chord_root_RT[4, 10:34].astype(np.int64)))
    assert told.beats_BCT[0, 0].tolist() == pytest.approx(np.cos(2 * np.pi * (np.arange(10, 34) % 8) / 8), abs=1e-3)
    assert told_in(Truths(truth).of(4), 10, 24, ("rock",)).style_B.tolist() == [0]


def test_each_control_is_hidden_by_itself_and_all_of_them_with_the_vocal(known: str) -> None:
    drawn = [batch for step in range(12) for batch in batches(known).at(step)]
    drop_B = torch.cat([batch.drop_B for batch in drawn])
    told = {
        "style": torch.cat([batch.style_B > 0 for batch in drawn]),
        "chords": torch.cat([batch.chords_BCT[:, -1].amax(1) > 0 for batch in drawn]),
        "beats": torch.cat([batch.beats_BCT[:, -1].amax(1) > 0 for batch in drawn]),
    }
    for given_B in told.values():
        assert not given_B[drop_B].any()
        assert float(given_B[~drop_B].float().mean()) == pytest.approx(0.6, abs=0.08)
    together = torch.stack(list(told.values()))[:, ~drop_B].float()
    assert np.abs(np.corrcoef(together.numpy()) - np.eye(3)).max() < 0.12
    part = [batch.chords_BCT[:, -1].mean(1) for batch in drawn]
    share = torch.cat(part)[told["chords"]]
    assert 0.1 < float((share < 1).float().mean()) < 0.3  # told in one stretch only


def test_without_controls_nothing_is_told_and_all_else_is_as_before(known: str) -> None:
    with_all, without = batches(known).at(5)[0], batches(known, controls=()).at(5)[0]
    assert torch.equal(without.noise_BCT, with_all.noise_BCT)
    assert torch.equal(without.vocal_BCT, with_all.vocal_BCT)
    assert not any(value.any() for value in vars(without.conditions).values())
    again = batches(known).at(5)[0]
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(with_all).items())


def controlled(known: str, out: Path, **changes: object) -> object:
    return config(known, out, controls=CONTROLS, styles=STYLES, **changes)


def test_a_resumed_run_with_controls_equals_an_uninterrupted_one(known: str, tmp_path: Path) -> None:
    run(controlled(known, tmp_path / "whole"))  # type: ignore[arg-type]
    run(controlled(known, tmp_path / "cut", steps=6))  # type: ignore[arg-type]
    run(controlled(known, tmp_path / "cut"))  # type: ignore[arg-type]
    whole, cut = states_of(tmp_path / "whole"), states_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    # A run of 6 steps anneals sooner: only that it goes on with the same network is claimed of it.
    assert any("condition_stream" in name for name in whole)
    checkpoint = load_checkpoint(tmp_path / "whole")
    assert (checkpoint.network.controls, checkpoint.network.styles) == (CONTROLS, STYLES)


def test_a_chord_that_is_told_is_obeyed_and_helps(known: str, tmp_path: Path) -> None:
    """The band depends on the chord and the vocal does not say it: told, the error at high noise is smaller."""
    values = {
        "steps": 250,
        "batch_size": 16,
        "validate_every": 250,
        "learning_rate": 3e-3,
        "ema_decay": 0.9,
        "loss": UNIFORM,
        "control_dropout": 0.2,
    }
    run(controlled(known, tmp_path / "run", **values))  # type: ignore[arg-type]
    unet = load_checkpoint(tmp_path / "run").build()
    errors = {}
    held = batches(known, control_dropout=0.0, condition_dropout=0.0, seed=9).at(1)[0]
    t_B = torch.full_like(held.t_B, 780)
    schedule = Schedule()
    x_BCT = schedule.add_noise(held.accompaniment_BCT, held.noise_BCT, t_B)
    wanted_BCT = schedule.velocity(held.accompaniment_BCT, held.noise_BCT, t_B)
    other = replace(held.conditions, chords_BCT=held.chords_BCT.roll(1, dims=0))
    for name, told in (("told", held.conditions), ("nothing", None), ("another", other)):
        with torch.inference_mode():
            found_BCT = unet(x_BCT, t_B, unet.encode_vocal(held.vocal_BCT, held.valid_BT, conditions=told))
        # The channels that a root moves.
        errors[name] = float((found_BCT - wanted_BCT)[:, [0, 4, 7]].square().mean())
    assert errors["told"] < 0.9 * errors["nothing"]
    assert errors["another"] > errors["nothing"]


def test_a_plain_checkpoint_begins_a_run_with_controls_where_it_stood(known: str, tmp_path: Path) -> None:
    run(config(known, tmp_path / "plain", steps=2, validate_every=2))
    plain = load_checkpoint(tmp_path / "plain")
    tuned = controlled(known, tmp_path / "tuned", init=str(tmp_path / "plain"), learning_rate=1e-9, steps=1, validate_every=1)
    run(tuned)  # type: ignore[arg-type]
    after = load_checkpoint(tmp_path / "tuned")
    assert after.network.controls == CONTROLS
    assert all(torch.allclose(after.state[name], value, atol=1e-6) for name, value in plain.state.items())
    with pytest.raises(UserError, match="follows style, chords, beats in the styles rock, waltz"):
        run(config(known, tmp_path / "less", init=str(tmp_path / "tuned")))


def test_styles_are_those_of_the_checkpoint_else_of_the_songs(known: str, tmp_path: Path) -> None:
    asked = config(known, tmp_path / "run", controls=("chords", "style"))
    assert asked.controls == ("style", "chords")
    datasets = open_datasets(asked)
    assert with_styles(asked, datasets, ()).styles == STYLES
    assert with_styles(asked, datasets, ("polka",)).styles == ("polka",)
    with pytest.raises(UserError, match=r"--styles rokc: no song of .* has it; there are rock, waltz"):
        with_styles(replace(asked, styles=("rokc",)), datasets, ())
    with pytest.raises(UserError, match="--styles rock without --controls style"):
        with_styles(replace(asked, controls=("beats",), styles=("rock",)), datasets, ())
    assert with_styles(replace(asked, controls=("beats",)), datasets, ()).styles == ()
    result = train(replace(asked, steps=1, validate_every=1, samples=0, register=""))
    assert load_checkpoint(Path(result.run)).network.styles == STYLES


def test_controls_that_no_song_can_teach_are_refused(tmp_path: Path) -> None:
    blind = write_latents(tmp_path / "blind")
    with pytest.raises(UserError, match="--controls chords: nothing is known of what the bands of"):
        train(config(blind, tmp_path / "run", controls=("chords",)))
    with pytest.raises(ValueError, match="controls holds tempo: choose among style, chords, beats"):
        config(blind, tmp_path / "run", controls=("tempo",))


def test_a_student_learns_its_teachers_controls(known: str, tmp_path: Path) -> None:
    run(controlled(known, tmp_path / "teacher", steps=2, validate_every=2))  # type: ignore[arg-type]
    teacher = load_checkpoint(tmp_path / "teacher")
    place = Place(str(tmp_path / "teacher"))
    assert sizes_of(teacher, place) == ("small", 4, 1.0)
    distil = DistilConfig(data=known, teacher=place.uri, out=str(tmp_path / "student"), student_steps=2, first_steps=2)
    phase = phase_config(distil, 0, teacher, place)
    run(replace(phase, workers=0, steps=2, batch_size=4, crop_frames=16, validate_every=2))
    student = load_checkpoint(tmp_path / "student" / "steps-2")
    assert (student.network.controls, student.network.styles) == (CONTROLS, STYLES)


@pytest.mark.parametrize("listed", [["style", "chords", "beats"], ["style,chords,beats"]])
def test_the_command_line_takes_them_in_one_list(known: str, tmp_path: Path, listed: list[str]) -> None:
    """As the guide writes it."""
    said = [
        "train",
        "--data",
        known,
        "--out",
        str(tmp_path / "run"),
        "--preset",
        "small",
        "--workers",
        "0",
        "--steps",
        "1",
        "--register",
        "",
    ]
    sizes = ["--batch-size", "2", "--crop-frames", "16", "--samples", "0"]
    assert commands.run(app, [*said, *sizes, "--controls", *listed]) == 0
    assert load_checkpoint(tmp_path / "run").network.controls == CONTROLS
