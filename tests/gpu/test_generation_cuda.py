"""Inference on a CUDA device: close to the CPU, the same bits whatever is beside it, with and without graphs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.benchmarks.model.subject import random_accompanist, sung
from model.accompany import GenerationConfig, Request
from model.inference.network_runner import BatchedEvaluator, Evaluation, ThreadedEvaluator
from model.network.unet import AccompanimentUNet, paper

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).resolve().parents[2]
QUICK = GenerationConfig(steps=4, seed=5)


@pytest.fixture(scope="module")
def unet() -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(paper())
    torch.nn.init.normal_(unet.output.weight, std=0.02)
    return unet.eval().requires_grad_(False)


def latent(seed: int, frames: int) -> Tensor:
    return torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(seed))


def evaluate(evaluator: ThreadedEvaluator | BatchedEvaluator, frames: int, seeds: list[int]) -> list[Tensor]:
    features = evaluator.encode([latent(100 + seed, frames) for seed in seeds], frames)
    asked = [
        Evaluation(x_CT=latent(seed, frames)[0].to(evaluator.device), t=47 * seed, vocal=one)
        for seed, one in zip(seeds, features, strict=True)
    ]
    return [v_CT.cpu() for v_CT in evaluator(asked)]


@pytest.mark.parametrize("frames", [100, 1_024])
@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-3), (True, 0.05)])
@pytest.mark.parametrize("execution", ["eager", "graph"])
def test_an_evaluation_is_the_cpu_s(unet: AccompanimentUNet, frames: int, bfloat16: bool, tolerance: float, execution: str) -> None:
    """Relative to the deviation of v: 1e-3 in float32 (cuDNN may take TF32), 5e-2 in bfloat16."""
    wanted = evaluate(ThreadedEvaluator(unet), frames, [0, 7, 16])
    on_device = AccompanimentUNet(paper())
    on_device.load_state_dict(unet.state_dict())
    evaluator = BatchedEvaluator(on_device.cuda().eval(), 4, bfloat16=bfloat16, execution=execution)
    for one, other in zip(wanted, evaluate(evaluator, frames, [0, 7, 16]), strict=True):
        assert float((one - other).square().mean().sqrt() / one.std()) < tolerance


def test_the_same_bits_alone_and_in_any_slot(unet: AccompanimentUNet) -> None:
    on_device = AccompanimentUNet(paper())
    on_device.load_state_dict(unet.state_dict())
    evaluator = BatchedEvaluator(on_device.cuda().eval(), 16)
    together = evaluate(evaluator, 500, list(range(16)))
    backwards = evaluate(evaluator, 500, list(range(16))[::-1])[::-1]
    alone = [evaluate(evaluator, 500, [seed])[0] for seed in range(16)]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_request_has_the_same_bits_alone_in_a_batch_and_in_another_process(tmp_path: Path) -> None:
    accompanist = random_accompanist(device="cuda")
    requests = [Request(vocal_CN=sung(3 + 4 * index), config=replace(QUICK, seed=index)) for index in range(16)]
    made = accompanist.accompany_batch(requests)
    for index in (0, 11, 15):
        assert np.array_equal(accompanist.accompany(requests[index].vocal_CN, requests[index].config).audio_CN, made[index].audio_CN)
    program = (
        "import sys, numpy as np\n"
        "from infra.benchmarks.model.subject import random_accompanist, sung\n"
        "from model.accompany import GenerationConfig\n"
        "made = random_accompanist(device='cuda').accompany(sung(15.0), GenerationConfig(steps=4, seed=3))\n"
        "np.save(sys.argv[1], made.audio_CN)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "audio.npy")], check=True, cwd=ROOT, timeout=300)
    assert np.array_equal(made[3].audio_CN, np.load(tmp_path / "audio.npy"))


def test_a_stream_is_the_same_audio() -> None:
    accompanist = random_accompanist(device="cuda")
    vocal_CN = sung(120)
    assert np.array_equal(
        np.concatenate(list(accompanist.stream(vocal_CN, QUICK)), axis=1), accompanist.accompany(vocal_CN, QUICK).audio_CN
    )


def test_graphs_and_kernels_one_by_one_give_the_same_bits(unet: AccompanimentUNet) -> None:
    on_device = AccompanimentUNet(paper())
    on_device.load_state_dict(unet.state_dict())
    on_device.cuda().eval()
    found = [evaluate(BatchedEvaluator(on_device, 8, execution=execution), 300, [1, 2]) for execution in ("eager", "graph")]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_memory_does_not_grow_from_request_to_request() -> None:
    accompanist = random_accompanist(device="cuda")
    held = []
    for index in range(6):
        accompanist.accompany(sung(5.0 + 7 * index), QUICK)
        held.append(torch.cuda.memory_allocated())
    accompanist.accompany(sung(5.0), QUICK)
    assert torch.cuda.memory_allocated() <= max(held)
