"""The U-Net: its sizes, what padding and dropping do, how the vocal reaches every frame."""

import pytest
import torch
from torch import Tensor

from model.errors import ModelError
from model.network.unet import PRESETS, AccompanimentUNet, UNetConfig, count_parameters, paper, sized, small

TINY = UNetConfig(channels=(16, 32, 48), vocal_blocks=(1, 2, 1), heads=2, head_channels=16, time_channels=32)


def awake(config: UNetConfig = TINY) -> AccompanimentUNet:
    """A network whose output convolution and null condition are not zero, as after training."""
    torch.manual_seed(0)
    unet = AccompanimentUNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.1)
    torch.nn.init.normal_(unet.null_vocal_C)
    return unet


@pytest.fixture(scope="module")
def unet() -> AccompanimentUNet:
    return awake()


def latents(batch: int, frames: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 64, frames, generator=generator), torch.randn(batch, 64, frames, generator=generator)


def test_preset_paper_has_its_sizes() -> None:
    with torch.device("meta"):
        unet = AccompanimentUNet(paper())
        parameters = count_parameters(unet)
        features = unet.encode_vocal(torch.empty(1, 64, 1024))
    assert 14.5e6 <= parameters <= 15.5e6
    assert [tuple(film.shape[1:]) for film in features.films[:4]] == [(128, 1024), (256, 512), (512, 256), (1024, 128)]
    assert tuple(features.alignment.global_key_BHTD.shape) == (1, 8, 128, 64)


def test_preset_small_is_small() -> None:
    with torch.device("meta"):
        assert 1.8e6 <= count_parameters(AccompanimentUNet(small())) <= 2.3e6
    assert set(PRESETS) == {"paper", "small"}


def test_an_untrained_network_answers_zero() -> None:
    unet = AccompanimentUNet(TINY)
    x, vocal = latents(2, 20)
    assert not unet(x, torch.tensor([0, 799]), unet.encode_vocal(vocal)).any()


def test_every_parameter_learns() -> None:
    unet = awake().requires_grad_(True)
    x, vocal = latents(2, 24)
    features = unet.encode_vocal(vocal, drop_B=torch.tensor([True, False]))
    unet(x, torch.tensor([100, 400]), features).square().mean().backward()
    assert [name for name, value in unet.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 13, 16, 47, 63, 64])
def test_padding_changes_no_valid_frame(unet: AccompanimentUNet, frames: int) -> None:
    """Whatever lies in the padding; up to rounding, since sums run over other lengths."""
    x, vocal = latents(1, 64)
    t_B = torch.tensor([300])
    alone = unet(x[:, :, :frames], t_B, unet.encode_vocal(vocal[:, :, :frames]))
    valid_BT = torch.arange(64)[None] < frames
    x[:, :, frames:], vocal[:, :, frames:] = 1e3, -1e3
    padded = unet(x, t_B, unet.encode_vocal(vocal, valid_BT))
    torch.testing.assert_close(padded[:, :, :frames], alone, rtol=1e-4, atol=2e-5)
    assert not padded[:, :, frames:].any()


def test_a_batch_of_many_lengths_equals_each_alone(unet: AccompanimentUNet) -> None:
    x, vocal = latents(3, 40)
    lengths, t_B = (40, 21, 5), torch.tensor([0, 400, 799])
    valid_BT = torch.arange(40)[None] < torch.tensor(lengths)[:, None]
    together = unet(x, t_B, unet.encode_vocal(vocal, valid_BT))
    for row, frames in enumerate(lengths):
        one = slice(row, row + 1)
        alone = unet(x[one, :, :frames], t_B[one], unet.encode_vocal(vocal[one, :, :frames]))
        torch.testing.assert_close(together[one, :, :frames], alone, rtol=1e-4, atol=2e-5)


def test_drop_hides_the_vocal_of_its_sample_alone(unet: AccompanimentUNet) -> None:
    (x, vocal), (_, other) = latents(2, 24), latents(2, 24, seed=2)
    t_B, drop_B = torch.tensor([500, 500]), torch.tensor([True, False])
    first = unet(x, t_B, unet.encode_vocal(vocal, drop_B=drop_B))
    second = unet(x, t_B, unet.encode_vocal(other, drop_B=drop_B))
    assert torch.equal(first[0], second[0])
    assert float((first[1] - second[1]).abs().max()) > 1e-2
    kept = unet(x, t_B, unet.encode_vocal(vocal))
    torch.testing.assert_close(first[1], kept[1], rtol=1e-5, atol=1e-6)
    assert float((first[0] - kept[0]).abs().max()) > 1e-2


def test_the_vocal_reaches_its_own_frames_first(unet: AccompanimentUNet) -> None:
    """Modulation is frame by frame: a change in one vocal frame moves the output there more than elsewhere."""
    x, vocal = latents(1, 256)
    changed = vocal.clone()
    changed[:, :, 100] += 2
    t_B = torch.tensor([0])
    change_T = (unet(x, t_B, unet.encode_vocal(changed)) - unet(x, t_B, unet.encode_vocal(vocal))).norm(dim=1)[0]
    assert int(change_T.argmax()) in range(97, 104)
    assert float(change_T[97:104].mean()) > 10 * float(change_T[180:].mean())


def test_time_matters(unet: AccompanimentUNet) -> None:
    x, vocal = latents(1, 16)
    features = unet.encode_vocal(vocal)
    answers = [unet(x, torch.tensor([t]), features) for t in (0, 400, 799)]
    assert float((answers[0] - answers[1]).abs().max()) > 1e-3
    assert float((answers[1] - answers[2]).abs().max()) > 1e-3


def test_faults_are_named(unet: AccompanimentUNet) -> None:
    x, vocal = latents(1, 16)
    with pytest.raises(ModelError, match="x has 16 frames and the vocal 8"):
        unet(x, torch.tensor([0]), unet.encode_vocal(vocal[:, :, :8]))
    with pytest.raises(ModelError, match="3 channels"):
        unet.encode_vocal(torch.zeros(1, 3, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (16,)}, "two levels"),
        ({"channels": (16, 20, 48)}, "multiple of groups=8"),
        ({"vocal_blocks": (1, 1)}, "vocal_blocks"),
        ({"bottleneck_blocks": 0}, "bottleneck_blocks=0"),
        ({"time_channels": 3}, "time_channels=3"),
    ],
)
def test_config_refuses_what_cannot_be_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        UNetConfig(**{"channels": (16, 32, 48), "vocal_blocks": (1, 1, 1), **change})


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 7])
def test_a_network_of_any_depth_and_width_runs_on_any_length(depth: int) -> None:
    config = sized(small(), depth=depth, width=0.3)
    assert len(config.channels) == len(config.vocal_blocks) == depth
    assert all(wide % config.groups == 0 for wide in config.channels)
    network = AccompanimentUNet(config)
    latent_BCT = torch.randn(2, 64, 37)
    assert network(latent_BCT, torch.tensor([5, 700]), network.encode_vocal(latent_BCT)).shape == latent_BCT.shape


def test_sizes_are_those_asked_for() -> None:
    assert sized(paper()) == paper()
    assert sized(small(), depth=2).channels == (64, 96)
    assert sized(small(), depth=6).channels == (64, 96, 128, 144, 144, 144)
    assert sized(paper(), width=0.5).channels == (32, 64, 128, 256)
    assert sized(paper(), width=1e-6).channels == (8, 8, 8, 8)
    for changes, said in (({"depth": 1}, "2 to 7"), ({"depth": 8}, "2 to 7"), ({"width": -1.0}, "factor"), ({"width": 17.0}, "factor")):
        with pytest.raises(ModelError, match=said):
            sized(small(), **changes)
