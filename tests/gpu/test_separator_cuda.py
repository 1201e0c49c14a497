"""Separation on a CUDA device: float32 as on a processor, half precision near it, batches that follow memory."""

import numpy as np
import pytest
import torch

from model.separation.load import SeparatedStems, Separator, SeparatorConfig, SeparatorIdentity
from tests.demucs_parts import SEGMENT, bag_of, tiny_convolutional, tiny_network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CHUNK = int(SEGMENT * 44_100)
SONG = (0.1 * np.random.default_rng(0).normal(size=(2, 5 * CHUNK + 99))).astype(np.float32)


def separator(*, device: str = "cuda", half: bool = False, batch_chunks: int | None = None) -> Separator:
    bag = bag_of(tiny_network(1), tiny_network(2), weights=[[1.0, 3.0, 0.5, 0.25], [2.0, 1.0, 1.5, 0.75]])
    identity = SeparatorIdentity(id="tiny", weights_sha256="0")
    return Separator(bag, identity, device=device, half=half, config=SeparatorConfig(batch_chunks=batch_chunks))


def snr_db(exact: SeparatedStems, other: SeparatedStems) -> float:
    """The worse of the two stems."""
    pairs = ((exact.vocal_CN, other.vocal_CN), (exact.accompaniment_CN, other.accompaniment_CN))
    return min(float(10 * np.log10((one.astype(np.float64) ** 2).mean() / ((one - two) ** 2).mean())) for one, two in pairs)


def test_float32_is_that_of_a_processor() -> None:
    on_cpu, on_cuda = (separator(device=device).separate([SONG])[0] for device in ("cpu", "cuda"))
    assert np.abs(on_cpu.vocal_CN - on_cuda.vocal_CN).max() < 1e-4
    assert np.abs(on_cpu.accompaniment_CN - on_cuda.accompaniment_CN).max() < 1e-4


def test_half_precision_is_near_float32_and_repeats() -> None:
    exact, half = separator().separate([SONG])[0], separator(half=True)
    first, second = half.separate([SONG])[0], half.separate([SONG])[0]
    assert 40 < snr_db(exact, first) < 120, "near, and not float32 after all"
    assert np.array_equal(first.vocal_CN, second.vocal_CN)


def test_what_overflows_half_precision_is_computed_again() -> None:
    network = tiny_network(1)
    forward, calls = network.forward, []

    def overflowing(mix_BCN: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_autocast_enabled("cuda"))
        made = forward(mix_BCN)
        return made / 0 if calls[-1] else made

    network.forward = overflowing
    identity = SeparatorIdentity(id="tiny", weights_sha256="0")
    found = Separator(bag_of(network), identity, device="cuda", half=True).separate([SONG[:, :CHUNK]])[0]
    assert calls[:2] == [True, False]
    assert np.isfinite(found.vocal_CN).all()


def test_the_generation_before_in_half_precision() -> None:
    identity = SeparatorIdentity(id="tiny", weights_sha256="0")
    exact, half = (
        Separator(bag_of(tiny_convolutional(1)), identity, device="cuda", half=half).separate([SONG])[0] for half in (False, True)
    )
    assert snr_db(exact, half) > 40


def test_the_batch_is_what_fits() -> None:
    found = separator()
    found.separate([SONG])  # libraries keep a workspace from their first call on
    assert found.batch_chunks == 16
    before = torch.cuda.memory_allocated()
    stems = found.separate([SONG])[0]
    assert torch.cuda.memory_allocated() == before, "songs and stems lie in host memory"
    alone = separator(batch_chunks=1).separate([SONG])[0]
    assert np.abs(stems.vocal_CN - alone.vocal_CN).max() < 1e-5
