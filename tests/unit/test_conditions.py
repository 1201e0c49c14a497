"""What is given beside the vocal: how it becomes frames, how it enters the network, and that a network without it stays as it was."""

import math

import pytest
import torch
from torch import Tensor

from model.chords import NO_CHORD, QUALITIES, UNTOLD
from model.controls import Controls, read_beats, read_chords
from model.errors import ModelError
from model.inference.network_runner import BatchedEvaluator, Evaluation, ThreadedEvaluator
from model.network.conditions import (
    BEAT_CHANNELS,
    CHORD_CHANNELS,
    CONTROLS,
    Conditions,
    beat_frames,
    chord_frames,
    conditions_of,
    frame_times_s,
)
from model.network.unet import AccompanimentUNet, UNetConfig, count_parameters, paper, small, with_controls

PLAIN = UNetConfig(channels=(16, 32, 48), vocal_blocks=(1, 2, 1), heads=2, head_channels=16, time_channels=32)
STYLES = ("rock", "waltz")
GIVEN = with_controls(PLAIN, styles=STYLES)


def network(config: UNetConfig = GIVEN, *, trained: bool = True) -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.1)
    torch.nn.init.normal_(unet.null_vocal_C)
    if trained and unet.condition_stream is not None:
        for parameter in unet.condition_stream.levels.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def conditions(frames: int = 24) -> Conditions:
    """A waltz in A minor, then nothing told, on a grid."""
    controls = Controls(style="waltz", chords=read_chords("0 0.5 Am\n0.5 0.7 N"), beats=read_beats("0 1\n0.4 2\n0.8 3\n1.2 1"))
    return conditions_of(controls, frames, styles=STYLES, duration_s=frames * 2048 / 44_100)


def latents(batch: int = 1, frames: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 64, frames, generator=generator), torch.randn(batch, 64, frames, generator=generator)


def test_a_chord_is_its_root_its_notes_and_its_bass() -> None:
    root = torch.tensor([9, NO_CHORD, UNTOLD, 0])
    quality = torch.tensor([QUALITIES.index("min7"), NO_CHORD, 3, QUALITIES.index("maj")])
    frames_CT = chord_frames(root, quality, torch.tensor([0, NO_CHORD, 5, 4]))
    assert frames_CT.shape == (CHORD_CHANNELS, 4)
    root_12T, notes_12T, bass_12T, told_1T = frames_CT.split([12, 12, 12, 1])
    assert told_1T[0].tolist() == [1, 1, 0, 1]
    assert [column.nonzero()[:, 0].tolist() for column in notes_12T.T] == [[0, 4, 7, 9], [], [], [0, 4, 7]]
    assert [column.nonzero()[:, 0].tolist() for column in root_12T.T] == [[9], [], [], [0]]
    assert [column.nonzero()[:, 0].tolist() for column in bass_12T.T] == [[0], [], [], [4]]


def test_phases_become_waves_and_what_is_not_told_is_zero() -> None:
    frames_CT = beat_frames(torch.tensor([0.0, 0.25, 0.5, math.nan]), torch.tensor([0.0, math.nan, 0.5, math.nan]))
    assert frames_CT.shape == (BEAT_CHANNELS, 4)
    assert frames_CT[:4, 1].tolist() == pytest.approx([0, 1, -1, 0], abs=1e-6)  # cos, sin of the phase and of its double
    assert not frames_CT[4:-1, 1].any()
    assert frames_CT[-1].tolist() == [1, 1, 1, 0]
    assert not frames_CT[:, 3].any()


def test_controls_reach_the_frames_of_their_seconds() -> None:
    given = conditions()
    times_s = frame_times_s(24)
    root_12T = given.chords_BCT[0, :12]
    assert torch.equal(root_12T[9] > 0, times_s < 0.5)
    assert torch.equal(given.chords_BCT[0, -1] > 0, times_s < 0.7)
    assert torch.equal(given.beats_BCT[0, -1] > 0, times_s <= 1.2)
    assert given.style_B.tolist() == [2]
    slower = conditions_of(Controls(chords=read_chords("0 0.5 C")), 24, styles=STYLES, duration_s=1.0, slower=2.0)
    assert torch.equal(slower.chords_BCT[0, -1] > 0, times_s < 1.0)


@pytest.mark.parametrize("frames", [24, 21])
def test_a_plain_networks_weights_give_the_same_bits_in_one_with_controls(frames: int) -> None:
    plain, given = network(PLAIN), network(trained=False)
    missing = given.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(name.startswith("condition_stream.") for name in missing)
    x_BCT, vocal_BCT = latents(frames=frames)
    t_B = torch.tensor([300])
    expected = plain(x_BCT, t_B, plain.encode_vocal(vocal_BCT))
    for beside in (None, conditions(frames)):
        assert torch.equal(given(x_BCT, t_B, given.encode_vocal(vocal_BCT, conditions=beside)), expected)


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_alone_changes_the_band_and_nothing_given_is_zeros(name: str) -> None:
    unet = network()
    x_BCT, vocal_BCT = latents()
    t_B = torch.tensor([300])
    nothing = unet(x_BCT, t_B, unet.encode_vocal(vocal_BCT))
    mask = {f"{control if control != 'style' else 'style'}_B": torch.tensor([control == name]) for control in CONTROLS}
    alone = unet(x_BCT, t_B, unet.encode_vocal(vocal_BCT, conditions=conditions().kept(**mask)))
    assert (alone - nothing).abs().max() > 1e-3
    zeros = unet(x_BCT, t_B, unet.encode_vocal(vocal_BCT, conditions=Conditions.none(1, 24)))
    assert torch.equal(zeros, nothing)


def test_every_parameter_of_the_conditions_learns() -> None:
    unet = network().requires_grad_(True)
    x_BCT, vocal_BCT = latents()
    unet(x_BCT, torch.tensor([300]), unet.encode_vocal(vocal_BCT, conditions=conditions())).square().mean().backward()
    assert unet.condition_stream is not None
    assert [name for name, value in unet.condition_stream.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("preset", [paper, small])
def test_conditions_take_three_percent_of_the_parameters_at_most(preset: object) -> None:
    config = preset()  # type: ignore[operator]
    with torch.device("meta"):
        plain = count_parameters(AccompanimentUNet(config))
        more = count_parameters(AccompanimentUNet(with_controls(config, styles=tuple(f"style {index}" for index in range(20)))))
    assert plain < more <= 1.03 * plain


def test_both_evaluators_take_conditions_and_padding_does_not_reach_a_frame() -> None:
    unet = network()
    x_BCT, vocal_BCT = latents(frames=21)
    beside = conditions(21)
    answers = []
    for evaluator in (ThreadedEvaluator(unet), BatchedEvaluator(unet, slots=2, lengths=(32,))):
        given, null = evaluator.encode([vocal_BCT, None], 21, [beside, None])
        answers.append(evaluator([Evaluation(x_CT=x_BCT[0], t=300, vocal=features) for features in (given, null)]))
        evaluator.close()
    for threaded, batched in zip(*answers, strict=True):
        assert (threaded - batched).abs().max() < 1e-4
    assert (answers[0][0] - answers[0][1]).abs().max() > 1e-3


def test_what_does_not_belong_together_is_refused() -> None:
    plain, given = network(PLAIN), network()
    _, vocal_BCT = latents()
    with pytest.raises(ModelError, match="knows no controls"):
        plain.encode_vocal(vocal_BCT, conditions=conditions())
    with pytest.raises(ModelError, match="20 frames beside a vocal of 24"):
        given.encode_vocal(vocal_BCT, conditions=conditions(20))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"controls": ("tempo",)}, "tempo"),
        ({"controls": ("beats", "chords")}, "in the order"),
        ({"controls": ("style",)}, "styles"),
        ({"styles": ("rock",)}, "styles"),
        ({"controls": ("style",), "styles": ("rock", "rock")}, "distinct"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), **changes)  # type: ignore[arg-type]
