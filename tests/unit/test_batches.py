"""Batches: every draw is a function of seed and sample, whoever draws it and whenever."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.dataset.format import read_latents, read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from tests.tiny_latents import write_latents
from training.data.batches import DEPTH, Batches, collate, statistics_of, validation_batches
from training.data.random_streams import STREAMS, epoch_order, slots_of_rank, stream
from training.data.ray_shuffle import Course, keys_and_firsts
from training.data.segments import InMemory, Segment

SEED, BATCH = 7, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(write_latents(tmp_path_factory.mktemp("latents")))


def batches(place: Place, **changes) -> Batches:
    settings = {
        "seed": SEED, "batch_size": BATCH, "micro_batch": 2, "crop_frames": 32, "timesteps": 800, "condition_dropout": 0.5, **changes,
    }  # fmt: skip
    return Batches(InMemory(read_latents(place, "train"), settings["seed"]), statistics_of(read_manifest(place)), **settings)


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


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_see_the_batch_of_one(place: Place, world_size: int) -> None:
    whole = collate(batches(place).at(5))
    shares = [batches(place, rank=rank, world_size=world_size, micro_batch=1).at(5) for rank in range(world_size)]
    assert all(shares)
    shared = collate([batch for share in shares for batch in share])
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(shared, name)), name


def test_reading_ahead_gives_the_same_steps_from_anywhere(place: Place) -> None:
    ahead = batches(place).ahead(3, 6)
    for step in (3, 4, 5):
        for one, other in zip(next(ahead), batches(place).at(step), strict=True):
            assert torch.equal(one.noise_BCT, other.noise_BCT)
            assert torch.equal(one.t_B, other.t_B)
            assert torch.equal(one.vocal_BCT, other.vocal_BCT)
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


class Source(InMemory):
    """A source that counts what it is asked for, and fails at one sample."""

    def __init__(self, place: Place, fails_at: int) -> None:
        super().__init__(read_latents(place, "train"), SEED)
        self.fails_at, self.asked, self.closed = fails_at, 0, False

    def row(self, sample: int) -> Segment:
        self.asked += 1
        if sample == self.fails_at:
            raise UserError("the disk is gone")
        return super().row(sample)

    def close(self) -> None:
        self.closed = True


def test_an_error_of_the_source_is_raised_in_its_step_and_all_is_closed(place: Place) -> None:
    drawing = batches(place)
    source = drawing.segments = Source(place, fails_at=2 * BATCH + 1)
    before = threading.active_count()
    ahead = drawing.ahead(0, 10)
    for _ in (0, 1):
        next(ahead)
    for _ in (0, 1):
        with pytest.raises(UserError, match="disk is gone"):
            next(ahead)
    ahead.close()
    assert source.closed
    assert threading.active_count() == before
    source = drawing.segments = Source(place, fails_at=0)
    with pytest.raises(UserError, match="disk is gone"):
        drawing.ahead(0, 10)
    assert source.closed


def test_no_more_than_a_few_steps_are_held_ahead(place: Place) -> None:
    drawing = batches(place)
    source = drawing.segments = Source(place, fails_at=-1)
    ahead = drawing.ahead(0, 1000)
    time.sleep(0.3)
    # Those in the queue, the first, and the one that waits for room.
    assert source.asked == (DEPTH + 2) * BATCH
    ahead.close()


@settings(deadline=None)
@given(
    segments=st.integers(1, 40), batch=st.integers(4, 20), world_size=st.integers(1, 4), begin=st.integers(0, 100),
    steps=st.integers(0, 30), epochs=st.integers(1, 3),
)  # fmt: skip
def test_ranks_share_a_run_without_gap_or_overlap(segments: int, batch: int, world_size: int, begin: int, steps: int, epochs: int) -> None:
    begin, end = begin * batch, (begin + steps) * batch
    course = Course(
        seed=SEED, segments=segments, batch_size=batch, world_size=world_size, begin=begin, end=end, epochs=epochs
    )  # fmt: skip
    for rank in range(world_size):
        told: list[int] = []
        for span in course.spans:
            keys, firsts = keys_and_firsts(course, span, block_rows=3)
            samples = course.samples(span, rank)
            # Sorted by key, a rank's rows are one stretch in the order of its samples, cut every three.
            mine = sorted(key for key in keys.ravel().tolist() if rank * course.span <= key < (rank + 1) * course.span)
            assert [key % course.span + span * course.span for key in mine] == samples.tolist()
            assert [int(np.argwhere(keys == key)[0, 1]) for key in mine] == course.rows(samples).tolist()
            assert mine[::3] == firsts[rank]
            told += samples.tolist()
            # In memory, sample by sample.
            rows = [int(epoch_order(SEED, n // segments, segments)[n % segments]) for n in samples.tolist()]
            assert rows == course.rows(samples).tolist()
        # What the loop asks of this rank, whose share may be one larger than another's.
        slots = slots_of_rank(batch, rank, world_size)
        assert told == [n for n in range(begin, end) if n % batch in slots]
        assert len(slots) in (batch // world_size, batch // world_size + 1)


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
    assert any(len(set(batch.drop_B.tolist())) == 2 for batch in seen), "each sample draws for itself, not its batch"
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
