"""The rows that a network plays: which there are, what each asks for, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.accompany import Accompanist, GenerationConfig
from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics
from model.codec.load import load_codec
from model.controls import Beat, read_chords
from model.network.unet import AccompanimentUNet, UNetConfig, with_controls
from training.evaluation.measures import GENERATED
from training.evaluation.playing import Costs, other_players, own_player, peak_memory
from training.evaluation.rows import HeldOut
from training.evaluation.truth import NOTHING, Truth

NETWORK = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32, bottleneck_blocks=1)
USUAL = GenerationConfig()
KNOWN = Truth(chords=read_chords("0 1 C\n1 2 Am"), beats=tuple(Beat(time_s=index / 2) for index in range(4)), style="waltz")
CONTROLS_ROW = ("controls",)


def accompanist(network: UNetConfig) -> Accompanist:
    torch.manual_seed(0)
    statistics = LatentStatistics(
        vocal_mean=(0.0,) * 64, vocal_std=(1.0,) * 64, accompaniment_mean=(0.0,) * 64, accompaniment_std=(1.0,) * 64, vocal_level_db=-24.0
    )
    codec = load_codec("embedded")
    checkpoint = Checkpoint(
        name="tiny", network=network, state=AccompanimentUNet(network).state_dict(), statistics=statistics, codec=codec.identity,
        dataset=DatasetIdentity(uri="test", digest="0"), step=1, metrics={},
    )  # fmt: skip
    return Accompanist(checkpoint, codec)


@pytest.fixture(scope="module")
def plain() -> Accompanist:
    return accompanist(NETWORK)


def reasons(player: Accompanist, rows: tuple, asked: GenerationConfig = USUAL) -> dict[str, str]:
    return {absent.what: absent.why for absent in other_players(player, None, asked, rows)[1]}


def test_a_row_that_would_be_the_generated_one_again_is_left_out(plain: Accompanist) -> None:
    assert reasons(plain, ("20-steps",))["20 steps"] == "*generated* is sampled so"
    players, _ = other_players(plain, None, replace(USUAL, steps=4, seed=3), ("20-steps", "ancestral", "best-of-4"))
    asked = {player.name: player.ask(NOTHING) for player in players}
    assert list(asked) == ["800 ancestral steps", "20 steps", "best of 4"]
    assert [(way.solver, way.steps, way.candidates, way.seed) for way in asked.values() if way] == [
        ("ancestral", 800, 1, 3), ("dpmpp-2m", 20, 1, 3), (None, 4, 4, 3),
    ]  # fmt: skip
    assert "--student" in reasons(plain, ())["student"]


def test_controls_are_given_only_where_they_are_known() -> None:
    player = accompanist(with_controls(NETWORK, styles=("rock",)))
    players, absent = other_players(player, None, USUAL, CONTROLS_ROW)
    given = {row.name: row.ask(KNOWN) for row in players}
    assert given["style given"] is None, "the checkpoint has no waltz"
    assert given["all controls given"] is None
    assert given["chords given"] is not None
    assert given["beats given"] is not None
    assert (given["chords given"].controls.names, given["beats given"].controls.names) == (("chords",), ("beats",))
    assert all(row.ask(NOTHING) is None for row in players)
    everything = next(row for row in players if row.name == "all controls given").ask(replace(KNOWN, style="rock"))
    assert everything is not None
    assert everything.controls.names == ("style", "chords", "beats")
    assert not any("given" in one.what for one in absent)


def test_a_checkpoint_that_knows_chords_alone_says_so() -> None:
    player = accompanist(with_controls(NETWORK, controls=("chords",)))
    players, absent = other_players(player, None, USUAL, CONTROLS_ROW)
    assert [row.name for row in players] == ["chords given", "chords a fifth away given", "relative chords given"]
    assert {one.what: one.why for one in absent}["beats given"] == "the checkpoint knows chords alone"
    assert "follows the vocal alone" in reasons(accompanist(NETWORK), CONTROLS_ROW)["rows with style, chords or beats given"]


def test_costs_count_what_was_played(plain: Accompanist) -> None:
    costs, vocal_CN = Costs(), np.random.default_rng(0).standard_normal((2, 44_100)).astype(np.float32) * 0.1
    pair = HeldOut(song_id="a", segment=0, vocal_CN=vocal_CN, real_CN=vocal_CN)
    player = own_player(plain, replace(USUAL, steps=1))
    band = costs.play(player, pair, NOTHING)
    assert band is not None
    assert band.audio_CN.shape == vocal_CN.shape
    assert band.chords is None
    (row,) = costs.rows()
    assert row.name == GENERATED
    assert row.real_time_factor > 0
    assert costs.segment_s(GENERATED) == pytest.approx(row.real_time_factor * 2_097_152 / 44_100)
    assert costs.play(replace(player, name="none", ask=lambda _: None), pair, NOTHING) is None
    assert [found.name for found in costs.rows()] == [GENERATED]


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as peak:
        held = np.ones(2**27, np.uint8)
        for _ in range(20):
            held += 1
        del held
    assert peak[0] > before[0] + 2**26
