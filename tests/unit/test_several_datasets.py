"""Training on several weighted datasets: shares as asked, one order for every mode and rank, resumed as uninterrupted, clear errors."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_loop import config, interrupt_at, states_of

from infra.cli import exit_codes as commands
from infra.dataset.format import read_latents, read_manifest
from infra.dataset.trained_on import trainings_on
from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import load_checkpoint
from tests.tiny_latents import write_latents
from training.__main__ import app
from training.config import TrainConfig, datasets_of, named_dataset, parse_dataset
from training.data.batches import statistics_of
from training.data.datasets import open_datasets
from training.data.mixture import BLOCK, Mixture, Part
from training.data.open import open_segments
from training.data.ray_shuffle import Course
from training.publish.model_card import card, last_parts
from training.ranks import Workers
from training.run.launch import train
from training.run.loop import run
from training.state import read_saved


@pytest.fixture(scope="module")
def band(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("band"), songs=4, segments=2, seed=1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("demo"), songs=6, segments=3, seed=2)


@settings(max_examples=20)
@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=5), st.integers(0, 3 * BLOCK))
def test_every_sample_is_the_next_of_one_dataset_in_its_share(shares: list[float], begin: int) -> None:
    mixture = Mixture.of(7, shares)
    assert sum(mixture.counts) == BLOCK
    for count, share in zip(mixture.counts, shares, strict=True):
        assert count / BLOCK == pytest.approx(share / sum(shares), abs=1 / BLOCK)
    following = [mixture.drawn_before(dataset, begin) for dataset in range(len(shares))]
    for sample in range(begin, begin + 300):
        dataset, own = mixture.draw(sample)
        assert own == following[dataset]
        assert mixture.samples_of(dataset, np.array([own]))[0] == sample
        following[dataset] += 1


def test_the_order_is_the_seeds() -> None:
    drawn = [[Mixture.of(seed, (1, 1)).draw(sample)[0] for sample in range(200)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [Mixture.of(1, (1, 1)).draw(sample + BLOCK)[0] for sample in range(200)] != drawn[0]


@pytest.mark.parametrize("world_size", [1, 3])
def test_streamed_samples_are_those_that_ranks_ask_for(world_size: int) -> None:
    mixture, begin, end, batch = Mixture.of(5, (3, 1)), 4_000, 4_600, 8
    asked: dict[tuple[int, int], list[int]] = {}
    for sample in range(begin, end):
        dataset, own = mixture.draw(sample)
        rank = next(rank for rank in range(world_size) if sample % batch < (rank + 1) * batch // world_size)
        asked.setdefault((dataset, rank), []).append(own)
    for dataset, segments in ((0, 40), (1, 7)):
        bounds = {"begin": mixture.drawn_before(dataset, begin), "end": mixture.drawn_before(dataset, end)}
        course = Course(
            seed=5, segments=segments, batch_size=batch, world_size=world_size, part=Part(mixture=mixture, dataset=dataset), **bounds
        )
        for rank in range(world_size):
            streamed = [sample for span in course.spans for sample in course.samples(span, rank).tolist()]
            assert streamed == asked[dataset, rank]


def test_segments_are_drawn_in_the_shares_asked_for(band: str, demo: str) -> None:
    datasets = open_datasets(TrainConfig(data=(f"{band}=3", demo), out="", preset="small"))
    given = TrainConfig(data=(f"{band}=3", demo), out="", preset="small", data_mode="memory", steps=500)
    segments = open_segments(given, datasets, Workers(), begin=0)
    tables = [read_latents(member.place, "train") for member in datasets.members]
    rows = {row.tobytes(): (number, at) for number, table in enumerate(tables) for at, row in enumerate(table.vocal_RCT)}
    drawn = [rows[segments.row(sample).vocal_CT.tobytes()] for sample in range(BLOCK)]
    assert Counter(number for number, _ in drawn) == {0: 3 * BLOCK // 4, 1: BLOCK // 4}
    for number, table in enumerate(tables):
        counts = Counter(at for found, at in drawn if found == number)
        assert max(counts.values()) - min(counts.values()) <= 1, "each epoch of a dataset visits each of its segments once"
        assert len(counts) == len(table)


def test_statistics_are_those_of_what_is_drawn(band: str, demo: str) -> None:
    datasets = open_datasets(TrainConfig(data=(band, f"{demo}=2"), out="", preset="small"))
    one, other = (statistics_of(member.manifest) for member in datasets.members)
    mean_C = (np.array(one.vocal_mean) + 2 * np.array(other.vocal_mean)) / 3
    np.testing.assert_allclose(datasets.statistics.vocal_mean, mean_C)
    random = np.random.default_rng(0)
    draws = [random.normal(each.vocal_mean[5], each.vocal_std[5], size) for each, size in ((one, 100_000), (other, 200_000))]
    assert datasets.statistics.vocal_std[5] == pytest.approx(np.concatenate(draws).std(), rel=0.02)
    assert open_datasets(TrainConfig(data=band, out="", preset="small")).statistics == statistics_of(read_manifest(Place(band)))


def test_held_out_segments_come_from_all(band: str, demo: str) -> None:
    table = open_datasets(TrainConfig(data=(f"{band}=1", f"{demo}=3"), out="", preset="small")).held_out(4)
    assert table.vocal_RCT.shape[0] == len(table.song_ids) == len(table.valid_frames_R) == 1 + 3


def test_a_resumed_run_on_two_datasets_equals_an_uninterrupted_one(band: str, demo: str, tmp_path: Path) -> None:
    data = (f"{band}=3", demo)
    run(config(data, tmp_path / "whole"))
    whole = config(data, tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(whole, report=interrupt_at(6))
    assert run(whole).step == 12
    expected, resumed = states_of(tmp_path / "whole"), states_of(tmp_path / "interrupted")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    with pytest.raises(UserError, match="was trained on the dataset"):
        run(config((f"{band}=2", demo), tmp_path / "whole", steps=14))
    saved = read_saved(Place(str(tmp_path / "whole")))
    assert saved is not None
    assert f"{demo}=0.25" in saved.dataset.uri


def test_a_dataset_alone_is_trained_on_as_before_whatever_its_weight(demo: str, tmp_path: Path) -> None:
    run(config(demo, tmp_path / "plain", steps=4))
    run(config((f"{demo}=5",), tmp_path / "weighted", steps=4))
    one, other = states_of(tmp_path / "plain"), states_of(tmp_path / "weighted")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_checkpoint(tmp_path / "plain").dataset == load_checkpoint(tmp_path / "weighted").dataset


def test_the_run_is_noted_at_every_dataset_and_in_mlflow(band: str, demo: str, tmp_path: Path) -> None:
    given = config((band, f"{demo}=0.5"), tmp_path / "run", steps=2, samples=0, register="")
    result = train(given)
    for uri in (band, demo):
        place = Place(uri)
        assert result.run in [training.checkpoint for training in trainings_on(place, {read_manifest(place).digest})]
    from mlflow.tracking import MlflowClient

    found = MlflowClient(result.tracking_uri).get_run(result.mlflow_run_id)
    assert {given.dataset.digest for given in found.inputs.dataset_inputs} == {
        read_manifest(Place(uri)).digest[:36] for uri in (band, demo)
    }
    assert band in found.data.params["data"]
    assert "=0.333333" in found.data.tags["backline.datasets"]
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.dataset.uri == found.data.tags["backline.datasets"]


def test_two_codecs_are_one_sentence_that_names_both(band: str, tmp_path: Path) -> None:
    other = write_latents(tmp_path, codec_id="other", codec_sha256="dec0" * 16)
    with pytest.raises(UserError, match=rf"^{band} holds latents of codec tiny \(c0decc0d\) and {other} of other \(dec0dec0\): prepare"):
        open_datasets(TrainConfig(data=(band, other), out=""))
    narrow = write_latents(tmp_path / "narrow", frames=32)
    with pytest.raises(UserError, match=r"64 × 64 and .* of 64 × 32"):
        open_datasets(TrainConfig(data=(band, narrow), out=""))
    with pytest.raises(UserError, match="holds no finished dataset"):
        open_datasets(TrainConfig(data=(band, str(tmp_path / "nowhere")), out=""))


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("latents", ("latents", 1.0)),
        ("s3://bucket/latents=0.25", ("s3://bucket/latents", 0.25)),
        ("runs/split=train", ("runs/split=train", 1.0)),
        ("runs/x=2=1", ("runs/x=2", 1.0)),
        ("2026", ("2026", 1.0)),
    ],
)
def test_a_dataset_is_named_with_a_weight_or_without(spec: str, parsed: tuple[str, float]) -> None:
    assert parse_dataset(spec) == parsed
    assert parse_dataset(named_dataset(*parsed)) == parsed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (("a=0", "b"), "not above 0"),
        (("a=-1", "b"), "not above 0"),
        (("a=nan", "b"), "not above 0"),
        (("a=inf", "b"), "not above 0"),
        (("a=2", "a"), "twice"),
        ((), "no dataset"),
    ],
)
def test_wrong_weights_are_named(data: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(data=data, out="out")


def test_a_weight_that_no_block_has_a_sample_for_is_named() -> None:
    with pytest.raises(UserError, match=f"below one sample in {BLOCK}"):
        Mixture.of(0, (1, 1e-5))


def test_the_command_line_takes_one_dataset_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    def parsed(line: str) -> TrainConfig:
        _, bound, _ = app.parse_args(["train", *line.split()], exit_on_error=False, print_error=False)
        return bound.arguments["config"]

    assert parsed("--data a --out o").data == "a"
    assert parsed("--data a=3 b --out o --steps 5").data == ("a=3", "b")
    assert parsed("--data a=3 --data b=1 --out o").data == ("a=3", "b=1")
    assert datasets_of(parsed("--data a=3 --data b --out o").data) == [("a", 3.0), ("b", 1.0)]
    assert commands.run(app, ["train", "--data", "a=0", "b", "--out", "o"]) == commands.WRONG_USAGE
    assert "not above 0" in capsys.readouterr().err


def test_a_model_card_names_all_datasets(band: str, demo: str, tmp_path: Path) -> None:
    from training.publish.model_card import About

    run(config((f"{band}=3", demo), tmp_path, steps=2))
    checkpoint = load_checkpoint(tmp_path)
    state = {"config": dataclasses.asdict(config((f"{band}=3", demo), tmp_path, steps=2)), "progress": {"step": 2, "minutes": 1.0}}
    text = card(About(name="two"), checkpoint, state)
    assert "75% from" in text
    assert "=3.0 " in text


def test_a_take_down_names_what_learnt_from_it_through_another_checkpoint(band: str, demo: str, tmp_path: Path) -> None:
    """A run that begins with another's weights has heard what that one heard, and so has its own student."""
    quick = {"steps": 1, "validate_every": 1, "samples": 0, "register": ""}
    first = train(config((f"{band}=1", f"{demo}=1"), tmp_path / "first", **quick))
    then = train(config(demo, tmp_path / "then", init=first.checkpoint, **quick))
    last = train(config(demo, tmp_path / "last", init=then.run, **quick))
    place = Place(band)
    noted = {training.checkpoint for training in trainings_on(place, {read_manifest(place).digest})}
    assert {first.run, then.run, last.run} <= noted


def test_a_mixtures_datasets_keep_their_names_and_lose_their_places() -> None:
    assert last_parts("s3://songs/band=0.75 /data/demo=0.25") == "band=0.75 demo=0.25"
    assert last_parts("/data/my songs/latents") == "latents"
