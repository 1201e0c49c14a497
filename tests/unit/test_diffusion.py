"""The schedule, the velocity target and its loss; ten golden training steps."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra.dataset.format import read_latents, read_manifest
from infra.storage.place import Place
from model.diffusion.objective import DiffusionLossConfig, Schedule, velocity_loss
from model.errors import ModelError
from model.network.unet import AccompanimentUNet, UNetConfig
from tests.tiny_latents import write_latents
from training.config import TrainConfig
from training.data.batches import Batches, statistics_of
from training.data.segments import InMemory
from training.run.loop import batch_loss

SCHEDULE = Schedule()
EVERY_STEP = torch.arange(800)
GOLDEN = Path(__file__).with_name("golden_losses.json")


def test_schedule_is_the_cosine_of_nichol_and_dhariwal() -> None:
    def f(t: float) -> float:
        return math.cos((t / 800 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 1, 100, 400, 700, 798):
        assert float(SCHEDULE.alpha_bar[t]) == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert float(SCHEDULE.beta.max()) == 0.999
    assert float(SCHEDULE.alpha_bar[-1]) == pytest.approx(4e-9, rel=0.1)
    assert float(SCHEDULE.snr[0]) == pytest.approx(1.9e4, rel=0.05)
    assert SCHEDULE.alpha_bar.dtype == torch.float64


def test_inversion_is_exact_at_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(800, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    x = SCHEDULE.add_noise(clean, noise, EVERY_STEP)
    clean_again, noise_again = SCHEDULE.invert_velocity(x, SCHEDULE.velocity(clean, noise, EVERY_STEP), EVERY_STEP)
    assert float((clean_again - clean).abs().max()) < 1e-14
    assert float((noise_again - noise).abs().max()) < 1e-14


def test_weights_are_min_snr_for_velocity() -> None:
    snr = SCHEDULE.snr
    weights = DiffusionLossConfig().weights(SCHEDULE, EVERY_STEP)
    torch.testing.assert_close(weights, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    assert float(weights.max()) <= 5 / 6 + 1e-12
    assert bool((DiffusionLossConfig(weighting="uniform").weights(SCHEDULE, EVERY_STEP) == 1).all())


def perfect(clean: Tensor) -> tuple[Tensor, Tensor]:
    return clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))


def test_loss_of_a_perfect_denoiser_is_zero_and_of_none_is_the_weight() -> None:
    clean, noise = perfect(torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(4)))
    t_B = torch.arange(16) * 50
    exact = velocity_loss(lambda _, t: SCHEDULE.velocity(clean, noise, t), SCHEDULE, clean, noise, t_B)
    assert float(exact.loss) < 1e-12
    silent = velocity_loss(lambda x, _: torch.zeros_like(x), SCHEDULE, clean, noise, t_B)
    torch.testing.assert_close(silent.mse_B, torch.ones(16), rtol=0.1, atol=0)  # v of unit data and noise has unit variance
    torch.testing.assert_close(silent.per_sample_B, silent.mse_B * DiffusionLossConfig().weights(SCHEDULE, t_B).float())
    assert float(silent.loss) == pytest.approx(float(silent.per_sample_B.mean()))


def test_loss_counts_valid_frames_only() -> None:
    clean, noise = perfect(torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(4)))
    t_B, valid_BT = torch.tensor([10, 500]), torch.arange(10)[None] < torch.tensor([[6], [10]])

    def denoiser(x: Tensor, _: Tensor) -> Tensor:
        return torch.where(valid_BT[:, None], 0.3 * x, torch.inf)

    loss = velocity_loss(denoiser, SCHEDULE, clean, noise, t_B, valid_BT)
    alone = velocity_loss(lambda x, _: 0.3 * x, SCHEDULE, clean[:1, :, :6], noise[:1, :, :6], t_B[:1])
    assert float(loss.mse_B[0]) == pytest.approx(float(alone.mse_B[0]), rel=1e-6)
    assert math.isfinite(float(loss.loss))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionLossConfig(weighting="snr"), "weighting='snr'"),
        (lambda: DiffusionLossConfig(snr_cap=0), "snr_cap=0"),
        (lambda: Schedule(steps=1), "steps=1"),
    ],
)
def test_configs_refuse_what_cannot_be(make: type, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()


def golden_losses(folder: Path) -> list[float]:
    """Ten steps of AdamW on a tiny network, as training draws its batches and takes their loss."""
    place = Place(write_latents(folder))
    config = TrainConfig(data=place.uri, out="unused", preset="small", workers=0, batch_size=4, crop_frames=56, precision="float32")
    batches = Batches(
        InMemory(read_latents(place, "train"), seed=0), statistics_of(read_manifest(place)), seed=0, batch_size=4, micro_batch=4,
        crop_frames=56, timesteps=SCHEDULE.steps, condition_dropout=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = AccompanimentUNet(UNetConfig(channels=(16, 32, 48), vocal_blocks=(1, 1, 1), heads=2, head_channels=16, time_channels=32))
    optimiser = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    losses = []
    for step in range(10):
        (batch,) = batches.at(step)
        loss = batch_loss(config, unet, SCHEDULE, batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_ten_golden_steps(tmp_path: Path) -> None:
    """Float32 sums differ in order between CPUs, and ten steps amplify that: 1e-3 relative holds across them, 1e-6 on one."""
    assert golden_losses(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-3)
