"""Batches: every draw is a function of seed and sample, whoever draws it and whenever."""

from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.records import read_latents, read_manifest
from infra.storage import Place
from tests.tiny_latents import write_latents
from training.batches import STREAMS, Batches, collate, epoch_order, statistics_of, stream, validation_batches

SEED, BATCH = 7, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(write_latents(tmp_path_factory.mktemp("latents")))


def batches(place: Place, **changes) -> Batches:
    settings = {
        "seed": SEED, "batch_size": BATCH, "micro_batch": 2, "crop_frames": 32, "timesteps": 800, "condition_dropout": 0.5, **changes,
    }  # fmt: skip
    return Batches(read_latents(place, "train"), statistics_of(read_manifest(place)), **settings)


def test_streams_differ_by_name_seed_and_sample_and_repeat() -> None:
    keys = [(seed, name, sample) for seed in (0, 1) for name in STREAMS for sample in (0, 1, 10**9)]
    draws = [tuple(stream(*key).random(4)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(stream(*key).random(4)) for key in keys]
    with pytest.raises(ValueError, match="not one of"):
        stream(0, "weather", 0)


def test_an_epoch_visits_every_segment_once() -> None:
    assert sorted(epoch_order(SEED, 0, 13)) == list(range(13))
    assert list(epoch_order(SEED, 0, 13)) != list(epoch_order(SEED, 1, 13))


def test_two_ranks_see_the_batch_of_one(place: Place) -> None:
    whole = collate(batches(place).at(5))
    shared = collate([batch for rank in (0, 1) for batch in batches(place, rank=rank, world_size=2, micro_batch=1).at(5)])
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(shared, name)), name


def test_reading_ahead_gives_the_same_steps_from_anywhere(place: Place) -> None:
    ahead = batches(place).ahead(3)
    for step in (3, 4, 5):
        for one, other in zip(next(ahead), batches(place).at(step), strict=True):
            assert torch.equal(one.noise_BCT, other.noise_BCT)
            assert torch.equal(one.t_B, other.t_B)
            assert torch.equal(one.vocal_BCT, other.vocal_BCT)
    ahead.close()


def test_crops_are_normalised_and_masked(place: Place) -> None:
    seen = [batch for step in range(40) for batch in batches(place, crop_frames=64).at(step)]
    together = collate(seen)
    assert together.vocal_BCT.shape == (160, 64, 64)
    assert not together.accompaniment_BCT.transpose(1, 2)[~together.valid_BT].any()
    assert set(together.valid_BT.sum(dim=1).tolist()) == {48, 64}  # the short segment keeps its padding
    inside = together.accompaniment_BCT.transpose(1, 2)[together.valid_BT]
    assert abs(float(inside.mean())) < 0.2
    assert 0.7 < float(inside.std()) < 1.3
    # Every timestep region and both kinds of condition are drawn.
    assert 0.3 < float(together.drop_B.float().mean()) < 0.7
    assert together.t_B.min() < 100
    assert together.t_B.max() > 700
    assert abs(float(together.noise_BCT.mean())) < 0.01


def test_crops_stay_inside_the_audio_of_short_segments(place: Place) -> None:
    assert all(bool(batch.valid_BT.all()) for step in range(40) for batch in batches(place, crop_frames=32).at(step))


def test_validation_is_fixed_and_shared_out(place: Place) -> None:
    def held_out(**changes):
        settings = {"segments": 8, "crop_frames": 32, "timesteps": 800, "per_segment": 3, "micro_batch": 4, **changes}
        return validation_batches(read_latents(place, "validation"), statistics_of(read_manifest(place)), **settings)

    whole = held_out()
    assert [group[0].t_B.unique().tolist() for group in whole] == [[133], [400], [666]]
    assert not any(batch.drop_B.any() for group in whole for batch in group)
    shared = [held_out(rank=rank, world_size=2) for rank in (0, 1)]
    for group, first, second in zip(whole, *shared, strict=True):
        ours = torch.cat([batch.noise_BCT for batch in first + second])
        assert torch.equal(torch.cat([batch.noise_BCT for batch in group]), ours)


def test_an_empty_training_split_is_refused(tmp_path: Path) -> None:
    place = Place(write_latents(tmp_path, songs=1, held_out=1))
    with pytest.raises(UserError, match="no segments"):
        batches(place)
