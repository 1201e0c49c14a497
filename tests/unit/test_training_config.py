"""A config in hand is whole, and a wrong one says what to do."""

import dataclasses
import json

import pytest

from model.errors import ModelError
from training.config import MAY_CHANGE, TrainConfig, paper, size_name, small_demo


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"data": "d", "out": "o", **changes})


def test_presets_fill_what_is_left_open() -> None:
    assert config().crop_frames == 1_024
    assert config(preset="small").crop_frames == 256
    assert config(preset="small", crop_frames=128, learning_rate=1e-4).learning_rate == 1e-4
    assert isinstance(config().steps, int)
    assert paper(data="d", out="o").learning_rate == 3.5e-4
    assert small_demo(data="d", out="o", max_minutes=2).anneal_by_time


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"preset": "huge"}, "choose one of these"),
        ({"batch_size": 2, "workers": 4}, "one worker a segment"),
        ({"workers": 2, "min_workers": 3}, "at most that"),
        ({"crop_frames": 2_000}, "at most"),
        ({"condition_dropout": 1.0}, "share inside"),
        ({"learning_rate": -1.0}, "positive"),
        ({"anneal_by_time": True}, "minutes"),
        ({"workers": -1}, "0 or more"),
        ({"steps": -3}, "positive"),
    ],
)
def test_a_wrong_value_names_its_remedy(changes: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        config(**changes)


def test_the_hash_changes_with_the_result_only() -> None:
    base = config()
    assert base.hash() == dataclasses.replace(base, out="elsewhere", workers=2, resume=True, log_every=1).hash()
    assert base.hash() != dataclasses.replace(base, learning_rate=1e-3).hash()
    assert base.hash() != dataclasses.replace(base, seed=1).hash()


def test_the_sizes_of_the_network_are_in_the_hash_unless_they_are_the_presets() -> None:
    base = config(preset="small")
    assert base.depth == 4
    assert base == config(preset="small", depth=4, width=1.0)
    # As runs were named before depth and width could be chosen: a resumed run keeps its name.
    assert config(data="a", out="b").hash() == "f1122ffb"
    assert config(data="a", out="b", preset="small", seed=3).hash() == "f7170458"
    hashes = {base.hash(), config(preset="small", depth=5).hash(), config(preset="small", width=0.5).hash()}
    assert len(hashes) == 3
    assert config(preset="small", depth=5).network.channels == (64, 96, 128, 144, 144)
    assert size_name(config(preset="small", depth=5, width=0.5).to_dict()) == "small of 5 levels, 0.5 times as wide"
    assert size_name({"preset": "paper"}) == "paper"


@pytest.mark.parametrize(("changes", "said"), [({"depth": 1}, "2 to 7"), ({"depth": 8}, "2 to 7"), ({"width": 0.0}, "factor")])
def test_a_network_that_cannot_be_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        config(**changes)


def test_the_config_is_json_and_names_real_fields() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(MAY_CHANGE) <= names
    assert set(json.loads(json.dumps(config().to_dict()))) == names


def test_a_worker_puts_its_whole_share_through_at_once_or_what_it_is_told() -> None:
    assert config().micro_batch == 16
    assert config(workers=2, micro_batch_size=2).micro_batch == 2
